"""Envoy's rate limit service: HTTP/2 and gRPC, written here."""

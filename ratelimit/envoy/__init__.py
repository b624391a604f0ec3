"""Envoy's rate limit service, version 3, in place of envoyproxy/ratelimit; HTTP/2 and gRPC are written here."""

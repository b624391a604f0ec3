"""`ratelimit serve`: the sidecar, from the command line."""

from ratelimit.cli.serve.command import serve

__all__ = ["serve"]

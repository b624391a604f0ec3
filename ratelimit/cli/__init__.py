"""The `ratelimit` command: try a check, look at a configuration, keep the table."""

from ratelimit.cli.app import app, main

__all__ = ["app", "main"]

"""The `ratelimit` command: try a check, look at a configuration, keep the table."""

from ratelimit.cli.app import app, main, run

__all__ = ["app", "main", "run"]

"""`ratelimit plan ...` and `ratelimit user ...`: who may do how much, kept in the table."""

from ratelimit.cli.directory.plan import app as plan_app
from ratelimit.cli.directory.user import app as user_app

__all__ = ["plan_app", "user_app"]

"""`ratelimit cost`: what a month comes to on AWS, by numbers or from life."""

from ratelimit.cli.cost.command import cost

__all__ = ["cost"]

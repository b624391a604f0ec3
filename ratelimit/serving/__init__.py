"""Runs a sidecar as a process of its own: sockets, workers, logs, signals, and leaving without cutting anybody off."""

from ratelimit.serving.address import Address
from ratelimit.serving.leaving import Leaving
from ratelimit.serving.serving import Serving, missing

__all__ = ["Address", "Leaving", "Serving", "missing"]

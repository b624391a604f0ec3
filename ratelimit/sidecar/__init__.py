"""One worker of `ratelimit serve`: the app, the admin listener beside it, and how both take a new configuration."""

from ratelimit.sidecar.make import sidecar
from ratelimit.sidecar.sidecar import ConfigSource, Sidecar
from ratelimit.wiring import admin_address

__all__ = ["ConfigSource", "Sidecar", "admin_address", "sidecar"]

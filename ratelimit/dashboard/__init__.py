"""The operator's page: what goes on, whom it concerns, and the buttons for it. `dashboard` mounts it in an ASGI app."""

from ratelimit.dashboard.app import dashboard
from ratelimit.dashboard.session import Viewer

__all__ = ["Viewer", "dashboard"]

"""The admin listener: health, metrics, the configuration and its reload, and who may ask for them."""

from ratelimit.http.admin.app import Board, admin_app
from ratelimit.http.admin.token import Token

__all__ = ["Board", "Token", "admin_app"]

"""Where the lines of a serving process go: access logs to stdout as they are, everything else to stderr."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final


class _NotOurs(logging.Filter):
    """An answer that broke off is said once, by the proxy, with the reason; how many were cut off, by the listener."""

    def filter(self, record: logging.LogRecord) -> bool:
        cut_off = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
        return not cut_off and not record.getMessage().startswith("ASGI callable returned without completing")


LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"not_ours": {"()": _NotOurs}},
    "formatters": {
        "plain": {"format": "%(message)s"},
        "told": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {
        "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "plain"},
        "err": {
            "class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "told",
            "filters": ["not_ours"],
        },
    },
    "loggers": {
        "ratelimit.access": {"handlers": ["out"], "level": "INFO", "propagate": False},
        "ratelimit": {"handlers": ["err"], "level": "INFO"},
        "uvicorn": {"handlers": ["err"], "level": "WARNING", "propagate": False},
    },
}  # fmt: skip

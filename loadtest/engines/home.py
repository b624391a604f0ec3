"""Where engines are kept that have to be fetched first: a folder that git ignores, or the user's own cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CHECKOUT: Final = Path(__file__).parents[2]


def _home() -> Path:
    if (_CHECKOUT / "pyproject.toml").exists():
        return _CHECKOUT / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ratelimit-dynamodb"


HOME: Final = _home()

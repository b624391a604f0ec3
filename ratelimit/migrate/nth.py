"""`Nth`: rows without a key that say the same are several uses, told apart by counting them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from ratelimit.migrate.convert import shown

_REMEMBERED: Final = 100_000


class Nth:
    """Holds for rows up to 100,000 apart, read in the same order in every run."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def of(self, row: Mapping[str, Any]) -> int:
        """How many that say the same came before."""
        digest = blake2b(shown(row).encode(errors="surrogatepass"), digest_size=16).digest()
        nth = self._seen.pop(digest, -1) + 1
        self._seen[digest] = nth
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return nth

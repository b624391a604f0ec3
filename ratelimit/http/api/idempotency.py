"""`IdempotencyCache`: what was answered to an `Idempotency-Key`: a repeated request spends nothing and reads the same.

Kept in this process: with several workers a repeat that reaches another one is decided anew. Route by the key, or run
one worker, where that matters. Only answers of success are kept; a request that failed may be tried again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Final

import msgspec

from ratelimit.clock import MINUTE, Clock
from ratelimit.http.api.operation import refused

KEPT_FOR: Final = 10 * MINUTE
MAX_ANSWERS: Final = 10_000
MAX_BYTES: Final = 32 * 1024 * 1024
MAX_KEY: Final = 255


class ApiAnswer(msgspec.Struct, frozen=True):
    """What goes out."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class _Kept(msgspec.Struct):
    digest: bytes
    expires: int
    task: asyncio.Task[ApiAnswer]
    size: int = 0
    """Bytes of the answer; 0 while there is none."""


class IdempotencyCache:
    """At most `MAX_ANSWERS` of `MAX_BYTES` in all, each for `KEPT_FOR`; of more, the oldest give way, counted in
    `evicted`."""

    def __init__(self, clock: Clock) -> None:
        self.evicted = 0
        self.replayed = 0
        self._clock = clock
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def answer(self, key: str, path: str, body: bytes, act: Callable[[], Awaitable[ApiAnswer]]) -> ApiAnswer:
        """Return what `act` answers, or has answered to this key. Raise `ProblemError` for a bad key, or another body.

        A repeat that comes while the first is under way waits for it. The first goes on if its client gives up.
        """
        if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
            raise refused(400, "Bad input", f"Idempotency-Key: expected 1 to {MAX_KEY} printable ASCII characters")
        self._expire()
        digest = blake2b(body, digest_size=16).digest()
        kept = self._kept.get((path, key))
        if kept is None:
            task = asyncio.ensure_future(act())
            self._keep((path, key), _Kept(digest, self._clock.now() + KEPT_FOR, task))
            return await asyncio.shield(task)
        if kept.digest != digest:
            raise refused(422, "The key is taken", "Idempotency-Key: was used for a different body; make a new one")
        answer = await asyncio.shield(kept.task)
        self.replayed += 1
        return msgspec.structs.replace(answer, headers=(*answer.headers, (b"idempotency-replayed", b"true")))

    def __len__(self) -> int:
        return len(self._kept)

    def _keep(self, place: tuple[str, str], kept: _Kept) -> None:
        self._kept[place] = kept

        def settle(task: asyncio.Task[ApiAnswer]) -> None:
            if self._kept.get(place) is not kept:
                return
            if task.cancelled() or task.exception() is not None or task.result().status >= 400:
                self._forget(place)
                return
            kept.size = len(task.result().body)
            self._bytes += kept.size
            self._make_room()

        kept.task.add_done_callback(settle)
        self._make_room()

    def _make_room(self) -> None:
        while len(self._kept) > MAX_ANSWERS or self._bytes > MAX_BYTES:
            self._forget(next(iter(self._kept)))
            self.evicted += 1

    def _expire(self) -> None:
        now = self._clock.now()
        while self._kept:
            place, oldest = next(iter(self._kept.items()))
            if now < oldest.expires and now >= oldest.expires - 2 * KEPT_FOR:
                return
            self._forget(place)

    def _forget(self, place: tuple[str, str]) -> None:
        self._bytes -= self._kept.pop(place).size

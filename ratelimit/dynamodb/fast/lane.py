"""`FastLane`: what is written all the time, without the general machinery, for a tenth of its price and less.

It does the ordinary only. Whatever is unusual, and certainly not executed, goes to aiobotocore for that one request
and is counted (`Stats.fallbacks`): so this lane never has to be complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

from msgspec.json import encode as to_json

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb.client import Connection
from ratelimit.dynamodb.fast.answer import applied, refused, written
from ratelimit.dynamodb.fast.credentials import Unsignable, Wallet
from ratelimit.dynamodb.fast.payload import Bodies
from ratelimit.dynamodb.fast.pool import Pool
from ratelimit.dynamodb.fast.route import Route, open_wire
from ratelimit.dynamodb.fast.signing import Signer
from ratelimit.dynamodb.fast.wire import Response
from ratelimit.dynamodb.faults import CAUGHT, explain
from ratelimit.dynamodb.lane import Answer, Lane, Written, constant
from ratelimit.dynamodb.schema import limit_pk
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.errors import AccessDenied, StoreMisconfigured, TableMismatch, TableNotFound
from ratelimit.names import Key
from ratelimit.store.write import Write

_API: Final = "DynamoDB_20120810"
_UNSIGNED: Final = {"accept-encoding": "identity", "user-agent": "ratelimit-dynamodb (fast lane)"}
_MIN_SKEW: Final = 60
"""Seconds. Amazon forgives some minutes; a second or two is the answer's own way."""


class _Operation:
    """One of DynamoDB's: how it is signed, and how its answer is read."""

    __slots__ = ("name", "read", "signer")

    def __init__(self, name: str, route: Route, read: Callable[[Response], Answer | Written]) -> None:
        self.name = name
        self.read = read
        target = f"{_API}.{name}"
        self.signer = Signer(host=route.host_header, region=route.region, target=target, unsigned=_UNSIGNED)


class FastLane:
    """See `Lane`. `slow` takes what this one does not."""

    def __init__(
        self,
        connection: Connection,
        route: Route,
        slow: Lane,
        settings: Settings,
        stats: Stats,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._place = connection.place
        self._slow = slow
        self._stats = stats
        self._clock = clock or SystemClock()
        self._skew = 0
        self._time = asyncio.get_running_loop().time
        self._wallet = Wallet(connection.credentials)
        self._bodies = Bodies(constant(settings))
        self._table = settings.table
        self._capacity = {name: value for name, value in constant(settings).items() if name != "TableName"}
        self._update = _Operation("UpdateItem", route, applied)
        self._batch = _Operation("BatchWriteItem", route, written)
        self.pool = Pool(
            partial(open_wire, route, connection.place, settings.connect_timeout),
            stats,
            size=settings.pool,
            patience=settings.connect_timeout,
            overdue=settings.read_timeout,
        )

    async def apply(self, key: Key, write: Write) -> Answer:
        """See `Lane.apply`."""
        answer = await self._ask(self._update, self._bodies.body(limit_pk(key), write))
        if type(answer) is Answer:
            return answer
        self._stats.fall_back(str(answer))
        return await self._slow.apply(key, write)

    async def write_batch(self, requests: Sequence[Mapping[str, Any]]) -> Written:
        """See `Lane.write_batch`."""
        answer = await self._ask(self._batch, to_json({"RequestItems": {self._table: requests}, **self._capacity}))
        if type(answer) is Written:
            return answer
        self._stats.fall_back(str(answer))
        return await self._slow.write_batch(requests)

    async def close(self) -> None:
        """See `Lane.close`."""
        await self._wallet.close()
        await self.pool.close()

    async def _ask(self, operation: _Operation, body: bytes, *, again: bool = False) -> Answer | Written | str:
        """The answer, or the reason to ask aiobotocore."""
        skew = self._skew
        try:
            secrets = self._wallet.at_hand or await self._wallet.secrets()
            wire = self.pool.take() or await self.pool.wait()
            now = self._time()
            try:
                request = operation.signer.request(body, secrets, self._clock.now() // SECOND + skew)
                response = await wire.ask(request, now)
            except BaseException:
                # Out of patience, or worse: an answer that still comes must not be the next one's.
                wire.end("cancelled")
                raise
            self.pool.release(wire, now)
            if response.status == 200:
                return operation.read(response)
            unusual = self._unusual(operation, response, skew, again=again)
        except Unsignable:
            return "credentials"
        except CAUGHT as error:
            explanation = explain(error, self._place)
            raise explanation from (None if isinstance(explanation, AccessDenied) else error)
        if unusual != "clock":
            return unusual
        # Once more by the server's clock: aiobotocore, which has none but ours, would be refused as well.
        self._stats.fall_back("clock")
        return await self._ask(operation, body, again=True)

    def _unusual(self, operation: _Operation, response: Response, skew: int, *, again: bool) -> Answer | str:
        """An answer after all, or the reason to ask in another way. Raises what aiobotocore would for all else."""
        if 300 <= response.status < 400:
            return "redirect"
        outcome = refused(response, operation.name)
        if isinstance(outcome, Answer):
            return outcome
        if again:
            return "denied"
        error = explain(outcome, self._place)
        if isinstance(error, AccessDenied):
            return "clock" if self._learn_skew(response, skew) else "denied"
        if isinstance(error, StoreMisconfigured) and not isinstance(error, TableNotFound | TableMismatch):
            return "unknown_error"
        raise outcome

    def _learn_skew(self, response: Response, skew: int) -> bool:
        """Whether the refusal of a request signed with this `skew` may be due to our clock, which is then taken to be
        as far off as the answer says."""
        try:
            theirs = int(parsedate_to_datetime(response.date.decode("latin-1")).timestamp())
        except ValueError:
            return False
        found = theirs - self._clock.now() // SECOND
        if abs(found - skew) < _MIN_SKEW:
            return False
        self._skew = found
        return True

"""`FastLane`: what is written all the time, without the general machinery, for a tenth of its price and less.

It does the ordinary only. Whatever is unusual, and certainly not executed, goes to aiobotocore for that one request
and is counted (`Stats.fallbacks`): so this lane never has to be complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from msgspec.json import encode as to_json

from ratelimit.clock import SECOND
from ratelimit.dynamodb.client import Connection
from ratelimit.dynamodb.fast.answer import applied, refused, written
from ratelimit.dynamodb.fast.credentials import Unsignable, Wallet
from ratelimit.dynamodb.fast.payload import Bodies
from ratelimit.dynamodb.fast.pool import Pool
from ratelimit.dynamodb.fast.route import Route, open_wire
from ratelimit.dynamodb.fast.signing import Signer
from ratelimit.dynamodb.fast.wire import Response
from ratelimit.dynamodb.faults import CAUGHT, explain, unsignable
from ratelimit.dynamodb.lane import Answer, Lane, Written, constant
from ratelimit.dynamodb.schema import limit_pk
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.transport import Stale, elapsed
from ratelimit.errors import AccessDenied, StoreMisconfigured, TableMismatch, TableNotFound
from ratelimit.names import Key
from ratelimit.store.write import Write

_API: Final = "DynamoDB_20120810"
_UNSIGNED: Final = {"accept-encoding": "identity", "user-agent": "ratelimit-dynamodb (fast lane)"}


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

    def __init__(self, connection: Connection, route: Route, slow: Lane, settings: Settings, stats: Stats) -> None:
        self._place = connection.place
        self._slow = slow
        self._stats = stats
        self._server_clock = connection.clock
        self._clock = connection.clock.clock
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

    async def _ask(self, operation: _Operation, body: bytes, after: str = "") -> Answer | Written | str:
        """The answer, or the reason to ask aiobotocore. `after` says why it is asked once more."""
        skew = self._server_clock.skew
        try:
            secrets = self._wallet.at_hand or await self._wallet.secrets()
            now = elapsed()
            wire = self.pool.take(now)
            if wire is None:
                wire = await self.pool.wait()
                now = elapsed()
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
            unusual = self._unusual(operation, response, skew, after)
        except Unsignable:
            raise unsignable(self._place) from None
        except CAUGHT as error:
            if after or not isinstance(error, Stale):
                explanation = explain(error, self._place)
                raise explanation from (None if isinstance(explanation, AccessDenied) else error)
            unusual = "stale"
        if unusual == "stale":
            self._stats.retries += 1
            self._stats.count_call(operation.name)
            self.pool.end_idle()
        elif unusual == "clock":
            self._stats.fall_back("clock")
        else:
            return unusual
        return await self._ask(operation, body, unusual)

    def _unusual(self, operation: _Operation, response: Response, skew: int, after: str) -> Answer | str:
        """An answer after all, or the reason to ask in another way. Raises what aiobotocore would for all else."""
        outcome = refused(response, operation.name)
        if isinstance(outcome, Answer):
            return outcome
        if after == "clock":
            return "denied"
        if response.status < 400:  # a redirect: aiobotocore would not follow it either
            raise outcome
        error = explain(outcome, self._place)
        if isinstance(error, AccessDenied):
            date = response.date.decode("latin-1")
            return "clock" if self._server_clock.learn(date, skew) else "denied"
        if isinstance(error, StoreMisconfigured) and not isinstance(error, TableNotFound | TableMismatch):
            return "unknown_error"
        raise outcome

"""Calls about one table: what they came to in `Stats`, and sent again where that cannot count twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from botocore.exceptions import ClientError

from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.errors import (
    CONDITION_FAILED,
    TRANSACTION_CANCELED,
    AnswerLost,
    StoreUnreachable,
    code_of,
    explained,
)
from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.retry import Backoff

T = TypeVar("T")
Errors: TypeAlias = tuple[type[StoreUnavailable], ...]

NOT_EXECUTED: Final[Errors] = (StoreThrottled, StoreUnreachable)
"""Nothing was written: safe to send again, whatever it was."""
HARMLESS: Final[Errors] = (*NOT_EXECUTED, AnswerLost)
"""For reads, and for whatever else may happen twice."""

BACKOFF: Final = Backoff(first_s=0.02, max_s=0.2)
# Two transactions on one item are in each other's way for the milliseconds that one takes.
TRANSACTION_BACKOFF: Final = Backoff(first_s=0.01, max_s=0.02)
TRANSACTION_ATTEMPTS: Final = 12

_READS: Final = ("GetItem", "BatchGetItem", "Query", "Scan")
_NAME_THE_TABLE_INSIDE: Final = ("BatchGetItem", "BatchWriteItem", "TransactWriteItems")
EXPECTED: Final = (CONDITION_FAILED, TRANSACTION_CANCELED)
"""What is an answer rather than an error: see `ConditionFailed`."""


@dataclass(slots=True)
class Stats:
    """What a store has asked of DynamoDB since it was made, for metrics and for tests that count the calls."""

    calls: Counter[str] = field(default_factory=Counter)
    """Requests sent or tried, retries included, by operation (`UpdateItem`)."""
    write_units: float = 0.0
    """Only with `consumed=True`, and without refused writes, for which DynamoDB does not report any."""
    read_units: float = 0.0
    retries: int = 0
    throttles: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    """Calls that the fast transport left to aiobotocore, by reason (`proxy`, `denied`); `clock` it settled itself."""
    connections: int = 0
    """Made by the fast transport."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Connections of the fast transport that ended, or never came about, by reason (`timeout`, `unreachable`)."""


class Retries:
    """Tries a call up to `attempts` times in all. `pause` waits, so many attempts having failed."""

    __slots__ = ("_attempts", "_pause", "_stats")

    def __init__(
        self, attempts: int, stats: Stats, *, pause: Callable[[int], Awaitable[object]] = BACKOFF.pause
    ) -> None:
        self._attempts = attempts
        self._stats = stats
        self._pause = pause

    async def run(
        self, operation: str, call: Callable[[], Awaitable[T]], *, on: Errors, attempts: int | None = None
    ) -> T:
        self._stats.calls[operation] += 1
        try:
            return await call()
        except StoreUnavailable as error:
            failed = error
        return await self.after(failed, operation, call, on=on, attempts=attempts)

    async def after(
        self,
        error: StoreUnavailable,
        operation: str,
        call: Callable[[], Awaitable[T]],
        *,
        on: Errors,
        attempts: int | None = None,
    ) -> T:
        """Do as `run` does, where the first attempt has been made and ended with this error."""
        max_attempts = attempts or self._attempts
        for attempt in range(1, max_attempts + 1):
            if isinstance(error, StoreThrottled):
                self._stats.throttles += 1
            if attempt == max_attempts or not isinstance(error, on):
                break
            self._stats.retries += 1
            await self._pause(attempt)
            self._stats.calls[operation] += 1
            try:
                return await call()
            except StoreUnavailable as again:
                error = again
        raise error


class ConditionFailed(Exception):
    """Nothing was written, for a condition did not hold; `response` is DynamoDB's answer."""

    def __init__(self, response: Mapping[str, Any]) -> None:
        self.response = response
        super().__init__(str(response.get("Error", {}).get("Code")))


class TableCalls:
    """The calls of one store on the client that `client` opens. All raise `StoreUnavailable`'s subclasses."""

    def __init__(
        self, client: Callable[[], Awaitable[Client]], settings: Settings, stats: Stats, retries: Retries
    ) -> None:
        self.client = client
        self.table = settings.table
        self.stats = stats
        self.retry = retries.run
        self._capacity = capacity(settings)

    async def run(self, operation: str, *, attempts: int | None = None, **request: Any) -> dict[str, Any]:
        return await self.retry(operation, lambda: self.send(operation, **request), on=HARMLESS, attempts=attempts)

    async def page(
        self, operation: str, *, start: Mapping[str, Any] | None = None, attempts: int | None = None, **request: Any
    ) -> tuple[list[Any], dict[str, Any] | None]:
        """Return the items from a key on, and the last key where there may be more."""
        if start is not None:
            request["ExclusiveStartKey"] = start
        answer = await self.listing(operation, attempts=attempts, **request)
        return answer["Items"], answer.get("LastEvaluatedKey") or None

    async def pages(self, operation: str, *, attempts: int | None = None, **request: Any) -> AsyncIterator[list[Any]]:
        start = None
        while True:
            items, start = await self.page(operation, start=start, attempts=attempts, **request)
            yield items
            if start is None:
                return

    async def listing(self, operation: str, *, attempts: int | None = None, **request: Any) -> dict[str, Any]:
        async def send() -> dict[str, Any]:
            answer = await self.send(operation, **request)
            if "Items" not in answer:
                raise AnswerLost(f"table {self.table!r} answered a {operation.lower()} without items")
            return answer

        return await self.retry(operation, send, on=HARMLESS, attempts=attempts)

    async def items(self, keys: Sequence[Mapping[str, Any]], *, consistent: bool) -> list[Any]:
        left = list(keys)
        found: list[Any] = []

        async def send() -> None:
            nonlocal left
            wanted = {"Keys": left, "ConsistentRead": consistent}
            answer = await self.send("BatchGetItem", RequestItems={self.table: wanted})
            if "Responses" not in answer:
                raise AnswerLost(f"table {self.table!r} answered a batch without responses")
            found.extend(answer["Responses"].get(self.table, ()))
            left = answer.get("UnprocessedKeys", {}).get(self.table, {}).get("Keys", [])
            if left:
                raise StoreThrottled(f"table {self.table!r} is throttled: {len(left)} items were not read")

        await self.retry("BatchGetItem", send, on=HARMLESS)
        return found

    async def once(self, operation: str, **request: Any) -> dict[str, Any]:
        self.stats.calls[operation] += 1
        return await self.send(operation, **request)

    async def send(self, operation: str, **request: Any) -> dict[str, Any]:
        """Send what `retry` counts. Raise `ConditionFailed` as well."""
        client = await self.client()
        count_fallback(client, self.stats)
        if operation not in _NAME_THE_TABLE_INSIDE:
            request["TableName"] = self.table
        with explained(client.place):
            try:
                answer = await client.call(operation, {**request, **self._capacity})
            except ClientError as error:
                if code_of(error) not in EXPECTED:
                    raise
                raise ConditionFailed(error.response) from None
        if operation in _READS:
            self.stats.read_units += consumed_units(answer)
        else:
            self.stats.write_units += consumed_units(answer)
        return answer


def count_fallback(client: Client, stats: Stats) -> None:
    if client.fallback:
        stats.fallbacks[client.fallback] += 1


def capacity(settings: Settings) -> dict[str, str]:
    return {"ReturnConsumedCapacity": "TOTAL"} if settings.consumed else {}


def consumed_units(answer: Mapping[str, Any]) -> float:
    """Return the consumed capacity in an answer; 0 where it was not asked for."""
    consumed = answer.get("ConsumedCapacity") or ()
    parts = [consumed] if isinstance(consumed, dict) else consumed
    return float(sum(part.get("CapacityUnits", 0.0) for part in parts))

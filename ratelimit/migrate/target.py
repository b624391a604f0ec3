"""`Target`: the table that everything goes to. What is there already is found out first, and left as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, TypeVar

from ratelimit.blocking import sleep
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.cursor import decode_cursor, encode_cursor
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import ConditionFailed, Retries, Stats, TableCalls
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.control import Control
from ratelimit.dynamodb.events import event_of
from ratelimit.dynamodb.schema import (
    EVENT_TYPE,
    ID_TYPE,
    IDENTITY_TYPE,
    LIMIT_TYPE,
    PLAN_TYPE,
    USER_TYPE,
    Item,
    event_pk,
    event_sk,
    item_key,
    limit_key,
    parse_event_sk,
)
from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.migrate.ledger import Ledger
from ratelimit.names import Key
from ratelimit.retry import STORE_BACKOFF, retry_store
from ratelimit.store import Record, Write
from ratelimit.store.base import MAX_EVENTS_PER_PUT, Position, batches, day_of, position_of
from ratelimit.store.directory import IdentityTaken, Plan, User, name_of
from ratelimit.usage.importing import put_events

# `Pace`: so many write units a second, and no more.

# A pause of the store is made up for, but only of this many microseconds: a table is not to be flooded afterwards.
_CATCH_UP: Final = SECOND // 2


class Pace:
    """Units are due one after the other, `rate` of them a second; None does not wait at all."""

    def __init__(self, rate: float | None, *, clock: Clock | None = None) -> None:
        if rate is not None and not 0 < rate <= 1_000_000:
            raise InvalidInput(f"--rate must be write units a second, above 0, not {rate!r}")
        self.rate = rate
        self._clock = clock or SystemClock()
        self._due = 0.0

    async def take(self, units: float) -> None:
        """Return when it is their turn."""
        if self.rate is None:
            return
        now = self._clock.now()
        turn = max(self._due, now - _CATCH_UP) if self._due else float(now)
        self._due = turn + units / self.rate * SECOND
        if turn > now:
            await sleep((turn - now) / SECOND)


T = TypeVar("T")
R = TypeVar("R")
Outcome: TypeAlias = Literal["written", "there", "kept"]

_IN_FLIGHT: Final = 8
LOOKED_AT: Final = 200
_OURS: Final = (LIMIT_TYPE, EVENT_TYPE, ID_TYPE, USER_TYPE, PLAN_TYPE, IDENTITY_TYPE)
EVENT_UNITS: Final = 1
ENTRY_UNITS: Final = 3
"""A transaction counts double, and the index has the item once more."""
IDENTITY_UNITS: Final = 2
COUNTER_UNITS: Final = 1


class TableProbe(NamedTuple):
    """What a first look at the table saw."""

    empty: bool
    foreign: str
    """An item that is not this project's; empty where none was seen."""

    @classmethod
    async def at(cls, raw: RawTable) -> TableProbe:
        """Look at the first items there are. Raises `TableNotFound`, `AccessDenied`, ..."""
        items, _ = await raw.scan(limit=LOOKED_AT)
        foreign = (f"{item['PK']['S']} / {item['SK']['S']}" for item in items if is_foreign(item))
        return cls(not items, next(foreign, ""))


class IdentityConflict(NamedTuple):
    """A user who cannot be written: another one has the same e-mail."""

    reason: str


class Target:
    """On an open store. Every method may raise `StoreUnavailable`, after having tried for some ten seconds."""

    def __init__(
        self,
        store: DynamoDBStore,
        raw: RawTable,
        pace: Pace,
        *,
        ledger: Ledger | None = None,
        timelines: Collection[str] = (),
    ) -> None:
        self.store = store
        self._raw = raw
        self._pace = pace
        self._ledger = ledger
        self._timelines = timelines
        self._turns = asyncio.Semaphore(_IN_FLIGHT)

    async def put_events(self, events: Iterable[UsageEvent]) -> list[Outcome]:
        """Put those that are not there yet, each once, and return what became of them.

        One that is there is never changed: `kept` where it says something else than the source does.
        """
        by_key = {(event_pk(one.user, day_of(one.at_ms)), event_sk(position_of(one))): one for one in events}
        there = await retry_store(lambda: self.store.events.items(list(by_key), consistent=False))
        fresh = [event for key, event in by_key.items() if key not in there]
        if self._ledger is not None:
            self._ledger.note_events(fresh)
        await self.each([*batches(fresh, MAX_EVENTS_PER_PUT)], self._put_batch)
        return [_outcome_of(event, there.get(key)) for key, event in by_key.items()]

    async def put_entries(self, entries: Sequence[User | Plan], *, now: int) -> list[Outcome | IdentityConflict]:
        """Put entries, and return what became of each: one that is there is never changed."""

        async def put(entry: User | Plan) -> Outcome | IdentityConflict:
            try:
                return await self._put_entry(entry, now)
            except IdentityTaken as error:
                return IdentityConflict(str(error))

        return await self.each(entries, put)

    async def apply(self, key: Key, write: Write, *, now: int) -> bool:
        """Return whether its conditions held. Sent once more only where it was surely not executed."""
        await self._pace.take(COUNTER_UNITS)
        return (await self.store.apply(key, write, now=now)).applied

    async def delete_record(self, key: Key, record: Record, *, absent: Sequence[str]) -> bool:
        """Delete what is still this record, in which nothing of what is absent has come. Return whether it was."""
        await self._pace.take(COUNTER_UNITS)
        rest = [name for name in absent if name not in record]
        return await self._raw.delete_if(limit_key(key), equal=record, absent=rest)

    async def delete_events(self, some: Sequence[tuple[str, Position]]) -> None:
        """Delete events. Harmless when repeated."""
        keys = [(event_pk(user, day_of(position.at)), event_sk(position)) for user, position in some]

        async def delete(batch: Sequence[tuple[str, str]]) -> None:
            await self._pace.take(EVENT_UNITS * len(batch))
            await retry_store(lambda: self.store.events.delete([item_key(*key) for key in batch]))

        await self.each([*batches(keys, MAX_EVENTS_PER_PUT)], delete)

    async def delete_entry(self, kind: type[User | Plan], name: str, *, version: int, now: int) -> bool:
        """Delete an entry. Return False where it was changed since this version; True also where it is gone already."""
        directory = self.store.directory
        found = await retry_store(lambda: directory.read(kind, name))
        if found is None:
            return True
        if found.version != version:
            return False
        await self._pace.take(entry_units(found))
        return await retry_store(lambda: directory.replace(found, None, now=now))

    async def record(self, key: Key) -> Record:
        return await retry_store(lambda: self.store.read(key))

    async def pause(self, attempt: int = 1) -> None:
        await STORE_BACKOFF.pause(attempt)

    async def _put_batch(self, events: Sequence[UsageEvent]) -> None:
        await self._pace.take(sum(map(self._units, events)))
        await put_events(self.store.events, events, self._timelines)

    def _units(self, event: UsageEvent) -> int:
        """Return those of an event: a note of an id that was given takes one more, and so does the second index."""
        return EVENT_UNITS * (1 + (not event.placed_by_id) + (event.action in self._timelines))

    async def _put_entry(self, entry: User | Plan, now: int) -> Outcome:
        directory = self.store.directory
        while True:
            found = await retry_store(lambda: directory.read(type(entry), name_of(entry)))
            if found is not None:
                return "there" if found == entry else "kept"
            await self._pace.take(entry_units(entry))
            if self._ledger is not None:
                self._ledger.note_entry(entry, version=now)
            # What is noted and not written is nobody's: a version that an entry does not have is not taken back.
            if await retry_store(lambda: directory.replace(None, entry, now=now)):
                return "written"

    async def each(self, items: Sequence[T], work: Callable[[T], Awaitable[R]]) -> list[R]:
        """Do the work on each of them, some at a time."""

        async def turn(item: T) -> R:
            async with self._turns:
                return await work(item)

        results = await asyncio.gather(*map(turn, items), return_exceptions=True)
        for result in results:  # none of them is left running behind the error of another
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]


def _outcome_of(event: UsageEvent, item: Item | None) -> Outcome:
    if item is None:
        return "written"
    try:
        found = event_of(event.user, item)
    except (LookupError, TypeError, ValueError, ArithmeticError):  # damaged, or nobody's: it is not this event
        return "kept"
    return "there" if found == event else "kept"


def entry_units(entry: User | Plan) -> int:
    """Return the write units that a new one takes."""
    return ENTRY_UNITS + IDENTITY_UNITS * (len(entry.identities) if isinstance(entry, User) else 0)


def kind_of(pk: str, sk: str) -> str:
    """Return a key without what is in it, for people: `USER#… / CONV`."""
    return f"{pk.partition('#')[0]}#… / {sk.partition('#')[0]}"


def is_foreign(item: Item) -> bool:
    """Return whether an item is another project's, or of an earlier layout."""
    kind = item.get("tp", {}).get("S")
    if kind == EVENT_TYPE:  # the earlier layout has the same mark, and other keys
        position = parse_event_sk(item["SK"]["S"])
        return position is None
    return kind not in _OURS


class RawTable:
    """Reads, save for the one that deletes. Every method raises `StoreUnavailable`'s subclasses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._retries = Retries(max(5, settings.attempts), stats := Stats())
        self._calls = TableCalls(self._connected, settings, stats, self._retries)
        self._client: Client | None = None

    async def open(self) -> None:
        """Open it; nothing is sent yet."""
        await self._connected()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def description(self) -> Mapping[str, Any]:
        """Return what `DescribeTable` says."""
        return await Control(await self._connected(), self._retries).describe()

    async def scan(self, *, limit: int, after: str | None = None) -> tuple[Sequence[Item], str | None]:
        """Return some items in the table's own order, and where the rest begins. The keys are `PK` and `SK`."""
        start = None if after is None else item_key(*decode_cursor(after, tuple[str, str]))
        items, last = await self._calls.page("Scan", start=start, Limit=limit, ConsistentRead=True)
        return items, encode_cursor((last["PK"]["S"], last["SK"]["S"])) if last else None

    async def delete_if(self, key: Item, *, equal: Mapping[str, int], absent: Sequence[str]) -> bool:
        """Delete an item whose numbers are still these, and in which none of the others has come; whether it was so."""
        names = {f"#n{at}": name for at, name in enumerate((*equal, *absent))}
        still = [f"#n{at} = :v{at}" for at in range(len(equal))]
        still += [f"attribute_not_exists(#n{at})" for at in range(len(equal), len(names))]
        values = {f":v{at}": {"N": str(value)} for at, value in enumerate(equal.values())}
        try:
            await self._calls.once(
                "DeleteItem", Key=key, ConditionExpression=" AND ".join(still),
                ExpressionAttributeNames=names, ExpressionAttributeValues=values,
            )  # fmt: skip
        except ConditionFailed:
            return False
        return True

    async def _connected(self) -> Client:
        if self._client is None:
            self._client = await connect(self.settings)
        return self._client

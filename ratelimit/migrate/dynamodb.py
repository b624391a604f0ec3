"""Sources that are DynamoDB tables: `TableSource`, another table of this project, whose counters are taken as they are,
with all windows and buckets; and `LegacySource`, the single-table layout that came before it, in both variants of its
usage keys.

    PK = USR#<user>#ULOG#<yyyymmdd>      SK = ULOG#<epoch seconds>#<action>   dat = {act, pid?, plat?, pnum?, met?}
    PK = EMAIL#<e-mail>#ULOG#<yyyymmdd>  the same, where a user was known by e-mail
    PK = USR#<user>                      SK = META      dat = {em, nm, pic, gid, plan, act, stf, pln? {mhd, med}}
    PK = PLAN#<plan>                     SK = META      dat = {nm, dsc, mh, me, mp, cva, crp, act}

And the one that tutorials have, with the relational names, as attributes or in a map `dat`, `data`:

    PK = USER#<user>   SK = USAGE#<time>, USAGE#<time>#<action>, USAGE#<action>#<time>; with `count` it is a sum
    PK = USER#<user>   SK = META, METADATA, PROFILE, INFO, or the same as PK       PK = PLAN#<plan>   SK likewise

Nothing was escaped there: a `#` in a user's id is part of it. Two events of one action in one second overwrote each
other; the seconds in which that may have happened are counted, and cannot be restored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ratelimit.clock import DAY, Clock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.schema import Attribute, Item
from ratelimit.errors import InvalidCursor, InvalidInput, TableMismatch, UnknownAction
from ratelimit.event import MAX_FUTURE_MS, RETENTION_DAYS, UsageEvent
from ratelimit.migrate import convert
from ratelimit.migrate.convert import Converter, derived_id, shown
from ratelimit.migrate.rows import ENTITIES, Batch, Counted, Entity, Entry, Expired, Source, SourceRow, rows_of
from ratelimit.migrate.target import LOOKED_AT, RawTable, is_foreign, kind_of
from ratelimit.names import Key
from ratelimit.retry import retry_store
from ratelimit.store import Record
from ratelimit.store.directory import Plan, User, name_of

_SHOWN: Final = 20
_RETENTION_MS: Final = RETENTION_DAYS * DAY // 1000


class TableSource(Source):
    """A batch is a page of the table, of whatever size."""

    keyed = True
    totals = True

    def __init__(self, store: DynamoDBStore, raw: RawTable, *, clock: Clock) -> None:
        self.name = f"dynamodb://{store.settings.table}"
        self._store = store
        self._raw = raw
        self._clock = clock

    async def open(self) -> None:
        """Raise `TableMismatch` for a table in which nothing is this project's."""
        await self._store.open()
        await self._raw.open()
        items, _ = await retry_store(lambda: self._raw.scan(limit=LOOKED_AT))
        if items and all(map(is_foreign, items)):
            kinds = Counter(kind_of(item["PK"]["S"], item["SK"]["S"]) for item in items)
            has = ", ".join(f"{count} items {kind}" for kind, count in kinds.most_common(_SHOWN))
            raise TableMismatch(
                f"nothing in {self.name} is this project's (among the first: {has}); where it has an earlier layout, "
                "write earlier:// instead of dynamodb://"
            )

    async def entities(self) -> Sequence[Entity]:
        return ENTITIES

    async def size(self, entity: Entity) -> int | None:
        """Return None: nobody counts what is in a table."""
        return None

    async def _batches(self, entity: Entity, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        done, cursor = _place(after)
        while True:
            entries, cursor = await self._page(entity, cursor)
            done += len(entries)
            rows = [SourceRow(_where(entry), entry) for entry in entries]
            yield Batch(rows, f"{done}:{cursor or ''}", done)
            if cursor is None:
                return

    async def notes(self) -> Sequence[str]:
        return ["counters are brought over once: what the other table counts afterwards takes a mirror"]

    async def close(self) -> None:
        await self._raw.close()
        await self._store.close()

    async def _fresh(self, key: Key) -> Record:
        return await retry_store(lambda: self._store.read(key))

    async def _page(self, entity: Entity, cursor: str | None) -> tuple[Sequence[Entry], str | None]:
        store = self._store
        try:
            if entity in ("plans", "users"):
                kind: type[Plan | User] = Plan if entity == "plans" else User
                page = await retry_store(lambda: store.directory.page(kind, limit=1000, cursor=cursor))
                return page.entries, page.cursor
            if entity == "events":
                now = self._clock.now() // 1000
                since, until = now - _RETENTION_MS, now + MAX_FUTURE_MS
                events = await retry_store(lambda: store.scans.events(since=since, until=until, cursor=cursor))
                return events.entries, events.cursor
            records = await retry_store(lambda: store.scans.records(cursor=cursor))
            return [Counted(key, record, partial(self._fresh, key)) for key, record in records.entries], records.cursor
        except InvalidCursor:
            raise InvalidInput("the checkpoint does not fit the source any more; begin anew with --restart") from None


def _place(after: str | None) -> tuple[int, str | None]:
    done, _, cursor = (after or "0:").partition(":")
    return int(done), cursor or None


def _where(entry: Entry) -> str:
    if isinstance(entry, Plan | User):
        return name_of(entry)
    return " ".join(entry.key) if isinstance(entry, Counted) else f"event {entry.id} of {entry.user}"


# Items from DynamoDB's wire form to plain values: whole numbers as `int`, others as `float`.


def unmarshal(item: Item) -> dict[str, Any]:
    """Return all attributes by name."""
    return {name: _value(attribute) for name, attribute in item.items()}


def _value(attribute: Attribute) -> Any:
    ((kind, value),) = attribute.items()
    if kind == "N":
        return _number(value)
    if kind == "M":
        return unmarshal(value)
    if kind == "L":
        return [_value(each) for each in value]
    if kind == "NS":
        return [_number(each) for each in value]
    return None if kind == "NULL" else value


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return int(number) if number.is_integer() else number


_USAGE: Final = "#ULOG#"
_USER: Final = "USR#"
_EMAIL: Final = "EMAIL#"
_PLAN: Final = "PLAN#"
_META: Final = "META"
_FLAT_USER: Final = "USER#"
_FLAT_USAGE: Final = "USAGE#"
_FLAT_META: Final = ("META", "METADATA", "PROFILE", "INFO")
_MAPS: Final = ("dat", "data")
_HINT: Final = "hint"
_EXECUTION: Final = "execution"
# What a user had whose inline plan did not say.
_HINTS_A_DAY: Final = 5
_EXECUTIONS_A_DAY: Final = 10
_USER_FIELDS: Final = {"plan": "plan", "email": "em", "active": "act", "admin": "stf"}
_MOST_KINDS: Final = 20


class _LegacyPosition(NamedTuple):
    kind: Entity | None
    """None for what holds no usage."""
    name: str
    """The user or plan."""


class CollisionCounter(msgspec.Struct):
    """Counts the seconds in which events may have overwritten each other.

    Suspicious is a second beside another one of the same user and action, or with events of several actions. Items of a
    partition come in the order of time. All that it knows can be saved, as a pass may be broken off within a partition.
    """

    seconds: int = 0
    partition: str = ""
    last: dict[str, int] = {}
    """The last second of each action."""
    counted: list[int] = []
    """Of the last two seconds, those that are."""

    def saw(self, partition: str, action: str, second: int) -> None:
        if partition != self.partition:
            self.partition, self.last, self.counted = partition, {}, []
        self.counted = [each for each in self.counted if each >= second - 1]
        for other, before in self.last.items():
            if before == second or (other == action and before == second - 1):
                self._count(before)
                self._count(second)
        self.last[action] = second

    def _count(self, second: int) -> None:
        if second not in self.counted:
            self.counted.append(second)
            self.seconds += 1


class Stand(msgspec.Struct):
    """How far a pass has come, and what it has noted: the place of a batch."""

    done: int = 0
    cursor: str | None = None
    others: dict[str, int] = {}
    """Items that hold no usage, by their kind."""
    collisions: CollisionCounter = msgspec.field(default_factory=CollisionCounter)


class LegacySource(Source):
    """Reads the whole table once for each entity: one read unit for 4 KB of it.

    It is not keyed: one user may be there under both kinds of keys, with the same use.
    """

    def __init__(self, raw: RawTable, converter: Converter) -> None:
        self.name = f"earlier://{raw.settings.table}"
        self._raw = raw
        self._converter = converter
        self._events = Stand()
        self._items: int | None = None

    async def open(self) -> None:
        """Raise `TableMismatch` for a table that is keyed otherwise."""
        await self._raw.open()
        description = await retry_store(self._raw.description)
        keys = [key["AttributeName"] for key in description.get("KeySchema", ())]
        if sorted(keys) != ["PK", "SK"]:
            hint = "; a session table holds no usage" if {"sessionId", "opportunityId"} & set(keys) else ""
            raise TableMismatch(f"table {self._raw.settings.table!r} is keyed by {' and '.join(keys)}{hint}")
        self._items = description.get("ItemCount") or None

    async def entities(self) -> Sequence[Entity]:
        return ENTITIES

    async def size(self, entity: Entity) -> int | None:
        """Return the items of the whole table, as DynamoDB counted them some hours ago."""
        return self._items

    async def _batches(self, entity: Entity, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        stand = Stand() if after is None else msgspec.json.decode(after, type=Stand)
        if entity == "events":  # what is noted is noted in one pass only: the others read the same items
            self._events = stand
        while True:
            items, stand.cursor = await retry_store(lambda: self._raw.scan(limit=size, after=stand.cursor))
            stand.done += len(items)
            found = [self._read(entity, unmarshal(item)) for item in items]
            place = msgspec.json.encode(stand).decode()
            yield Batch([row for row in found if row is not None], place, stand.done)
            if stand.cursor is None:
                return

    async def notes(self) -> Sequence[str]:
        others, collisions = self._events.others, self._events.collisions
        notes = self._converter.notes()
        notes += [f"left alone, as they hold no usage: {count:,} items {kind}" for kind, count in others.items()]
        if collisions.seconds:
            notes.append(
                f"{collisions.seconds:,} seconds are suspicious: the user was so busy that a second event may have "
                "overwritten the first (one a second and action was kept there); such events cannot be restored"
            )
        return notes

    async def close(self) -> None:
        await self._raw.close()

    def _read(self, entity: Entity, item: Mapping[str, Any]) -> SourceRow | None:
        pk, sk = str(item.get("PK")), str(item.get("SK"))
        kind, name = _place_of(pk, sk)
        if kind is None and entity == "events":
            self._note_other(pk, sk)
        if kind != rows_of(entity):
            return None
        where = f"{pk} / {sk}"
        try:
            entry = self._entry(kind, name, item)
        except (InvalidInput, UnknownAction) as error:
            return SourceRow(where, None, str(error), shown(item))
        if entity == "events" and isinstance(entry, UsageEvent | Expired):
            self._events.collisions.saw(pk, entry.action, entry.at_ms // 1000)
        return SourceRow(where, entry)

    def _entry(self, kind: Entity, name: str, item: Mapping[str, Any]) -> Entry:
        data = item.get("dat")
        is_flat = str(item["PK"]).startswith(_FLAT_USER) or (kind == "plans" and not {"mh", "me"} & set(data or ()))
        if is_flat:
            return self._flat(kind, name, item)
        if not isinstance(data, dict):
            raise InvalidInput("dat is missing")
        if kind == "plans":
            return Plan(name, self._limits(data.get("mh"), data.get("me")))
        return self._user(name, data) if kind == "users" else self._event(name, item, data)

    def _flat(self, kind: Entity, name: str, item: Mapping[str, Any]) -> Entry:
        """Read an item of the layout with the relational names. What it does not say, its key may."""
        row: dict[str, Any] = {}
        for each in _MAPS:
            row |= item[each] if isinstance(item.get(each), dict) else {}
        row |= {key: value for key, value in item.items() if key not in ("PK", "SK", *_MAPS)}
        columns = self._converter.mapping.columns(kind)

        def fill(path: str, value: object) -> None:
            if not any(row.get(column) not in (None, "") for column in columns[path]):
                row[columns[path][0]] = value

        if kind != "events":
            row[columns[f"{kind}.id"][0]] = name
            if kind == "plans" and not any(row.get(names[0]) for path, names in columns.items() if "quotas" in path):
                raise InvalidInput(f"no quota is named (looked for: {', '.join(n[0] for n in columns.values() if n)})")
            return self._converted(kind, item, row)
        _, *parts = str(item["SK"]).split("#")
        times = [part for part in parts if part[:1].isdigit()]
        words = [part for part in parts if part and not part[:1].isdigit()]
        row[columns["events.user"][0]] = name
        fill("events.action", words[0] if words else None)
        fill("events.time", times[0] if times else None)
        fill("events.cost", row.get("count"))
        row[columns["events.id"][0]] = str(item["SK"])
        return self._converted(kind, item, row)

    def _converted(self, kind: Entity, item: Mapping[str, Any], row: Mapping[str, Any]) -> Entry:
        found = self._converter.read(kind, str(item["SK"]), row)
        if found.entry is None:
            raise InvalidInput(found.problem)
        return found.entry

    def _user(self, name: str, data: Mapping[str, Any]) -> User:
        quotas, inline = {}, data.get("pln")
        if isinstance(inline, dict):
            quotas = self._limits(inline.get("mhd", _HINTS_A_DAY), inline.get("med", _EXECUTIONS_A_DAY))
        said = {field: data.get(short) for field, short in _USER_FIELDS.items()}
        return convert.user_of(name, quotas, **said)

    def _limits(self, hints: object, executions: object) -> dict[str, str]:
        """Return quotas by the new names of the actions."""
        names = self._converter.mapping.actions
        found = {}
        for action, limit in ((_HINT, hints), (_EXECUTION, executions)):
            if limit is not None:
                number = convert.whole(action, limit)
                found[names.get(action, action)] = "unlimited" if number == -1 else f"{number}/day"
        return found

    def _event(self, user: str, item: Mapping[str, Any], data: Mapping[str, Any]) -> UsageEvent | Expired:
        _, second, *rest = str(item["SK"]).split("#", 2)
        action = self._converter.action(data.get("act") or (rest[0] if rest else None))
        at = convert.whole("the time in SK", second) * 1000
        metadata = {name: data[name] for name in ("plat", "pnum") if data.get(name) is not None}
        if data.get("met") is not None:
            metadata |= convert.mapping(data["met"])
        resource = data.get("pid")
        return self._converter.event(
            derived_id(at, str(item["SK"]), user), user, action, at,
            resource=None if resource in (None, "") else convert.text("pid", resource),
            metadata=metadata,
        )  # fmt: skip

    def _note_other(self, pk: str, sk: str) -> None:
        kind = kind_of(pk, sk)
        others = self._events.others
        if kind not in others and len(others) >= _MOST_KINDS:
            kind = "of other kinds"
        others[kind] = others.get(kind, 0) + 1


def _place_of(pk: str, sk: str) -> _LegacyPosition:
    for prefix in (_USER, _EMAIL):
        if pk.startswith(prefix) and _USAGE in pk and sk.startswith("ULOG#"):
            return _LegacyPosition("events", pk.removeprefix(prefix).rpartition(_USAGE)[0])
    if pk.startswith(_FLAT_USER) and sk.startswith(_FLAT_USAGE):
        return _LegacyPosition("events", pk.removeprefix(_FLAT_USER))
    if pk.startswith(_FLAT_USER) and sk in (*_FLAT_META, pk):
        return _LegacyPosition("users", pk.removeprefix(_FLAT_USER))
    if pk.startswith(_PLAN) and sk in (*_FLAT_META, pk):
        return _LegacyPosition("plans", pk.removeprefix(_PLAN))
    if sk == _META and pk.startswith(_USER) and _USAGE not in pk:
        return _LegacyPosition("users", pk.removeprefix(_USER))
    return _LegacyPosition(None, "")

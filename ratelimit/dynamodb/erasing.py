"""Everything that one table holds of a user, found by reading all of it, and deleted.

Nothing in the table leads from a user to all of their items: an action that no policy names has a partition of its own,
and so has every day. So the table is read, filtered where it lies, and only the keys of what is theirs come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, NamedTuple

from ratelimit.dynamodb.directory import DynamoDBDirectoryStore
from ratelimit.dynamodb.events import DynamoDBEventStore
from ratelimit.dynamodb.scans import DynamoDBScans
from ratelimit.dynamodb.schema import IDENTITY_TYPE, META, OWNER, PK, SK, TYPE, Item, escape
from ratelimit.errors import StoreMisconfigured
from ratelimit.store.base import MAX_EVENTS_PER_PUT, Part, ScanPage, Trace, each_page, first_cursors
from ratelimit.store.directory import User

_PARTS: Final = 4
_USER: Final = "USR#"
_EMAIL: Final = "EMAIL#"


class _Found(NamedTuple):
    trace: Trace
    key: Item


async def erase(
    users: Collection[str], directory: DynamoDBDirectoryStore, events: DynamoDBEventStore, scans: DynamoDBScans
) -> Counter[Trace]:
    """See `TableStore.erase`. The entry goes last, with what it is found by: it is what tells a user's e-mails."""
    names = _Names(users, [mail for user in users async for mail in _emails(directory, user)])
    request = names.request()

    async def ask(part: Part, cursor: str | None) -> ScanPage[_Found]:
        return await scans.search(request, names.found, cursor=cursor, part=part)

    erased: Counter[Trace] = Counter()
    last: list[_Found] = []
    async with aclosing(each_page(ask, first_cursors(_PARTS), of=_PARTS)) as pages:
        async for _, page in pages:
            last += (one for one in page.entries if one.trace in ("entries", "identities"))
            await _delete(events, [one for one in page.entries if one.trace not in ("entries", "identities")], erased)
    await _delete(events, last, erased)
    return erased


async def _delete(events: DynamoDBEventStore, found: Sequence[_Found], erased: Counter[Trace]) -> None:
    for start in range(0, len(found), MAX_EVENTS_PER_PUT):
        group = found[start : start + MAX_EVENTS_PER_PUT]
        await events.delete([one.key for one in group])
        erased.update(one.trace for one in group)


async def _emails(directory: DynamoDBDirectoryStore, user: str) -> AsyncIterator[str]:
    with suppress(StoreMisconfigured):  # an entry that cannot be read goes all the same
        entry = await directory.read(User, user)
        for identity in () if entry is None else entry.identities:
            if identity.kind == "email":
                yield identity.value


class _Names:
    """What a user's keys begin with, also in earlier layouts: those escaped nothing, and kept events by e-mail."""

    def __init__(self, users: Collection[str], emails: Collection[str]) -> None:
        self._owners = users
        self._begin = {
            _USER: {form for user in users for form in (escape(user), user)},
            _EMAIL: {form for name in (*users, *emails) for form in (escape(name), name)},
        }

    def request(self) -> dict[str, Any]:
        """The filter of a scan."""
        texts = list(self._texts())
        tests = [test.format(f":v{number}") for number, (test, _) in enumerate(texts)]
        return {
            "FilterExpression": " OR ".join(tests),
            "ExpressionAttributeValues": {f":v{number}": {"S": text} for number, (_, text) in enumerate(texts)},
            "ProjectionExpression": f"{PK}, {SK}, {TYPE}, {OWNER}",
        }

    def found(self, item: Item) -> _Found | None:
        """What an item is; None where it is not the user's, or of another project in the same table."""
        trace = self._trace(item)
        return None if trace is None else _Found(trace, {PK: item[PK], SK: item[SK]})

    def _texts(self) -> Iterator[tuple[str, str]]:
        for prefix, forms in self._begin.items():
            for form in sorted(forms):
                if prefix == _USER:
                    yield f"{PK} = {{}}", prefix + form
                yield f"begins_with({PK}, {{}})", f"{prefix}{form}#"
        for user in self._owners:
            yield f"{OWNER} = {{}}", user

    def _trace(self, item: Item) -> Trace | None:
        pk, sk = item[PK]["S"], item[SK]["S"]
        if item.get(TYPE) == {"S": IDENTITY_TYPE} and item.get(OWNER, {}).get("S") in self._owners:
            return "identities"
        for prefix, forms in self._begin.items():
            for form in forms:
                if pk == prefix + form and prefix == _USER and sk == META:
                    return "entries"
                if pk.startswith(f"{prefix}{form}#") and (trace := _trace_of(pk.removeprefix(f"{prefix}{form}#"))):
                    return trace
        return None


def _trace_of(rest: str) -> Trace | None:
    """By what follows the user in a partition key."""
    kind, _, name = rest.partition("#")
    if "#" in name:
        return None
    traces: dict[str, Trace] = {"LIM": "counters", "ULOG": "events", "UID": "event_ids"}
    return traces.get(kind)

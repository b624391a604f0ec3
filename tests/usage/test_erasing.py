"""Erased means gone, also where it broke off on the way."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ratelimit import Identity, Limiter, MemoryStore, Plan, Policy, StoreUnavailable, UsageEvent, UsageLog, User
from ratelimit.dynamodb.client import connect
from ratelimit.names import Key
from ratelimit.store import Add, MirrorStore, TableStore, Write
from ratelimit.store.hashed import HashedUserStore
from ratelimit.usage.reports import Reports
from ratelimit.usage.segments import Erasures
from tests.engines import Engine
from tests.usage.conftest import TABLE, on_engine
from tests.usage.files import killed
from tests.usage.noon import at_noon, days_ago


async def test_erase_leaves_no_trace_and_can_be_repeated(store: TableStore, user: str) -> None:
    clock = at_noon()
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    async with UsageLog(store, clock=clock) as usage:
        for someone in (user, user + "x"):
            await limiter.check(someone, "hint")
            await usage.record(someone, "hint", at=days_ago(89.5))
            await usage.record(someone, "hint", at=days_ago(-0.03), id="order-17")
            await usage.record(someone, "hint")
            entry = User(someone, identities=[Identity.email(f"{someone}@example.com")])
            assert await store.directory.replace(None, entry, now=clock.now())
        assert await usage.erase(user) == 3 + 1 + 1 + 2, "events, the note of an id, a counter, the entry, its e-mail"
        assert await usage.erase(user) == 0
        assert (await usage.events(user)).events == ()
        assert await store.read(Key(user, "hint")) == {}
        assert await store.directory.read(User, user) is None
        assert await store.directory.find(Identity.email(f"{user}@example.com")) is None
        assert await store.directory.find(Identity.email(f"{user}x@example.com")) == user + "x"
        assert len((await usage.events(user + "x")).events) == 3
        assert await store.read(Key(user + "x", "hint"))


async def test_what_no_key_leads_to_is_erased_and_said(store: TableStore, user: str) -> None:
    """An action of an ad-hoc check or of another plan, months of totals from elsewhere, the event of a clock ahead."""
    clock, ahead, past = at_noon(), at_noon(), at_noon()
    ahead.advance(5 * 86_400)
    past.advance(-150 * 86_400)
    # What is past its time may be gone at any moment where a table lets it expire.
    clocks = (ahead, past) if isinstance(store, MemoryStore) else (ahead,)
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    for someone in (user, user + "2", f"{user}#LIM#x", f"{user}#"):
        await limiter.check(someone, "export once", quotas="5/day")
        await limiter.check(someone, "of another#plan", quotas="7/month")
        month = Write((Add("u202501", 7),), expires_at=clock.now() // 1_000_000 + 400 * 86_400)
        await store.apply(Key(someone, "migrated"), month, now=clock.now())
        for events_clock in clocks:
            async with UsageLog(store, clock=events_clock) as log:
                await log.record(someone, "hint", id=f"order-{events_clock.now()}")
    reports = Reports(store, ["hint"], clock)
    erased = await reports.erase(user)
    found = {"counters": 3, "events": len(clocks), "event_ids": len(clocks)}
    assert erased.found == found
    assert (erased, erased.left) == (3 + 2 * len(clocks), ())
    assert await store.erase([user]) == dict.fromkeys(await store.erase([user]), 0)
    assert await reports.erase(user) == 0
    for neighbour in (user + "2", f"{user}#LIM#x", f"{user}#"):
        assert (await reports.erase(neighbour)).found == found


async def test_without_reading_the_whole_table_plans_are_looked_at(store: TableStore, user: str) -> None:
    clock = at_noon()
    await store.directory.replace(None, Plan(f"plan of {user}", {f"of {user}": "5/day"}), now=clock.now())
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    await limiter.check(user, f"of {user}", quotas="5/day")
    await limiter.check(user, "nobody names it", quotas="5/day")
    reports = Reports(store, ["hint"], clock)
    assert (await reports.erase(user, quick=True)).found == {"counters": 1}
    assert (await reports.erase(user)).found == {"counters": 1}


@pytest.mark.parametrize("given", ["NFC", "NFD", "latin-1"])
async def test_other_spellings_of_the_same_user_are_erased(store: TableStore, user: str, given: Any) -> None:
    """Unicode's two forms; and a header's UTF-8 that was taken for Latin-1."""
    clock, name = at_noon(), f"Jos\u00e9 {user}"
    forms = {
        "NFC": name,
        "NFD": unicodedata.normalize("NFD", name),
        "latin-1": name.encode().decode("latin-1"),
    }
    counted = Write((Add("d20758", 1),), expires_at=clock.now() // 1_000_000 + 86_400)
    for form in forms.values():  # as they were stored before a name had one form
        await store.apply(Key(form, "hint"), counted, now=clock.now())
    assert (await Reports(store, [], clock).erase(forms[given])).found == {"counters": 3}


async def test_what_is_from_before_users_were_hashed_is_erased(store: TableStore, user: str) -> None:
    clock = at_noon()
    hashed = HashedUserStore(store, "a secret of more than sixteen characters")
    for one in (store, hashed):
        await Limiter(one, [Policy("hint", "5/day")], clock=clock).check(user, "hint")
        async with UsageLog(one, clock=clock) as usage:
            await usage.record(user, "hint")
    entry = User(user, identities=[Identity.email(f"{user}@example.com")])
    assert await hashed.directory.replace(None, entry, now=clock.now())
    found = (await Reports(hashed, [], clock).erase(user)).found
    assert found == {"counters": 2, "events": 2, "entries": 1, "identities": 1}


async def test_what_only_the_mirror_holds_is_erased() -> None:
    clock, primary, second = at_noon(), MemoryStore(), MemoryStore()
    entry = User("alice", identities=[Identity.email("alice@example.com")])
    assert await second.directory.replace(None, entry, now=clock.now())
    await Limiter(second, [Policy("hint", "5/day")], clock=clock).check("alice", "hint")
    both = MirrorStore(primary, second)
    await both.open()
    await Limiter(both, [Policy("solve", "5/day")], clock=clock).check("alice", "solve")
    erased = await Reports(both, [], clock).erase("alice")
    assert erased.found == {"counters": 2, "entries": 1, "identities": 1}
    assert await second.directory.find(Identity.email("alice@example.com")) is None
    assert (len(primary), len(second)) == (0, 0)
    await both.close()


async def test_rows_of_earlier_layouts_go_and_those_of_other_projects_stay(engine: Engine, user: str) -> None:
    store = on_engine(engine)
    await store.open()
    entry = User(f"{user}#1", identities=[Identity.email(f"{user}@example.com")])
    assert await store.directory.replace(None, entry, now=at_noon().now())
    theirs = [
        (f"USR#{user}#1#ULOG#20260105", "ULOG#1767600000#hint"),
        (f"EMAIL#{user}@example.com#ULOG#20260105", "ULOG#1767600000#hint"),
        (f"EMAIL#{user}#1#ULOG#20260105", "ULOG#1767600000#hint"),
        (f"USR#{user}#1", "META"),
    ]
    others = [
        (f"USR#{user}", "META"),
        (f"USR#{user}#1", "SESSION"),
        (f"USR#{user}#1#SESSION", "x"),
        (f"USR#{user}#11", "META"),
        (f"USER#{user}#1", "CONV#1"),
        (f"EMAIL#{user}@example.org#ULOG#20260105", "ULOG#1767600000#hint"),
    ]
    connection = await connect(store.settings)
    for pk, sk in theirs + others:
        item = {"PK": {"S": pk}, "SK": {"S": sk}, "tp": {"S": "x"}, "dat": {"M": {"em": {"S": "a@example.com"}}}}
        await connection.api.put_item(TableName=TABLE, Item=item)
    erased = await Reports(store, [], at_noon()).erase(f"{user}#1")
    # The row that cannot be read as an entry, and the one of ours, whose name is escaped.
    assert erased.found == {"events": 3, "entries": 2, "identities": 1}
    for pk, sk in theirs + others:
        key = {"PK": {"S": pk}, "SK": {"S": sk}}
        answer = await connection.api.get_item(TableName=TABLE, Key=key, ConsistentRead=True)
        assert ("Item" in answer) == ((pk, sk) in others), pk
    await connection.close()
    await store.close()


async def test_an_erase_that_lost_its_table_on_the_way_goes_on_when_repeated(engine: Engine, user: str) -> None:
    """The entry goes last: without it nobody would know what the user's e-mails are."""
    store = on_engine(engine)
    await store.open()
    entry = User(user, identities=[Identity.email(f"{user}@example.com")])
    assert await store.directory.replace(None, entry, now=at_noon().now())
    await Limiter(store, [Policy("hint", "5/day")], clock=at_noon()).check(user, "hint")
    delete, gone = store.events.delete, 0

    async def breaks_off(keys: Sequence[Any]) -> None:
        nonlocal gone
        if gone:
            raise StoreUnavailable("broke off")
        gone += len(keys)
        await delete(keys)

    store.events.delete = breaks_off  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await store.erase([user])
    assert gone == 1
    assert await store.directory.read(User, user)
    store.events.delete = delete  # type: ignore[method-assign]
    assert (await Reports(store, [], at_noon()).erase(user)).found == {"entries": 1, "identities": 1}
    await store.close()


# Accepted, and killed before any of it could reach the table.


@pytest.mark.process
async def test_what_waits_in_the_journal_of_a_dead_process_is_erased(tmp_path: Path) -> None:
    killed(tmp_path)
    store = MemoryStore()
    log = UsageLog(store, durability="journal", journal_dir=tmp_path)
    erased = await log.erase("alice")
    assert erased.found == {"journal": 20}
    await log.close()
    async with UsageLog(store, durability="journal", journal_dir=tmp_path) as usage:
        await usage.flush()
    assert Counter(event.user for event in store.events) == {"bob": 20}
    assert b"alice" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.process
async def test_a_closed_log_erases_too_and_is_closed_again(tmp_path: Path) -> None:
    killed(tmp_path)
    store = MemoryStore()
    log = UsageLog(store, durability="journal", journal_dir=tmp_path)
    await log.open()
    await log.close()
    killed(tmp_path)
    assert (await log.erase("alice")).found == {"events": 20, "journal": 20}
    with pytest.raises(StoreUnavailable):
        await log.record("alice", "hint")


async def test_what_another_process_wrote_and_a_crash_repeats_stays_erased(tmp_path: Path) -> None:
    """Its journal holds what is in the table already, until the segment is full; the user's later events are theirs."""
    clock = at_noon()
    store = MemoryStore()
    living = UsageLog(store, clock=clock, durability="journal", journal_dir=tmp_path)
    for user in ("alice", "bob"):
        await living.record(user, "hint")
    await living.flush()
    other = UsageLog(store, clock=clock, durability="journal", journal_dir=tmp_path)
    assert (await other.erase("alice")).found == {"events": 1}
    await other.close()
    clock.advance(1)
    await living.record("alice", "again")
    await living.flush()
    store.events.erase_all(["alice", "bob"])
    abandon(living)
    async with UsageLog(store, clock=clock, durability="journal", journal_dir=tmp_path) as usage:
        await usage.flush()
        assert usage.stats.erased == 1
    assert [(event.user, event.action) for event in store.events] == [("bob", "hint"), ("alice", "again")]


async def test_nothing_of_the_user_is_left_in_ones_own_journal(tmp_path: Path) -> None:
    store = MemoryStore()
    async with UsageLog(store, durability="journal", journal_dir=tmp_path) as usage:
        await usage.record("alice", "hint")
        assert (await usage.erase("alice")).found == {"events": 1}
        await usage.record("bob", "hint")
        await usage.flush()
        files = [path.read_bytes() for path in tmp_path.glob("*.journal")]
        assert [b"bob" in file for file in files] == [True]
        assert b"alice" not in b"".join(files)
        abandon(usage)
        assert len(store.events) == 1


@pytest.mark.process
async def test_a_damaged_file_that_names_the_user_is_said(tmp_path: Path) -> None:
    killed(tmp_path)
    (segment,) = tmp_path.glob("*.journal")
    data = bytearray(segment.read_bytes())
    data[20] ^= 0xFF
    segment.write_bytes(data)
    log = UsageLog(MemoryStore(), durability="journal", journal_dir=tmp_path)
    erased = await log.erase("alice")
    assert erased.found == {"journal": 19}
    assert [Path(file).name for file in erased.left] == [f"{segment.name}.damaged"]
    assert (await log.erase("carol")).left == ()
    await log.close()


def test_an_erasure_is_known_for_as_long_as_events_are_kept(tmp_path: Path) -> None:
    day = 86_400_000
    erasures = Erasures(tmp_path)
    erasures.add(["alice", "ünï"], at=100 * day)
    other = Erasures(tmp_path)
    other.load()

    def covers(user: str, at: int) -> bool:
        return other.covers(UsageEvent.of(user, "hint", now=at * 1000, at_ms=at))

    assert covers("alice", 100 * day)
    assert covers("ünï", 99 * day)
    assert not covers("alice", 100 * day + 1)
    assert not covers("bob", 99 * day)
    erasures.add(["bob"], at=191 * day)
    assert covers("alice", 100 * day), "as it was loaded"
    other.load()
    assert covers("bob", 191 * day)
    assert not covers("alice", 100 * day), "nothing that old is written any more"
    assert b"bob" not in (tmp_path / "erased").read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("applied", [False, True])
async def test_an_erase_that_broke_off_anywhere_goes_on_when_repeated(applied: bool) -> None:
    """Whatever the call that fails, and whether the store had done by then what it was asked for."""
    erased = fails_at = 0
    while not erased:
        fails_at += 1
        clock, store = at_noon(), MemoryStore()
        await Limiter(store, [Policy("of no policy here", "5/day")], clock=clock).check("alice", "of no policy here")
        async with UsageLog(store, clock=clock) as usage:
            await usage.record("alice", "of no policy here", id="order-17")
            await usage.flush()
        entry = User("alice", identities=[Identity.email("alice@example.com")])
        assert await store.directory.replace(None, entry, now=clock.now())
        calls = BreaksOff(store, fails_at, applied=applied)
        reports = Reports(store, ["hint"], clock)
        try:
            erased = await reports.erase("alice", quick=True)
        except StoreUnavailable:
            await reports.erase("alice", quick=True)
        count, calls.fails_at = calls.count, 0
        assert (len(store.events), await store.events.forget("alice")) == (0, 0)
        assert await store.read(Key("alice", "of no policy here")) == {}
        assert await store.directory.find(Identity.email("alice@example.com")) is None
        assert await store.directory.read(User, "alice") is None
    assert fails_at > 2 * 90, "two calls a day, and some more"
    assert count < fails_at
    assert erased == 1 + 1 + 1 + 2


class BreaksOff:
    """From now on every call of a store is counted, and the one of this number fails."""

    def __init__(self, store: MemoryStore, fails_at: int, *, applied: bool) -> None:
        self.count = 0
        self.fails_at = fails_at
        self._applied = applied
        for part, names in (
            (store, ("read", "delete")),
            (store.events, ("actions", "erase", "forget")),
            (store.directory, ("read", "replace", "page")),
        ):
            for name in names:
                setattr(part, name, self._counted(getattr(part, name)))

    def _counted(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            fails = self.count == self.fails_at
            answer = await call(*args, **options) if self._applied or not fails else None
            if fails:
                raise StoreUnavailable("broke off")
            return answer

        return counted


def abandon(log: UsageLog) -> None:
    """As a crash would: its lock is let go, and what it had in its files stays."""
    pipeline = log._pipeline
    assert pipeline is not None
    assert pipeline.journal is not None
    assert pipeline.journal._lock is not None
    pipeline.journal._lock.unlock()
    for task in list(pipeline._tasks._tasks):
        task.cancel()

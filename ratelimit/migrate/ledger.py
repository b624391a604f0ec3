"""`Ledger`: what one run has written, in a file beside its checkpoint, so that it can be taken back exactly.

Everything is noted before it is written, and only where it was not in the table: whatever is killed in between, nothing
that a run has written is missing here. What is taken back goes from the ledger, so that an undo may be broken off, too.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeAlias

import msgspec

from ratelimit.dynamodb import Settings, same_table
from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.migrate.tally import Tallied, is_bucket
from ratelimit.names import Key
from ratelimit.store import Record
from ratelimit.store.base import Position, position_of
from ratelimit.store.directory import Plan, User, name_of

_RUN = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{4}")
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS about (said BLOB);
    CREATE TABLE IF NOT EXISTS events (user TEXT, at INTEGER, action TEXT, id TEXT,
                                       PRIMARY KEY (user, at, action, id)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS entries (kind TEXT, name TEXT, version INTEGER, PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS counters (user TEXT, action TEXT, since INTEGER, until INTEGER, planted BLOB,
                                         PRIMARY KEY (user, action)) WITHOUT ROWID;
"""


Place: TypeAlias = tuple[str | None, ...]
"""A table, its region and its endpoint; None for those of the AWS set-up."""


class RunInfo(msgspec.Struct, kw_only=True):
    """What a run was about."""

    run: str
    source: str
    target: Place
    settings: dict[str, str]
    """What interprets rows, by its name: another value makes other events and counters of the same rows."""
    actions: dict[str, str] = {}
    costs: dict[str, int] = {}
    undone: bool = False


class FieldChange(NamedTuple):
    """What a run has done to a field: it added `amount`; to a bucket, which stood at `before`, after `floor`."""

    floor: int
    amount: int
    before: int | None


class RecordChange(NamedTuple):
    """What a run has done to a record, whose mark it moved."""

    key: Key
    since: int | None
    until: int
    fields: dict[str, FieldChange]


class Ledger:
    """Used from one thread at a time."""

    def __init__(self, folder: Path, run: str) -> None:
        self.path = _path(folder, run)
        self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        # A process may be killed at any moment and loses nothing.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)

    @classmethod
    def begin(cls, folder: Path, about: RunInfo) -> Self:
        """Open a new one, or the one that there is."""
        ledger = cls(folder, about.run)
        ledger.say(about)
        return ledger

    @classmethod
    def of(cls, folder: Path, run: str) -> Self:
        """Open one that is there. Raises `InvalidInput`."""
        if not _RUN.fullmatch(run) or not _path(folder, run).exists():
            known = ", ".join(sorted(about.run for about in runs(folder))) or "none"
            raise InvalidInput(
                f"no run {run} is known in {folder.absolute()} (there are: {known}); --work-dir names the folder in "
                "which the run left its files"
            )
        return cls(folder, run)

    def about(self) -> RunInfo:
        """Return what it was about. Raises `InvalidInput` for a damaged file."""
        try:
            (said,) = self._database.execute("SELECT said FROM about").fetchone() or (b"",)
            return msgspec.json.decode(said, type=RunInfo)
        except (sqlite3.DatabaseError, msgspec.DecodeError):
            raise InvalidInput(f"{self.path} is damaged, or no run's ledger") from None

    def say(self, about: RunInfo) -> None:
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM about")
            self._database.execute("INSERT INTO about VALUES (?)", (msgspec.json.encode(about),))

    def note_events(self, events: Iterable[UsageEvent]) -> None:
        """Note events, before they are written."""
        rows = [(event.user, *position_of(event)) for event in events]
        self._all("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", rows)

    def note_entry(self, entry: User | Plan, *, version: int) -> None:
        """Note an entry before it is written, with the version that it is going to have."""
        self._all("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", [(type(entry).__name__, name_of(entry), version)])

    def forget_entry(self, kind: str, name: str) -> None:
        self._all("DELETE FROM entries WHERE kind = ? AND name = ?", [(kind, name)])

    def note_counter(self, found: Tallied, record: Record) -> None:
        """Note it, before it is written onto the record."""
        fields = {
            field: FieldChange(each.floor, each.amount, record.get(field) if is_bucket(field) else None)
            for field, each in found.sums.items()
        }
        said = msgspec.json.encode({field: tuple(planted) for field, planted in fields.items()})
        row = (*found.key, found.since, found.until, said)
        self._all("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?)", [row])

    def forget_counter(self, key: Key) -> None:
        self._all("DELETE FROM counters WHERE user = ? AND action = ?", [tuple(key)])

    def forget_events(self, some: Sequence[tuple[str, Position]]) -> None:
        rows = [(user, *position) for user, position in some]
        self._all("DELETE FROM events WHERE user = ? AND at = ? AND action = ? AND id = ?", rows)

    def events(self) -> Iterator[tuple[str, Position]]:
        for user, at, action, event_id in self._database.execute("SELECT * FROM events"):
            yield user, Position(at, action, event_id)

    def entries(self, kind: str) -> list[tuple[str, int]]:
        """Return the names and versions of its users or plans."""
        return self._database.execute("SELECT name, version FROM entries WHERE kind = ?", (kind,)).fetchall()

    def counters(self) -> list[RecordChange]:
        rows = self._database.execute("SELECT * FROM counters").fetchall()
        kind = dict[str, tuple[int, int, int | None]]
        return [
            RecordChange(Key(user, action), since, until, {name: FieldChange(*each) for name, each in fields.items()})
            for user, action, since, until, said in rows
            for fields in (msgspec.json.decode(said, type=kind),)
        ]

    def counts(self) -> dict[str, int]:
        """Return how many there are of each entity."""
        queries = {
            "plans": "SELECT count(*) FROM entries WHERE kind = 'Plan'",
            "users": "SELECT count(*) FROM entries WHERE kind = 'User'",
            "events": "SELECT count(*) FROM events",
            "counters": "SELECT count(*) FROM counters",
        }
        return {name: int(self._database.execute(query).fetchone()[0]) for name, query in queries.items()}

    def actions(self) -> set[str]:
        query = "SELECT action FROM events UNION SELECT action FROM counters"
        return {action for (action,) in self._database.execute(query)}

    def close(self) -> None:
        """Close it; one file is left."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            with self._database:
                self._database.execute("BEGIN")
                self._database.executemany(statement, rows)


def runs(folder: Path) -> list[RunInfo]:
    """Return all that have left a ledger here, the oldest first."""
    found = []
    for path in sorted(folder.glob("ratelimit-migrate-*.run")):
        run = path.name.removeprefix("ratelimit-migrate-").removesuffix(".run")
        if _RUN.fullmatch(run):
            with Ledger(folder, run) as ledger:
                found.append(ledger.about())
    return found


def place_of_table(settings: Settings) -> Place:
    """Return what a ledger says of the table that it is about."""
    return settings.table, settings.region, settings.endpoint


def is_same_place(one: Place, other: Place) -> bool:
    """Return whether both are one table, whether or not its region and endpoint are those of the AWS set-up."""
    return one == other or same_table(_settings_of(one), _settings_of(other))


def _settings_of(place: Place) -> Settings:
    table, region, endpoint = place
    return Settings(table=table or "", region=region, endpoint=endpoint)


def earlier_runs(folder: Path, about: RunInfo) -> list[RunInfo]:
    """Return the runs from the same source to the same table that have left a ledger here and are not undone."""
    found = (each for each in runs(folder) if not each.undone and each.source == about.source)
    return [each for each in found if is_same_place(each.target, about.target)]


def conflicts(folder: Path, about: RunInfo, *, replaced: Iterable[str] = ()) -> str:
    """Return what a run has made of the same rows by other settings; empty where nothing is in the way.

    A run that was broken off is no exception: what it has written stands there by the settings that it began with.
    """
    for earlier in earlier_runs(folder, about):
        if earlier.run in replaced:
            continue
        with Ledger(folder, earlier.run) as ledger:
            actions = ledger.actions()
        if actions and (changed := _changed(earlier, about, actions)):
            return (
                f"run {earlier.run} has brought this source with other settings ({'; '.join(changed)}): rows would "
                f"count twice, or stay as they are. Bring them anew with --replace {earlier.run}, or take them back "
                f"with `ratelimit migrate undo {earlier.run}`"
            )
    return ""


def _changed(before: RunInfo, now: RunInfo, actions: set[str]) -> list[str]:
    """Return the settings that differ. One that concerns none of the actions that were brought is no matter."""
    pairs = [(name, before.settings.get(name), value) for name, value in now.settings.items()]
    pairs += [
        (f"actions.{old}", before.actions.get(old, old), now.actions.get(old, old))
        for old in sorted({*before.actions, *now.actions})
        if before.actions.get(old, old) in actions
    ]
    pairs += [
        (f"policies.{action}.cost", str(before.costs.get(action, 1)), str(now.costs.get(action, 1)))
        for action in sorted({*before.costs, *now.costs} & actions)
    ]
    return [f"{name}: {old or 'nothing'} before, {new or 'nothing'} now" for name, old, new in pairs if old != new]


def _path(folder: Path, run: str) -> Path:
    return folder / f"ratelimit-migrate-{run}.run"


def later_on_top(folder: Path, chosen: Mapping[str, object]) -> dict[str, str]:
    """Return those of the chosen runs on whose marks a later one counts that is not chosen, with that one's id."""
    found: dict[str, str] = {}
    marks: dict[tuple[Place, Key, int], str] = {}
    for about in runs(folder):
        with Ledger(folder, about.run) as ledger:
            for plant in [] if about.undone else ledger.counters():
                below = None if plant.since is None else marks.get((about.target, plant.key, plant.since))
                if below in chosen and about.run not in chosen and below is not None:
                    found[below] = about.run
                marks[about.target, plant.key, plant.until] = about.run
    return found

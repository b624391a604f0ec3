"""Orders as tests give them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratelimit import Config, Policy, UsageEvent
from ratelimit.clock import Clock
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.migrate import Counts, Done, Entity, MigrationPlan, Verdict, migration_settings, run, verify
from ratelimit.migrate.mapping import mapping_of
from ratelimit.names import Key
from ratelimit.store import Record


class BrokenOff(Exception):
    """A run ends here, as one does that is killed."""


def plan_of(
    source: str | Path, table: str, folder: Path, *, mapping: dict[str, Any] | None = None, **options: Any
) -> MigrationPlan:
    policies: Sequence[Policy] = options.pop("policies", ())
    return MigrationPlan(
        source=str(source),
        target=parse_url(table),
        config=Config(store=table, policies=tuple(policies)),
        mapping=mapping_of(mapping or {}),
        work_dir=folder / "work",
        **options,
    )


def unheard(entity: Entity, counts: Counts, done: int, size: int | None) -> None:
    """A listener who does not listen."""


async def bring(asked: MigrationPlan, clock: Clock | None = None) -> Done:
    return await run(asked, listener=unheard, clock=clock)


async def check(asked: MigrationPlan, *, more_is_fine: bool = False) -> Verdict:
    return await verify(asked, listener=unheard, more_is_fine=more_is_fine)


async def events_in(table: str) -> list[UsageEvent]:
    found: list[UsageEvent] = []
    async with DynamoDBStore(migration_settings(parse_url(table))) as store:
        cursor: str | None = None
        while True:
            page = await store.scans.events(since=0, until=10**13, cursor=cursor)
            found += page.entries
            if (cursor := page.cursor) is None:
                return found


async def record_in(table: str, user: str, action: str) -> Record:
    async with DynamoDBStore(parse_url(table)) as store:
        return await store.read(Key(user, action))

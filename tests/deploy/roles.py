"""What each role does: all that the code can ask of DynamoDB in that part, once, against a store on the tap."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from ratelimit import Config, Directory, Identity, Limiter, Plan, Policy, UsageLog, User
from ratelimit.clock import SystemClock
from ratelimit.dynamodb import (
    DynamoDBStore,
    Settings,
    TableSpec,
    count_items,
    create_table,
    delete_table,
    table_status,
    upgrade_table,
    verify_table,
)
from ratelimit.migrate import MigrationPlan, dry_run, read_mapping, run, verify
from ratelimit.usage.export import ExportQuery, File, export_events
from ratelimit.usage.formats import Jsonl
from ratelimit.usage.importing import import_events
from ratelimit.usage.reports import Reports

ALICE = (Identity.email("alice@example.com"), Identity.api_key("the-api-key-of-alice"))


async def serve(settings: Settings, folder: Path) -> None:
    """The limiter by both lanes, the usage log, users and plans, and the commands that change them."""
    for fast in (True, False):
        async with DynamoDBStore(settings, fast=fast) as store:
            await _limit(store)
            await _log(store, folder)
            await _people(store)


async def read(settings: Settings, folder: Path) -> None:
    """Reports, exports, lists of users and plans, and how the table stands."""
    async with DynamoDBStore(settings) as store:
        reports = Reports(store, ["hint"], SystemClock())
        today = datetime.now(UTC).date()
        await reports.events("alice")
        await reports.timeline("hint")
        await reports.totals("alice")
        await reports.summary("alice")
        await reports.reconcile("alice", today)
        await reports.top(today, "hint", parts=2)
        await _limiter(store).peek("alice", "hint")
        sink = File(folder / "export.jsonl", Jsonl(), resume=False)
        await export_events(store, ExportQuery(store="here", format="jsonl"), sink)
        await _look_at_people(store)
    await table_status(settings)
    await verify_table(settings)


async def migrate(settings: Settings, folder: Path, *, source: Settings) -> None:
    """From a table of this project, from the layout before it, and from a file."""
    events = folder / "events.jsonl"
    now = datetime.now(UTC).isoformat()
    events.write_text(json.dumps({"user_id": "bob", "action": "hint", "created_at": now}) + "\n", encoding="utf-8")
    place = f"{source.table}?region={source.region}&endpoint={source.endpoint}"
    for number, spec in enumerate((f"dynamodb://{place}", f"earlier://{place}", str(events))):
        plan = MigrationPlan(
            source=spec,
            target=settings,
            config=Config(policies=(Policy("hint", "5/day"),)),
            mapping=read_mapping(None),
            foreign=True,
            work_dir=folder / str(number),
        )
        await dry_run(plan, listener=lambda *_: None)
        await run(plan, listener=lambda *_: None)
        await verify(plan, listener=lambda *_: None, more_is_fine=True)


async def operate(settings: Settings) -> None:
    """A table from its creation to its end, with everything that can be mended on the way."""
    await create_table(settings)
    await table_status(settings)
    await upgrade_table(settings, TableSpec(gsi2=True, protected=True, tags={"team": "payments"}))
    await verify_table(settings)
    await count_items(settings)
    await upgrade_table(settings, TableSpec(gsi2=True, protected=False))
    await delete_table(settings)
    await create_table(settings, TableSpec(tags={"team": "payments"}))
    await delete_table(settings)


async def fill(store: DynamoDBStore) -> None:
    """Something of each kind, for a migration to find."""
    limiter = _limiter(store)
    await limiter.check("alice", "hint")
    directory = Directory(store.directory)
    await directory.put_plan(Plan("free", {"hint": "5/day"}))
    await directory.put_user(User("alice", plan="free", identities=ALICE))
    async with UsageLog(store, actions=["hint"]) as log:
        await log.record("alice", "hint")
        await log.record("alice", "hint", id="order-17")


def _limiter(store: DynamoDBStore) -> Limiter:
    return Limiter(store, [Policy("hint", "5/day")])


async def _limit(store: DynamoDBStore) -> None:
    limiter = _limiter(store)
    decision = await limiter.check("alice", "hint")
    await limiter.check("alice", "hint", quotas="1/day; 5/second", cost=2)
    await limiter.peek("alice", "hint")
    await limiter.charge("alice", "hint", cost=1)
    await limiter.refund("alice", "hint", cost=1, at=decision.at)
    await limiter.totals("alice")
    await limiter.reset("alice", "hint")


async def _log(store: DynamoDBStore, folder: Path) -> None:
    async with UsageLog(store, actions=["hint"]) as log:
        await log.record("alice", "hint")
        for _ in range(2):
            await log.record("alice", "hint", id="order-17")
        await log.flush()
        await log.events("alice")
        await log.timeline("hint")
        await log.summary("alice")
        lines = folder / "import.jsonl"
        at = int(datetime.now(UTC).timestamp() * 1000)
        lines.write_text(
            json.dumps({"user": "alice", "action": "hint", "at": at, "id": "order-1"}) + "\n", encoding="utf-8"
        )
        await import_events(store.events, lines)
        await log.erase("alice")


async def _people(store: DynamoDBStore) -> None:
    directory = Directory(store.directory)
    await directory.put_plan(Plan("free", {"hint": "5/day"}))
    await directory.put_user(User("alice", plan="free", identities=ALICE))
    await directory.put_user(User("alice", plan="free", identities=ALICE[:1]))
    await directory.quotas_for("alice", "hint")
    await _look_at_people(store)
    await directory.remove_user("alice")
    await directory.remove_plan("free")


async def _look_at_people(store: DynamoDBStore) -> None:
    await Directory(store.directory).find(ALICE[0])
    await store.directory.page(User)
    await store.directory.page(User, plan="free")
    await store.directory.page(Plan)

"""`ratelimit demo seed`: plans, users, usage and counters to look at, in a table for development."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratelimit.cli.options import Configured, answering, whole
from ratelimit.cli.output import Answer, say, say_table
from ratelimit.cli.progress import progress
from ratelimit.clock import SECOND, SystemClock
from ratelimit.errors import InvalidInput
from ratelimit.factory import configured_table

if TYPE_CHECKING:
    from ratelimit.dynamodb import Settings

app = typer.Typer(help="Something to look at.", no_args_is_help=True)

_PLANS = (
    {"id": "free", "max_hints_per_day": 5, "max_executions_per_day": 10},
    {"id": "pro", "max_hints_per_day": 50, "max_executions_per_day": 200},
    {"id": "staff", "max_hints_per_day": -1, "max_executions_per_day": -1},
)
_MOST_A_DAY = 5
_LOOKS = "ratelimit user show demo-1; ratelimit usage summary demo-1; ratelimit check demo-1 hint --peek"


@app.callback()
def _root() -> None:
    pass


@app.command("seed")
@answering
def seed(
    *,
    users: Annotated[int, typer.Option(**whole(1, 10_000), help="How many.")] = 12,
    days: Annotated[int, typer.Option(**whole(1, 90), help="Of usage, up to now.")] = 7,
    on_aws: Annotated[bool, typer.Option("--on-aws", help="Also where the table is Amazon's.")] = False,
    at: Configured,
) -> Answer:
    """Fill a table with three plans, some users (demo-1, demo-2, …) and their usage of the last days: events and
    counters. The same data for everybody; repeated, it adds what has come since, and nothing twice.

    Examples:

        ratelimit demo seed --store 'dynamodb://ratelimit?region=eu-west-1&endpoint=http://localhost:4566'

        ratelimit demo seed --users 500 --days 30
    """
    from ratelimit import migrate

    settings = at.load()
    target = configured_table(settings)
    if not on_aws:
        _refuse_amazon(target)
    with TemporaryDirectory(prefix="ratelimit-demo-") as folder, progress() as tell:
        _write(Path(folder), users, days, datetime.fromtimestamp(SystemClock().now() // SECOND, UTC))
        plan = migrate.MigrationPlan(
            source=folder, target=target, config=settings, mapping=migrate.Mapping(), any_action=True, backup=False,
            work_dir=Path(folder),
        )  # fmt: skip
        counts = asyncio.run(migrate.run(plan, listener=tell)).checkpoint.counts
    rows = [(entity, each.written, each.there + each.kept) for entity, each in counts.items()]

    def show() -> None:
        say_table(("", "written", "already there"), rows)
        say(f"look at them: {_LOOKS}")

    return Answer({entity: {"written": written, "there": there} for entity, written, there in rows}, show)


def _refuse_amazon(target: Settings) -> None:
    from ratelimit.dynamodb.session import endpoint_of
    from ratelimit.dynamodb.settings import is_amazon

    endpoint = endpoint_of(target)
    if endpoint is None or is_amazon(endpoint):
        raise InvalidInput(
            "this table is Amazon's: name a local one (endpoint=http://localhost:4566 in the store's URL, or "
            "AWS_ENDPOINT_URL_DYNAMODB), or add --on-aws"
        )


def _write(folder: Path, users: int, days: int, now: datetime) -> None:
    """As a migration reads it."""
    (folder / "subscription_plan.json").write_text(json.dumps(_PLANS), encoding="utf-8")
    with (folder / "users.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, users + 1):
            row = {
                "id": f"demo-{number}", "email": f"demo-{number}@example.com",
                "subscription_plan_id": _PLANS[number % len(_PLANS)]["id"], "is_staff": number == 1,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    with (folder / "usage_log.jsonl").open("w", encoding="utf-8") as file:
        for back in reversed(range(days)):
            for row in _uses_of(users, (now - timedelta(days=back)).replace(hour=0, minute=0, second=0), now):
                file.write(json.dumps(row) + "\n")


def _uses_of(users: int, day: datetime, now: datetime) -> Iterator[dict[str, Any]]:
    """Of a day: what it is follows from its date."""
    for number in range(1, users + 1):
        chance = random.Random(f"{day:%Y-%m-%d} {number}")
        for nth in range(chance.randint(0, _MOST_A_DAY)):
            at = day + timedelta(seconds=chance.randrange(86_400))
            action, problem = chance.choice(("hint", "execution")), chance.randint(1, 40)
            if at < now:
                yield {
                    "id": f"demo-{day:%Y%m%d}-{number}-{nth}", "user_id": f"demo-{number}", "action": action,
                    "problem_id": f"problem-{problem}", "created_at": at.isoformat(),
                }  # fmt: skip

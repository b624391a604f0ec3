"""`ratelimit plan set|show|list|remove`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ratelimit.cli.directory import (
    QuotaOption,
    WithoutOption,
    YesOption,
    as_options,
    known_plan,
    merged,
    quotas_document,
    read_quotas,
    run,
    show_quotas,
)
from ratelimit.cli.options import ConfigOption, JsonOption, StoreOption
from ratelimit.cli.output import say, say_json, say_table
from ratelimit.directory import Directory
from ratelimit.store.directory import Plan, check_plan

# No postponed annotations in the commands: typer reads them when the program runs.


app = typer.Typer(help="Plans: named quotas per action, which users subscribe to.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The plan.", show_default=False)]


@app.command("set")
def set_(
    name: NameArgument,
    quota: QuotaOption = None,
    without: WithoutOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a plan, or change the one that is there: what is not mentioned stays.

    Actions that a plan does not name are left to their policies. A change is in force everywhere within half a minute.

    Examples:

        ratelimit plan set free --quota hint=5/day --quota 'search=100/hour; 1000/day'

        ratelimit plan set pro --quota hint=unlimited --without search
    """
    given = read_quotas(quota)

    def change(old: Plan | None) -> Plan:
        with as_options():
            return Plan(name, merged({} if old is None else old.quotas, given, without))

    with as_options():  # what is wrong is said before anything is asked of the table
        Plan(name, given)
    _report(run(lambda directory: directory.change_plan(name, change), store=store, config=config), as_json=as_json)


@app.command()
def show(
    name: NameArgument, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """What a plan allows.

    Example:

        ratelimit plan show free --store 'dynamodb://limits?region=eu-west-1'
    """
    check_plan("NAME", name)
    _report(run(lambda directory: known_plan(directory, name), store=store, config=config), as_json=as_json)


@app.command("list")
def list_(store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """All plans.

    Example:

        ratelimit plan list --json
    """
    plans = run(_all, store=store, config=config)
    if as_json:
        say_json([_document(plan) for plan in plans])
    elif plans:
        rows = [
            (plan.name, *pair)
            for plan in plans
            for pair in [(action, show_quotas(quotas)) for action, quotas in plan.quotas.items()] or [("-", "-")]
        ]
        say_table(("plan", "action", "quotas"), rows)
    else:
        say("no plans; make one with `ratelimit plan set free --quota hint=5/day`")


@app.command()
def remove(
    name: NameArgument,
    yes: YesOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a plan, after asking. For users who have it, the policies' own quotas hold from then on.

    Example:

        ratelimit plan remove free
    """
    check_plan("NAME", name)
    if not yes:
        typer.confirm(f"Remove plan {name}?", abort=True, err=True)
    removed = run(lambda directory: directory.remove_plan(name), store=store, config=config)
    if as_json:
        say_json({"name": name, "removed": removed})
    else:
        say(f"{name}: removed" if removed else f"{name}: there is no such plan; nothing to remove")


async def _all(directory: Directory) -> list[Plan]:
    return sorted([plan async for plan in directory.plans()], key=lambda plan: plan.name)


def _report(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        say_json(_document(plan))
        return
    say(plan.name, style="bold green")
    if plan.quotas:
        say_table(("action", "quotas"), [(action, show_quotas(quotas)) for action, quotas in plan.quotas.items()])
    else:
        say("  no quotas of its own: the policies' hold")


def _document(plan: Plan) -> dict[str, Any]:
    return {"name": plan.name, "quotas": quotas_document(plan.quotas)}

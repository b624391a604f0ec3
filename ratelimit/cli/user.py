"""`ratelimit user set|show|list|remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ratelimit.cli.directory import (
    PepperOption,
    QuotaOption,
    WithoutOption,
    YesOption,
    as_options,
    known_plan,
    merged,
    quotas_document,
    read_key,
    read_quotas,
    run,
    show_quotas,
)
from ratelimit.cli.options import ConfigOption, JsonOption, StoreOption
from ratelimit.cli.output import note, say, say_fields, say_json, say_table
from ratelimit.directory import Directory, UnknownUser
from ratelimit.errors import ConfigError
from ratelimit.names import check_user
from ratelimit.store.directory import Identity, Plan, User, check_plan

# How users are shown, to people and to programs.

_COLUMNS: Final = ("action", "quotas", "from")


def report(user: User, plan: Plan | None, *, as_json: bool) -> None:
    """All about one user, and which quotas come of it."""
    rows = _in_force(user, plan)
    if as_json:
        say_json(document(user) | {"in_force": [dict(zip(_COLUMNS, row, strict=True)) for row in rows]})
        return
    say(user.id, style="bold green")
    fields = {"plan": user.plan or "none", "role": user.role, "state": _state(user)}
    fields |= {"found by": ", ".join(map(str, user.identities))} if user.identities else {}
    say_fields(fields)
    if rows:
        say_table(_COLUMNS, rows)
    if user.plan is not None and plan is None:
        note(f"there is no plan {user.plan!r}: the policies' own quotas hold")


def _in_force(user: User, plan: Plan | None) -> list[tuple[str, str, str]]:
    """Per action that anything is said of."""
    if not user.active:
        return [("(every)", "refused", "inactive")]
    rows = [(action, show_quotas(quotas), "the user") for action, quotas in user.quotas.items()]
    if user.role == "admin":
        return [*rows, ("(every other)", "unlimited", "admin")]
    others = {} if plan is None else {name: quotas for name, quotas in plan.quotas.items() if name not in user.quotas}
    return rows + [(action, show_quotas(quotas), "the plan") for action, quotas in others.items()]


def document(user: User) -> dict[str, Any]:
    """For `--json`."""
    return {
        "id": user.id,
        "plan": user.plan,
        "quotas": quotas_document(user.quotas),
        "role": user.role,
        "active": user.active,
        "identities": [str(identity) for identity in user.identities],
    }


def row(user: User) -> tuple[str, ...]:
    """One line of a list."""
    own = ", ".join(f"{action}={show_quotas(quotas)}" for action, quotas in user.quotas.items())
    return (user.id, user.plan or "-", user.role, _state(user), own or "-")


def _state(user: User) -> str:
    return "active" if user.active else "inactive"


# No postponed annotations in the commands: typer reads them when the program runs.


app = typer.Typer(help="Users: their plan, quotas of their own, role, and the e-mails and API keys that find them.")

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)]
ShownArgument = Annotated[str | None, typer.Argument(metavar="[USER]", help="The user's id.", show_default=False)]
PlanOption = Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="The plan to subscribe to.")]
KeysOption = Annotated[
    list[str] | None,
    typer.Option("--api-key", metavar="KEY", help="An API key to be found by kept as a digest; - reads stdin."),
]


@app.command("set")
def set_(
    user: UserArgument,
    plan: PlanOption = None,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Subscribe to none.")] = False,
    quota: QuotaOption = None,
    without: WithoutOption = None,
    role: Annotated[str | None, typer.Option(help="user, or admin: no limits.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Inactive refuses every check.")] = None,
    email: Annotated[list[str] | None, typer.Option("--email", help="An e-mail to be found by.")] = None,
    api_key: KeysOption = None,
    without_identity: Annotated[
        list[str] | None, typer.Option(metavar="IDENTITY", help="No longer found by this, as `user show` writes it.")
    ] = None,
    pepper_file: PepperOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a user, or change the one that is there: what is not mentioned stays.

    A change is in force everywhere within half a minute.

    Examples:

        ratelimit user set alice --plan pro --email alice@example.com

        ratelimit user set alice --quota hint=50/day --inactive

        openssl rand -hex 32 | tee key.txt | ratelimit user set alice --api-key -
    """
    if plan is not None and no_plan:
        raise ConfigError("--plan", "cannot go with --no-plan")
    fields: dict[str, Any] = {"plan": plan, "role": role, "active": active}
    fields = {name: value for name, value in fields.items() if value is not None or (name == "plan" and no_plan)}
    with as_options():  # what is wrong is said before anything is asked of the table
        gone = [_identity(text) for text in without_identity or ()]
        given = User(user, quotas=read_quotas(quota), identities=_identities(email, api_key, pepper_file), **fields)

    def change(old: User | None) -> User:
        return _changed(User(user) if old is None else old, given, fields, without, gone)

    async def work(directory: Directory) -> tuple[User, Plan | None]:
        if plan is not None:
            await known_plan(directory, plan)
        changed = await directory.change_user(user, change)
        return changed, await _plan_of(directory, changed)

    report(*run(work, store=store, config=config), as_json=as_json)


def _changed(old: User, given: User, fields: dict[str, Any], without: list[str] | None, gone: list[Identity]) -> User:
    """The user that was, with what was given over it."""
    values = {"plan": old.plan, "role": old.role, "active": old.active, **fields}
    identities = [one for one in (*old.identities, *given.identities) if one not in gone]
    with as_options():
        return User(old.id, quotas=merged(old.quotas, given.quotas, without), identities=identities, **values)


@app.command()
def show(
    user: ShownArgument = None,
    email: Annotated[str | None, typer.Option("--email", help="Find by this e-mail.")] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", help="Find by this API key; - reads it from stdin.")
    ] = None,
    pepper_file: PepperOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One user, and which quotas come of it.

    Examples:

        ratelimit user show alice

        ratelimit user show --email alice@example.com --json
    """
    if sum(map(bool, (user, email, api_key))) != 1:
        raise ConfigError("USER", "name one user: by id, by --email, or by --api-key")
    if user:
        user = check_user(user)
    with as_options():
        identities = _identities([email] if email else [], [api_key] if api_key else [], pepper_file)

    async def work(directory: Directory) -> tuple[User, Plan | None]:
        name = await directory.store.find(identities[0]) if identities else user
        found = None if name is None else await directory.store.read(User, name)
        if found is None:
            what = f"user {user!r}" if user else f"user with this {identities[0].kind.replace('_', ' ')}"
            raise UnknownUser(f"there is no {what}; make one with `ratelimit user set`")
        return found, await _plan_of(directory, found)

    report(*run(work, store=store, config=config), as_json=as_json)


@app.command("list")
def list_(
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="Only those who have this plan.")] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """All users, or a plan's. What changed a few seconds ago may not show yet.

    Example:

        ratelimit user list --plan pro
    """
    if plan is not None:
        check_plan("--plan", plan)

    async def work(directory: Directory) -> list[User]:
        return sorted([user async for user in directory.users(plan=plan)], key=lambda user: user.id)

    users = run(work, store=store, config=config)
    if as_json:
        say_json([document(user) for user in users])
    elif users:
        say_table(("user", "plan", "role", "state", "own quotas"), [row(user) for user in users])
    else:
        say("no users" if plan is None else f"no users with plan {plan}")


@app.command()
def remove(
    user: UserArgument,
    yes: YesOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a user's entry and identities, after asking; what was counted and logged stays.

    Example:

        ratelimit user remove alice
    """
    user = check_user(user)
    if not yes:
        typer.confirm(f"Remove user {user}?", abort=True, err=True)
    removed = run(lambda directory: directory.remove_user(user), store=store, config=config)
    if as_json:
        say_json({"id": user, "removed": removed})
    else:
        say(f"{user}: removed" if removed else f"{user}: there is no such user; nothing to remove")


def _identities(emails: list[str] | None, keys: list[str] | None, pepper: Path | None) -> list[Identity]:
    return [*map(Identity.email, emails or ()), *(read_key(key, pepper) for key in keys or ())]


def _identity(text: str) -> Identity:
    try:
        return Identity.parse(text)
    except ConfigError as error:
        raise ConfigError("--without-identity", f"{error.problem}; write it as `user show` does") from None


async def _plan_of(directory: Directory, user: User) -> Plan | None:
    return None if user.plan is None else await directory.store.read(Plan, user.plan)

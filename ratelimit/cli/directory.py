"""`ratelimit plan …` and `ratelimit user …`: set, show, list and remove plans and users of the directory."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import typer

from ratelimit.cli.options import Configured, YesOption, answering, as_options
from ratelimit.cli.output import Answer, confirm, note, say, say_fields, say_rows, say_table
from ratelimit.directory import Directory, UnknownPlan, UnknownUser
from ratelimit.errors import ConfigError, nearest, there_are
from ratelimit.names import check_user
from ratelimit.policy import check_usable
from ratelimit.quota import Quotas, QuotasLike, quotas_text, quotas_texts
from ratelimit.store.directory import Identity, Plan, User, check_plan

plans: Final = typer.Typer(help="Plans: named quotas per action, which users subscribe to.")
users: Final = typer.Typer(
    help="Users: their plan, quotas of their own, role, and the e-mails and API keys that find them."
)
T = TypeVar("T")

QuotaOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--quota", metavar="ACTION=QUOTAS", help="As in hint=5/day or run=unlimited; may be repeated."),
]
WithoutOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="ACTION", help="Take back what was said of this action; may be repeated."),
]
PepperOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--pepper-file", metavar="FILE", help="The secret that API keys are digested with, as in the app."),
]

_EXAMPLE = "write --quota hint=5/day"
_OPTIONS: Final = {"quotas": "--quota", "name": "NAME", "id": "USER", "identities": "--email, --api-key"}


def run(at: Configured, work: Callable[[Directory], Awaitable[T]]) -> T:
    """Return the result of `work` on the directory in the configured table."""
    return at.run(lambda table, _: work(Directory(table.directory)))


def read_quotas(pairs: list[str] | None) -> dict[str, QuotasLike]:
    """Read `hint=5/day` and so on, by action; what the quotas mean is found out later. Raises `ConfigError`."""
    found: dict[str, QuotasLike] = {}
    for pair in pairs or ():
        action, equals, quotas = pair.partition("=")
        if not equals or not action or not quotas.strip():
            raise ConfigError("--quota", f"{pair!r} is not ACTION=QUOTAS; {_EXAMPLE}")
        found[action] = f"{found[action]}; {quotas}" if action in found else quotas
    return found


def _check_quotas(at: Configured, quotas: Mapping[str, Quotas]) -> list[str]:
    """Return a note of each action that no configured policy is named after: its quotas are asked by none.

    Raises `ConfigError` for what the policies cannot keep.
    """
    policies = {policy.name: policy for policy in at.load().policies} if quotas else {}
    check_usable(policies, quotas)
    unknown = [action for action in quotas if policies and action not in policies]
    return [f"no policy is named {action!r}; {nearest(action, policies)}" for action in unknown]


def merged(
    old: Mapping[str, Quotas], given: Mapping[str, QuotasLike], without: list[str] | None
) -> dict[str, QuotasLike]:
    """Lay the given quotas over the old ones. Raises `ConfigError` for taking back what was never said."""
    left: dict[str, QuotasLike] = {**old, **given}
    for action in without or ():
        if action not in left:
            raise ConfigError("--without", f"nothing is said of {action!r} ({there_are(left)})")
        del left[action]
    return left


def read_key(key: str, pepper: Path | None) -> Identity:
    """Return an API key's digest; `-` reads the key from stdin, so that it stays out of the shell's history."""
    secret = sys.stdin.readline().strip() if key == "-" else key
    return Identity.api_key(secret, pepper=_secret_in(pepper))


def _secret_in(file: Path | None) -> bytes:
    if file is None:
        return b""
    try:
        pepper = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError("--pepper-file", f"cannot read {file}: {error.strerror}") from None
    if not pepper:
        raise ConfigError("--pepper-file", f"{file} is empty")
    return pepper


async def known_plan(directory: Directory, name: str) -> Plan:
    """Return a plan that has to be there. Raises `UnknownPlan`, naming the nearest there is."""
    if (plan := await directory.store.read(Plan, name)) is not None:
        return plan
    names = [plan.name async for plan in directory.plans()]
    raise UnknownPlan(f"there is no plan {name!r}; {nearest(name, names)} (make one with `ratelimit plan set`)")


# `ratelimit plan`

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The plan.", show_default=False)]


@plans.command("set")
@answering
def set_plan(*, name: NameArgument, quota: QuotaOption = None, without: WithoutOption = None, at: Configured) -> Answer:
    """Make a plan, or change the one that is there: what is not mentioned stays.

    Actions that a plan does not name are left to their policies. A change is in force everywhere within half a minute.

    Examples:

        ratelimit plan set free --quota hint=5/day --quota 'search=100/hour; 1000/day'

        ratelimit plan set pro --quota hint=unlimited --without search
    """
    given = read_quotas(quota)

    def change(old: Plan | None) -> Plan:
        with as_options(**_OPTIONS):
            return Plan(name, merged({} if old is None else old.quotas, given, without))

    with as_options(**_OPTIONS):  # what is wrong is said before anything is asked of the table
        notes = _check_quotas(at, Plan(name, given).quotas)
    return replace(_plan_answer(run(at, lambda directory: directory.change_plan(name, change))), notes=notes)


@plans.command("show")
@answering
def show_plan(*, name: NameArgument, at: Configured) -> Answer:
    """What a plan allows.

    Example:

        ratelimit plan show free --store 'dynamodb://limits?region=eu-west-1'
    """
    check_plan("NAME", name)
    return _plan_answer(run(at, lambda directory: known_plan(directory, name)))


@plans.command("list")
@answering
def list_plans(*, at: Configured) -> Answer:
    """All plans.

    Example:

        ratelimit plan list --json
    """
    plans = run(at, _all_plans)
    rows = [(plan.name, *pair) for plan in plans for pair in list(quotas_texts(plan.quotas).items()) or [("-", "-")]]
    nothing = "no plans; make one with `ratelimit plan set free --quota hint=5/day`"
    document = [_plan_document(plan) for plan in plans]
    return Answer(document, lambda: say_rows(("plan", "action", "quotas"), rows, nothing))


@plans.command("remove")
@answering
def remove_plan(*, name: NameArgument, yes: YesOption = False, at: Configured) -> Answer:
    """Remove a plan, after asking. For users who have it, the policies' own quotas hold from then on.

    Example:

        ratelimit plan remove free
    """
    check_plan("NAME", name)
    confirm(f"Remove plan {name}?", yes=yes)
    removed = run(at, lambda directory: directory.remove_plan(name))
    said = "removed" if removed else "there is no such plan; nothing to remove"
    return Answer({"name": name, "removed": removed}, lambda: say(f"{name}: {said}"))


async def _all_plans(directory: Directory) -> list[Plan]:
    return sorted([plan async for plan in directory.plans()], key=lambda plan: plan.name)


def _plan_answer(plan: Plan) -> Answer:
    def show() -> None:
        say(plan.name, style="bold green")
        rows = list(quotas_texts(plan.quotas).items())
        say_rows(("action", "quotas"), rows, "  no quotas of its own: the policies' hold")

    return Answer(_plan_document(plan), show)


def _plan_document(plan: Plan) -> dict[str, Any]:
    return {"name": plan.name, "quotas": quotas_texts(plan.quotas)}


# `ratelimit user`

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)]
ShownArgument = Annotated[str | None, typer.Argument(metavar="[USER]", help="The user's id.", show_default=False)]
PlanOption = Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="The plan to subscribe to.")]
KeysOption = Annotated[
    list[str] | None,
    typer.Option("--api-key", metavar="KEY", help="An API key to be found by kept as a digest; - reads stdin."),
]


@users.command("set")
@answering
def set_user(
    *,
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
    at: Configured,
) -> Answer:
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
    with as_options(**_OPTIONS):  # what is wrong is said before anything is asked of the table
        gone = [_identity(text) for text in without_identity or ()]
        given = User(user, quotas=read_quotas(quota), identities=_identities(email, api_key, pepper_file), **fields)
        notes = _check_quotas(at, given.quotas)

    def change(old: User | None) -> User:
        return _changed(User(user) if old is None else old, given, fields, without, gone)

    async def work(directory: Directory) -> tuple[User, Plan | None]:
        if plan is not None:
            await known_plan(directory, plan)
        changed = await directory.change_user(user, change)
        return changed, await _plan_of(directory, changed)

    return replace(_user_answer(*run(at, work)), notes=notes)


def _changed(old: User, given: User, fields: dict[str, Any], without: list[str] | None, gone: list[Identity]) -> User:
    """The user that was, with what was given over it."""
    values = {"plan": old.plan, "role": old.role, "active": old.active, **fields}
    identities = [one for one in (*old.identities, *given.identities) if one not in gone]
    with as_options(**_OPTIONS):
        return User(old.id, quotas=merged(old.quotas, given.quotas, without), identities=identities, **values)


@users.command("show")
@answering
def show_user(
    *,
    user: ShownArgument = None,
    email: Annotated[str | None, typer.Option("--email", help="Find by this e-mail.")] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", help="Find by this API key; - reads it from stdin.")
    ] = None,
    pepper_file: PepperOption = None,
    at: Configured,
) -> Answer:
    """One user, and which quotas come of it.

    Examples:

        ratelimit user show alice

        ratelimit user show --email alice@example.com --json
    """
    if sum(map(bool, (user, email, api_key))) != 1:
        raise ConfigError("USER", "name one user: by id, by --email, or by --api-key")
    if user:
        user = check_user(user)
    with as_options(**_OPTIONS):
        identities = _identities([email] if email else [], [api_key] if api_key else [], pepper_file)

    async def work(directory: Directory) -> tuple[User, Plan | None]:
        name = await directory.store.find(identities[0]) if identities else user
        found = None if name is None else await directory.store.read(User, name)
        if found is None:
            what = f"user {user!r}" if user else f"user with this {identities[0].kind.replace('_', ' ')}"
            raise UnknownUser(f"there is no {what}; make one with `ratelimit user set`")
        return found, await _plan_of(directory, found)

    return _user_answer(*run(at, work))


@users.command("list")
@answering
def list_users(
    *,
    plan: Annotated[str | None, typer.Option("--plan", metavar="PLAN", help="Only those who have this plan.")] = None,
    at: Configured,
) -> Answer:
    """All users, or a plan's. What changed a few seconds ago may not show yet.

    Example:

        ratelimit user list --plan pro
    """
    if plan is not None:
        check_plan("--plan", plan)

    async def work(directory: Directory) -> list[User]:
        return sorted([user async for user in directory.users(plan=plan)], key=lambda user: user.id)

    users = run(at, work)
    rows = [_user_row(user) for user in users]
    nothing = "no users" if plan is None else f"no users with plan {plan}"
    columns = ("user", "plan", "role", "state", "own quotas")
    return Answer([_user_document(user) for user in users], lambda: say_rows(columns, rows, nothing))


@users.command("remove")
@answering
def remove_user(*, user: UserArgument, yes: YesOption = False, at: Configured) -> Answer:
    """Remove a user's entry and identities, after asking; what was counted and logged stays.

    Example:

        ratelimit user remove alice
    """
    user = check_user(user)
    confirm(f"Remove user {user}?", yes=yes)
    removed = run(at, lambda directory: directory.remove_user(user))
    said = "removed" if removed else "there is no such user; nothing to remove"
    return Answer({"id": user, "removed": removed}, lambda: say(f"{user}: {said}"))


def _identities(emails: list[str] | None, keys: list[str] | None, pepper: Path | None) -> list[Identity]:
    return [*map(Identity.email, emails or ()), *(read_key(key, pepper) for key in keys or ())]


def _identity(text: str) -> Identity:
    try:
        return Identity.parse(text)
    except ConfigError as error:
        raise ConfigError("--without-identity", f"{error.problem}; write it as `user show` does") from None


async def _plan_of(directory: Directory, user: User) -> Plan | None:
    return None if user.plan is None else await directory.store.read(Plan, user.plan)


_COLUMNS: Final = ("action", "quotas", "from")


def _user_answer(user: User, plan: Plan | None) -> Answer:
    rows = _in_force(user, plan)

    def show() -> None:
        say(user.id, style="bold green")
        fields = {"plan": user.plan or "none", "role": user.role, "state": _state(user)}
        fields |= {"found by": ", ".join(map(str, user.identities))} if user.identities else {}
        say_fields(fields)
        if rows:
            say_table(_COLUMNS, rows)
        if user.plan is not None and plan is None:
            note(f"there is no plan {user.plan!r}: the policies' own quotas hold")

    in_force = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    return Answer(_user_document(user) | {"in_force": in_force}, show)


def _in_force(user: User, plan: Plan | None) -> list[tuple[str, str, str]]:
    """Per action that anything is said of."""
    if not user.active:
        return [("(every)", "refused", "inactive")]
    rows = [(action, quotas_text(quotas), "the user") for action, quotas in user.quotas.items()]
    if user.role == "admin":
        return [*rows, ("(every other)", "unlimited", "admin")]
    others = {} if plan is None else {name: quotas for name, quotas in plan.quotas.items() if name not in user.quotas}
    return rows + [(action, quotas_text(quotas), "the plan") for action, quotas in others.items()]


def _user_document(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "plan": user.plan,
        "quotas": quotas_texts(user.quotas),
        "role": user.role,
        "active": user.active,
        "identities": [str(identity) for identity in user.identities],
    }


def _user_row(user: User) -> tuple[str, ...]:
    own = ", ".join(f"{action}={quotas_text(quotas)}" for action, quotas in user.quotas.items())
    return (user.id, user.plan or "-", user.role, _state(user), own or "-")


def _state(user: User) -> str:
    return "active" if user.active else "inactive"

"""How users are shown, to people and to programs."""

from __future__ import annotations

from typing import Any, Final

from ratelimit.cli.directory.shared import quotas_document, show_quotas
from ratelimit.cli.output import note, say, say_fields, say_json, say_table
from ratelimit.directory import Plan, User

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

"""How a table's status and its comparison are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ratelimit.cli.output import ALLOWED, REFUSED, UNAVAILABLE, note, say, say_fields

if TYPE_CHECKING:
    from ratelimit.dynamodb import Line, TableStatus

_STYLES: Final = {"ok": "green", "differs": "bold red", "unknown": "yellow", "not asked for": "dim"}


def report_status(status: TableStatus, verdict: str) -> None:
    """All of it, and below what it lacks."""
    unknown = status.unknown
    recovery = {True: "on", False: "off", None: unknown.get("recovery", "not known")}
    units = f", {status.read_units} read and {status.write_units} write units a second" if status.read_units else ""
    expiry = f"by {status.ttl}" if status.ttl else unknown.get("expiry", "off")
    tags = [f"{name}={value}" for name, value in (status.tags or {}).items()]
    say(f"{status.name}: {verdict}", style="bold green")
    say_fields({
        "region": status.region,
        "endpoint": status.endpoint,
        "status": status.status,
        "keys": ", ".join(status.keys),
        "indexes": ", ".join(status.indexes) or "none",
        "billing": status.billing + units,
        "items": f"{status.items} ({status.size_bytes} bytes; counted every six hours or so)",
        "expiry": expiry,
        "recovery": recovery[status.point_in_time_recovery],
        "encryption": status.encrypted_with,
        "protection": "on" if status.protected else "off",
        "tags": ", ".join(tags) or unknown.get("tags", "none"),
    })  # fmt: skip
    if status.missing:
        note(f"it lacks {', '.join(status.missing)}")


def report_lines(lines: Sequence[Line]) -> None:
    """One line each: the verdict, the part, what is, what should be, what to do."""
    width = max(len(line.name) for line in lines)
    for line in lines:
        text = line.found if line.verdict in ("ok", "not asked for") else f"{line.found}; should be {line.wanted}"
        remedy = f"\n  {'':13}  {'':{width}}  {line.remedy}" if line.remedy else ""
        say(f"  {line.verdict:<13}  {line.name:<{width}}  {text}{remedy}", style=_STYLES[line.verdict])


def differences(lines: Sequence[Line]) -> list[Line]:
    """Those that are not as they should be."""
    return [line for line in lines if line.verdict == "differs"]


def in_short(lines: Sequence[Line]) -> str:
    """`as it should be`, `2 differences, 1 not known`."""
    found, unknown = len(differences(lines)), sum(line.verdict == "unknown" for line in lines)
    text = f"{found} difference{'s' * (found != 1)}" if found else "as it should be"
    return f"{text}, {unknown} not known" if unknown else text


def status_of(lines: Sequence[Line]) -> int:
    """The exit status: 1 for a difference, 3 where a missing permission hides whether there is one."""
    if differences(lines):
        return REFUSED
    return UNAVAILABLE if any(line.permission for line in lines) else ALLOWED

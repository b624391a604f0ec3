"""What a limited view costs: Django's beside one with django-ratelimit, Flask's beside one with Flask-Limiter."""

from __future__ import annotations

from typing import Any

from loadtest.bench.report import BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Entry, Measured, contest
from loadtest.bench.stub import stub_server

DJANGO, FLASK = "Django", "Flask"
DJANGO_OURS = "Django, our middleware, memory"
DJANGO_THEIRS = "Django, django-ratelimit, locmem"
FLASK_OURS = "Flask, our extension, memory"
FLASK_THEIRS = "Flask, Flask-Limiter, memory, with headers"

_HERE = "loadtest.bench.contenders_frameworks"


def run(rounds: Rounds = 9, seconds: Seconds = 0.5) -> Findings:
    """A limited view of Django and of Flask, by us and by others: one request after the other, in a process each."""
    with stub_server() as endpoint:
        measured, notes = contest(_entries(endpoint), rounds=rounds, seconds=seconds)
    return Findings([Row(name, _figures(name, measured)) for name in measured], _targets(measured), notes)


def _entries(endpoint: str) -> list[Entry]:
    table: dict[str, Any] = {"store": f"dynamodb://bench?endpoint={endpoint}"}
    django, flask = f"{_HERE}:django", f"{_HERE}:flask"
    return [
        Entry(DJANGO, django),
        Entry(DJANGO_OURS, django, {"by": "middleware"}),
        Entry("Django, our decorator, memory", django, {"by": "limited"}),
        Entry(DJANGO_THEIRS, django, {"by": "django-ratelimit"}),
        Entry("Django, our middleware, DynamoDB (stub)", django, {"by": "middleware", **table}),
        Entry(FLASK, flask),
        Entry(FLASK_OURS, flask, {"by": "extension"}),
        Entry("Flask, our decorator, memory", flask, {"by": "limited"}),
        Entry(FLASK_THEIRS, flask, {"by": "Flask-Limiter"}),
        Entry("Flask, our extension, DynamoDB (stub)", flask, {"by": "extension", **table}),
    ]


def _figures(name: str, measured: dict[str, Measured]) -> dict[str, float | None]:
    return {
        "requests/s": measured[name].median("per_second"),
        "CPU µs per request": measured[name].median("cpu_us"),
        "of which for the limit": _limits(name, measured),
    }


def _limits(name: str, measured: dict[str, Measured]) -> float | None:
    framework, _, limited = name.partition(",")
    if not limited or framework not in measured or name not in measured:
        return None
    return measured[name].median("cpu_us") - measured[framework].median("cpu_us")


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    for ours, theirs in ((DJANGO_OURS, DJANGO_THEIRS), (FLASK_OURS, FLASK_THEIRS)):
        of_ours, of_theirs = _limits(ours, measured), _limits(theirs, measured)
        if of_ours is not None and of_theirs:
            targets.append(
                BenchTarget(f"CPU for the limit, {ours}, times that of: {theirs}", of_ours / of_theirs, "at most", 1)
            )
    return targets

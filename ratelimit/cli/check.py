"""`ratelimit check USER ACTION`: what the limiter answers, tried by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

import typer

from ratelimit.cli.options import Configured, answering, as_options, whole
from ratelimit.cli.output import ALLOWED, REFUSED, Answer, in_words, say, say_table
from ratelimit.config import Config, masked
from ratelimit.decision import Decision
from ratelimit.directory import Directory
from ratelimit.errors import StoreUnavailable, UnknownAction
from ratelimit.factory import build_limiter, build_store
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy

# A person waits longer than a request may: a first call finds credentials and shakes hands.
_DEADLINE = 5.0


@answering
def check(
    *,
    user: Annotated[str, typer.Argument(help="Who.", show_default=False)],
    action: Annotated[str, typer.Argument(help="What: a policy's name, or any with --quota.", show_default=False)],
    quota: Annotated[
        list[str] | None,
        typer.Option(
            "--quota",
            help="As in 5/day, '10 per 5 minutes', '100/hour; 1000/day', whatever the policy and the user's plan say; "
            "may be repeated.",
        ),
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="fixed_window, sliding_window or gcra.")] = None,
    cost: Annotated[int, typer.Option(**whole(), help="Units to take.")] = 1,
    peek: Annotated[bool, typer.Option("--peek", help="Look, and spend nothing.")] = False,
    at: Configured,
) -> Answer:
    """May this user do this action now? Spends, and says how every quota stands.

    Exit status: 0 allowed, 1 refused, 2 bad input, 3 the store is unavailable (whatever the policy's on_unavailable).

    Examples:

        ratelimit check alice hint --quota 5/day --store 'dynamodb://limits?region=eu-west-1'

        ratelimit check alice hint --config ratelimit.toml --peek

        ratelimit check alice search --quota '10/second burst 20' --algorithm gcra --json
    """
    settings = at.load()
    policy = _policy(settings, action, quota, algorithm)
    table, deadline = build_store(settings), max(settings.deadline, _DEADLINE)
    # Quotas that come with a call go over the user's and the plan's, in an app too.
    directory = Directory(table.directory, deadline=deadline) if settings.directory and not quota else None
    terms = replace(settings, policies=(policy,), deadline=deadline, directory=False)
    limiter = build_limiter(terms, store=table, directory=directory)
    decision = asyncio.run(_ask(limiter, user, action, cost, peek=peek))
    if decision.reason == "unavailable":
        raise StoreUnavailable(f"{masked(settings.store)} gave no answer within {deadline:g} s")
    notes = []
    if directory is not None and directory.stats.without:
        notes.append("the user and the plan could not be read: these are the policy's own quotas")
    if settings.store.startswith("memory://"):
        notes.append("memory:// counts in this process only, so every run starts afresh")
    return Answer(
        _document(user, action, decision),
        lambda: _report(user, action, decision, peek=peek),
        notes,
        ALLOWED if decision.allowed else REFUSED,
    )


def _policy(settings: Config, action: str, quota: list[str] | None, algorithm: str | None) -> Policy:
    """The configured policy or one made of the options; a store that fails is to show, so `on_unavailable` is deny."""
    named = {policy.name: policy for policy in settings.policies}
    # Together: a burst goes with an algorithm only.
    said: dict[str, Any] = {"algorithm": algorithm} if algorithm else {}
    if quota:
        said["quotas"] = "; ".join(quota)
    with as_options(quotas="--quota", name="ACTION"):
        if action in named:
            # A lease would take more than was asked for.
            return replace(named[action], on_unavailable="deny", lease=None, **said)
        if quota:
            return Policy(action, on_unavailable="deny", **said)
    known = f"there are: {', '.join(named)}" if named else "none is configured"
    raise UnknownAction(f"no policy is named {action!r} ({known}); add --quota 5/day, or --config FILE")


async def _ask(limiter: Limiter, user: str, action: str, cost: int, *, peek: bool) -> Decision:
    async with limiter:
        decision = None if peek else await limiter.check(user, action, cost=cost)
        # A cost that can never pass is refused without asking the store: how the quotas stand is still to be seen.
        if decision is None or decision.reason == "too_large":
            decision = await limiter.peek(user, action, cost=cost)
        return decision


def _report(user: str, action: str, decision: Decision, *, peek: bool) -> None:
    verb = "would be " if peek else ""
    units = "" if decision.cost == 1 else f" (cost {decision.cost})"
    if decision.allowed:
        say(f"{verb}allowed: {user} {action}{units}{_shadow(decision)}", style="bold green")
    else:
        say(f"{verb}refused: {user} {action}{units}; {_until(decision)}", style="bold red")
    if not decision.quotas and decision.allowed:
        say("no limit")
    elif decision.quotas:
        rows = [(s.quota, s.used, s.remaining, in_words(s.reset_after)) for s in decision.quotas]
        say_table(("quota", "used", "left", "resets in"), rows)


def _until(decision: Decision) -> str:
    if decision.reason == "inactive":
        return "the user is inactive"
    again = decision.retry_after
    return "never: the cost exceeds a quota" if again is None else f"again in {in_words(again)}"


def _shadow(decision: Decision) -> str:
    return "; the policy is in shadow mode, and would refuse this otherwise" if decision.shadow_denied else ""


def _document(user: str, action: str, decision: Decision) -> dict[str, object]:
    return {
        "allowed": decision.allowed,
        "user": user,
        "action": action,
        "cost": decision.cost,
        "reason": decision.reason,
        "retry_after": decision.retry_after,
        "shadow_denied": decision.shadow_denied,
        "quotas": [
            {
                "quota": str(state.quota),
                "limit": state.quota.limit,
                "used": state.used,
                "remaining": state.remaining,
                "reset_after": state.reset_after,
                "retry_after": state.retry_after,
            }
            for state in decision.quotas
        ],
    }

"""What a response says about the quotas, in the fields of draft-ietf-httpapi-ratelimit-headers-10, or the older ones.

    RateLimit-Policy: "hint-hour";q=20;w=3600, "hint-day";q=100;w=86400      every quota of the policy
    RateLimit-Policy: "export";q=2;qu="concurrent-requests"                  slots: no window, no `t`
    RateLimit: "hint-hour";r=3;t=1800                                        the tightest of them
    X-RateLimit-Limit, -Remaining, -Reset                                    the same, Reset in epoch seconds

`t` is when the same request would pass where it was refused, else when the quota is whole again, rounded up. A GCRA
quota shows its `burst` as `q`, and as `w` the seconds in which that many units flow back. Serialised by hand, because a
general serialiser costs 33 µs a response; the tests read it back with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import ceil
from operator import is_
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from ratelimit.clock import SECOND
from ratelimit.decision import Decision, QuotaState
from ratelimit.errors import ConfigError
from ratelimit.quota import Quota

HeaderStyle: TypeAlias = Literal["draft", "legacy", "both", "none"]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_SETS: Final = (
    frozenset({b"ratelimit", b"ratelimit-policy"}),
    frozenset({b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}),
)
LIMIT_FIELDS: Final = _SETS[0] | _SETS[1]
"""Those that are added to an answer, unless it has them."""
EXPOSE_HEADERS: Final = (
    "RateLimit", "RateLimit-Policy", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset",
)  # fmt: skip
"""What a page of another origin may read of an answer: `CORSMiddleware(expose_headers=EXPOSE_HEADERS)`."""

# Structured fields hold integers of up to 15 digits (RFC 9651, 3.3.1).
_MAX_INTEGER: Final = 10**15 - 1
_MAX_PREPARED: Final = 1024
# A structured field's string is printable ASCII; the rest, and the escape itself, is percent-encoded.
_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def unsaid(ours: Headers, theirs: Iterable[bytes]) -> Headers:
    """Return our fields but those that an answer has, whose names are `theirs`, and what belongs to them: a limit of
    ours beside what remains of another's would be true of neither."""
    taken = set(theirs)
    for names in _SETS:
        if not names.isdisjoint(taken):
            taken |= names
    return [field for field in ours if field[0] not in taken]


def retry_after(decision: Decision) -> Headers:
    """Return the field of a refusal; none where waiting is of no use."""
    if decision.retry_after is None:
        return []
    return [(b"retry-after", b"%d" % max(1, _whole(decision.retry_after)))]


class HeaderWriter:
    """Writes the fields in one style, from decisions that have quotas; a later one on the same policy takes the place
    of an earlier one. Lines that do not change are prepared once."""

    __slots__ = ("_draft", "_legacy", "_prepared")

    def __init__(self, style: HeaderStyle = "draft") -> None:
        if style not in ("draft", "legacy", "both", "none"):
            raise ConfigError("headers", f"unknown style {style!r}; use 'draft', 'legacy', 'both' or 'none'")
        self._draft = style in ("draft", "both")
        self._legacy = style in ("legacy", "both")
        self._prepared: dict[str, Prepared] = {}

    def fields(self, decisions: Sequence[Decision]) -> Headers:
        """Return the fields for a response on which these decisions were made; none where nothing is limited."""
        if len(decisions) != 1 or not decisions[0].quotas:
            decisions = list({decision.policy: decision for decision in decisions if decision.quotas}.values())
            if not decisions:
                return []
        headers = self._draft_fields(decisions) if self._draft else []
        if self._legacy:
            headers += _legacy_fields(min(decisions, key=_room))
        return headers

    def refusal(self, decision: Decision) -> Headers:
        """Return the fields of a refusal, with `Retry-After` if waiting can help."""
        return self.fields((decision,)) + retry_after(decision)

    def _draft_fields(self, decisions: Sequence[Decision]) -> Headers:
        policy, limit = self._draft_items(decisions[0])
        if len(decisions) > 1:
            for decision in decisions[1:]:
                another, another_limit = self._draft_items(decision)
                policy += b", " + another
                limit += b", " + another_limit
        return [(b"ratelimit-policy", policy), (b"ratelimit", limit)]

    def _draft_items(self, decision: Decision) -> tuple[bytes, bytes]:
        states = decision.quotas
        prepared = self._prepared.get(decision.policy)
        if prepared is None or not prepared.is_for(states):
            prepared = self.prepared(decision)
        number = tightest(decision) if len(states) > 1 else 0
        state = states[number]
        if prepared.has_slots and state.quota.is_concurrent:
            return prepared.policy, b"%b%d" % (prepared.limits[number], state.remaining)
        span = _whole(state.retry_after or state.reset_after)
        return prepared.policy, b"%b%d;t=%d" % (prepared.limits[number], state.remaining, span)

    def prepared(self, decision: Decision) -> Prepared:
        prepared = self._prepared.get(decision.policy)
        if prepared is None or not prepared.is_for(decision.quotas):
            if len(self._prepared) >= _MAX_PREPARED:
                self._prepared.clear()
            quotas = tuple(state.quota for state in decision.quotas)
            prepared = self._prepared[decision.policy] = Prepared(decision.policy, quotas)
        return prepared


class Prepared:
    """What is the same in every response on one policy: the whole of one field, and the beginning of the other; how
    its quotas are called, and what they allow."""

    __slots__ = ("_quotas", "allowances", "has_slots", "limits", "names", "policy")

    def __init__(self, policy: str, quotas: tuple[Quota, ...]) -> None:
        self._quotas = quotas
        self.has_slots = any(quota.is_concurrent for quota in quotas)
        self.names = item_names(policy, quotas)
        self.allowances = [_allowance(quota) for quota in quotas]
        names = [_string(name) for name in self.names]
        self.policy = b", ".join([_item(name, quota) for name, quota in zip(names, quotas, strict=True)])
        self.limits = [b"%b;r=" % name for name in names]

    def is_for(self, states: tuple[QuotaState, ...]) -> bool:
        """Return whether these are the same quota objects: those of a policy live as long as it does."""
        if len(states) != len(self._quotas):
            return False
        if len(states) == 1:
            return states[0].quota is self._quotas[0]
        return all(map(is_, [state.quota for state in states], self._quotas))


@lru_cache(_MAX_PREPARED)
def item_name(policy: str) -> str:
    """Return a policy's name in printable ASCII."""
    return quote(policy, safe=_PRINTABLE)


def item_names(policy: str, quotas: Iterable[Quota]) -> list[str]:
    """Name a policy's quotas in fields and bodies: `hint`; of several `hint-hour`, `hint-10minutes`."""
    name = item_name(policy)
    windows = [str(quota.window).replace(" ", "") for quota in quotas]
    return [name] if len(windows) == 1 else [f"{name}-{window}" for window in windows]


def _legacy_fields(decision: Decision) -> Headers:
    state = decision.quotas[tightest(decision)]
    span = state.retry_after or state.reset_after
    reset_at = -(-(decision.at_us + round(span * SECOND)) // SECOND)
    return [
        (b"x-ratelimit-limit", b"%d" % _amount(state.quota)),
        (b"x-ratelimit-remaining", b"%d" % state.remaining),
        (b"x-ratelimit-reset", b"%d" % reset_at),
    ]


def _room(decision: Decision) -> tuple[bool, int]:
    return decision.allowed, decision.quotas[tightest(decision)].remaining


def tightest(decision: Decision) -> int:
    """Return the index of the quota that has least room; 0 where there is one."""
    if len(decision.quotas) == 1:
        return 0
    least = decision.tightest
    return next(number for number, state in enumerate(decision.quotas) if state is least)


def _whole(seconds: float) -> int:
    return min(ceil(seconds), _MAX_INTEGER)


def _amount(quota: Quota) -> int:
    return quota.limit if quota.burst is None or not quota.limit else quota.burst


def _item(name: bytes, quota: Quota) -> bytes:
    if quota.is_concurrent:
        return b'%b;q=%d;qu="concurrent-requests"' % (name, quota.limit)
    return b"%b;q=%d;w=%d" % (name, _amount(quota), _refill_s(quota))


def _allowance(quota: Quota) -> str:
    if quota.is_concurrent:
        return f"{quota.limit} at the same time"
    amount = str(quota.limit) if quota.burst is None else f"{quota.limit} (at most {quota.burst} at once)"
    return f"{amount} per {quota.window}"


def _refill_s(quota: Quota) -> int:
    if quota.burst is None or not quota.limit:
        return quota.window.seconds
    return min(-(-quota.burst * quota.window.seconds // quota.limit), _MAX_INTEGER)


def _string(text: str) -> bytes:
    """Return a String of RFC 9651; `text` is printable ASCII."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode("ascii")

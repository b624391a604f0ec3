"""`read`: what an answer says about the limits of its server, in the dialects that servers speak.

    RateLimit-Policy: "hint";q=20;w=3600          draft-ietf-httpapi-ratelimit-headers-10
    RateLimit: "hint";r=3;t=1800
    RateLimit: limit=20, remaining=3, reset=1800  its drafts up to -07
    RateLimit-Limit, -Remaining, -Reset           its drafts up to -06
    X-RateLimit-…, X-Rate-Limit-…                 the same; Reset in seconds from now, or since the epoch
    Retry-After                                   seconds, or a date

A field that makes no sense is as good as none: nothing here raises for what a server has sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from ratelimit.clock import seconds, since_epoch

MAX_ITEMS: Final = 32
"""Items of a field that are read."""
_PREFIXES: Final = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
# Greater numbers of seconds are times since the epoch: 2001 and later; greater ones yet, in milliseconds.
_EPOCH: Final = 1_000_000_000
_EPOCH_MS: Final = 1_000_000_000_000

_VALUE: Final = r'"(?:[^"\\]|\\.)*"|:[\w+/=]*:|[^\s,;="]+'
_ITEM: Final = re.compile(rf"\s*({_VALUE})((?:\s*;\s*[a-z*][a-z0-9_.*-]*(?:=(?:{_VALUE}))?)*)\s*(?:,|$)", re.ASCII)
_PARAMETER: Final = re.compile(rf";\s*([a-z*][a-z0-9_.*-]*)(?:=({_VALUE}))?", re.ASCII)
_NUMBER: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*(?:$|[,;])", re.ASCII)
_DICTIONARY: Final = re.compile(r"(?:^|,)\s*(remaining|reset)\s*=\s*(\d{1,15})(?=\s*(?:,|$))", re.ASCII)


class ServerQuota(NamedTuple):
    """How one quota stands."""

    name: str
    """The policy's; empty where the dialect has none."""
    partition: str
    """Whose it is, as the server names them (`pk`); empty where it does not."""
    remaining: int
    reset_s: float
    """Seconds from now until there is more: at least one, if nothing remains."""


class ServerLimits(NamedTuple):
    """What an answer says."""

    quotas: tuple[ServerQuota, ...]
    policies: frozenset[tuple[str, str]]
    """Name and partition of all that took part, of which `quotas` may be the tightest alone."""
    retry_after: float | None
    """Seconds from now."""


def read(headers: Mapping[str, str], now: int) -> ServerLimits:
    """Return what the fields of an answer say; `now` is the client's time, for servers that do not tell theirs."""
    date = _date(headers.get("date", ""))
    server_now = seconds(now if date is None else date)
    policies = {} if (listed := headers.get("ratelimit-policy")) is None else _items(listed)
    quotas = _draft_quotas(headers.get("ratelimit", ""), policies) or _older_quotas(headers, server_now)
    return ServerLimits(quotas, frozenset(policies), _retry_after(headers.get("retry-after", ""), server_now))


def _items(field: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the parameters of each item of a list (RFC 9651) by its name and partition; none of a malformed one."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    position = 0
    for _ in range(MAX_ITEMS):
        if position == len(field):
            break
        if (item := _ITEM.match(field, position)) is None:
            return {}
        parameters = {name: _bare(value or "") for name, value in _PARAMETER.findall(item[2])}
        found[_bare(item[1]), parameters.get("pk", "")] = parameters
        position = item.end()
    return found


def _bare(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _draft_quotas(field: str, policies: dict[tuple[str, str], dict[str, str]]) -> tuple[ServerQuota, ...]:
    quotas = []
    for (name, partition), parameters in _items(field).items():
        policy = policies.get((name, partition), {})
        remaining = _whole(parameters.get("r"))
        reset_s = _number(parameters.get("t") or policy.get("w"))
        # Of bytes, and of requests at the same time, no number of requests follows.
        if remaining is None or reset_s is None or policy.get("qu", "requests") != "requests":
            continue
        quotas.append(ServerQuota(name, partition, remaining, reset_s))
    return tuple(quotas)


def _older_quotas(headers: Mapping[str, str], server_now: float) -> tuple[ServerQuota, ...]:
    spellings = [{name: headers.get(prefix + name) for name in ("remaining", "reset")} for prefix in _PREFIXES]
    for told in (dict(_DICTIONARY.findall(headers.get("ratelimit", ""))), *spellings):
        remaining = _whole(told.get("remaining"))
        reset_s = _from_now(_number(told.get("reset")), server_now)
        if remaining is not None and reset_s is not None:
            return (ServerQuota("", "", remaining, reset_s),)
    return ()


def _from_now(reset: float | None, server_now: float) -> float | None:
    if reset is None or reset < _EPOCH:
        return reset
    return max((reset / 1000 if reset >= _EPOCH_MS else reset) - server_now, 0.0)


def _retry_after(field: str, server_now: float) -> float | None:
    if (given := _number(field)) is not None:
        return given
    date = _date(field)
    return None if date is None else max(seconds(date) - server_now, 0.0)


def _date(field: str) -> int | None:
    try:
        date = parsedate_to_datetime(field)
        return since_epoch(date) if date.tzinfo is not None else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _number(text: str | None) -> float | None:
    found = None if text is None else _NUMBER.match(text)
    return None if found is None else float(found[1])


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)

"""What servers say about their limits is understood in every dialect, and nonsense is as good as silence."""

from __future__ import annotations

from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.client import MAX_ITEMS, ServerLimits, ServerQuota, read_limits
from ratelimit.clock import SECOND, instant
from ratelimit.decision import Decision, QuotaState
from ratelimit.http.headers import HeaderStyle, HeaderWriter
from ratelimit.quota import to_quotas
from ratelimit.testing import FakeClock

NOW = FakeClock().now()
DATE = format_datetime(instant(NOW), usegmt=True)
LATER = format_datetime(instant(NOW + 90 * SECOND), usegmt=True)


def said(**fields: str) -> ServerLimits:
    return read_limits(httpx.Headers({name.replace("_", "-"): value for name, value in fields.items()}, "utf-8"), NOW)


@pytest.mark.parametrize(
    ("fields", "quota"),
    [
        ({"ratelimit_policy": '"a";q=20;w=60', "ratelimit": '"a";r=3;t=7'}, ServerQuota("a", "", 3, 7)),
        ({"ratelimit_policy": "a;q=20;w=60", "ratelimit": "a;r=3;t=7"}, ServerQuota("a", "", 3, 7)),
        ({"ratelimit_policy": '"a";q=20;w=60', "ratelimit": '"a";r=3'}, ServerQuota("a", "", 3, 60)),
        ({"ratelimit": '"a";r=3;t=7'}, ServerQuota("a", "", 3, 7)),
        (
            {"ratelimit_policy": '"a";q=9;w=60;pk=:YQ==:', "ratelimit": '"a";r=3;t=7;pk=:YQ==:'},
            ServerQuota("a", ":YQ==:", 3, 7),
        ),
        (
            {"ratelimit_policy": '"a, \\"b\\"";q=9', "ratelimit": '"a, \\"b\\"" ; r=3; t=7'},
            ServerQuota('a, "b"', "", 3, 7),
        ),
        ({"ratelimit_policy": '"a";q=9;w=60, "b";q=99;w=3600', "ratelimit": '"a";r=3;t=7'}, ServerQuota("a", "", 3, 7)),
        ({"ratelimit": "limit=100, remaining=50, reset=5", "ratelimit_policy": "100;w=60"}, ServerQuota("", "", 50, 5)),
        (
            {"ratelimit_limit": "100, 100;w=60", "ratelimit_remaining": "50", "ratelimit_reset": "5"},
            ServerQuota("", "", 50, 5),
        ),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "5"}, ServerQuota("", "", 0, 5)),
        ({"x_rate_limit_remaining": "0", "x_rate_limit_reset": "1.5"}, ServerQuota("", "", 0, 1.5)),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // SECOND + 30)}, ServerQuota("", "", 0, 30)),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // 1000 + 30_000)}, ServerQuota("", "", 0, 30)),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // SECOND - 30)}, ServerQuota("", "", 0, 0)),
        (
            {"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // SECOND + 100), "date": LATER},
            ServerQuota("", "", 0, 10),
        ),
    ],
)
def test_dialects(fields: dict[str, str], quota: ServerQuota) -> None:
    assert said(**fields).quotas == (quota,)


@pytest.mark.parametrize(
    ("field", "date", "seconds"),
    [
        ("7", DATE, 7),
        (LATER, DATE, 90),
        (LATER, "", 90),
        (LATER, LATER, 0),
        (DATE, LATER, 0),
        ("Sat, 99 Foo", DATE, None),
    ],
)
def test_retry_after(field: str, date: str, seconds: float | None) -> None:
    """A date is taken by the server's clock, where it tells that."""
    assert said(retry_after=field, date=date).retry_after == seconds


@pytest.mark.parametrize(
    "fields",
    [
        {"ratelimit": '"a";r=x;t=7'},
        {"ratelimit": '"a";r=-1;t=7'},
        {"ratelimit": '"a";r=3'},
        {"ratelimit": '"a";r=3;t=7, "b'},
        {"ratelimit": '"a";r=3;t=7', "ratelimit_policy": '"a";q=9;qu="content-bytes";w=60'},
        {"ratelimit": '"a";r=1', "ratelimit_policy": '"a";q=2;qu="concurrent-requests"'},
        {"ratelimit": "limit=100"},
        {"x_ratelimit_remaining": "soon", "x_ratelimit_reset": "5"},
        {"x_ratelimit_remaining": "5"},
        {"x_ratelimit_remaining": "٣", "x_ratelimit_reset": "5"},
    ],
)
def test_what_makes_no_sense_says_nothing(fields: dict[str, str]) -> None:
    assert said(**fields).quotas == ()


_NAMES = (
    *("ratelimit", "ratelimit-policy", "retry-after", "date"),
    *("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "x-ratelimit-remaining", "x-ratelimit-reset"),
)
_PIECES = st.sampled_from([*'"a;r=3t=7,\\:- ', "limit=1", "9" * 15, "9" * 400, "1e9", DATE, "\xff", ";pk=:a:"])


@given(st.dictionaries(st.sampled_from(_NAMES), st.one_of(st.lists(_PIECES).map("".join), st.text(max_size=60))))
def test_nothing_that_a_server_sends_raises(fields: dict[str, str]) -> None:
    limits = read_limits(fields, NOW)
    assert len(limits.quotas) <= MAX_ITEMS
    assert all(quota.remaining >= 0 and quota.reset_s >= 0 for quota in limits.quotas)
    assert limits.retry_after is None or limits.retry_after >= 0


def test_a_long_field_takes_no_time() -> None:
    for field in ('"' * 8000, ";a=" * 8000, "a;" * 8000, '"a";r=1;t=1,' * 8000, " ;\t" * 8000):
        read_limits({"ratelimit": field, "ratelimit-policy": field}, NOW)


@pytest.mark.parametrize("style", ["draft", "legacy"])
@pytest.mark.parametrize("quotas", ["20/hour", "5/second", "10/minute burst 25"])
def test_what_this_project_writes(style: HeaderStyle, quotas: str) -> None:
    (quota,) = to_quotas(quotas)
    state = QuotaState(quota, used=2, remaining=3, reset_after=6.5, retry_after=0.0)
    decision = Decision(True, "hint", 1, (state,), at_us=NOW)
    fields = {name.decode(): value.decode() for name, value in HeaderWriter(style).fields([decision])}
    name = "hint" if style == "draft" else ""
    assert read_limits(fields, NOW).quotas == (ServerQuota(name, "", 3, 7),)

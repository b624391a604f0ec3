"""The fields of a response, read back with a general parser of structured fields."""

from __future__ import annotations

from typing import Any, Literal

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import ConfigError, Decision, Policy, Quota, QuotaState, Window
from ratelimit.http.headers import HeaderWriter, item_names, unsaid
from ratelimit.quota import MAX_LIMIT, UNITS, parse_quotas
from tests.http.apps import limiter_of


def state(quota: str, used: int, *, reset_after: float = 100.0, retry_after: float | None = 0.0) -> QuotaState:
    (one,) = parse_quotas(quota)
    return QuotaState(one, used, max(0, one.limit - used), reset_after, retry_after)


def decision(*states: QuotaState, policy: str = "hint", retry_after: float | None = 0.0, **more: Any) -> Decision:
    allowed = retry_after == 0.0
    return Decision(
        allowed, policy, 1, states, retry_after, None if allowed else "quota", at_us=1_800_000_000_000_000, **more
    )


def written(*decisions: Decision, style: Literal["draft", "legacy", "both", "none"] = "draft") -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in HeaderWriter(style).fields(decisions)}


def read(value: str) -> list[tuple[str, dict[str, int]]]:
    return http_sf.parse(value.encode(), tltype="list")  # type: ignore[return-value]


def test_one_quota() -> None:
    assert written(decision(state("5/day", 2, reset_after=40999.1))) == {
        "ratelimit-policy": '"hint";q=5;w=86400',
        "ratelimit": '"hint";r=3;t=41000',
    }


def test_several_quotas_are_all_listed_and_the_tightest_stands() -> None:
    fields = written(decision(state("20/10 minutes", 1), state("100/day", 98, reset_after=7.0)))
    assert fields == {
        "ratelimit-policy": '"hint-10minutes";q=20;w=600, "hint-day";q=100;w=86400',
        "ratelimit": '"hint-day";r=2;t=7',
    }


def test_a_refusal_says_when_to_come_back_rounded_up() -> None:
    refused = decision(
        state("1/second", 1, retry_after=0.4), state("5/day", 5, retry_after=40999.000001), retry_after=40999.000001
    )
    fields = dict(HeaderWriter().refusal(refused))
    assert fields[b"ratelimit"] == b'"hint-day";r=0;t=41000'
    assert fields[b"retry-after"] == b"41000"


def test_what_can_never_pass_has_no_retry_after() -> None:
    refused = decision(state("5/day", 0, reset_after=9.5, retry_after=None), retry_after=None)
    fields = dict(HeaderWriter().refusal(refused))
    assert fields[b"ratelimit"] == b'"hint";r=5;t=10'
    assert b"retry-after" not in fields


def test_gcra_shows_its_burst_and_how_fast_it_comes_back() -> None:
    assert written(decision(state("10/minute burst 25", 1)))["ratelimit-policy"] == '"hint";q=25;w=150'
    assert written(decision(state("7/minute burst 1", 1)))["ratelimit-policy"] == '"hint";q=1;w=9'
    assert written(decision(state("0/minute burst 5", 0)))["ratelimit-policy"] == '"hint";q=0;w=60'


def test_several_decisions_join_and_the_last_on_a_policy_stands() -> None:
    first, again = decision(state("5/day", 1)), decision(state("5/day", 2))
    other = decision(state("9/hour", 1), policy="api")
    assert written(first, other, again) == {
        "ratelimit-policy": '"hint";q=5;w=86400, "api";q=9;w=3600',
        "ratelimit": '"hint";r=3;t=100, "api";r=8;t=100',
    }


def test_nothing_where_nothing_is_limited() -> None:
    assert written() == written(decision()) == written(decision(), decision(policy="api")) == {}
    assert written(decision(state("5/day", 1)), style="none") == {}


def test_legacy_fields_speak_of_the_tightest_of_all() -> None:
    roomy, tight = decision(state("100/hour", 1), policy="api"), decision(state("5/day", 2, reset_after=10.2))
    expected = {"x-ratelimit-limit": "5", "x-ratelimit-remaining": "3", "x-ratelimit-reset": "1800000011"}
    assert written(roomy, tight, style="legacy") == written(tight, roomy, style="legacy") == expected
    refused = decision(state("100/hour", 99, retry_after=6.0), policy="api", retry_after=6.0)
    assert written(tight, refused, style="legacy")["x-ratelimit-reset"] == "1800000006"
    assert set(written(tight, style="both")) == {"ratelimit", "ratelimit-policy", *expected}


def test_prepared_lines_follow_the_quotas_of_the_decision() -> None:
    writer = HeaderWriter()
    for quota in ("5/day", "9/day", "5/day"):
        assert dict(writer.fields([decision(state(quota, 0))]))[b"ratelimit-policy"].startswith(
            b'"hint";q=' + quota[:1].encode()
        )


@pytest.mark.parametrize("theirs", [b"ratelimit", b"ratelimit-policy"])
@pytest.mark.parametrize("old", [b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"])
def test_no_set_of_fields_is_half_the_apps_and_half_ours(theirs: bytes, old: bytes) -> None:
    ours = HeaderWriter("both").refusal(decision(state("5/day", 5, retry_after=9.0), retry_after=9.0))
    kept = {b"retry-after"}
    assert {name for name, _ in unsaid(ours, [theirs, old])} == kept
    assert {name for name, _ in unsaid(ours, [theirs])} == kept | {name for name, _ in ours if name[:2] == b"x-"}
    assert {name for name, _ in unsaid(ours, [old])} == kept | {b"ratelimit", b"ratelimit-policy"}
    assert unsaid(ours, [b"x-other"]) == ours
    assert b"retry-after" not in dict(unsaid(ours, [b"retry-after"]))


def test_an_unknown_style() -> None:
    with pytest.raises(ConfigError, match="headers: unknown style 'ietf'"):
        HeaderWriter("ietf")  # type: ignore[arg-type]


windows = st.builds(Window, st.integers(1, 9), st.sampled_from(UNITS))
quotas = st.builds(Quota, st.integers(0, MAX_LIMIT), windows, st.none() | st.integers(1, MAX_LIMIT))
spans = st.floats(0, 1e12, allow_nan=False)
states = st.builds(QuotaState, quotas, st.integers(0), st.integers(0, MAX_LIMIT), spans, spans | st.none())


@given(st.text(min_size=1), st.lists(states, min_size=1, max_size=4), spans | st.none())
def test_whatever_is_written_reads_back(policy: str, many: list[QuotaState], retry_after: float | None) -> None:
    try:
        policy.encode()
    except UnicodeEncodeError:
        return
    one = decision(*many, policy=policy, retry_after=retry_after)
    fields = dict(HeaderWriter("both").refusal(one))
    names = item_names(policy, [state.quota for state in many])
    policies = read(fields[b"ratelimit-policy"].decode())
    assert [name for name, _ in policies] == names
    assert all(set(parameters) == {"q", "w"} and parameters["w"] > 0 for _, parameters in policies)
    ((name, parameters),) = read(fields[b"ratelimit"].decode())
    assert name in names
    assert set(parameters) == {"r", "t"}
    assert http_sf.ser(policies).encode() == fields[b"ratelimit-policy"]  # type: ignore[arg-type]
    if retry_after is not None and retry_after > 0 and one.tightest and one.tightest.retry_after == retry_after:
        assert int(fields[b"retry-after"]) >= parameters["t"]


async def test_the_promised_wait_is_true() -> None:
    limiter = limiter_of(Policy("hint", "2/minute; 3/hour", algorithm="gcra"))
    clock: Any = limiter.clock
    for _ in range(10):
        one = await limiter.check("alice", "hint")
        if not one.allowed:
            wait = int(dict(HeaderWriter().refusal(one))[b"retry-after"])
            clock.advance(wait)
            assert (await limiter.check("alice", "hint")).allowed

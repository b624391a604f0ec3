"""What Envoy is answered: by rule, by limit, by hits; counted exactly, and as envoyproxy/ratelimit would have it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit import Limiter, MemoryStore, Quota, StoreUnavailable, UsageLog
from ratelimit.clock import DAY, HOUR, MINUTE, SECOND
from ratelimit.config.envoy import read_envoy_rules
from ratelimit.envoy.grpc import Call, GrpcError, Status
from ratelimit.envoy.json_endpoint import read_json, write_json
from ratelimit.envoy.service import RateLimitService
from ratelimit.http.addresses import warn_once
from ratelimit.quota import INACTIVE, to_quotas
from ratelimit.store.delegating import DelegatingStore
from ratelimit.testing import FakeClock
from tests.envoy import rls

OK: Final = 1
OVER: Final = 2
UNLIMITED: Final = 2**32 - 1
CALL: Final = Call("10.0.0.9:1234", None, [])

RULES: Final = """
    domain: edge
    descriptors:
      - key: address
        rate_limit: {name: per-address, unit: minute, requests_per_unit: 5}
      - key: user
        rate_limit: {unit: hour, requests_per_unit: 3}
      - key: soft
        shadow_mode: true
        rate_limit: {unit: minute, requests_per_unit: 1}
      - key: one
        quota_mode: true
        rate_limit: {unit: minute, requests_per_unit: 1}
      - key: two
        quota_mode: true
        rate_limit: {unit: minute, requests_per_unit: 2}
      - key: none
        rate_limit: {unit: day, requests_per_unit: 0}
      - key: free
        rate_limit: {unlimited: true}
      - key: better
        rate_limit: {unit: minute, requests_per_unit: 100, replaces: [{name: per-address}]}
      - key: tokens
        rate_limit: {unit: day, requests_per_unit: 100}
      - key: five
        rate_limit: {unit: minute, unit_multiplier: 5, requests_per_unit: 9}
"""


JSON_SLOTS: Final = b'{"domain": "edge", "descriptors": [{"entries": [{"key": "user", "value": "slots"}]}]}'


class Service:
    """The service on a limiter of its own; what it answers, as protobuf reads it."""

    def __init__(self, folder: Path, rules: str = RULES, store: Any = None, **options: Any) -> None:
        (folder / "rules.yaml").write_text(dedent(rules))
        self.rules = read_envoy_rules(folder)
        self.clock = FakeClock()
        self.limiter = Limiter(store or MemoryStore(), self.rules.policies, clock=self.clock)
        self.service = RateLimitService(self.rules, self.limiter, **options)

    async def __call__(self, message: bytes) -> Any:
        answer = self.service.should_rate_limit(message, CALL)
        return rls.RateLimitResponse.FromString(await answer if isinstance(answer, Awaitable) else answer)

    async def ask(self, *descriptors: dict[str, str], hits: int = 0, domain: str = "edge") -> Any:
        return await self(rls.request(domain, *descriptors, hits=hits))

    async def code(self, *descriptors: dict[str, str], hits: int = 0) -> int:
        code: int = (await self.ask(*descriptors, hits=hits)).overall_code
        return code

    async def used(self, user: str, action: str) -> int:
        return (await self.limiter.peek(user, action)).used


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def brief(response: Any) -> list[tuple[int, int]]:
    return [(each.code, each.limit_remaining) for each in response.statuses]


def descriptor(
    hits: int | None = None, negative: bool = False, limit: dict[str, Any] | None = None, **entries: str
) -> Any:
    found: dict[str, Any] = {"entries": [{"key": key, "value": value} for key, value in entries.items()]}
    if hits is not None:
        found["hits_addend"] = {"value": hits}
    if limit is not None:
        found["limit"] = limit
    return {**found, "is_negative_hits": negative}


def request(*descriptors: dict[str, Any], hits: int = 0, domain: str = "edge") -> bytes:
    wire: bytes = rls.RateLimitRequest(domain=domain, descriptors=descriptors, hits_addend=hits).SerializeToString()
    return wire


async def test_five_pass_and_then_the_next_window_five_more(service: Service) -> None:
    answers = [await service.ask({"address": "10.0.0.1"}) for _ in range(7)]
    assert [each.overall_code for each in answers] == [OK] * 5 + [OVER] * 2
    assert [brief(each) for each in answers] == [[(OK, left)] for left in (4, 3, 2, 1, 0)] + [[(OVER, 0)]] * 2
    assert await service.code({"address": "10.0.0.2"}) == OK
    service.clock.advance(60)
    assert await service.code({"address": "10.0.0.1"}) == OK


async def test_a_status_says_the_limit_and_the_seconds_until_its_window_ends(service: Service) -> None:
    service.clock.advance(12.3)
    (status,) = (await service.ask({"address": "10.0.0.1"})).statuses
    limit = status.current_limit
    assert (limit.requests_per_unit, limit.unit, limit.name) == (5, 2, "per-address")
    assert not limit.HasField("unit_multiplier")
    assert status.duration_until_reset.seconds == 48
    (status,) = (await service.ask({"five": "x"})).statuses
    assert (status.current_limit.unit, status.current_limit.unit_multiplier.value) == (2, 5)
    assert status.duration_until_reset.seconds == 288


@pytest.mark.parametrize(
    ("unit", "length"),
    [
        ("second", SECOND), ("minute", MINUTE), ("hour", HOUR), ("day", DAY), ("week", 7 * DAY), ("month", 30 * DAY),
        ("year", 365 * DAY),
    ],
)  # fmt: skip
async def test_windows_are_aligned_as_envoyproxys_are(tmp_path: Path, unit: str, length: int) -> None:
    """Whole multiples of their length since 1970; `CalculateReset` is seconds - now % seconds."""
    service = Service(
        tmp_path, f"domain: edge\ndescriptors: [{{key: k, rate_limit: {{unit: {unit}, requests_per_unit: 1}}}}]"
    )
    service.clock.advance(100 * 86400 + 1)
    seconds, now = length // SECOND, service.clock.now() // SECOND
    (status,) = (await service.ask({"k": "v"})).statuses
    assert status.duration_until_reset.seconds == seconds - now % seconds
    service.clock.advance(status.duration_until_reset.seconds - 0.001)
    assert await service.code({"k": "v"}) == OVER
    service.clock.advance(0.001)
    assert await service.code({"k": "v"}) == OK


async def test_one_status_for_each_descriptor_in_order_and_over_if_any_is(service: Service) -> None:
    both = {"address": "10.0.0.1"}, {"unknown": "x"}, {"user": "alice"}, {"free": "x"}
    assert brief(await service.ask(*both)) == [(OK, 4), (OK, 0), (OK, 2), (OK, UNLIMITED)]
    await service.ask({"user": "alice"}, hits=2)
    answer = await service.ask(*both)
    assert answer.overall_code == OVER
    assert brief(answer) == [(OK, 3), (OK, 0), (OVER, 0), (OK, UNLIMITED)]
    assert [each.HasField("current_limit") for each in answer.statuses] == [True, False, True, False]


async def test_without_rules_everything_passes(service: Service) -> None:
    answer = await service.ask({"address": "10.0.0.1"}, {"user": "a"}, domain="other")
    assert answer.overall_code == OK
    assert brief(answer) == [(OK, 0), (OK, 0)]
    assert brief(await service.ask({"address": "1", "user": "2"})) == [(OK, 0)]
    assert await service.code({"none": "x"}) == OVER


async def test_shadow_counts_and_passes(service: Service) -> None:
    answers = [await service.ask({"soft": "x"}) for _ in range(3)]
    assert [(each.overall_code, brief(each)) for each in answers] == [(OK, [(OK, 0)])] * 3
    assert await service.used("x", "edge.soft") == 1


async def test_quota_mode_refuses_only_where_all_of_them_are_over(service: Service) -> None:
    both = {"one": "x"}, {"two": "x"}
    answers = [await service.ask(*both) for _ in range(3)]
    assert [each.overall_code for each in answers] == [OK, OK, OVER]
    assert [brief(each) for each in answers] == [[(OK, 0), (OK, 1)], [(OVER, 0), (OK, 0)], [(OVER, 0), (OVER, 0)]]
    assert await service.code({"one": "x"}, {"address": "y"}) == OVER
    assert await service.code({"two": "z"}, {"none": "y"}) == OVER


async def test_a_limit_replaces_another_in_the_same_request(service: Service) -> None:
    assert brief(await service.ask({"address": "a"}, {"better": "a"})) == [(OK, 0), (OK, 99)]
    assert brief(await service.ask({"address": "a"})) == [(OK, 4)]


async def test_hits_of_the_request_and_of_a_descriptor(service: Service) -> None:
    assert brief(await service.ask({"address": "a"}, {"user": "a"}, hits=2)) == [(OK, 3), (OK, 1)]
    answer = await service(request(descriptor(address="a", hits=3), descriptor(user="a"), hits=1))
    assert brief(answer) == [(OK, 0), (OK, 0)]


async def test_no_hits_only_look(service: Service) -> None:
    for _ in range(3):
        assert brief(await service(request(descriptor(user="a", hits=0), hits=5))) == [(OK, 3)]
    await service.ask({"user": "a"}, hits=3)
    assert brief(await service(request(descriptor(user="a", hits=0)))) == [(OVER, 0)]


async def test_hits_that_fit_in_part_take_what_is_left(service: Service) -> None:
    """So that who counts afterwards, and has had it already, is stopped before the next: as with tokens."""
    assert brief(await service.ask({"tokens": "a"}, hits=70)) == [(OK, 30)]
    assert brief(await service.ask({"tokens": "a"}, hits=70)) == [(OVER, 0)]
    assert await service.used("a", "edge.tokens") == 140
    assert brief(await service(request(descriptor(tokens="a", hits=0)))) == [(OVER, 0)]
    assert brief(await service.ask({"tokens": "a"}, hits=70)) == [(OVER, 0)]
    assert await service.used("a", "edge.tokens") == 140
    assert await service.code({"tokens": "b"}, hits=10**6) == OVER
    assert await service.used("b", "edge.tokens") == 10**6
    assert await service.code({"soft": "c"}, hits=7) == OK
    assert await service.used("c", "edge.soft") == 7


async def test_a_number_of_hits_beyond_all_limits(service: Service) -> None:
    assert brief(await service(request(descriptor(tokens="a", hits=2**64 - 1)))) == [(OVER, 0)]
    assert brief(await service.ask({"tokens": "b"}, hits=2**32 - 1)) == [(OVER, 0)]
    assert brief(await service(request(descriptor(tokens="a", hits=2**64 - 1, negative=True)))) == [(OK, 100)]


async def test_negative_hits_give_back_and_never_refuse(service: Service) -> None:
    await service.ask({"user": "a"}, hits=3)
    assert brief(await service(request(descriptor(user="a", hits=2, negative=True)))) == [(OK, 2)]
    assert await service.used("a", "edge.user") == 1
    assert brief(await service(request(descriptor(user="a", hits=9, negative=True)))) == [(OK, 3)]
    assert brief(await service(request(descriptor(user="new", negative=True), hits=1))) == [(OK, 3)]
    assert brief(await service(request(descriptor(none="x", hits=1, negative=True)))) == [(OK, 0)]
    assert [await service.code({"user": "a"}) for _ in range(4)] == [OK, OK, OK, OVER]


async def test_a_limit_of_the_request_goes_over_the_rules_and_is_counted_apart(service: Service) -> None:
    await service.ask({"address": "a"}, hits=5)
    own = request(descriptor(address="a", limit={"requests_per_unit": 2, "unit": 3}))
    answers = [await service(own) for _ in range(3)]
    assert [brief(each) for each in answers] == [[(OK, 1)], [(OK, 0)], [(OVER, 0)]]
    limit = answers[0].statuses[0].current_limit
    assert (limit.requests_per_unit, limit.unit, limit.name) == (2, 3, "")
    assert await service.used("a", "edge.address") == 5
    assert brief(await service(request(descriptor(soft="a", limit={"requests_per_unit": 0, "unit": 1})))) == [(OVER, 0)]
    multiplied = {"requests_per_unit": 3, "unit": 4, "unit_multiplier": {"value": 2}}
    answer = await service(request(descriptor(any="thing", limit=multiplied)))
    assert answer.statuses[0].current_limit.unit_multiplier.value == 2
    elsewhere = request(descriptor(address="a", limit={"requests_per_unit": 0, "unit": 1}), domain="other")
    assert brief(await service(elsewhere)) == [(OK, 0)]


async def test_all_or_nothing(tmp_path: Path) -> None:
    service = Service(tmp_path, all_or_nothing=True)
    await service.ask({"user": "a"}, hits=3)
    answer = await service.ask({"address": "x"}, {"user": "a"}, {"soft": "y"})
    assert brief(answer) == [(OK, 5), (OVER, 0), (OK, 1)]
    assert await service.used("x", "edge.address") == 0
    assert brief(await service.ask({"tokens": "a"}, hits=101)) == [(OVER, 0)]
    assert await service.used("a", "edge.tokens") == 0


async def test_otherwise_what_has_room_is_counted_as_envoyproxy_does(service: Service) -> None:
    await service.ask({"user": "a"}, hits=3)
    assert brief(await service.ask({"address": "x"}, {"user": "a"})) == [(OK, 4), (OVER, 0)]
    assert await service.used("x", "edge.address") == 1


async def test_one_descriptor_twice_counts_twice(service: Service) -> None:
    assert brief(await service.ask({"user": "a"}, {"user": "a"})) == [(OK, 2), (OK, 1)]
    assert brief(await service.ask({"user": "a"}, {"user": "a"})) == [(OK, 0), (OVER, 0)]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (rls.request("", {"k": "v"}), "the domain is empty"),
        (rls.request("edge"), "expected 1 to 64 descriptors, not 0"),
        (rls.request("edge", *[{"k": "v"}] * 65), "expected 1 to 64 descriptors, not 65"),
        (rls.request("edge", {}), "expected 1 to 32 entries in a descriptor, not 0"),
        (rls.request("edge", {str(n): "" for n in range(33)}), "expected 1 to 32 entries in a descriptor, not 33"),
        (b"\xff", "the message is cut off"),
        (request(descriptor(k="v", limit={"requests_per_unit": 1})), "has the unit 0"),
        (request(descriptor(k="v", limit={"requests_per_unit": 1, "unit": 8})), "has the unit 8"),
        (
            request(descriptor(k="v", limit={"requests_per_unit": 1, "unit": 1, "unit_multiplier": {"value": 0}})),
            "unit 1, of which there are 0",
        ),
        (
            request(descriptor(k="v", limit={"requests_per_unit": 1, "unit": 6, "unit_multiplier": {"value": 99}})),
            "longer than the 10 years supported",
        ),
    ],
)
async def test_what_is_no_question_is_an_invalid_argument(service: Service, message: bytes, problem: str) -> None:
    with pytest.raises(GrpcError, match=problem) as refused:
        service.service.should_rate_limit(message, CALL)
    assert refused.value.status == Status.INVALID_ARGUMENT
    assert service.service.calls == {("other", "error"): 1}


async def test_what_is_not_utf_8_is_counted_all_the_same(service: Service) -> None:
    wire = request(descriptor(address="PLACE")).replace(b"PLACE", b"\xff\xfe \x80!")
    assert [(await service(wire)).overall_code for _ in range(6)] == [OK] * 5 + [OVER]


async def test_values_that_no_store_could_keep(service: Service) -> None:
    for value in ("", "x" * 5000, "\x00", "a\nb", "ü" * 300):
        answers = [await service.ask({"address": value}) for _ in range(6)]
        assert [each.overall_code for each in answers] == [OK] * 5 + [OVER]


async def test_headers_in_the_styles_of_all_surfaces(tmp_path: Path) -> None:
    service = Service(tmp_path, headers="both")
    answer = await service.ask({"address": "a"}, {"user": "a"})
    headers = {each.key: each.value for each in answer.response_headers_to_add}
    assert headers == {
        "ratelimit-policy": '"edge.address";q=5;w=60, "edge.user";q=3;w=3600',
        "ratelimit": '"edge.address";r=4;t=60, "edge.user";r=2;t=3600',
        "x-ratelimit-limit": "3",
        "x-ratelimit-remaining": "2",
        "x-ratelimit-reset": str(service.clock.now() // SECOND + 3600),
    }
    await service.ask({"user": "a"}, hits=2)
    answer = await service.ask({"address": "a"}, {"user": "a"})
    headers = {each.key: each.value for each in answer.response_headers_to_add}
    assert headers["retry-after"] == "3600"
    assert headers["ratelimit"] == '"edge.address";r=3;t=60, "edge.user";r=0;t=3600'
    assert not (await service.ask({"unknown": "a"})).response_headers_to_add
    never = await service.ask({"none": "a"})
    assert "retry-after" not in {each.key for each in never.response_headers_to_add}


async def test_calls_are_counted_by_domain_and_answer(service: Service) -> None:
    await service.ask({"user": "a"}, hits=3)
    await service.ask({"user": "a"})
    for number in range(5):
        await service.ask({"user": "a"}, domain=f"made-up-{number}")
    assert service.service.calls == {("edge", "ok"): 1, ("edge", "over_limit"): 1, ("other", "ok"): 5}


class Elsewhere(DelegatingStore):
    """A store that is not the embedded one, and takes its time."""

    async def apply(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        return await super().apply(*args, **options)


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_on_another_store_the_same_is_awaited(tmp_path: Path, all_or_nothing: bool) -> None:
    store: Any = Elsewhere(MemoryStore())
    service = Service(tmp_path, store=store, all_or_nothing=all_or_nothing)
    answers = [await service.ask({"address": "a"}, {"user": "b"}) for _ in range(5)]
    assert [each.overall_code for each in answers] == [OK] * 3 + [OVER] * 2
    assert await service.used("a", "edge.address") == (3 if all_or_nothing else 5)
    assert await service.used("b", "edge.user") == 3


class Waiting(DelegatingStore):
    """A process that is held up before it writes to a user's record."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.go_on = asyncio.Event()

    async def apply(self, key: Any, *args: Any, **options: Any) -> Any:
        if key.action == "edge.user":
            await self.go_on.wait()
        return await super().apply(key, *args, **options)


async def test_no_unit_that_goes_back_refuses_somebody_else(tmp_path: Path) -> None:
    """One unit is left of the address, and none of alice: whoever asks for both never stands in bob's way."""
    store: Any = MemoryStore()
    held_up = Waiting(store)
    slow, quick = (Service(tmp_path, store=each, all_or_nothing=True) for each in (held_up, Elsewhere(store)))
    assert await quick.code({"address": "a"}, hits=4) == OK
    assert await quick.code({"user": "alice"}, hits=3) == OK
    hers = asyncio.create_task(slow.code({"address": "a"}, {"user": "alice"}))
    for _ in range(20):
        await asyncio.sleep(0)
    assert await quick.code({"address": "a"}) == OK
    held_up.go_on.set()
    assert await hers == OVER


async def test_twenty_at_once_pass_exactly_five(tmp_path: Path) -> None:
    store: Any = Elsewhere(MemoryStore())
    service = Service(tmp_path, store=store)
    answers = await asyncio.gather(*(service.ask({"address": "a"}) for _ in range(20)))
    assert [each.overall_code for each in answers].count(OK) == 5


class Down(DelegatingStore):
    async def apply(self, *args: Any, **options: Any) -> Any:
        raise StoreUnavailable("out of reach")

    async def read(self, *args: Any, **options: Any) -> Any:
        raise StoreUnavailable("out of reach")


async def test_a_store_out_of_reach_is_counted_for_here(tmp_path: Path) -> None:
    store: Any = Down(MemoryStore())
    service = Service(tmp_path, store=store)
    answers = [await service.ask({"user": "a"}) for _ in range(5)]
    assert [brief(each) for each in answers] == [[(OK, 2)], [(OK, 1)], [(OK, 0)], [(OVER, 0)], [(OVER, 0)]]
    with pytest.raises(GrpcError, match="did not take the refund") as refused:
        await service(request(descriptor(user="a", negative=True)))
    assert refused.value.status == Status.UNAVAILABLE


async def test_a_caller_who_waits_less_than_the_limiter_is_told_of_once(tmp_path, caplog) -> None:
    store: Any = Elsewhere(MemoryStore())
    service = Service(tmp_path, store=store, deadline=0.25)
    now = asyncio.get_running_loop().time()
    with caplog.at_level(logging.WARNING, logger="ratelimit"):
        for left in (60, 0.02, 0.02):
            call = Call("10.0.0.9:1234", now + left, [])
            answer = service.service.should_rate_limit(rls.request("edge", {"user": "a"}), call)
            assert isinstance(answer, Awaitable)
            await answer
    (record,) = caplog.records
    assert record.getMessage().startswith("10.0.0.9:1234 waits ")
    assert "and the limiter 250 for its store: raise Envoy's timeout, or lower deadline" in record.getMessage()


async def test_each_decision_is_an_event_of_the_usage_log(tmp_path: Path) -> None:
    store = MemoryStore()
    service = Service(tmp_path, store=store)
    async with UsageLog(store, clock=service.clock) as usage:
        service.service = RateLimitService(service.rules, service.limiter, usage=usage)
        for _ in range(4):
            await service.ask({"user": "a"}, {"unknown": "x"})
        await service.ask({"soft": "a"}, hits=2)
        await service(request(descriptor(user="a", hits=0), descriptor(user="a", hits=1, negative=True)))
        await usage.flush()
        page = await usage.events("a")
    events = sorted((each.action, each.cost, each.allowed, each.status, str(each.metadata)) for each in page.events)
    assert events == [
        ("edge.soft", 2, True, 200, "{'shadow_denied': True}"),
        ("edge.user", 1, False, 429, "{}"),
        *[("edge.user", 1, True, 200, "{}")] * 3,
    ]


async def test_with_a_journal_an_answer_waits_until_its_events_are_kept(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "rules").mkdir()
    service = Service(tmp_path / "rules", store=store)
    async with UsageLog(store, durability="journal", journal_dir=tmp_path / "journal") as usage:
        service.service = RateLimitService(service.rules, service.limiter, usage=usage)
        answer = service.service.should_rate_limit(rls.request("edge", {"user": "a"}), CALL)
        assert isinstance(answer, Awaitable)
        assert rls.RateLimitResponse.FromString(await answer).overall_code == OK


class Plans:
    """A directory of who may do what."""

    async def quotas_for(self, user: str, action: str) -> Any:
        plans = {
            "a": (Quota(1, "hour"),),
            "b": (Quota(9, "second"), Quota(2, "2 days")),
            "c": to_quotas(-1),
            "d": INACTIVE,
            "slots": to_quotas("2 concurrent; 9/hour"),
        }
        return plans.get(user)


def planned(folder: Path, **options: Any) -> Service:
    service = Service(folder)
    service.limiter = Limiter(MemoryStore(), service.rules.policies, clock=service.clock, directory=Plans())
    service.service = RateLimitService(service.rules, service.limiter, **options)
    return service


async def test_users_may_have_quotas_of_their_own(tmp_path: Path) -> None:
    service = planned(tmp_path)
    answers = [await service.ask(*({"user": user} for user in "abcde")) for _ in range(2)]
    assert [brief(each) for each in answers] == [
        [(OK, 0), (OK, 1), (OK, UNLIMITED), (OVER, 0), (OK, 2)],
        [(OVER, 0), (OK, 0), (OK, UNLIMITED), (OVER, 0), (OK, 1)],
    ]
    limits = [(each.current_limit.requests_per_unit, each.current_limit.unit) for each in answers[0].statuses]
    assert limits == [(1, 3), (2, 4), (0, 0), (3, 3), (3, 3)]
    assert answers[0].statuses[1].current_limit.unit_multiplier.value == 2
    assert [each.duration_until_reset.seconds for each in answers[0].statuses] == [3600, 129600, 0, 3600, 3600]


async def test_a_plan_that_limits_what_goes_on_at_the_same_time_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Envoy does not say when a request has ended: a slot comes back by itself. An error would let everything pass."""
    warn_once.cache_clear()
    service = planned(tmp_path)
    answers = [await service.ask({"user": "slots"}) for _ in range(4)]
    assert [brief(each) for each in answers] == [[(OK, 1)], [(OK, 0)], [(OVER, 0)], [(OVER, 0)]]
    limit = answers[0].statuses[0].current_limit
    assert (limit.requests_per_unit, limit.unit) == (2, 0)
    assert brief(await service(request(descriptor(user="slots", hits=0)))) == [(OVER, 0)]
    assert json.loads(write_json(await service.service.respond(read_json(JSON_SLOTS))))["overallCode"] == "OVER_LIMIT"
    assert ["comes back after `hold`" in each.message for each in caplog.records] == [True]
    service.clock.advance(76)
    assert brief(await service.ask({"user": "slots"}, hits=7)) == [(OK, 0)], "nine an hour besides"
    assert await service.code({"user": "slots"}) == OVER
    assert service.service.calls == {("edge", "ok"): 3, ("edge", "over_limit"): 5}


async def test_a_slot_of_a_request_that_is_refused_by_another_limit_is_free_again(tmp_path: Path) -> None:
    service = planned(tmp_path, all_or_nothing=True)
    for _ in range(3):
        assert await service.code({"user": "slots"}, {"none": "x"}) == OVER
    assert [await service.code({"user": "slots"}, {"address": "::1"}) for _ in range(3)] == [OK, OK, OVER]
    assert await service.used("::1", "edge.address") == 2
    assert (await service.limiter.peek("slots", "edge.user")).quotas[1].used == 2


operations = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.booleans(), st.sampled_from([0, 0, 20, 45])), max_size=25
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations, st.booleans())
def test_any_history_counts_as_said(tmp_path: Path, history: list[tuple[str, int, bool, int]], exact: bool) -> None:
    """Against the words of the docs, in a few lines."""

    async def run() -> None:
        service = Service(tmp_path, all_or_nothing=exact)
        used: dict[str, int] = {}
        window = service.clock.now() // MINUTE
        for user, hits, negative, later in history:
            service.clock.advance(later)
            if service.clock.now() // MINUTE != window:
                used, window = {}, service.clock.now() // MINUTE
            before = used.get(user, 0)
            over = not negative and before + max(hits, 1) > 5
            if negative:
                used[user] = max(0, before - hits)
            elif not over or (not exact and hits > 1 and before < 5):
                used[user] = before + hits
            answer = await service(request(descriptor(address=user, hits=hits, negative=negative)))
            left = 0 if over else max(0, 5 - used.get(user, 0))
            assert (answer.overall_code, brief(answer)) == ((OVER, [(OVER, 0)]) if over else (OK, [(OK, left)]))
            assert await service.used(user, "edge.address") == used.get(user, 0)

    asyncio.run(run())

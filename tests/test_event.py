"""What an event may be, and what becomes of one that is too large."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import InvalidAction, InvalidEvent, InvalidUser, UsageEvent
from ratelimit.dynamodb.events import event_item, event_of
from ratelimit.event import MARK, MAX_DURATION, MAX_TEXT_BYTES, encode_metadata
from ratelimit.event_id import EventIds, id_from, made_at, time_of
from ratelimit.names import MAX_ACTION_BYTES, MAX_USER_BYTES

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOW = int(NOON.timestamp()) * 1_000_000
NOW_MS = NOW // 1000

texts = st.text(st.characters(exclude_categories=["Cs"]))
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)


class Nowhere(tzinfo):
    """Does not say how far it is from UTC."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


def event(**parts: Any) -> UsageEvent:
    return UsageEvent.of(**{"user": "alice", "action": "hint", "now": NOW, **parts})


def numbers_in(item: Any) -> Iterator[str]:
    """Every number of an item, in wire form."""
    for kind, value in item.items():
        if kind == "N":
            yield value
        elif isinstance(value, dict):
            yield from numbers_in(value)


def size_of(item: Any) -> int:
    """By the rules of the DynamoDB guide, "Item sizes and formats"; numbers generously."""
    if isinstance(item, str):
        return len(item.encode())
    ((kind, value),) = item.items()
    match kind:
        case "S":
            return len(value.encode())
        case "N":
            return len(value) // 2 + 2
        case "M":
            return 3 + sum(1 + len(name) + size_of(part) for name, part in value.items())
    return 1


def test_ids_are_uuid7_of_the_time_and_sort_as_made() -> None:
    ids = EventIds()
    made = [ids.new(NOW_MS + number // 1000) for number in range(5000)]
    assert sorted(set(made)) == made
    assert all(UUID(one).version == 7 for one in made[::100])
    assert all(UUID(one).variant == "specified in RFC 4122" for one in made[::100])
    assert [time_of(one) for one in made] == [NOW_MS + number // 1000 for number in range(5000)]


def test_an_id_made_here_is_known_from_a_uuid7_of_somebody_else() -> None:
    ids, chance = EventIds(), random.Random(7)
    made = [ids.new(NOW_MS + number) for number in range(5000)]  # more than are remembered
    assert [made_at(one) for one in made] == [NOW_MS + number for number in range(5000)]
    assert made_at(id_from(NOW_MS, b"content")) == NOW_MS
    for _ in range(1000):
        low = chance.getrandbits(62)
        other = str(UUID(int=NOW_MS << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | low))
        assert (time_of(other), made_at(other)) == (NOW_MS, None)
        assert event(id=other).at_ms == NOW_MS
        assert not event(id=other).placed_by_id


def test_a_thread_that_makes_ids_while_another_does_leaves_each_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, others = EventIds(), []
    urandom = os.urandom

    def meanwhile(size: int) -> bytes:
        monkeypatch.setattr(os, "urandom", urandom)
        others.append(ids.new(NOW_MS + 1))
        return urandom(size)

    monkeypatch.setattr(os, "urandom", meanwhile)
    made = [ids.new(NOW_MS), *others, ids.new(NOW_MS), ids.new(NOW_MS + 1)]
    assert [made_at(each) for each in made] == [NOW_MS, NOW_MS + 1, NOW_MS, NOW_MS + 1]
    assert len(set(made)) == 4


@pytest.mark.parametrize(
    "other", ["", "x" * 36, "01a1fc6e-ad1e-4112-8c9b-0b7f206a44cd", "01A1FC6E-AD1E-7112-8C9B-0B7F206A44CD"]
)
def test_other_ids_carry_no_time(other: str) -> None:
    assert time_of(other) is None


def test_the_time_is_the_events_own() -> None:
    assert (event().at, event().at_ms) == (NOON, NOW_MS)
    assert event(at=NOON - timedelta(days=3, microseconds=1)).at_ms == NOW_MS - 3 * 86_400_000 - 1
    assert event(at_ms=NOW_MS - 5).at_ms == NOW_MS - 5
    given = EventIds().new(NOW_MS - 77)
    assert event(id=given).at_ms == NOW_MS - 77, "a UUIDv7 says when"
    assert event(id=given).placed_by_id
    assert not event(id=given, at=NOON).placed_by_id
    assert not event(id="order-17").placed_by_id
    assert event(at_ms=NOW_MS - 5).at == NOON - timedelta(milliseconds=5)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (NOON - timedelta(days=91), "91 days ago; events are kept 90 days"),
        (NOON + timedelta(hours=2), "7200 seconds in the future"),
        (datetime(2026, 1, 5), "at must be an aware datetime, not .*; add tzinfo=UTC"),
        (datetime(2026, 1, 5, tzinfo=Nowhere()), "at must be an aware datetime, not .*; add tzinfo=UTC"),
        (NOW_MS, f"at must be an aware datetime, not {NOW_MS}; make one with datetime.fromtimestamp"),
        (10**400, "at must be an aware datetime, not a number of [0-9]+ bits"),
        ("2026-01-05", "at must be an aware datetime, not '2026-01-05'"),
        (NOON.date(), "at must be an aware datetime, not datetime.date"),
    ],
)
def test_a_time_that_is_none_or_out_of_range_is_refused(at: Any, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        event(at=at)


@pytest.mark.parametrize(
    ("at_ms", "message"),
    [
        (0, "days ago"),
        (10**15, "future"),
        (10**400, "number of [0-9]+ bits seconds in the future"),
        (-(10**400), "number of [0-9]+ bits days ago"),
        (NOW_MS // 1000, "at is in seconds"),
        (NOW, "at is in microseconds"),
        (NOW / 1000, "at must be whole milliseconds"),
        (True, "at must be whole milliseconds"),
        ("2026-01-05", "at must be whole milliseconds"),
        (NOON, "at must be whole milliseconds"),
    ],
)
def test_milliseconds_out_of_range_are_refused(at_ms: Any, message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        event(at_ms=at_ms)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"user": ""}, InvalidUser, "empty"),
        ({"action": "a\nb"}, InvalidAction, "control character"),
        ({"cost": -1}, InvalidEvent, "cost"),
        ({"cost": 1.0}, InvalidEvent, "cost"),
        ({"cost": True}, InvalidEvent, "cost"),
        ({"allowed": 1}, InvalidEvent, "allowed"),
        ({"status": 42}, InvalidEvent, "status"),
        ({"duration": float("nan")}, InvalidEvent, "duration"),
        ({"duration": -1}, InvalidEvent, "duration"),
        ({"duration": float("inf")}, InvalidEvent, "duration"),
        ({"duration": 1e126}, InvalidEvent, "duration must be milliseconds from 0 to 1000000000000000, not 1e\\+126"),
        ({"duration": 10**400}, InvalidEvent, "duration .* a number of 1329 bits"),
        ({"cost": 10**400}, InvalidEvent, "cost .* a number of 1329 bits"),
        ({"status": 10**400}, InvalidEvent, "status .* a number of 1329 bits"),
        ({"resource": 7}, InvalidEvent, "resource must be text, not int"),
        ({"resource": "\ud800"}, InvalidEvent, "not valid Unicode"),
        ({"id": ""}, InvalidEvent, "id"),
        ({"id": 7}, InvalidEvent, "id"),
        ({"id": "x" * 65}, InvalidEvent, "64 are the most"),
        ({"metadata": [1]}, InvalidEvent, "JSON object"),
        ({"metadata": {1: 2}}, InvalidEvent, "keys are text"),
        ({"metadata": {"a": {1, 2}}}, InvalidEvent, "not JSON"),
        ({"metadata": {"a": float("nan")}}, InvalidEvent, "not JSON"),
        ({"metadata": {"a": "\ud800"}}, InvalidEvent, "not JSON"),
        ({"metadata": {"a": NOON}}, InvalidEvent, "not JSON"),
    ],
)
def test_bad_parts_are_refused(parts: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        event(**parts)


def test_metadata_that_holds_itself_is_refused() -> None:
    metadata: dict[str, Any] = {}
    metadata["self"] = metadata
    with pytest.raises(InvalidEvent, match="not JSON"):
        event(metadata=metadata)


def test_metadata_is_a_copy() -> None:
    metadata = {"list": [1]}
    kept = event(metadata=metadata)
    metadata["list"].append(2)
    assert kept.metadata == {"list": [1]}


def test_long_texts_are_cut_and_marked() -> None:
    kept = event(resource="é" * 300, request_id="r" * 300)
    assert kept.resource == "é" * 95 + MARK
    assert kept.request_id == "r" * 118 + MARK


@given(st.dictionaries(texts, jsons))
def test_metadata_that_fits_is_untouched_and_more_is_trimmed_with_a_mark(metadata: dict[str, Any]) -> None:
    encoded = encode_metadata(metadata)
    kept = event(metadata=metadata).metadata
    if len(encoded) <= MAX_TEXT_BYTES - 100:
        assert kept == json.loads(encoded)
    if kept != json.loads(encoded):
        assert kept[MARK] == len(encoded)
        assert set(kept) <= {*metadata, MARK}
    assert len(encode_metadata(kept)) <= MAX_TEXT_BYTES


def test_trimming_keeps_what_fits() -> None:
    kept = event(metadata={"first": 1, "long": "x" * 2000, "list": list(range(1000)), "last": True}).metadata
    assert kept["first"] == 1
    assert kept["long"].endswith(MARK)
    assert len(kept["long"]) > 500
    assert "list" not in kept
    assert kept[MARK] > 5000


@given(jsons, texts)
def test_the_largest_event_fits_one_write_unit(value: Any, text: str) -> None:
    """Also with what is trimmed; only `#` and `%`, which a key spells out, take more."""
    largest = event(
        user="u" * MAX_USER_BYTES,
        action="a" * MAX_ACTION_BYTES,
        id="i" * 64,
        cost=10**12,
        status=500,
        duration=MAX_DURATION - 1.0,
        resource=text or "r" * 1000,
        request_id="q" * 1000,
        metadata={"a": value, "b": text, "c": "\\" * 1000, "d": "x" * 1000},
    )
    assert sum(len(name) + size_of(part) for name, part in event_item(largest).items()) < 1024


@given(jsons)
def test_an_event_survives_its_item(value: Any) -> None:
    one = event(id="a#b%c", user="x#y", action="%z", status=200, duration=1.5, resource="", metadata={"v": value})
    assert event_of("x#y", event_item(one)) == one


@given(
    duration=st.floats(min_value=0, allow_nan=False) | st.integers(0) | st.just(5e-324),
    cost=st.integers(),
    status=st.integers(),
    metadata=st.dictionaries(texts, jsons),
)
def test_whatever_is_accepted_is_within_the_numbers_of_dynamodb(**parts: Any) -> None:
    """Up to 38 digits, of a magnitude from 1E-130 to 9.9E+125 ("Supported data types", DynamoDB guide)."""
    try:
        one = event(**parts)
    except InvalidEvent:
        one = event(duration=min(parts["duration"], MAX_DURATION), metadata=parts["metadata"])
    numbers = [Decimal(number) for number in numbers_in(event_item(one))]
    assert len(numbers) >= 4
    for number in numbers:
        assert len(number.normalize().as_tuple().digits) <= 38
        assert number == 0 or Decimal("1E-130") <= abs(number) <= Decimal("9.99E+125")

"""The bodies say exactly what `expressions` says, whatever template they were made from."""

from __future__ import annotations

import json
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.dynamodb.expressions import encode
from ratelimit.dynamodb.schema import limit_key, limit_pk
from ratelimit.dynamodb.transport.fast import RequestBodies
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.record_cache import CachedRecord
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.store import Add, Drop, Expect, Op, Put, Write
from tests.profiles import examples

CONSTANT = {"TableName": "li%mits"}
numbers = st.integers(-3, 3) | st.integers(-(10**19), 10**19)
bounds = st.none() | numbers
fields = st.sampled_from(["d20758", "h493", "gd", "u2601", "50%d", 'a"b', "ß"])


@st.composite
def writes(draw: st.DrawFn) -> Write:
    changed = draw(st.lists(fields, unique=True, max_size=5))
    ops: list[Op] = []
    for field in changed:
        if draw(st.booleans()):
            ops.append(Expect(field, draw(bounds), draw(bounds), draw(st.booleans())))
        kind = draw(st.sampled_from("apd"))
        if kind == "a":
            ops.append(Add(field, draw(numbers), draw(bounds)))
        else:
            ops.append(Put(field, draw(numbers)) if kind == "p" else Drop(field))
    return Write(tuple(ops), draw(st.integers(0, 10**10)), draw(st.booleans()), recurs=draw(st.booleans()))


def said(body: bytes) -> object:
    return json.loads(body)


@settings(max_examples=examples(150))
@given(st.lists(writes(), min_size=1, max_size=8), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_body_is_the_encoded_update(some: list[Write], user: str) -> None:
    bodies = RequestBodies(CONSTANT, limit=3)
    key = Key(user, "hint")
    for write in (*some, *some):
        body, digest = bodies.body(limit_pk(key), write)
        assert said(body) == {**CONSTANT, **encode(write), "Key": limit_key(key)}
        assert digest == sha256(body).hexdigest()


def test_one_template_for_a_shape_and_one_constant_for_a_write() -> None:
    bodies = RequestBodies(CONSTANT)
    bucket = [Write((Expect("gd", now, now + 9), Add("gd", 1)), 5) for now in range(20)]
    for write in bucket:
        bodies.body("USR#a#LIM#b", write)
    assert len(bodies._templates) == 1


def test_what_never_recurs_takes_the_place_of_nothing_that_does() -> None:
    """A bucket's writes are each another one; a window's are the same for every user."""
    bodies = RequestBodies(CONSTANT, limit=3)
    now, cached = 1_767_614_400_000_000, CachedRecord()
    cached.learn({"gd": now * 1000, "gdl": 9, "d20458": 1}, now)
    window = CompiledPolicy(Policy("hint", "1000/day"))
    bucket = CompiledPolicy(Policy("run", "9/day", algorithm="gcra"))
    kept = window.spend(now, 1, cached)
    assert kept is not None
    bodies.body("USR#a#LIM#hint", kept)
    for later in range(9):
        write = bucket.spend(now + later, 1, cached)
        assert write is not None
        bodies.body("USR#a#LIM#run", write)
    assert list(bodies._known) == [kept]
    assert window.spend(now, 1, cached) is kept


def test_what_is_kept_is_bounded() -> None:
    bodies = RequestBodies(CONSTANT, limit=10)
    for number in range(50):
        bodies.body("USR#a#LIM#b", Write((Add(f"d{number}", 1),), 5, recurs=True))
    assert len(bodies._known) == 10
    assert len(bodies._templates) <= 10

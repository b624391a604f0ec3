"""Calls: what a method is given, how what it does is told, and what is no call."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.envoy.grpc import Call
from tests.envoy.wire import ECHO, Client


async def test_a_call_is_answered_at_once_in_one_write() -> None:
    client = Client()
    before = client.transport.writes
    client.send(client.call(1, b"one"), client.call(3, b"two"), client.call(5, b""))
    assert client.transport.writes == before + 1
    answers = client.answers()
    assert {stream: answer.message for stream, answer in answers.items()} == {1: b"one", 3: b"two", 5: b""}
    assert answers[1].headers == {b":status": b"200", b"content-type": b"application/grpc", b"grpc-status": b"0"}
    assert len(asyncio.all_tasks()) == 1


async def test_a_method_is_told_who_calls_until_when_and_with_which_metadata() -> None:
    calls: list[Call] = []

    def method(message: bytes, call: Call) -> bytes:
        calls.append(call)
        return b""

    client = Client({ECHO: method})
    now = asyncio.get_running_loop().time()
    client.send(client.call(1, b"", (b"x-key", b"7"), (b"grpc-timeout", b"20m")), client.call(3))
    assert calls[0].peer == "192.0.2.1:1234"
    assert calls[0].deadline == pytest.approx(now + 0.02, abs=0.01)
    assert (b"x-key", b"7") in calls[0].metadata
    assert not [name for name, _ in calls[0].metadata if name.startswith(b":")]
    assert calls[1].deadline is None
    assert (b"x-key", b"7") not in calls[1].metadata


@pytest.mark.parametrize(
    ("text", "seconds"), [("1H", 3600), ("2M", 120), ("3S", 3), ("40m", 0.04), ("50000u", 0.05), ("99999999n", 0.1)]
)
async def test_timeouts_have_units(text: str, seconds: float) -> None:
    calls: list[Call] = []

    def method(message: bytes, call: Call) -> bytes:
        calls.append(call)
        return b""

    client = Client({ECHO: method})
    client.send(client.call(1, b"", (b"grpc-timeout", text.encode())))
    assert calls[0].deadline is not None
    assert calls[0].deadline - asyncio.get_running_loop().time() == pytest.approx(seconds, abs=0.01)


async def test_a_method_may_be_awaited_while_others_answer() -> None:
    ready = asyncio.Event()

    async def wait(message: bytes) -> bytes:
        await ready.wait()
        return b"late " + message

    client = Client({ECHO: lambda message, call: wait(message) if message else b"early"})
    client.send(client.call(1, b"a"), client.call(3, b""), client.call(5, b"b"))
    assert {stream: answer.message for stream, answer in client.answers().items()} == {3: b"early"}
    before = client.transport.writes
    ready.set()
    await asyncio.sleep(0.01)
    assert {stream: answer.message for stream, answer in client.answers().items()} == {1: b"late a", 5: b"late b"}
    assert client.transport.writes == before + 1

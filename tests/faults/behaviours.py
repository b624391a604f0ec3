"""Ways to answer one request: the good one, and the bad ones. `server.then(throttled(), ok())` puts them in line."""

from __future__ import annotations

import asyncio
import json
import threading
from asyncio import StreamWriter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

_PREFIX = "com.amazonaws.dynamodb.v20120810#"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and the way to answer it."""

    operation: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: dict[str, Any]
    writer: StreamWriter
    good_answer: Callable[[], dict[str, Any]]
    """What a healthy server would answer. Calling it executes the request."""

    async def send(
        self, status: int, body: bytes, *, length: int | None = None, headers: Mapping[str, object] | None = None
    ) -> None:
        """A whole answer; with `length`, one that promises as much and may not keep it."""
        size = len(body) if length is None else length
        every = {"Content-Type": "application/x-amz-json-1.0", "Content-Length": size, **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in every.items())
        self.writer.write(f"HTTP/1.1 {status} -\r\n{lines}\r\n".encode() + body)
        await self.writer.drain()


Behaviour: TypeAlias = Callable[[Exchange], Awaitable[bool]]
"""Answers an exchange; False when the connection is to be closed afterwards."""


def ok() -> Behaviour:
    """As a healthy server, at once."""

    async def behave(exchange: Exchange) -> bool:
        await exchange.send(200, json.dumps(exchange.good_answer()).encode())
        return True

    return behave


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Execute and answer after a pause."""
    answer = then or ok()

    async def behave(exchange: Exchange) -> bool:
        await asyncio.sleep(seconds)
        return await answer(exchange)

    return behave


def held(released: threading.Event) -> Behaviour:
    """Execute and answer when that is allowed."""

    async def behave(exchange: Exchange) -> bool:
        while not released.is_set():
            await asyncio.sleep(0.002)
        return await ok()(exchange)

    return behave


def status(code: int, body: bytes = b"<html><h1>oops</h1></html>") -> Behaviour:
    """A bare status, as from something in between that is no DynamoDB."""

    async def behave(exchange: Exchange) -> bool:
        await exchange.send(code, body)
        return True

    return behave


def error(code: str, message: str = "because", *, status: int = 400) -> Behaviour:
    """One of DynamoDB's own errors; nothing is executed."""

    async def behave(exchange: Exchange) -> bool:
        await exchange.send(status, json.dumps({"__type": _PREFIX + code, "message": message}).encode())
        return True

    return behave


def throttled() -> Behaviour:
    """Too many writes on one item."""
    return error("ProvisionedThroughputExceededException")


def transaction_conflict() -> Behaviour:
    """A transaction holds the item."""
    return error("TransactionConflictException")


def internal_error(*, executed: bool = False) -> Behaviour:
    """DynamoDB's 500, of which nobody knows whether the request was executed."""
    answer = error("InternalServerError", status=500)

    async def behave(exchange: Exchange) -> bool:
        if executed:
            exchange.good_answer()
        return await answer(exchange)

    return behave


def garbage(body: bytes = b"\x00\xffnot json") -> Behaviour:
    """A success that says nothing. The request was executed."""

    async def behave(exchange: Exchange) -> bool:
        exchange.good_answer()
        await exchange.send(200, body)
        return True

    return behave


def half() -> Behaviour:
    """Half an answer, and then the connection closes. The request was executed."""

    async def behave(exchange: Exchange) -> bool:
        body = json.dumps(exchange.good_answer()).encode()
        await exchange.send(200, body[: len(body) // 2], length=len(body))
        return False

    return behave


def hang_up(*, executed: bool = True) -> Behaviour:
    """Close the connection without a word."""

    async def behave(exchange: Exchange) -> bool:
        if executed:
            exchange.good_answer()
        return False

    return behave

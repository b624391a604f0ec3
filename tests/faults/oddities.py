"""Answers that are odd as HTTP, or that depend on who asks and by which clock."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from email.utils import format_datetime
from zlib import crc32

import httpx

from tests.faults.behaviours import Behaviour, Exchange, error, ok

_FORGIVEN = 300


def chunked(*, size: int = 7) -> Behaviour:
    """A good answer in chunks, none of which ends where a value does."""

    async def behave(exchange: Exchange) -> bool:
        body = json.dumps(exchange.good_answer()).encode()
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), size):
            chunk = body[start : start + size]
            exchange.writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await exchange.writer.drain()
            await asyncio.sleep(0)
        exchange.writer.write(b"0\r\n\r\n")
        return True

    return behave


def gzipped() -> Behaviour:
    """A good answer, compressed though nobody asked for it."""

    async def behave(exchange: Exchange) -> bool:
        body = gzip.compress(json.dumps(exchange.good_answer()).encode())
        await exchange.send(200, body, headers={"Content-Encoding": "gzip", "x-amz-crc32": crc32(body)})
        return True

    return behave


def checksum(*, off_by: int = 0) -> Behaviour:
    """A good answer with its CRC32, right or wrong."""

    async def behave(exchange: Exchange) -> bool:
        body = json.dumps(exchange.good_answer()).encode()
        await exchange.send(200, body, headers={"x-amz-crc32": crc32(body) + off_by})
        return True

    return behave


def endless(*, promised: bool) -> Behaviour:
    """More than anybody should read: announced by its length, or in chunks that do not end."""

    async def behave(exchange: Exchange) -> bool:
        exchange.good_answer()
        if promised:
            await exchange.send(200, b" ", length=10**12)
        else:
            exchange.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            exchange.writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            await exchange.writer.drain()

    return behave


def twice() -> Behaviour:
    """The good answer, and the same again unasked."""

    async def behave(exchange: Exchange) -> bool:
        body = json.dumps(exchange.good_answer()).encode()
        await exchange.send(200, body)
        await exchange.send(200, body)
        return True

    return behave


def then_close(*, announced: bool) -> Behaviour:
    """The good answer, and the end of the connection."""

    async def behave(exchange: Exchange) -> bool:
        headers = {"Connection": "close"} if announced else {}
        await exchange.send(200, json.dumps(exchange.good_answer()).encode(), headers=headers)
        return False

    return behave


def raw(data: bytes, *, close: bool = False) -> Behaviour:
    """These bytes and nothing else. The request was executed."""

    async def behave(exchange: Exchange) -> bool:
        exchange.good_answer()
        exchange.writer.write(data)
        await exchange.writer.drain()
        return not close

    return behave


def only(access_key: str, then: Callable[[], None] = lambda: None) -> Behaviour:
    """Any other key has expired; `then` is called whenever it says so."""
    good, expired = ok(), error("ExpiredTokenException", "The security token included in the request is expired")

    async def behave(exchange: Exchange) -> bool:
        if f"Credential={access_key}/" in exchange.headers["authorization"]:
            return await good(exchange)
        answer = await expired(exchange)
        then()
        return answer

    return behave


def punctual(now: Callable[[], float], then: Behaviour | None = None) -> Behaviour:
    """A server with a clock, which refuses requests that were signed more than five minutes before or after."""
    good = then or ok()

    async def behave(exchange: Exchange) -> bool:
        signed = datetime.strptime(exchange.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs(signed.timestamp() - now()) <= _FORGIVEN:
            return await good(exchange)
        date = format_datetime(datetime.fromtimestamp(now(), UTC), usegmt=True)
        body = {"__type": "com.amazon.coral.service#InvalidSignatureException", "message": "Signature expired: ..."}
        await exchange.send(400, json.dumps(body).encode(), headers={"Date": date})
        return True

    return behave


def of_engine(endpoint: str, *, unknown: Collection[str] = ()) -> Behaviour:
    """What a real engine answers, to which some parameters of requests are `unknown`: it passes over them."""

    async def behave(exchange: Exchange) -> bool:
        asked = {name: value for name, value in exchange.body.items() if name not in unknown}
        headers = {name: exchange.headers[name] for name in ("authorization", "x-amz-date", "x-amz-target")}
        headers["content-type"] = "application/x-amz-json-1.0"
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.post(endpoint, headers=headers, content=json.dumps(asked))
        await exchange.send(answer.status_code, answer.content)
        return True

    return behave


def redirect(to: str, code: int = 307) -> Behaviour:
    """The way to somebody else."""

    async def behave(exchange: Exchange) -> bool:
        await exchange.send(code, b"", headers={"Location": to})
        return True

    return behave

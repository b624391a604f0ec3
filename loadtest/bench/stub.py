"""A DynamoDB that answers at once and stores nothing, in a process of its own: what is left is the client's own cost.

`python -m loadtest.bench.stub` prints its port and serves until its standard input ends. `--delay SECONDS` before every
answer to a check, on each connection by itself; `--mood` is what those answers are (`ok`, or one of the bad ones);
`--certificate` is a file with the key and the chain of `localhost`, for TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast
from zlib import crc32

from loadtest.talking import TalkingProgram, obey, talking

Mood: TypeAlias = Literal["ok", "refusing", "throttling", "failing"]

TARGET: Final = b"dynamodb_20120810."
_NAMES: Final = b'"ExpressionAttributeNames"'
_DESCRIPTION: Final[dict[str, Any]] = {
    "TableName": "bench",
    "TableStatus": "ACTIVE",
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("PK", "SK")],
    "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
}
_ERRORS: Final = {
    "refusing": (400, "ConditionalCheckFailedException"),
    "throttling": (400, "ProvisionedThroughputExceededException"),
    "failing": (500, "InternalServerError"),
}
_SPENT: Final = {"N": "1000000000"}


@contextmanager
def stub_server(*, delay: float = 0.0, mood: Mood = "ok", certificate: Path | None = None) -> Iterator[str]:
    """A running stub; gives its endpoint."""
    secure = [] if certificate is None else ["--certificate", str(certificate)]
    with running("loadtest.bench.stub", "--delay", str(delay), "--mood", mood, *secure) as stub:
        yield stub.endpoint.replace("http://127.0.0.1", "https://localhost") if secure else stub.endpoint


def running(module: str, *arguments: str) -> AbstractContextManager[TalkingProgram]:
    """Run a module that ends in `serve`."""
    return talking([sys.executable, "-m", module, *arguments])


class Asked(asyncio.Protocol):
    """Takes whole requests off a connection; whoever answers them writes to `transport`."""

    def __init__(self) -> None:
        self._pending = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody asks. A cast, since uvloop's transport is no subclass of asyncio's."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A part of a request, or several of them."""
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) > 0:
            head = self._pending[:end].lower()
            whole = end + 4 + body_length(head)
            if len(self._pending) < whole:
                return
            request, self._pending = self._pending[:whole], self._pending[whole:]
            self.asked(head, request)

    def asked(self, head: bytes, request: bytes) -> None:
        """The head is in lower case, without the empty line that ends it; the request is as it came."""
        raise NotImplementedError


class _Stub(Asked):
    def __init__(self, answers: dict[bytes, bytes], delay: float, mood: Mood) -> None:
        super().__init__()
        self._answers = answers
        self._delay = delay
        self._mood = mood
        self._later = asyncio.get_running_loop().call_later

    def asked(self, head: bytes, request: bytes) -> None:
        answer = self._answer(head, request[len(head) + 4 :])
        if self._delay and answer is not _HEALTHY:
            self._later(self._delay, self.transport.write, answer)
        else:
            self.transport.write(answer)

    def _answer(self, head: bytes, body: bytes) -> bytes:
        """Every field that the update names, as 1: the same answer for the same names."""
        start = head.find(TARGET) + len(TARGET)
        if not head.startswith(b"updateitem", start):
            return _HEALTHY
        start = body.find(_NAMES)
        names = body[start : body.find(b"}", start) + 1]
        answer = self._answers.get(names)
        if answer is None:
            fields = json.loads(names[len(_NAMES) :].lstrip(b": ")).values()
            attributes = {field: {"S": "lim"} if field == "tp" else {"N": "1"} for field in fields}
            answer = self._answers[names] = self._in_mood(attributes)
        return answer

    def _in_mood(self, attributes: dict[str, dict[str, str]]) -> bytes:
        if self._mood == "ok":
            return response({"Attributes": attributes})
        status, code = _ERRORS[self._mood]
        answer: dict[str, Any] = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "so it goes"}
        if self._mood == "refusing":
            answer["Item"] = {name: _SPENT if "N" in value else value for name, value in attributes.items()}
        return response(answer, status)


def body_length(head: bytes) -> int:
    """Return what the head of a message says of its body, in whatever case; 0 where it says nothing."""
    return int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r")[0] or 0)


def response(answer: object, status: int = 200) -> bytes:
    """Return an answer as long, and with as many headers, as Amazon's."""
    body = json.dumps(answer, separators=(",", ":")).encode()
    return (
        f"HTTP/1.1 {status} OK\r\nServer: Server\r\nDate: Sat, 21 Nov 2026 00:00:00 GMT\r\n"
        f"Content-Type: application/x-amz-json-1.0\r\nContent-Length: {len(body)}\r\nConnection: keep-alive\r\n"
        "x-amzn-RequestId: 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ABCDEF\r\n"
        f"x-amz-crc32: {crc32(body)}\r\n\r\n"
    ).encode() + body


# To a `DescribeTable`, and to a `BatchWriteItem` as well.
_HEALTHY: Final = response({"Table": _DESCRIPTION, "UnprocessedItems": {}})


async def serve(make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None) -> None:
    """On a free port, which is printed, until the standard input ends."""
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=tls)
    await obey(server.sockets[0].getsockname()[1])
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--mood", choices=("ok", *_ERRORS), default="ok")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    secure = None
    if options.certificate is not None:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(options.certificate)
    with suppress(KeyboardInterrupt):
        kept: dict[bytes, bytes] = {}
        asyncio.run(serve(lambda: _Stub(kept, options.delay, options.mood), secure))

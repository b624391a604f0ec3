"""HTTP/2 as RFC 9113 has it: what a client sends, and what comes back. The numbers are the RFC's sections."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections.abc import Callable

import pytest
from hpack import Encoder

from ratelimit.envoy import http2
from ratelimit.envoy.grpc import Call
from ratelimit.envoy.http2 import ACK, END_HEADERS, END_STREAM, PADDED, PREFACE, WITH_PRIORITY, frame
from tests.envoy.fuzz import fuzz
from tests.envoy.wire import ECHO, HEAD, Client, prefixed, unprefixed
from tests.profiles import examples
from tests.turns import settled

ANSWERED = ["HEADERS 1", "DATA 1", "HEADERS 1 END"]
WORD = struct.Struct(">I").pack
GREETING = PREFACE + frame(http2.SETTINGS, 0, 0)
RESIZED = b"\x20\x3f\xe1\x1f"  # to nothing, and to what it was
Sent = Callable[[Client], bytes]


def closed_by(code: str) -> list[str]:
    return [f"GOAWAY {code}", "ended"]


def reset_by(code: str, stream: int = 1) -> list[str]:
    return [f"RST_STREAM {stream} {code}"]


def setting(*pairs: tuple[int, int], flags: int = 0, stream: int = 0) -> bytes:
    return frame(http2.SETTINGS, flags, stream, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def data(stream: int, payload: bytes = prefixed(b"hello"), flags: int = END_STREAM) -> bytes:
    return frame(http2.DATA, flags, stream, payload)


def block(*headers: tuple[bytes, bytes]) -> bytes:
    """Header fields that no table keeps."""
    return Encoder().encode([(*header, True) for header in headers])


def split(client: Client, *sizes: int, last: int = END_HEADERS) -> bytes:
    """Headers of stream 1 in a HEADERS and CONTINUATIONs of these sizes, the last with what is left."""
    whole, frames = client.encoder.encode(HEAD), []
    for at, size in enumerate([*sizes, len(whole)]):
        kind, final = (http2.CONTINUATION if at else http2.HEADERS), at == len(sizes)
        frames.append(frame(kind, last if final else 0, 1, whole[:size]))
        whole = whole[size:]
    return b"".join(frames)


def window(stream: int, more: int) -> bytes:
    return frame(http2.WINDOW_UPDATE, 0, stream, WORD(more))


def rst(stream: int, payload: bytes = WORD(8)) -> bytes:
    return frame(http2.RST_STREAM, 0, stream, payload)


def without(name: bytes) -> Sent:
    return lambda c: frame(http2.HEADERS, 5, 1, block(*[header for header in HEAD if header[0] != name]))


def with_header(name: bytes, value: bytes) -> Sent:
    return lambda c: c.call(1, b"hello", (name, value))


PROTOCOL, SIZE, FLOW = closed_by("PROTOCOL_ERROR"), closed_by("FRAME_SIZE_ERROR"), closed_by("FLOW_CONTROL_ERROR")
COMPRESSION = closed_by("COMPRESSION_ERROR")
MALFORMED, OVER = reset_by("PROTOCOL_ERROR"), reset_by("STREAM_CLOSED")
PRIO = WORD(0) + b"\x10"

CASES: list[tuple[str, str, Sent, list[str]]] = [
    # --- 4: frames
    ("4.1", "a frame of an unknown type is ignored", lambda c: frame(0x77, 0xFF, 0, b"?") + c.call(1), ANSWERED),
    ("4.1", "a reserved bit is ignored", lambda c: c.call(1).replace(WORD(1), WORD(1 | 1 << 31)), ANSWERED),
    ("4.1", "undefined flags are ignored", lambda c: frame(http2.PING, 0xFE, 0, b"12345678"), ["PING ACK"]),
    ("4.2", "DATA of the largest size", lambda c: c.head(1) + data(1, prefixed(bytes(16379))), ANSWERED),
    ("4.2", "DATA larger than that", lambda c: c.head(1) + data(1, bytes(16385)), SIZE),
    ("4.2", "HEADERS larger than that", lambda c: frame(1, 4, 1, bytes(16385)), SIZE),
    ("4.3", "headers that cannot be decoded", lambda c: frame(1, 5, 1, b"\xff\xff\xff"), COMPRESSION),
    ("4.3", "a reference to nothing", lambda c: frame(1, 5, 1, b"\xfe"), COMPRESSION),
    ("4.3", "headers interrupted by PRIORITY", lambda c: split(c, 3, last=0) + frame(2, 0, 1, PRIO), PROTOCOL),
    ("4.3", "headers interrupted by another stream's", lambda c: split(c, 3, last=0) + c.head(3), PROTOCOL),
    ("4.3", "headers interrupted by an unknown frame", lambda c: split(c, 3, last=0) + frame(0x77, 0, 1), PROTOCOL),
    ("4.3", "a table resized twice", lambda c: frame(1, 4, 1, RESIZED + c.encoder.encode(HEAD)) + data(1), ANSWERED),
    ("4.3", "a table resized thrice", lambda c: frame(1, 5, 1, RESIZED + b"\x20"), COMPRESSION),
    ("4.3", "a table resized above the most", lambda c: frame(1, 5, 1, b"\x3f\xe2\x1f"), COMPRESSION),
    # --- 5.1: streams
    ("5.1", "idle: DATA", lambda c: data(1), PROTOCOL),
    ("5.1", "idle: RST_STREAM", lambda c: rst(1), PROTOCOL),
    ("5.1", "idle: WINDOW_UPDATE", lambda c: window(1, 1), PROTOCOL),
    ("5.1", "idle: CONTINUATION", lambda c: frame(9, 4, 1), PROTOCOL),
    ("5.1", "idle: PRIORITY", lambda c: frame(2, 0, 1, PRIO) + c.call(1), ANSWERED),
    ("5.1", "half closed: DATA", lambda c: c.call(1, b"wait") + data(1), OVER),
    ("5.1", "half closed: HEADERS", lambda c: c.call(1, b"wait") + c.head(1), OVER),
    ("5.1", "half closed: WINDOW_UPDATE, PRIORITY",
     lambda c: c.call(1, b"wait") + window(1, 1) + frame(2, 0, 1, PRIO), []),
    ("5.1", "half closed: RST_STREAM", lambda c: c.call(1, b"wait") + rst(1), []),
    ("5.1", "closed: DATA", lambda c: c.call(1) + data(1), ANSWERED + OVER),
    ("5.1", "closed: HEADERS", lambda c: c.call(1) + c.head(1), ANSWERED + closed_by("STREAM_CLOSED")),
    ("5.1", "closed: CONTINUATION", lambda c: c.call(1) + frame(9, 4, 1), ANSWERED + PROTOCOL),
    ("5.1", "closed: WINDOW_UPDATE, RST_STREAM, PRIORITY",
     lambda c: c.call(1) + window(1, 1) + rst(1) + frame(2, 0, 1, PRIO), ANSWERED),
    ("5.1", "reset by the client: DATA", lambda c: c.head(1) + rst(1) + data(1), OVER),
    ("5.1", "reset by us: DATA and trailers on their way",
     lambda c: c.head(1, te=b"x") + data(1, flags=0) + c.head(1, flags=5), MALFORMED),
    ("5.1.1", "an even stream", lambda c: c.head(2), PROTOCOL),
    ("5.1.1", "stream 0", lambda c: c.head(0), PROTOCOL),
    ("5.1.1", "a lower stream", lambda c: c.call(5, b"wait") + c.head(3), PROTOCOL),
    ("5.1.1", "streams that are left out",
     lambda c: c.call(5) + c.call(9, b"wait"), ["HEADERS 5", "DATA 5", "HEADERS 5 END"]),
    ("5.1.2", "more streams than may be",
     lambda c: b"".join(c.head(2 * n + 1) for n in range(257)), reset_by("REFUSED_STREAM", 513)),
    # --- 6: each type of frame
    ("6.1", "DATA on stream 0", lambda c: data(0), PROTOCOL),
    ("6.1", "padding",
     lambda c: c.head(1) + data(1, b"\x03" + prefixed(b"hi") + bytes(3), PADDED | END_STREAM), ANSWERED),
    ("6.1", "padding that comes before the end is given back",
     lambda c: c.head(1) + data(1, b"\x02" + bytes(2), PADDED), ["WINDOW_UPDATE 1"]),
    ("6.1", "as much padding as there is", lambda c: c.head(1) + data(1, b"\x03ab", PADDED), PROTOCOL),
    ("6.1", "padding without its length", lambda c: c.head(1) + data(1, b"", PADDED), PROTOCOL),
    ("6.2", "padded HEADERS with a priority",
     lambda c: frame(1, 0x2C, 1, b"\x02" + PRIO + c.encoder.encode(HEAD) + bytes(2)) + data(1), ANSWERED),
    ("6.2", "HEADERS too short for a priority", lambda c: frame(1, END_HEADERS | WITH_PRIORITY, 1, b"1234"), SIZE),
    ("6.2", "HEADERS of padding alone", lambda c: frame(1, END_HEADERS | PADDED, 1, b"\x05abc"), PROTOCOL),
    ("6.3", "PRIORITY on stream 0", lambda c: frame(2, 0, 0, PRIO), PROTOCOL),
    ("6.3", "PRIORITY of 4 bytes", lambda c: c.head(1) + frame(2, 0, 1, b"1234"), SIZE),
    ("6.4", "RST_STREAM on stream 0", lambda c: rst(0), PROTOCOL),
    ("6.4", "RST_STREAM of 3 bytes", lambda c: c.head(1) + rst(1, b"123"), SIZE),
    ("6.5", "SETTINGS", lambda c: setting((1, 0), (2, 0), (3, 0), (4, 100), (5, 20000), (6, 5)), ["SETTINGS ACK"]),
    ("6.5", "unknown settings", lambda c: setting((0x99, 2**32 - 1)), ["SETTINGS ACK"]),
    ("6.5", "an acknowledgement", lambda c: setting(flags=ACK), []),
    ("6.5", "an acknowledgement with a payload", lambda c: setting((1, 0), flags=ACK), SIZE),
    ("6.5", "SETTINGS of a stream", lambda c: setting(stream=1), PROTOCOL),
    ("6.5", "SETTINGS of 5 bytes", lambda c: frame(4, 0, 0, b"12345"), SIZE),
    ("6.5.2", "ENABLE_PUSH that is no switch", lambda c: setting((2, 2)), PROTOCOL),
    ("6.5.2", "a window that is too large", lambda c: setting((4, 2**31)), FLOW),
    ("6.5.2", "the largest window", lambda c: setting((4, 2**31 - 1)), ["SETTINGS ACK"]),
    ("6.5.2", "frames that are too small", lambda c: setting((5, 16383)), PROTOCOL),
    ("6.5.2", "frames that are too large", lambda c: setting((5, 2**24)), PROTOCOL),
    ("6.6", "PUSH_PROMISE", lambda c: frame(5, 4, 1, WORD(2)), PROTOCOL),
    ("6.7", "PING", lambda c: frame(6, 0, 0, b"12345678"), ["PING ACK"]),
    ("6.7", "an answered PING", lambda c: frame(6, ACK, 0, b"12345678"), []),
    ("6.7", "PING of a stream", lambda c: frame(6, 0, 1, b"12345678"), PROTOCOL),
    ("6.7", "PING of 6 bytes", lambda c: frame(6, 0, 0, b"123456"), SIZE),
    ("6.8", "GOAWAY, and what was begun",
     lambda c: c.head(1) + frame(7, 0, 0, bytes(8)) + data(1), ["GOAWAY NO_ERROR", *ANSWERED]),
    ("6.8", "GOAWAY of a stream", lambda c: frame(7, 0, 1, bytes(8)), PROTOCOL),
    ("6.8", "GOAWAY of 7 bytes", lambda c: frame(7, 0, 0, bytes(7)), SIZE),
    ("6.9", "WINDOW_UPDATE by 0 of the connection", lambda c: window(0, 0), PROTOCOL),
    ("6.9", "WINDOW_UPDATE by 0 of a stream", lambda c: c.head(1) + window(1, 0), MALFORMED),
    ("6.9", "WINDOW_UPDATE of 3 bytes", lambda c: frame(8, 0, 0, b"123"), SIZE),
    ("6.9.1", "a connection's window above the most", lambda c: window(0, 2**31 - 1), FLOW),
    ("6.9.1", "a stream's window above the most",
     lambda c: c.head(1) + window(1, 2**31 - 1), reset_by("FLOW_CONTROL_ERROR")),
    ("6.9.2", "streams' windows above the most by a setting",
     lambda c: c.head(1) + window(1, 2**30) + setting((4, 2**31 - 1)), FLOW),
    ("6.10", "CONTINUATION", lambda c: split(c, 3, 0, 20, 7) + data(1), ANSWERED),
    ("6.10", "CONTINUATION on stream 0", lambda c: split(c, 3, last=0) + frame(9, 4, 0), PROTOCOL),
    ("6.10", "CONTINUATION after the end of headers", lambda c: c.head(1) + frame(9, 4, 1), PROTOCOL),
    ("6.10", "CONTINUATION of another stream", lambda c: split(c, 3, last=0) + frame(9, 4, 3), PROTOCOL),
    # --- 8: requests
    ("8.1", "trailers", lambda c: c.head(1) + data(1, flags=0) + frame(1, 5, 1, block((b"x-sum", b"1"))), ANSWERED),
    ("8.1", "headers in the middle",
     lambda c: c.head(1) + data(1, flags=0) + frame(1, 4, 1, block((b"x", b"1"))), MALFORMED),
    ("8.1", "trailers with a pseudo-header",
     lambda c: c.head(1) + frame(1, 5, 1, block((b":method", b"POST"))), MALFORMED),
    ("8.1.1", "a content-length", with_header(b"content-length", b"10"), ANSWERED),
    ("8.1.1", "a body shorter than its content-length", with_header(b"content-length", b"11"), MALFORMED),
    ("8.1.1", "a content-length that is none", with_header(b"content-length", b"-1"), MALFORMED),
    ("8.1.1", "two content-lengths",
     lambda c: c.call(1, b"hello", (b"content-length", b"10"), (b"content-length", b"10")), MALFORMED),
    ("8.2.1", "a header in capitals", with_header(b"X-Key", b"1"), MALFORMED),
    ("8.2.1", "a header without a name", with_header(b"", b"1"), MALFORMED),
    ("8.2.1", "a header with a space", with_header(b"x key", b"1"), MALFORMED),
    ("8.2.1", "a value with a line's end", with_header(b"x-key", b"1\r\n2"), MALFORMED),
    ("8.2.1", "a value with a space around", with_header(b"x-key", b"1 "), MALFORMED),
    ("8.2.1", "an empty value", with_header(b"x-key", b""), ANSWERED),
    ("8.2.2", "connection", with_header(b"connection", b"keep-alive"), MALFORMED),
    ("8.2.2", "transfer-encoding", with_header(b"transfer-encoding", b"chunked"), MALFORMED),
    ("8.2.2", "te with more than trailers", lambda c: c.call(1, te=b"trailers, deflate"), MALFORMED),
    ("8.3", "an unknown pseudo-header", lambda c: frame(1, 5, 1, block((b":future", b"1"), *HEAD)), MALFORMED),
    ("8.3", "one of answers", lambda c: frame(1, 5, 1, block((b":status", b"200"), *HEAD)), MALFORMED),
    ("8.3", "a pseudo-header after others", lambda c: frame(1, 5, 1, block(*HEAD[1:], HEAD[0])), MALFORMED),
    ("8.3.1", "no authority", lambda c: without(b":authority")(c).replace(b"\x05", b"\x04", 1) + data(1), ANSWERED),
    ("8.3.1", "no method", without(b":method"), MALFORMED),
    ("8.3.1", "no scheme", without(b":scheme"), MALFORMED),
    ("8.3.1", "no path", without(b":path"), MALFORMED),
    ("8.3.1", "an empty path", lambda c: c.call(1, path=b""), MALFORMED),
    ("8.3.1", "two paths", lambda c: frame(1, 5, 1, block(HEAD[2], *HEAD)), MALFORMED),
]  # fmt: skip


async def never(message: bytes) -> bytes:
    await asyncio.Event().wait()
    return message


def listening() -> Client:
    return Client({ECHO: lambda message, call: never(message) if message == b"wait" else message})


EVERY_CASE = pytest.mark.parametrize(
    ("sent", "expected"), [case[2:] for case in CASES], ids=[" ".join(case[:2]) for case in CASES]
)


@EVERY_CASE
async def test_conformance(sent: Sent, expected: list[str]) -> None:
    client = listening()
    client.send(sent(client))
    assert client.said() == expected
    if "GOAWAY" not in " ".join(expected) and "RST_STREAM 513 REFUSED_STREAM" not in expected:
        client.send(client.call(1001))
        assert client.said() == [line.replace("1", "1001") for line in ANSWERED], "the connection goes on"
    await client.lose()


@EVERY_CASE
async def test_bytes_may_come_one_by_one(sent: Sent, expected: list[str]) -> None:
    client = listening()
    whole = sent(client)[:2000]
    for at in range(len(whole)):
        client.send(whole[at : at + 1])
    assert client.said() == expected or len(whole) == 2000
    await client.lose()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        PREFACE + frame(http2.PING, 0, 0, b"12345678"),
        PREFACE + setting(flags=ACK),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["HTTP/1", "nearly", "no SETTINGS", "an acknowledgement", "TLS"],
)
async def test_a_connection_begins_with_the_preface_and_settings(sent: bytes) -> None:
    client = Client(greet=False)
    client.send(sent)
    assert client.said() == ["SETTINGS", "WINDOW_UPDATE", *PROTOCOL]


async def test_the_preface_may_come_in_pieces() -> None:
    client = Client(greet=False)
    for at in range(len(GREETING)):
        client.send(GREETING[at : at + 1])
    client.send(client.call(1))
    assert client.said() == ["SETTINGS", "WINDOW_UPDATE", "SETTINGS ACK", *ANSWERED]


# --- headers that are repeated ----------------------------------------------------------------------------------------


async def test_few_headers_are_kept_for_that() -> None:
    client = listening()
    client.send(client.call(1))
    for stream in range(3, 403, 2):
        head = client.encoder.encode([*HEAD, (b"x-key", str(stream).encode(), True)])
        client.send(frame(1, END_HEADERS, stream, head), data(stream))
    assert 0 < len(client.protocol._heads) <= 64
    client.send(frame(1, 5, 403, client.encoder.encode([*HEAD, (b"x-key", b"k" * 150, True)])))
    client.send(frame(1, 5, 405, client.encoder.encode([*HEAD, (b"x-key", b"k" * 1000, True)])))
    assert max(map(len, client.protocol._heads)) <= 256


async def test_the_same_bytes_mean_something_else_once_the_table_has_changed() -> None:
    seen: list[bytes] = []

    def method(message: bytes, call: Call) -> bytes:
        seen.extend(value for name, value in call.metadata if name == b"x-key")
        return b""

    client = Client({ECHO: method})
    sent = set()
    for stream, key in enumerate([b"a", b"a", b"b", b"b", b"a", b"a", b"c", b"b"]):
        sent.add(head := client.head(2 * stream + 1, (b"x-key", key))[9:])
        client.send(frame(1, END_HEADERS, 2 * stream + 1, head), data(2 * stream + 1))
    assert seen == [b"a", b"a", b"b", b"b", b"a", b"a", b"c", b"b"]
    assert len(sent) < 8, "the same bytes"


async def test_a_resized_table_is_not_looked_up() -> None:
    client = listening()
    client.send(client.call(1, b"hello", (b"x-key", b"a")))
    plain = Encoder().encode([(*header, True) for header in HEAD])
    for stream in (3, 5):
        client.send(frame(1, END_HEADERS, stream, RESIZED + plain), data(stream))
    client.send(frame(1, 5, 7, b"\xbe"))
    assert client.said()[-2:] == COMPRESSION, "there is nothing in the table"


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_an_answer_goes_out_as_the_stream_s_window_lets_it(size: int) -> None:
    client = listening()
    client.send(setting((4, 0)), client.call(1, b"0123456789" * 10))
    assert client.said() == ["SETTINGS ACK", "HEADERS 1"]
    body = b""
    while len(body) < 105:
        client.send(window(1, size))
        got = client.frames()
        body += got[0].payload
        assert len(got[0].payload) <= size
    assert unprefixed(body) == b"0123456789" * 10
    assert [str(each) for each in got[1:]] == ["HEADERS 1 END"]


async def test_answers_go_out_as_the_connection_s_window_lets_them() -> None:
    client = listening()
    calls = [client.call(stream, bytes(30_000)) for stream in (1, 3, 5)]
    client.send(setting((4, 2**20)), *calls)
    sizes = dict.fromkeys((1, 3, 5), 0)

    def take() -> None:
        for each in client.frames():
            if each.kind == http2.DATA:
                sizes[each.stream] += len(each.payload)

    take()
    assert sum(sizes.values()) == 65_535
    client.send(window(0, 10_000))
    take()
    assert sum(sizes.values()) == 75_535
    client.send(window(0, 100_000))
    take()
    assert set(sizes.values()) == {30_005}
    client.send(client.call(7))
    assert client.answers()[7].message == b"hello"


async def test_a_window_below_nothing_has_to_be_opened_first() -> None:
    client = listening()
    client.send(setting((4, 20)), client.call(1, bytes(100)), setting((4, 5)))
    assert client.frames()[-2].payload == prefixed(bytes(100))[:20]
    client.send(window(1, 15))
    assert client.said() == []
    client.send(setting((4, 2000)))
    assert client.said() == ["SETTINGS ACK", "DATA 1", "HEADERS 1 END"]


async def test_a_large_answer_is_cut_into_frames() -> None:
    client = Client({ECHO: lambda message, call: bytes(40_000)})
    client.send(client.call(1))
    assert [len(each.payload) for each in client.frames() if each.kind == http2.DATA] == [16_384, 16_384, 7_237]


async def test_what_is_received_opens_the_window_again() -> None:
    client = listening()
    for stream in range(1, 81, 2):
        client.send(client.call(stream, bytes(16_000)), window(0, 16_005))
    opened = [each for each in client.frames() if each.kind == http2.WINDOW_UPDATE]
    assert 0 < sum(int.from_bytes(each.payload, "big") for each in opened) <= 40 * 16_005


async def test_more_data_than_the_connection_s_window_closes_it() -> None:
    client = listening()
    client.send(client.head(1, te=b"x"), *[data(1, bytes(16_384), 0) for _ in range(65)])
    assert client.said()[-2:] == FLOW


# --- floods -----------------------------------------------------------------------------------------------------------

CALM = closed_by("ENHANCE_YOUR_CALM")
FLOODS: dict[str, Callable[[Client, int], bytes]] = {
    "pings": lambda c, n: frame(http2.PING, 0, 0, bytes(8)),
    "settings": lambda c, n: setting((4, n)),
    "resets": lambda c, n: c.call(2 * n + 1, b"wait") + rst(2 * n + 1),
    "priorities": lambda c, n: frame(2, 0, 1, PRIO),
    "windows": lambda c, n: window(0, 1),
    "unknown frames": lambda c, n: frame(0x77, 0, 0),
    "empty data": lambda c, n: (b"" if n else c.head(1)) + data(1, b"", 0),
    "padding": lambda c, n: (b"" if n else c.head(1)) + data(1, b"\x05" + bytes(5), PADDED),
    "data after the end": lambda c, n: (b"" if n else c.call(1)) + data(1),
    "trailers after a reset": lambda c, n: c.head(1, te=b"x", flags=5),
    "continuations": lambda c, n: frame(http2.CONTINUATION if n else http2.HEADERS, 0, 1),
    "malformed requests": lambda c, n: c.head(2 * n + 1, te=b"x", flags=5),
    "streams above the most": lambda c, n: c.head(2 * n + 1),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_the_connection(name: str) -> None:
    client = listening()
    for n in range(http2.ALLOWANCE + http2.MAX_STREAMS + 10):
        client.send(FLOODS[name](client, n))
        if client.transport.state != "open":
            break
    assert client.said()[-2:] == CALM
    assert client.protocol.streams == {}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1, "what was begun is cancelled"
    await client.lose()


async def test_calls_and_time_allow_for_more() -> None:
    client = listening()
    for n in range(200):
        client.send(client.call(2 * n + 1), *[frame(http2.PING, 0, 0, bytes(8))] * http2.PER_ANSWER)
    for _ in range(50):
        client.send(*[frame(http2.PING, 0, 0, bytes(8))] * http2.PER_TICK)
        client.protocol.tick(0, http2.PER_TICK)
    assert client.transport.state == "open"


@pytest.mark.parametrize(
    "headers",
    [
        frame(1, 5, 1, b"\x82" * 10_000),
        frame(1, 5, 1, b"\x40\x01a\x7f\xa1\x1e" + bytes(4000) + b"\xbe" * 40),
        frame(1, 1, 1, bytes(16_000)) + frame(9, 0, 1, bytes(16_000)) * 8,
    ],
    ids=["references", "a large value, again and again", "continuations"],
)
async def test_headers_are_bounded(headers: bytes) -> None:
    client = listening()
    client.send(headers)
    assert client.said() == CALM


async def test_what_envoy_takes_of_a_client_may_be_handed_on_in_headers() -> None:
    """60 KB, as a `tracestate`: an error would let the request pass, and with it all that are asked about meanwhile."""
    client = listening()
    head = client.head(1, (b"tracestate", b"~" * 61_440))[9:]
    pieces = [head[at : at + 16_384] for at in range(0, len(head), 16_384)]
    client.send(frame(http2.HEADERS, 0, 1, pieces[0]), *[frame(http2.CONTINUATION, 0, 1, one) for one in pieces[1:]])
    client.send(frame(http2.CONTINUATION, END_HEADERS, 1), frame(http2.DATA, END_STREAM, 1, prefixed(b"hello")))
    assert client.answers()[1].message == b"hello"


async def test_a_client_that_does_not_read_is_not_read_either_and_then_closed(caplog: pytest.LogCaptureFixture) -> None:
    client = listening()
    client.tick(100)
    client.protocol.pause_writing()
    assert not client.transport.reading
    client.tick(http2.STALLED_S - 1)
    assert client.transport.state == "open"
    client.protocol.resume_writing()
    assert client.transport.reading
    client.tick(100)
    client.protocol.pause_writing()
    client.tick(http2.STALLED_S + 1)
    assert client.transport.state == "aborted"
    assert "does not read" in caplog.text


async def test_a_client_that_opens_no_window_is_closed() -> None:
    client = listening()
    client.tick(100)
    client.send(setting((4, 0)), *[client.call(stream) for stream in range(1, 600, 2)])
    assert client.said().count("RST_STREAM 599 REFUSED_STREAM") == 1, "what waits is bounded as other streams are"
    assert len(client.protocol.streams) == http2.MAX_STREAMS
    client.tick(http2.STALLED_S - 1)
    client.send(frame(http2.PING, 0, 0, bytes(8)))
    assert client.said() == ["PING ACK"]
    client.tick(2)
    assert client.said() == ["GOAWAY ENHANCE_YOUR_CALM", "aborted"]


async def test_a_client_that_opens_its_windows_little_by_little_is_not() -> None:
    client = listening()
    client.send(setting((4, 0)), client.call(1, bytes(5)))
    for _ in range(10):
        client.tick(http2.STALLED_S - 1)
        client.send(window(1, 1))
    assert client.said()[-1] == "HEADERS 1 END"
    client.tick(http2.STALLED_S + 1)
    assert client.said() == []


# --- what does not end ------------------------------------------------------------------------------------------------


UNFINISHED = pytest.mark.parametrize(
    "sent",
    [
        frame(http2.PING, 0, 0, bytes(8))[:12],
        frame(1, 0, 1, b"\x82"),
        frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x82") + b"\0",
    ],
    ids=["half a frame", "half the headers", "headers that go on"],
)


@UNFINISHED
async def test_what_was_begun_has_to_arrive_in_time(sent: bytes) -> None:
    client = listening()
    client.tick(http2.REQUEST_TIMEOUT_S + 1)
    client.send(sent)
    client.tick(http2.REQUEST_TIMEOUT_S - 1)
    assert client.said() == []
    client.tick(2)
    assert client.said() == closed_by("NO_ERROR")


@UNFINISHED
async def test_pieces_of_it_give_no_more_time(sent: bytes) -> None:
    client = listening()
    client.send(sent[:5])
    client.tick(http2.REQUEST_TIMEOUT_S - 1)
    client.send(sent[5:])
    client.tick(2)
    assert client.said() == closed_by("NO_ERROR")


async def test_neither_do_continuations() -> None:
    client = listening()
    client.send(frame(1, 0, 1, b"\x82"))
    client.tick(http2.REQUEST_TIMEOUT_S - 1)
    client.send(frame(9, 0, 1, b"\x82"))
    client.tick(2)
    assert client.said() == closed_by("NO_ERROR")


async def test_whole_frames_give_more_time() -> None:
    client = listening()
    ping = frame(http2.PING, 0, 0, bytes(8))
    client.send(ping[:5])
    for _ in range(5):
        client.tick(http2.REQUEST_TIMEOUT_S - 1)
        client.send(ping[5:] + ping[:5])
    assert client.said() == ["PING ACK"] * 5
    client.send(ping[5:])
    client.tick(100)
    assert client.said() == ["PING ACK"]


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half a preface", "no settings"])
async def test_the_preface_has_to_arrive_in_time(sent: bytes) -> None:
    client = Client(greet=False)
    client.send(sent)
    client.frames()
    client.tick(http2.REQUEST_TIMEOUT_S - 1)
    assert client.said() == []
    client.tick(2)
    assert client.said() == closed_by("NO_ERROR")


async def test_a_request_that_does_not_end_is_cancelled_alone() -> None:
    client = listening()
    client.tick(100)
    client.send(client.head(1), data(1, prefixed(b"hello")[:7], 0), client.call(3, b"wait"))
    client.tick(http2.REQUEST_TIMEOUT_S - 1)
    assert client.said() == []
    client.tick(2)
    assert client.said() == reset_by("CANCEL")
    assert list(client.protocol.streams) == [3]
    await client.lose()


async def test_an_idle_connection_is_left_in_two_steps() -> None:
    client = listening()
    client.tick(100)
    client.send(client.call(1))
    client.frames()
    client.tick(http2.IDLE_S - 1)
    assert client.said() == []
    client.tick(2)
    (away,) = client.frames()
    assert (str(away), away.payload[:4]) == ("GOAWAY NO_ERROR", WORD(2**31 - 1))
    client.send(client.call(3))
    assert client.answers()[3].message == b"hello", "it was on its way"
    client.tick(http2.CLOSING_S - 1)
    assert client.said() == []
    client.tick(2)
    (away,) = client.frames()
    assert (str(away), away.payload[:4]) == ("GOAWAY NO_ERROR", WORD(3))
    assert client.transport.state == "ended"


async def test_who_comes_while_all_are_told_to_leave_is_answered_first() -> None:
    client = listening()
    client.protocol.leave(client.clock.time() + 10)
    client.tick(1)
    assert client.said() == []
    client.send(client.call(1))
    away, *answer = client.frames()
    assert (str(away), away.payload[:4]) == ("GOAWAY NO_ERROR", WORD(2**31 - 1))
    assert answer
    client.send(client.call(3))
    assert client.answers()[3].message == b"hello", "it was on its way"
    client.tick(10)
    assert client.said() == ["GOAWAY NO_ERROR", "ended"]


async def test_a_connection_that_is_left_ends_with_its_last_call() -> None:
    ready = asyncio.Event()

    async def wait() -> bytes:
        await ready.wait()
        return b"late"

    client = Client({ECHO: lambda message, call: wait()})
    client.send(client.call(1))
    client.protocol.leave(client.clock.time())
    client.tick(1)
    client.protocol.leave(0)
    client.tick(1)
    assert client.said() == ["GOAWAY NO_ERROR"] * 2
    client.send(client.call(3))
    assert client.said() == reset_by("REFUSED_STREAM", 3)
    ready.set()
    await settled()
    assert client.answers()[1].message == b"late"
    client.tick(1)
    assert client.said() == ["ended"]


async def test_what_is_still_being_read_goes_out_before_the_end() -> None:
    client = listening()
    client.protocol.pause_writing()
    client.protocol.leave(client.clock.time())
    client.tick(1)
    assert client.said() == ["GOAWAY NO_ERROR"]
    client.protocol.resume_writing()
    client.tick(1)
    assert client.said() == ["ended"]


async def test_a_client_that_does_not_close_its_side_is_cut_off() -> None:
    client = listening()
    client.send(frame(5, 0, 1))
    client.tick(http2.CLOSING_S - 1)
    assert client.transport.state == "ended"
    client.tick(2)
    assert client.transport.state == "aborted"


# --- logs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [lambda c: c.call(1, b"s3cret", (b"X-Key", b"s3cret")), lambda c: data(1, b"s3cret")])
async def test_one_line_says_who_and_what_and_no_secrets(sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    client = listening()
    client.send(sent(client))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ratelimit.grpc", logging.WARNING)
    assert "192.0.2.1:1234" in record.getMessage()
    assert "PROTOCOL_ERROR" in record.getMessage()
    assert "s3cret" not in caplog.text


async def test_frames_at_random() -> None:
    """`make fuzz-grpc` does so for longer."""
    await fuzz(random.randrange(2**32), lambda runs: runs == examples(500))

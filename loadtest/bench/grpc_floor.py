"""What a call of Envoy's rate limit service costs at least in Python: frames by hand, headers by hpack, always OK.

`python -m loadtest.bench.grpc_floor PORT`: a yardstick, not a server. It bounds nothing and answers every method alike.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Final, cast

import hpack

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK = _END_STREAM = 1
_END_HEADERS: Final = 4
_PREFACE: Final = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_OVERALL_OK: Final = b"\x08\x01"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


_SETTING: Final = frame(_SETTINGS, 0, 0, struct.pack(">HIHI", 3, 10_000, 4, 2**20))
_ENCODER: Final = hpack.Encoder()
_ENCODER.header_table_size = 0
_HEAD: Final = _ENCODER.encode([(":status", "200"), ("content-type", "application/grpc")])
_TRAILERS: Final = _ENCODER.encode([("grpc-status", "0")])
_MESSAGE: Final = b"\0" + struct.pack(">I", len(_OVERALL_OK)) + _OVERALL_OK


class _FloorConnection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._unread = bytearray()
        self._greeted = False
        self._decoder = hpack.Decoder()
        self._transport.write(_SETTING)

    def data_received(self, data: bytes) -> None:
        unread = self._unread
        unread += data
        if not self._greeted:
            if len(unread) < _PREFACE:
                return
            self._greeted = True
            del unread[:_PREFACE]
        position, credit = 0, 0
        out: list[bytes] = []
        while len(unread) - position >= 9:
            size = int.from_bytes(unread[position : position + 3])
            if len(unread) - position - 9 < size:
                break
            kind, payload = unread[position + 3], bytes(unread[position + 9 : position + 9 + size])
            self._take(kind, unread[position + 4], int.from_bytes(unread[position + 5 : position + 9]), payload, out)
            credit += size if kind == _DATA else 0
            position += 9 + size
        del unread[:position]
        if credit:
            out.append(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", credit)))
        if out:
            self._transport.write(b"".join(out))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, out: list[bytes]) -> None:
        if kind == _HEADERS:
            self._decoder.decode(payload, raw=True)
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            out.append(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            out.append(frame(_HEADERS, _END_HEADERS, stream, _HEAD) + frame(_DATA, 0, stream, _MESSAGE))
            out.append(frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _TRAILERS))


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_FloorConnection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(int(sys.argv[1])))

"""`Address`: where to listen; `Listening`: the socket that does.

There is one socket for each address, which every worker inherits. With a socket for each worker on one port
(`SO_REUSEPORT`) the kernel deals connections out as they arrive, and resets those that a leaving worker had not
accepted yet; here they stay in the one queue, and the other workers take them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from dataclasses import dataclass
from typing import Final

from ratelimit.errors import ConfigError

BACKLOG: Final = 2048

# Linux, <asm-generic/socket.h>. What the filter on a listening socket sees begins with the TCP header.
_SO_ATTACH_FILTER: Final = 26
_NO_SYN: Final = (
    struct.pack("HBBI", 0x30, 0, 0, 13)  # load the byte with the flags
    + struct.pack("HBBI", 0x45, 0, 1, 0x02)  # if SYN is not among them, skip one
    + struct.pack("HBBI", 0x06, 0, 0, 0)  # drop
    + struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # keep
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen: on a unix socket if one is named. `option`: what a complaint about it names."""

    host: str = "127.0.0.1"
    port: int = 8080
    uds: str | None = None
    option: str = "--port"

    def bind(self) -> Listening:
        """Return a socket that listens. Raises `ConfigError` naming the option that is to blame."""
        try:
            return Listening(self._unix(self.uds) if self.uds else self._tcp(), self.uds)
        except OSError as error:
            option = "--uds" if self.uds and self.option == "--port" else self.option
            where = self.uds or f"{self.host}:{self.port}"
            raise ConfigError(option, f"cannot listen on {where}: {error.strerror or error}") from error

    def _tcp(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        # What is small and last of an answer does not wait for an acknowledgement; connections inherit it on Linux.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening

    def _unix(self, path: str) -> socket.socket:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(path)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening


class Listening:
    """A bound address, for the process that takes it down again. Workers serve from copies of `socket`."""

    def __init__(self, listening: socket.socket, path: str | None = None) -> None:
        listening.setblocking(False)
        self.socket = listening
        self.where = f"unix:{path}" if path else _url(listening)
        self._path = path

    def close(self) -> None:
        """Let nobody join the queue any more; who is in it, or about to be, is served as long as there are copies.

        A client that comes now tries again by itself a second later: it then finds nobody, or whoever listens next.
        """
        if self.socket.fileno() < 0:
            return
        if self._path is not None:
            os.unlink(self._path)
        elif sys.platform == "linux":
            _drop_newcomers(self.socket)
        self.socket.close()


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _drop_newcomers(listening: socket.socket) -> None:
    """Drop connections not yet begun: a client might get in between the last `accept` and `close`, and be reset.

    Connections made of handshakes under way inherit the filter, and never see a SYN.
    """
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    instructions = len(_NO_SYN) // 8
    attached = struct.pack("HL", instructions, ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more. Raises `OSError` where somebody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, "somebody listens there")

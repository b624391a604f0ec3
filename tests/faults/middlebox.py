"""What stands between a program and a server, and forgets connections: with a word, or without one."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Middlebox:
    """`with Middlebox(host, port) as box:` listens on `box.port`, and passes all on."""

    def __init__(self, host: str, port: int) -> None:
        self._there = host, port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._forgotten: set[socket.socket] = set()
        self._kept: list[socket.socket] = []

    def close_all(self) -> None:
        """End every connection, as a server does with those that were idle for too long."""
        for pair in self._take():
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def forget_all(self) -> None:
        """Say nothing to the client, and pass on nothing any more."""
        for client, server in self._take():
            self._forgotten |= {client, server}
            self._kept += [client, server]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.close_all()
        for one in self._kept:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _take(self) -> list[tuple[socket.socket, socket.socket]]:
        taken, self._pairs = self._pairs, []
        return taken

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._there)
            self._pairs.append((client, server))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if source in self._forgotten:
                    return
                target.sendall(data)
        if source not in self._forgotten:
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)

"""Envoy's rate limit service over gRPC: a listener, and the methods that whichever configuration holds answers."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Mapping
from typing import Final

from ratelimit.envoy.grpc import Call, GrpcError, GrpcProtocol, Method, ServerState, Status
from ratelimit.envoy.http2 import PER_TICK
from ratelimit.envoy.service import SERVICE, UNREAD
from ratelimit.server.listener import DrainingListener
from ratelimit.server.sidecar import Sidecar

logger: Final = logging.getLogger("ratelimit.grpc")

_TICK_S: Final = 1.0


def grpc_methods(sidecar: Sidecar) -> Mapping[bytes, Method]:
    """Return the methods of the rate limit service, by their paths."""

    def should_rate_limit(message: bytes, call: Call) -> bytes | Awaitable[bytes]:
        version = sidecar.current
        service = version.runtime.envoy
        if service is None:
            raise GrpcError(Status.FAILED_PRECONDITION, "there are no rules: envoy_config is off")
        answer = service.should_rate_limit(message, call)
        return answer if isinstance(answer, bytes) else version.finish(answer)

    return {f"/{SERVICE}/ShouldRateLimit".encode(): should_rate_limit}


class GrpcListener(DrainingListener):
    """Serve methods, by path, and `grpc.health.v1.Health/Check`. The socket, which listens, stays its owner's."""

    def __init__(self, methods: Mapping[bytes, Method], sock: socket.socket) -> None:
        super().__init__(sock)
        self._state = ServerState(methods, UNREAD)
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._accept(lambda: GrpcProtocol(self._state))
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def stop(self) -> None:
        """Stop at once what `drain` has left."""
        await self._stop_accepting()
        if self._ticking is not None:
            self._ticking.cancel()
        self._abort()

    async def drain(self, *, linger: float, grace: float) -> None:
        """Do as every listener. Calls are answered for `linger` seconds, and no longer than half the grace."""
        await super().drain(linger=min(linger, grace / 2), grace=grace)

    @property
    def is_busy(self) -> bool:
        return bool(self._state.connections)

    def _tell_to_leave(self, now: float, linger: float) -> None:
        self._state.draining = True
        for connection in list(self._state.connections):
            connection.leave(now + linger)
            connection.tick(now)

    async def _cut_off(self) -> None:
        if calls := sum(len(each.streams) for each in self._state.connections):
            logger.warning("%d calls were not finished in time and are cut off", calls)
        self._abort()

    def _abort(self) -> None:
        for connection in list(self._state.connections):
            connection.cut_off()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK_S)
            for connection in list(self._state.connections):
                connection.tick(loop.time(), PER_TICK)

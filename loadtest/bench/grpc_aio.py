"""The usual way to serve gRPC in Python, doing nothing but answer, by grpcio: `python -m loadtest.bench.grpc_aio PORT`.

Only the standard library and grpcio: it runs where the peers are.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


async def _serve(port: int) -> None:
    import grpc  # type: ignore[import-not-found, unused-ignore]

    async def answer(request: bytes, context: Any) -> bytes:
        return b"\x08\x01"

    handlers = {"ShouldRateLimit": grpc.unary_unary_rpc_method_handler(answer)}
    service = "envoy.service.ratelimit.v3.RateLimitService"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

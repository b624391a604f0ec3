"""The misbehaving server leaves nothing behind: an unclosed connection would fail whichever test runs next."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings

from tests.faults import FaultServer


async def test_a_connection_that_arrives_as_it_begins_to_refuse_is_closed() -> None:
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always")
        for turns in range(6):
            async with FaultServer() as server:
                address = ("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
                with socket.create_connection(address, timeout=5):
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    await server.refuse()
                    await asyncio.sleep(0)
        gc.collect()
    assert [str(warning.message) for warning in unclosed] == []

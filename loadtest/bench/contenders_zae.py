"""zae-limiter as a contender (`pip install zae-limiter`), in the peers' own virtual environment.

Its warm path: the limits are stored and cached, the buckets exist, and each `acquire` is one speculative write.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from zae_limiter import Limit, RateLimiter, Repository  # type: ignore[import-not-found]

from loadtest.bench.worker import Contender

_USERS = 256
_COUNTED = 512
_ROOMY = 1_000_000_000


@asynccontextmanager
async def on_dynamodb(endpoint: str) -> AsyncIterator[Contender]:
    """A stack of its own, without the infrastructure that only AWS has."""
    builder = Repository.builder().stack("bench").region("eu-west-1").endpoint_url(endpoint).auto_update(False)
    maker = Repository(name="bench", region="eu-west-1", endpoint_url=endpoint, _skip_deprecation_warning=True)
    await maker.create_table()
    await maker.close()
    repository = await builder.build()
    await repository.set_system_defaults(limits=[Limit.per_hour("requests", _ROOMY)])
    units = _Units(await repository._get_client())
    async with RateLimiter(repository=repository) as limiter:
        users = itertools.cycle([f"user-{number}" for number in range(_USERS)])

        async def call() -> None:
            async with limiter.acquire(entity_id=next(users), resource="hint", consume={"requests": 1}):
                pass

        for _ in range(2 * _USERS):
            await call()

        async def count() -> dict[str, float]:
            with units:
                for _ in range(_COUNTED):
                    await call()
            return {"units_per_check": units.write_units / _COUNTED}

        yield Contender(call, count)


class _Units:
    """Asks for the consumed capacity of every call, while entered."""

    def __init__(self, client: Any) -> None:
        self._events = client.meta.events
        self.write_units = 0.0

    def __enter__(self) -> None:
        self._events.register_first("provide-client-params.dynamodb", self._ask, "bench-ask")
        self._events.register_last("after-call.dynamodb", self._add, "bench-add")

    def __exit__(self, *_: object) -> None:
        self._events.unregister("provide-client-params.dynamodb", unique_id="bench-ask")
        self._events.unregister("after-call.dynamodb", unique_id="bench-add")

    def _ask(self, params: dict[str, Any], model: Any, **_: object) -> dict[str, Any]:
        if "ReturnConsumedCapacity" not in model.input_shape.members:
            return params
        return {**params, "ReturnConsumedCapacity": "TOTAL"}

    def _add(self, parsed: dict[str, Any], model: Any, **_: object) -> None:
        consumed = parsed.get("ConsumedCapacity") or []
        if model.name.startswith(("Update", "Put", "Delete", "TransactWrite", "BatchWrite")):
            each = consumed if isinstance(consumed, list) else [consumed]
            self.write_units += sum(one["CapacityUnits"] for one in each)

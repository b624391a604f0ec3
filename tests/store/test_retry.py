from __future__ import annotations

import pytest

from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.store.retry import retry


@pytest.mark.parametrize(("error", "calls"), [(StoreUnavailable, 10), (StoreThrottled, 10), (StoreMisconfigured, 1)])
async def test_only_a_store_that_may_come_back_is_asked_again(
    error: type[StoreUnavailable], calls: int, pauses: list[float]
):
    asked = 0

    async def call() -> None:
        nonlocal asked
        asked += 1
        raise error("away")

    with pytest.raises(error):
        await retry(call)
    assert (asked, len(pauses)) == (calls, calls - 1)

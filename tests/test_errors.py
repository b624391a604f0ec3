from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import ratelimit.errors
from ratelimit.errors import AccessDenied, ConfigError, LimiterClosed, QuotaExceeded, RateLimitError


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "error",
    [
        ConfigError("policies.hint.quotas[1]", "is none"),
        AccessDenied("no", permission="dynamodb:UpdateItem"),
        LimiterClosed("closed"),
        *(
            kind("what happened")
            for kind in vars(ratelimit.errors).values()
            if isinstance(kind, type) and issubclass(kind, RateLimitError) and kind not in (ConfigError, QuotaExceeded)
        ),
    ],
)  # fmt: skip
def test_an_error_survives_pickling(error: RateLimitError, again: Any) -> None:
    error.add_note("seen in a worker")
    copied = again(error)
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))

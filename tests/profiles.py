"""How many examples Hypothesis tries: 100 of each kind, and 10 with `make test-quick`."""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

_USUAL: Final = 100

# A shared machine is slow at times: time limits are pytest-timeout's. The blob repeats here what failed elsewhere.
settings.register_profile(
    "ratelimit", deadline=None, print_blob=True, max_examples=_USUAL, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", settings.get_profile("ratelimit"), max_examples=10)
settings.load_profile("ratelimit")


def examples(count: int) -> int:
    """Return how many examples a test has that needs another number than 100: fewer with the quick profile."""
    return max(1, count * settings().max_examples // _USUAL)

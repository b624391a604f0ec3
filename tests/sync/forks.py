"""What the tests of a process that forks share."""

from __future__ import annotations

import os
from collections.abc import Callable


def forked(work: Callable[[], bool]) -> bool:
    """What the work is in a child."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:  # noqa: BLE001 (the child must not go on with the tests)
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

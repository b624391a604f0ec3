"""`Routes`: which gates a request has to pass; remembered for the paths of late, since patterns have to be scanned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.types import Scope

from ratelimit.http.gate import Gate
from ratelimit.http.target import Target, app_method

_KEPT: Final = 1024
_LONGEST: Final = 256
"""Characters of a request worth remembering, as it came: with `_KEPT`, a bound on memory."""


class Routes:
    """The gates with a `match`, in the limiter's order."""

    __slots__ = ("_gates", "_known")

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._gates = tuple(gate for gate in gates if gate.match)
        self._known: dict[tuple[str, str, str, Any], tuple[Gate, ...]] = {}

    def gates(self, scope: Scope) -> tuple[Gate, ...]:
        """Those that a request has to pass."""
        request = (app_method(scope), scope["path"], scope.get("root_path", ""), scope.get("raw_path"))
        found = self._known.get(request)
        if found is None:
            target = Target(scope)
            found = tuple(gate for gate in self._gates if gate.match.fit(target))
            if len(self._known) >= _KEPT:
                self._known.clear()
            if sum(map(len, filter(None, request))) <= _LONGEST:
                self._known[request] = found
        return found

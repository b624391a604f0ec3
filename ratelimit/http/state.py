"""`RateLimitState`: what the middleware leaves in `scope["ratelimit"]` for views, and for a middleware further in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from starlette.types import Scope

from ratelimit.decision import Decision
from ratelimit.http.gate import Receipt
from ratelimit.http.identity import Identity
from ratelimit.limiter import Limiter

if TYPE_CHECKING:
    from ratelimit.http.surface import Surface

SCOPE_KEY: Final = "ratelimit"


class Receipts:
    """Everything that one request was checked for. Each unit that does not count in the end is handed out once, to be
    given back: `settle` when the outcome is known, `void` when the request is refused after all."""

    __slots__ = ("_given_back", "_open", "_unrecorded", "decisions", "refused", "shown")

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.shown: list[Decision] = []
        """Those that the response's headers speak of: a shadow policy is not to be seen."""
        self.refused: Decision | None = None
        self._open: list[Receipt] = []
        self._given_back: Sequence[Receipt] = ()
        self._unrecorded: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        """Take note of a check."""
        decision = receipt.decision
        self.decisions.append(decision)
        self._unrecorded.append(receipt)
        if receipt.policy.mode == "enforce":
            self.shown.append(decision)
        if not decision.allowed:
            self.refused = decision
        elif receipt.spent:
            self._open.append(receipt)

    def settle(self, *, success: bool) -> list[Receipt]:
        """The outcome is known. What does not count with it has to be given back."""
        if not self._open:
            return []
        spent, self._open = self._open, []
        returned = [receipt for receipt in spent if not receipt.counts(success=success)]
        if returned:
            self._given_back = [*self._given_back, *returned]
        return returned

    @property
    def spent(self) -> tuple[Receipt, ...]:
        """Those that took units and are not settled yet."""
        return tuple(self._open)

    def restate(self, receipt: Receipt, real: Receipt) -> None:
        """What was taken turned out to be something else, and the store knows it already."""
        for receipts in (self._open, self._unrecorded):
            receipts[:] = [real if one is receipt else one for one in receipts]
        for decisions in (self.decisions, self.shown):
            decisions[:] = [real.decision if one is receipt.decision else one for one in decisions]

    def keep(self) -> None:
        """How it ends will not be known: what is spent stays spent."""
        self._open = []

    def void(self, refused: Decision) -> list[Receipt]:
        """The request is refused: all that it spent has to be given back, and its headers speak of the refusal only."""
        self.shown = [refused]
        spent, self._open = self._open, []
        self._given_back = [*self._given_back, *spent]
        return spent

    def to_record(self) -> list[tuple[Receipt, bool]]:
        """What has not been recorded yet, each once, and whether its units stayed spent."""
        receipts, self._unrecorded = self._unrecorded, []
        return [(receipt, not any(receipt is one for one in self._given_back)) for receipt in receipts]


class RateLimitState:
    """The limiter, who the request is from, and what has been decided about it so far."""

    __slots__ = ("exempt", "limiter", "receipts", "surface")

    def __init__(self, limiter: Limiter, surface: Surface, receipts: Receipts, *, exempt: bool) -> None:
        self.exempt = exempt
        """Whether no policy is to check this request."""
        self.limiter = limiter
        self.surface = surface
        self.receipts = receipts

    @property
    def identity(self) -> Identity:
        """Asks `user_of(request)` where the surface finds a user."""
        return self.surface.identity

    @property
    def decisions(self) -> list[Decision]:
        """In the order they were made, refused and shadowed ones included."""
        return self.receipts.decisions

    @classmethod
    def of(cls, scope: Scope) -> RateLimitState | None:
        """What a middleware further out has left."""
        state = scope.get(SCOPE_KEY)
        return state if isinstance(state, cls) else None

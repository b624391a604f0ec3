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

    __slots__ = ("_all", "_given_back", "_recorded", "_settled", "_void", "refused")

    def __init__(self) -> None:
        self.refused: Decision | None = None
        self._void = False
        self._all: list[Receipt] = []
        self._settled = 0
        """So many of them, from the first, are not to be given back any more; or to be recorded."""
        self._recorded = 0
        self._given_back: Sequence[Receipt] = ()

    @property
    def decisions(self) -> list[Decision]:
        """In the order they were made."""
        return [receipt.decision for receipt in self._all]

    @property
    def shown(self) -> list[Decision]:
        """Those that the response's headers speak of: a shadow policy is not to be seen."""
        if self._void and self.refused is not None:
            return [self.refused]
        return [receipt.decision for receipt in self._all if receipt.policy.mode == "enforce"]

    @property
    def spent(self) -> list[Receipt]:
        """Those that took units and are not settled yet."""
        return [receipt for receipt in self._all[self._settled :] if receipt.spent]

    @property
    def is_settled(self) -> bool:
        """Whether nothing was added since."""
        return self._settled == len(self._all)

    def add(self, receipt: Receipt) -> None:
        """Take note of a check."""
        self._all.append(receipt)
        if not receipt.decision.allowed:
            self.refused = receipt.decision

    def settle(self, *, success: bool) -> list[Receipt]:
        """The outcome is known. What does not count with it has to be given back."""
        if self.is_settled:
            return []
        returned = [receipt for receipt in self.spent if not receipt.counts(success=success)]
        self.keep()
        if returned:
            self._given_back = [*self._given_back, *returned]
        return returned

    def restate(self, receipt: Receipt, real: Receipt) -> None:
        """What was taken turned out to be something else, and the store knows it already."""
        self._all = [real if one is receipt else one for one in self._all]

    def keep(self) -> None:
        """How it ends will not be known, or is known: what is spent stays spent."""
        self._settled = len(self._all)

    def void(self, refused: Decision) -> list[Receipt]:
        """The request is refused: all that it spent has to be given back, and its headers speak of the refusal only."""
        self.refused = refused
        self._void = True
        spent = self.spent
        self.keep()
        self._given_back = [*self._given_back, *spent]
        return spent

    def to_record(self) -> list[tuple[Receipt, bool]]:
        """What has not been recorded yet, each once, and whether its units stayed spent."""
        receipts = self._all[self._recorded :]
        self._recorded = len(self._all)
        return [(receipt, not any(receipt is one for one in self._given_back)) for receipt in receipts]


class RateLimitState:
    """The limiter, who the request is from, and what has been decided about it so far."""

    __slots__ = ("exempt", "limiter", "receipts", "surface")

    def __init__(self, limiter: Limiter, surface: Surface, receipts: Receipts) -> None:
        self.exempt = False
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

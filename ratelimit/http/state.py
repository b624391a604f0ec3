"""`RateLimitState`: what the middleware leaves in `scope["ratelimit"]` for views, and for a middleware further in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from starlette.types import Scope

from ratelimit.decision import Decision
from ratelimit.errors import QuotaExceeded
from ratelimit.http.gate import Receipt
from ratelimit.http.identity import Identity
from ratelimit.limiter import Limiter

if TYPE_CHECKING:
    from ratelimit.http.surface import Surface

SCOPE_KEY: Final = "ratelimit"


class Receipts:
    """Everything that one request was checked for before it was answered. What does not count in the end is handed out
    once, to be given back: by `settle` when the answer is known, by `refuse` when the request is refused after all."""

    __slots__ = ("_all", "_asked", "_later", "_recorded", "_settled", "_void", "raised", "refused")

    def __init__(self) -> None:
        self.refused: Decision | None = None
        self.raised: QuotaExceeded | None = None
        """What a view was last told of a refusal."""
        self._void = False
        self._all: list[Receipt] = []
        self._asked = 0
        """So many of them, from the first, the app has acted on; are not to be given back any more; are recorded."""
        self._settled = 0
        self._recorded = 0
        self._later: dict[str, Decision] = {}

    @property
    def decisions(self) -> list[Decision]:
        """In the order they were made; of those made after the answer began, each policy's last."""
        return [*[receipt.decision for receipt in self._all], *self._later.values()]

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

    @property
    def asked(self) -> bool:
        """Whether the app has asked by itself."""
        return self._asked > 0

    def add(self, receipt: Receipt) -> None:
        """Take note of a check."""
        self._all.append(receipt)
        if not receipt.decision.allowed:
            self.refused = receipt.decision

    def act(self) -> None:
        """What was admitted so far the app acts on: a later refusal does not give it back."""
        self._asked = len(self._all)

    def later(self, receipt: Receipt) -> None:
        """Take note of a check after the answer has begun: there may be any number of them."""
        self._later[receipt.policy.name] = receipt.decision
        if not receipt.decision.allowed:
            self.refused = receipt.decision

    def settle(self, success: bool, status: int, headers: Any) -> list[Receipt]:
        """The answer is known. What does not count with it has to be given back."""
        returned = uncounted(self._all[self._settled :], success, status, headers)
        self._settled = len(self._all)
        return returned

    def withdraw(self) -> list[Receipt]:
        """It was no request of its own after all: whatever counts, all that it spent has to be given back."""
        spent = self.spent
        self._settled = len(self._all)
        return spent

    def keep(self) -> None:
        """How it ends will not be known: what is spent stays spent."""
        for receipt in self.spent:
            receipt.settled()
        self._settled = len(self._all)

    def refuse(self, refused: Decision, status: int, headers: Any) -> list[Receipt]:
        """The request is refused. What was taken for that same decision has to be given back; what the app has acted on
        counts as it does with such an answer. Its headers speak of the refusal only."""
        self.refused = refused
        self._void = True
        taken = [receipt for receipt in self._all[max(self._settled, self._asked) :] if receipt.spent]
        if self._settled < self._asked:
            taken += uncounted(self._all[self._settled : self._asked], False, status, headers)
        self._settled = len(self._all)
        return taken

    def to_record(self) -> list[Receipt]:
        """What has not been recorded yet, each once."""
        receipts = self._all[self._recorded :]
        self._recorded = len(self._all)
        return receipts


def uncounted(receipts: Iterable[Receipt], success: bool, status: int, headers: Any) -> list[Receipt]:
    """Those that spent what does not count with such an answer."""
    returned: list[Receipt] = []
    for receipt in receipts:
        if receipt.policy.count == "all" or not receipt.spent:
            continue
        if receipt.counts(success, status, headers):
            receipt.settled()
        else:
            returned.append(receipt)
    return returned


class Started(Protocol):
    """The exchange that a state belongs to."""

    @property
    def has_begun(self) -> bool:
        """Whether the answer has."""
        ...

    def leads_to(self, site: object) -> bool:
        """Whether there are but middlewares between this one and that of a site: nothing has been done in between."""
        ...

    async def settle_later(self, receipt: Receipt) -> None:
        """See through what was checked after that: settle it, and write it down."""
        ...

    async def record(self, receipts: Sequence[Receipt], duration: float | None) -> None:
        """Write down what was checked."""
        ...


class RateLimitState:
    """The limiter, who the request is from, and what has been decided about it so far."""

    __slots__ = ("exchange", "exempt", "limiter", "receipts", "surface")

    def __init__(self, limiter: Limiter, surface: Surface, receipts: Receipts, exchange: Started) -> None:
        self.exempt = False
        """Whether no policy is to check this request."""
        self.limiter = limiter
        self.surface = surface
        self.receipts = receipts
        self.exchange = exchange

    @property
    def identity(self) -> Identity:
        """Asks `user_of(request)` where the surface finds a user."""
        return self.surface.identity

    @property
    def decisions(self) -> list[Decision]:
        """In the order they were made, refused and shadowed ones included."""
        return self.receipts.decisions

    async def take(self, receipt: Receipt) -> None:
        """A view has asked, and acts on the answer. Raises `QuotaExceeded`."""
        decision, receipts = receipt.decision, self.receipts
        if self.exchange.has_begun:
            receipts.later(receipt)
            await self.exchange.settle_later(receipt)
        else:
            receipts.add(receipt)
            receipts.act()
        if not decision.allowed:
            receipts.raised = QuotaExceeded(decision)
            raise receipts.raised

    @classmethod
    def of(cls, scope: Scope) -> RateLimitState | None:
        """What a middleware further out has left."""
        state = scope.get(SCOPE_KEY)
        return state if isinstance(state, cls) else None

"""Every error this package raises on purpose, as one small tree under `RateLimitError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratelimit.decision import Decision


def nearest(word: str, known: Iterable[str], otherwise: str = "", *, form: str = "{!r}", cutoff: float = 0.6) -> str:
    """Return `did you mean 'day'?` where one that is known is like the word, and else what there is to say: by default,
    all of them."""
    from difflib import get_close_matches  # only where something is wrong

    names = list(known)
    near = get_close_matches(word, names, n=1, cutoff=cutoff)
    return f"did you mean {form.format(near[0])}?" if near else otherwise or there_are(names)


def there_are(names: Iterable[str]) -> str:
    """Return `there are: a, b`."""
    return f"there are: {', '.join(names) or 'none'}"


def no_policy(action: str, known: Iterable[str]) -> str:
    """Say that none of the policies has this name."""
    return f"no policy is named {action!r} ({there_are(known)})"


class RateLimitError(Exception):
    """The root: catch this to catch everything the package raises on purpose. Each can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[RateLimitError], args: tuple[Any, ...], attributes: dict[str, Any]) -> RateLimitError:
    """Make the error anew without calling its `__init__`, which takes other things than the message in `args`."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InvalidInput(RateLimitError, ValueError):
    """A value that the caller passed cannot be used; the message says what would be right."""


class InvalidQuota(InvalidInput):
    """A quota, or a mix of quotas, that makes no sense (`5/fortnight`)."""


class InvalidUser(InvalidInput):
    """A user that cannot be stored: empty, too long, or with control characters."""


class InvalidAction(InvalidInput):
    """An action that cannot be stored: empty, too long, or with control characters."""


class InvalidCost(InvalidInput):
    """A cost that is not a whole number of at least 1."""


class InvalidEvent(InvalidInput):
    """A usage event that cannot be kept: a time out of range, metadata that is not JSON, a cost below 0."""


class InvalidCursor(InvalidInput):
    """A cursor that is damaged, or came from another query."""


class SlotNeeded(InvalidInput):
    """A check, by a policy that limits what goes on at the same time: `limiter.slot` takes what can be given back."""


class OutOfRetention(InvalidInput):
    """A day that is no longer kept, or that has not come yet."""


class ConfigError(InvalidInput):
    """A setting that cannot be used; `path` says which one (`policies.hint.quotas[1]`)."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}" if path else problem)

    def under(self, parent: str) -> ConfigError:
        """Return the same error, seen from one level further out."""
        if not self.path:
            return ConfigError(parent, self.problem)
        joint = "" if self.path.startswith("[") else "."
        return ConfigError(f"{parent}{joint}{self.path}", self.problem)


@contextmanager
def within(path: str) -> Iterator[None]:
    """Raise a `ConfigError` of what is done in here with its path below this one."""
    try:
        yield
    except ConfigError as error:
        raise error.under(path) from None


class UnknownAction(RateLimitError, LookupError):
    """A check for an action that no policy names, without quotas of its own."""


class NotHeld(RateLimitError):
    """A slot or a reservation was given back or settled that is not held: not taken yet, or given back before."""


class HoldExpired(NotHeld):
    """A slot or a reservation was given back or settled after its end: what it held is given back already."""


class LimiterClosed(RateLimitError):
    """A limiter was asked after its `close()`; `open()` makes it ready again."""


class QuotaExceeded(RateLimitError):
    """Raised by `limited(...)` inside a view; the middleware turns it into the refusal. Carries the `decision`."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        super().__init__(f"{decision.policy}: {_refusal(decision)}")


def _refusal(decision: Decision) -> str:
    if decision.retry_after is not None:
        what = "the quota cannot be checked" if decision.reason == "unavailable" else "quota exceeded"
        return f"{what}; try again in {decision.retry_after:.3f} s"
    if decision.tightest is None:
        return "this user may do nothing at present"
    return f"a cost of {decision.cost} can never fit {decision.tightest.quota}: ask for less, or for a larger quota"


class StoreUnavailable(RateLimitError):
    """The store gave no usable answer in time. A check turns this into its policy's `on_unavailable`."""


class StoreThrottled(StoreUnavailable):
    """The store answered, but refused the work for now (throttling); nothing was written."""


class StoreMisconfigured(StoreUnavailable):
    """The store will never answer until somebody changes something; the message says what."""


class StoreRefused(StoreMisconfigured):
    """The store calls the request itself invalid: sending it again is of no use, and others may do better."""


class TableNotFound(StoreMisconfigured):
    """The table does not exist in this region and account."""


class IndexNotFound(StoreMisconfigured):
    """The table lacks the index that a question needs."""


class TableMismatch(StoreMisconfigured):
    """The table exists, but its keys are not those of this project."""


class ReplicaMismatch(StoreMisconfigured):
    """The table's replicas in other regions are not those of the configuration, or it names no mode to count in."""


class AccessDenied(StoreMisconfigured):
    """The credentials are missing, wrong, or lack a `permission` (an IAM action; None where that is not the reason)."""

    def __init__(self, message: str, *, permission: str | None = None) -> None:
        self.permission = permission
        super().__init__(message)

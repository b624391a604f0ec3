"""The backend for the library `limits`: `import ratelimit.limits` makes `dynamodb://` and `async+dynamodb://` known.

Then all that takes a storage by its URL takes these: `limits` itself, Flask-Limiter, slowapi. `Windows` are the three
strategies of `limits` on a `Store`, each exact against every other process.

`limits` leaves to a storage what a strategy needs at once. Its key is a user here, and the strategy an action, so that
each window is a record of its own:

    fixed     n = units, x = when it ends. It begins with its first unit, and counts what is over the limit as well.
    sliding   w = number of the window since the epoch, c = units in it, p = units in the one before.
    moving    b = when the record began, n = units since then, and of each moment that still counts its units, under a
              name of 10 letters: the microseconds since the epoch, to base 36.

Nothing is believed from one call to the next. A hit on a moving window only ever adds: what is over is n less what
counts, and that cannot become less. So racers do not get in each other's way, and who drops what is over does not
matter either. Units are whole: of a cost that is not, `limits` in memory counts the part, and this the next whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from hashlib import sha256
from math import ceil
from string import ascii_lowercase, digits
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from limits.aio.storage import MovingWindowSupport as AsyncMovingWindowSupport
from limits.aio.storage import SlidingWindowCounterSupport as AsyncSlidingWindowCounterSupport
from limits.aio.storage import Storage as AsyncStorage
from limits.errors import ConfigurationError
from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage
from limits.storage.base import TimestampedSlidingWindow

from ratelimit.blocking import Runner, running_loop
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.dynamodb.settings import Settings, check_one_region
from ratelimit.dynamodb.store import BlockingDynamoDBStore
from ratelimit.errors import ConfigError, InvalidAction, InvalidUser, StoreUnavailable
from ratelimit.names import Key, check_action, check_user
from ratelimit.store.base import Add, Drop, Expect, Op, Put, Record, Store, Write

__all__ = ["AsyncDynamoDBStorage", "DynamoDBStorage"]

_OWN: Final = ("key_prefix", "wrap_exceptions")
_ALIASES: Final = {"endpoint_url": "endpoint"}
_TRUE: Final = ("true", "1", "yes", "on")


class _Verbs:
    """What `limits` asks of a storage. `_do` returns what a coroutine does; or, for event loops, the coroutine."""

    _store: DynamoDBStore
    _windows: Windows

    def _do(self, work: Coroutine[Any, Any, object]) -> Any:
        return work

    @property
    def base_exceptions(self) -> type[Exception]:
        return StoreUnavailable

    def incr(self, key: str, expiry: float, amount: float = 1) -> Any:
        return self._do(self._windows.incr(key, expiry, amount))

    def get(self, key: str) -> Any:
        return self._do(self._windows.get(key))

    def get_expiry(self, key: str) -> Any:
        return self._do(self._windows.get_expiry(key))

    def check(self) -> Any:
        return self._do(self._windows.can_be_read())

    def reset(self) -> Any:
        """Forget all windows under this prefix; return how many there were. Reads the whole table."""
        return self._do(self._store.erase_actions(self._windows.actions))

    def clear(self, key: str) -> Any:
        return self._do(self._windows.clear(key))

    def acquire_entry(self, key: str, limit: int, expiry: float, amount: float = 1) -> Any:
        return self._do(self._windows.acquire_entry(key, limit, expiry, amount))

    def get_moving_window(self, key: str, limit: int, expiry: float) -> Any:
        return self._do(self._windows.get_moving_window(key, expiry))

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: float, amount: float = 1) -> Any:
        return self._do(self._windows.acquire_sliding(key, limit, expiry, amount))

    def get_sliding_window(self, key: str, expiry: float) -> Any:
        return self._do(self._windows.get_sliding(key, expiry))

    def clear_sliding_window(self, key: str, expiry: float) -> Any:
        return self._do(self._windows.clear_sliding(key, expiry))

    def close(self) -> Any:
        """Let go of the connections; harmless when closed. `limits` itself never closes a storage."""
        return self._do(self._store.close())


class DynamoDBStorage(_Verbs, Storage, MovingWindowSupport, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """`dynamodb://TABLE?region=…`, for threads. It opens itself with its first use, and is used after a fork as before.

    In a thread that runs an event loop, as under slowapi, the loop waits for each call.
    """

    STORAGE_SCHEME = ["dynamodb"]  # noqa: RUF012 (as `limits` has it)

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: float | str | bool) -> None:
        """Takes what the URL takes as options, too. Raises `ConfigurationError`, which names what is wrong."""
        chosen = _options(uri, wrap_exceptions, options)
        super().__init__(uri, wrap_exceptions=chosen.wrap_exceptions)
        self._runner = Runner()
        self.storage = chosen.settings.table  # which `flask limiter config` shows
        self._store = BlockingDynamoDBStore(chosen.settings, self._runner)
        self._windows = Windows(self._store, chosen.key_prefix, SystemClock())

    def _do(self, work: Coroutine[Any, Any, object]) -> Any:
        loop = running_loop()
        if loop is None:
            return self._runner.run(work, "limits")
        # A coroutine of ours tells by it whether it may wait on a loop. This one cannot: its caller waits for us.
        asyncio._set_running_loop(None)
        try:
            return self._runner.run(work, "limits")
        finally:
            asyncio._set_running_loop(loop)


class AsyncDynamoDBStorage(
    _Verbs, AsyncStorage, AsyncMovingWindowSupport, AsyncSlidingWindowCounterSupport, TimestampedSlidingWindow
):
    """`async+dynamodb://TABLE?region=…`, for event loops. It opens itself with its first use on each."""

    STORAGE_SCHEME = ["async+dynamodb"]  # noqa: RUF012

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: float | str | bool) -> None:
        """Takes what the URL takes as options, too. Raises `ConfigurationError`, which names what is wrong."""
        chosen = _options(uri, wrap_exceptions, options)
        super().__init__(uri, wrap_exceptions=chosen.wrap_exceptions)
        self._store = DynamoDBStore(chosen.settings)
        self._windows = Windows(self._store, chosen.key_prefix, SystemClock())


class _Options(NamedTuple):
    settings: Settings
    key_prefix: str
    wrap_exceptions: bool


def _options(uri: str, wrap_exceptions: bool, options: dict[str, float | str | bool]) -> _Options:
    """Return what the URL says, and the options instead where they say the same."""
    address, _, query = uri.removeprefix("async+").partition("?")
    said = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] not in options]
    said += ((name, str(value)) for name, value in options.items())
    own = dict(pair for pair in said if pair[0] in _OWN)
    rest = [(_ALIASES.get(name, name), value) for name, value in said if name not in _OWN]
    try:
        prefix = check_action(own.get("key_prefix", "limits"))
        settings = parse_url(f"{address}?{urlencode(rest)}")
        check_one_region(settings, "a storage of limits asks")
    except InvalidAction as error:
        raise ConfigurationError(f"storage.key_prefix: {error}") from None
    except ConfigError as error:
        raise ConfigurationError(str(error.under("storage"))) from None
    return _Options(settings, prefix, str(own.get("wrap_exceptions", wrap_exceptions)).lower() in _TRUE)


MAX_MOMENTS: Final = 1000
"""Of a moving window, a record holds no more: where more units than that are allowed, units count for up to a
thousandth of the window longer, so that their moments coincide."""
MAX_DROPPED: Final = 100
"""Moments that one write drops."""

_STRATEGIES: Final = ("fixed", "moving", "sliding")
_MAX_ATTEMPTS: Final = 10
_DIGITS: Final = digits + ascii_lowercase
_MOMENT_LETTERS: Final = 10
_DIGEST: Final = "sha256:"
_HEALTH: Final = "health"


class Windows:
    """The windows on one store, under one prefix. All raise `StoreUnavailable`."""

    def __init__(self, store: Store, prefix: str, clock: Clock) -> None:
        """Raises `InvalidAction` for the prefix."""
        self._store = store
        self._clock = clock
        self._fixed, self._moving, self._sliding = self.actions = tuple(
            check_action(f"{prefix}.{strategy}") for strategy in _STRATEGIES
        )

    async def incr(self, key: str, expiry: float, amount: float) -> int:
        """Add to the window, a new one where there is none; return its units."""
        where, units = Key(_user(key), self._fixed), ceil(amount)
        for attempt in range(_MAX_ATTEMPTS):
            now = self._clock.now()
            ends = now + round(expiry * SECOND)
            if attempt % 2 == 0:
                # `ttl` only ever grows by this, for the window goes on to end when it did.
                write = _write(ends, Expect("x", low=now + 1), Add("n", units))
            else:
                write = _write(ends, Expect("x", high=now, or_missing=True), Put("n", units), Put("x", ends))
            outcome = await self._store.apply(where, write, now=now)
            if outcome.applied:
                return outcome.record["n"]
        raise _contended(where)

    async def can_be_read(self) -> bool:
        try:
            await self.get(_HEALTH)
        except StoreUnavailable:
            return False
        return True

    async def get(self, key: str) -> int:
        record = await self._store.read(Key(_user(key), self._fixed))
        return record["n"] if record.get("x", 0) > self._clock.now() else 0

    async def get_expiry(self, key: str) -> float:
        """Return when the window ends, in seconds since the epoch; where there is none, now."""
        record = await self._store.read(Key(_user(key), self._fixed))
        return max(record.get("x", 0), self._clock.now()) / SECOND

    async def clear(self, key: str) -> None:
        """Forget the fixed and the moving window of the key."""
        for action in (self._fixed, self._moving):
            await self._store.delete(Key(_user(key), action))

    async def acquire_entry(self, key: str, limit: int, expiry: float, amount: float) -> bool:
        """Take units, where no more than `limit` of them are of the last `expiry` seconds then."""
        units = ceil(amount)
        if units > limit:
            return False
        where, length = Key(_user(key), self._moving), round(expiry * SECOND)
        record = await self._store.read(where)
        for _ in range(_MAX_ATTEMPTS):
            now = self._clock.now()
            begins = _name(now - length)
            used = sum(_counting(record, begins).values())
            if used + units > limit:
                return False
            over = [name for name in record if len(name) == _MOMENT_LETTERS and name < begins][:MAX_DROPPED]
            at = now if limit <= MAX_MOMENTS else -(-now // (grid := length // MAX_MOMENTS)) * grid
            write = _write(
                at + length,
                # Another record under this key, whose units are its own, has begun at another moment.
                *((Expect("b", record["b"], record["b"]),) if record else (_missing("b"), Put("b", now))),
                Add("n", units, at_most=limit + record.get("n", 0) - used),
                Add(_name(at), units),
                *map(Drop, over),
            )
            outcome = await self._store.apply(where, write, now=now)
            if outcome.applied:
                return True
            record = outcome.record
        raise _contended(where)

    async def get_moving_window(self, key: str, expiry: float) -> tuple[float, int]:
        """Return the first moment that counts, in seconds since the epoch, and the units since then."""
        record = await self._store.read(Key(_user(key), self._moving))
        now = self._clock.now()
        counting = _counting(record, _name(now - round(expiry * SECOND)))
        begins = int(min(counting), 36) if counting else now
        return begins / SECOND, sum(counting.values())

    async def acquire_sliding(self, key: str, limit: int, expiry: float, amount: float) -> bool:
        """Take units, where no more than `limit` are in the window then, and of those before as much as still is."""
        units = ceil(amount)
        if units > limit:
            return False
        where, length = self._sliding_of(key, expiry)
        record = await self._store.read(where)
        for _ in range(_MAX_ATTEMPTS):
            now = self._clock.now()
            window, previous, current, left = _slide(record, now, length)
            room = limit - previous * left // length
            if current + units > room:
                return False
            outcome = await self._store.apply(
                where, _write((window + 2) * length, *_take(record, window, previous, units, room)), now=now
            )
            if outcome.applied:
                return True
            record = outcome.record
        raise _contended(where)

    async def get_sliding(self, key: str, expiry: float) -> tuple[int, float, int, float]:
        """Return units and seconds left of the window before, and of this."""
        where, length = self._sliding_of(key, expiry)
        _, previous, current, left = _slide(await self._store.read(where), self._clock.now(), length)
        return previous, left / SECOND if previous else 0.0, current, (left + length) / SECOND

    async def clear_sliding(self, key: str, expiry: float) -> None:
        """Forget the window of the key, and the one before."""
        await self._store.delete(self._sliding_of(key, expiry)[0])

    def _sliding_of(self, key: str, expiry: float) -> tuple[Key, int]:
        """Return the record and the length of a window: windows are numbered by their length."""
        length = round(expiry * SECOND)
        return Key(_user(f"{key}/{length // SECOND}"), self._sliding), length


def _user(key: str) -> str:
    """Return the key where it can be stored as it is, else its digest."""
    try:
        if check_user(key) == key and not key.startswith(_DIGEST):
            return key
    except InvalidUser:
        pass
    return _DIGEST + sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _write(ends: int, *ops: Op) -> Write:
    # A minute more, for clocks that differ.
    return Write(ops, expires_at=ends // SECOND + 60)


def _missing(field: str) -> Expect:
    """Only if the field is missing: no number is within these bounds."""
    return Expect(field, low=1, high=0, or_missing=True)


def _contended(where: Key) -> StoreUnavailable:
    return StoreUnavailable(f"the window of {where.user!r} was cleared {_MAX_ATTEMPTS} times while it was written to")


def _counting(record: Record, begins: str) -> Mapping[str, int]:
    """Return the units of each moment from one on, by their names, which sort as the moments do."""
    return {name: units for name, units in record.items() if len(name) == _MOMENT_LETTERS and name >= begins}


def _name(at: int) -> str:
    letters = ""
    while at:
        at, digit = divmod(at, 36)
        letters = _DIGITS[digit] + letters
    return letters.rjust(_MOMENT_LETTERS, "0")


def _slide(record: Record, now: int, length: int) -> tuple[int, int, int, int]:
    """Return the window's number, the units before it and in it, and the microseconds that are left of it.

    Where another's clock has gone on to the next window already, that one begins now.
    """
    known = record.get("w", 0)
    window = max(now // length, known)
    left = min((window + 1) * length - now, length)
    if window == known:
        return window, record.get("p", 0), record.get("c", 0), left
    return window, record["c"] if window == known + 1 else 0, 0, left


def _take(record: Record, window: int, previous: int, units: int, room: int) -> tuple[Op, ...]:
    """Return what takes from a window. What was in the one before does not change while this one is."""
    if record.get("w") == window:
        return Expect("w", window, window), Expect("p", previous, previous), Add("c", units, at_most=room)
    known = (
        (Expect("w", record["w"], record["w"]), Expect("c", record["c"], record["c"])) if record else (_missing("w"),)
    )
    return *known, Put("w", window), Put("p", previous), Put("c", units)

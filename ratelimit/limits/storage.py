"""`DynamoDBStorage` and `AsyncDynamoDBStorage`: what `limits` calls a storage, on our table."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from limits.aio.storage import MovingWindowSupport as AsyncMovingWindowSupport
from limits.aio.storage import SlidingWindowCounterSupport as AsyncSlidingWindowCounterSupport
from limits.aio.storage import Storage as AsyncStorage
from limits.errors import ConfigurationError
from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage
from limits.storage.base import TimestampedSlidingWindow

from ratelimit.blocking import Runner, running_loop
from ratelimit.clock import SystemClock
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.dynamodb.blocking import BlockingDynamoDBStore
from ratelimit.dynamodb.settings import Settings, check_one_region
from ratelimit.errors import ConfigError, InvalidAction, StoreUnavailable
from ratelimit.limits.windows import Windows
from ratelimit.names import check_action

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

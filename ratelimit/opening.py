"""Which store a URL names, and opening it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from ratelimit.errors import ConfigError, nearest, within
from ratelimit.regions.home import HomeStore
from ratelimit.regions.regions import Regions
from ratelimit.regions.sum import SplitStore, SumStore
from ratelimit.store import MemoryStore, TableStore

if TYPE_CHECKING:
    from ratelimit.dynamodb import Settings


def open_store(url: str) -> OpeningStore:
    """Open a store: `store = await open_store(url)`, or `async with open_store(url) as store:`, which closes it.

    `memory://` (`?max_keys=1000`), or `dynamodb://TABLE?region=…&endpoint=…&create=true`. Raises `ConfigError` for the
    URL; opening it raises `StoreUnavailable`, or `StoreMisconfigured` where waiting would not help.
    """
    return OpeningStore(store_from_url(url))


class OpeningStore:
    """A store about to be opened. Made by `open_store`."""

    def __init__(self, store: TableStore) -> None:
        self._store = store

    def __await__(self) -> Generator[object, None, TableStore]:
        return self._open().__await__()

    async def __aenter__(self) -> TableStore:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()

    async def _open(self) -> TableStore:
        try:
            await self._store.open()
        except BaseException:
            await self._store.close()
            raise
        return self._store


def store_from_url(url: str, regions: Regions | None = None, *, timelines: bool = False) -> TableStore:
    """Return the store that a URL names, not yet open: over these regions, where it is a table, and with the index of
    timelines, where those are asked for. Raises `ConfigError`.

    One in memory is in no region.
    """
    scheme, separator, _ = url.partition("://")
    with within("store"):
        if not separator:
            raise ConfigError("", f"expected a URL such as {_EXAMPLES}")
        if scheme not in _STORES:
            near = nearest(scheme, _STORES, f"there are: {_EXAMPLES}", form="{}://")
            raise ConfigError("", f"unknown scheme {scheme}://; {near}")
        return _STORES[scheme](url, regions, timelines)


def _memory(url: str, regions: Regions | None, timelines: bool) -> TableStore:
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise ConfigError("", f"not a store URL; write {_MEMORY}") from None
    if parts.netloc or parts.path:
        raise ConfigError("", f"memory:// has no name and no path; write {_MEMORY}")
    options: dict[str, int] = {}
    for name, text in pairs:
        if name != "max_keys":
            raise ConfigError(name, "unknown parameter; there is: max_keys")
        if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS or int(text) < 1:
            shown = repr(text) if len(text) <= _MOST_DIGITS else f"one of {len(text)} letters"
            raise ConfigError(name, f"expected a whole number of at least 1, not {shown}")
        options[name] = int(text)
    return MemoryStore(**options)


def _dynamodb(url: str, regions: Regions | None, timelines: bool) -> TableStore:
    # Imported here: AWS's client takes its time, and an app on the embedded store never needs it.
    from ratelimit.dynamodb import DynamoDBStore, parse_url

    return over_regions(with_timelines(parse_url(url), timelines), regions, DynamoDBStore)


def with_timelines(settings: Settings, wanted: bool) -> Settings:
    """Return the settings of a table, which is to have the index of timelines where a policy needs it."""
    return replace(settings, timelines=settings.timelines or wanted)


def over_regions(settings: Settings, regions: Regions | None, store: Callable[[Settings], TableStore]) -> TableStore:
    """Return the store on a table, by one `store` for each region that has to be asked. Raises `ConfigError`."""
    settings = settings_here(settings, regions)
    if settings.mode in (None, "strong") or settings.region is None:
        return store(settings)
    endpoints = {} if regions is None else regions.endpoints
    stores = {
        region: store(replace(settings, region=region, endpoint=endpoints.get(region, settings.endpoint)))
        for region in settings.regions
    }
    if settings.mode == "split":
        return SplitStore(stores, settings.region, settings.shares)
    if settings.mode == "sum":
        return SumStore(stores, settings.region)
    return HomeStore(stores, settings.region, failover=settings.failover)


def settings_here(settings: Settings, regions: Regions | None) -> Settings:
    """Return the settings with what a configuration says of regions, and which one this is. Raises `ConfigError`."""
    if regions is None and settings.mode is None:
        return settings
    named = settings.region if regions is None else regions.here or settings.region
    here = named or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not here:
        raise ConfigError("region", "is missing: it says which of the regions this process is in; or set AWS_REGION")
    if settings.region not in (None, here):
        raise ConfigError("region", f"is {settings.region!r} here, and {here!r} in the setting regions; say one")
    if regions is None:
        return replace(settings, region=here)
    endpoint = regions.endpoints.get(here, settings.endpoint)
    return replace(
        settings,
        region=here,
        endpoint=endpoint,
        regions=regions.all,
        mode=regions.mode,
        shares=regions.shares,
        failover=regions.failover,
    )


_MOST_DIGITS: Final = 18
_MEMORY: Final = "memory://, or memory://?max_keys=1000"
_EXAMPLES: Final = "memory://, dynamodb://my-table?region=eu-west-1"
_STORES: Final[dict[str, Callable[[str, Regions | None, bool], TableStore]]] = {
    "memory": _memory,
    "dynamodb": _dynamodb,
}

"""A table's replicas in other regions, and whether what is configured can keep its promise on them.

Unless a table is strongly consistent over its regions, the last writer of an item wins: two regions that count in one
item lose what one of them has counted, and admit more than the quota.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.settings import Settings, is_amazon
from ratelimit.errors import ReplicaMismatch, StoreMisconfigured
from ratelimit.regions.regions import PROMISES, RegionsMode, not_in_list

CallTable: TypeAlias = Callable[..., Awaitable[dict[str, Any]]]
"""Sends an operation about the table, by its name, with the rest of the request as keywords."""

_KEY: Final = {schema.PK: {"S": schema.REGIONS}, schema.SK: {"S": schema.META}}
_LEGACY: Final = "2017.11.29"
_GONE: Final = ("DELETING", "CREATION_FAILED", "REGION_DISABLED")


def replicas_of(table: Mapping[str, Any], region: str) -> tuple[str, ...]:
    """Return the regions of a table that is described in `region`, that one among them; () where it has one only."""
    others = {
        replica["RegionName"] for replica in table.get("Replicas") or () if replica.get("ReplicaStatus") not in _GONE
    }
    others.discard(region)
    return tuple(sorted({region, *others})) if others else ()


def is_strong(table: Mapping[str, Any]) -> bool:
    """Return whether a condition sees what every region has written."""
    return table.get("MultiRegionConsistency") == "STRONG"


def check_replicas(table: Mapping[str, Any], place: Place, settings: Settings) -> None:
    """Raise `ReplicaMismatch` where counts would be lost, or what is configured is not what is there."""
    problem = replicas_problem(table, place, settings.mode, settings.regions)
    if problem is not None:
        raise ReplicaMismatch(f"{place} {problem}")


def replicas_problem(
    table: Mapping[str, Any], place: Place, mode: RegionsMode | None, regions: tuple[str, ...]
) -> str | None:
    """Return what is wrong with a table's replicas, and what to do; None where nothing is.

    An engine for development may tell of none: what it does not tell is taken to be as configured.
    """
    if table.get("GlobalTableVersion") == _LEGACY:
        return f"is a global table of version {_LEGACY}, on which nothing is kept: update it to 2019.11.21"
    found = replicas_of(table, place.region)
    if mode is None:
        return None if not found else _no_mode(found, is_strong(table))
    if place.region not in regions:
        return f"was opened in a region that does not count: {not_in_list(place.region, regions)}"
    missing = [region for region in regions if region not in (found or (place.region,))]
    if missing and (found or is_amazon(place.endpoint)):
        return (
            f"has no replica in {', '.join(missing)}: add it to the table (it fills by itself), "
            "or take the region out of the list, in the configuration of every process"
        )
    if mode == "strong" and found and not is_strong(table):
        return (
            "is eventually consistent over its regions, and mode = 'strong' needs multi-region strong consistency, "
            "which a table has from its making or never: make another one, or choose mode = 'home'"
        )
    return None


def shown_replicas(table: Mapping[str, Any], place: Place, mode: RegionsMode | None) -> str:
    """Return the regions, their consistency, and what the mode promises, on a line for a person."""
    found = ", ".join(replicas_of(table, place.region)) or "none told of"
    consistency = "strongly consistent" if is_strong(table) else "the last writer of an item wins"
    return f"{found}; {consistency}" + ("" if mode is None else f"; {mode}: {PROMISES[mode]}")


def _no_mode(found: tuple[str, ...], strong: bool) -> str:
    listed = ", ".join(f"'{region}'" for region in found)
    if strong:
        return f"has replicas that are strongly consistent: say regions = {{ mode = 'strong', all = [{listed}] }}"
    return (
        f"has replicas in {', '.join(found)}, where the last writer of an item wins: regions that count in one item "
        f"lose what others have counted, and admit too much. Say how: regions = {{ mode = 'home', all = [{listed}] }}; "
        "with one region in the list, that one counts for all, and the other replicas only hold copies"
    )


async def check_recorded_regions(call: CallTable, place: Place, settings: Settings) -> None:
    """Record in the table how its regions count, where nothing is recorded yet. Raise `ReplicaMismatch` for processes
    that do not agree: two homes of one user are two counts."""
    found, wanted = await recorded_and_wanted(call, settings)
    if found is None:
        with suppress(StoreMisconfigured):  # somebody was faster, or this role only reads
            await call("put_item", Item=_record(settings), ConditionExpression=f"attribute_not_exists({schema.PK})")
        found, _ = await recorded_and_wanted(call, settings)
    if found is not None and found != wanted:
        raise ReplicaMismatch(
            f"{place} is counted by {found}, and this process would by {wanted}: have all processes say the same; to "
            "change it, stop them all, run `ratelimit table regions --change` with the new setting, and start them"
        )


async def recorded_and_wanted(call: CallTable, settings: Settings, *, change: bool = False) -> tuple[str | None, str]:
    """Return how the regions count, None where that is not recorded, and how the settings say; with `change` record
    that."""
    item = (await call("get_item", Key=_KEY, ConsistentRead=True)).get("Item")
    if change:
        await call("put_item", Item=_record(settings))
    return None if item is None else _shown(item), _shown(_record(settings))


def _record(settings: Settings) -> dict[str, Any]:
    texts = {schema.TYPE: schema.REGIONS_TYPE, schema.MODE: str(settings.mode), schema.ALL: ",".join(settings.regions)}
    if settings.shares:
        texts[schema.SHARES] = ",".join(map(str, settings.shares))
    if settings.failover:
        texts[schema.FAILOVER] = "on"
    return {**_KEY, **{name: {"S": text} for name, text in texts.items()}}


def _shown(item: Mapping[str, Any]) -> str:
    shares = f", shared {item[schema.SHARES]['S']}" if schema.SHARES in item else ""
    failover = ", with failover" if schema.FAILOVER in item else ""
    return f"mode = {item[schema.MODE]['S']!r} over {item[schema.ALL]['S']}{shares}{failover}"

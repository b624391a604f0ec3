"""`Snapshot`: what DynamoDB says of a table, and of each part that it does not say, why not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from ratelimit.dynamodb.control import Control
from ratelimit.dynamodb.faults import Place
from ratelimit.dynamodb.settings import is_amazon
from ratelimit.errors import AccessDenied, StoreMisconfigured, TableMismatch, TableNotFound

T = TypeVar("T")

# DynamoDB Local puts this where the region belongs. It takes any encryption and any tags, and forgets them.
_LOCAL: Final = ":ddblocal:"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A part that could not be looked at."""

    why: str
    permission: str | None = None
    """The IAM action that would let it be looked at; None where this engine does not know the part at all."""


Tags: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Every part is what was said, or `Unknown`."""

    place: Place
    table: Mapping[str, Any] | Unknown
    """The answer to `DescribeTable`."""
    ttl: str | Unknown | None
    """The attribute that items expire by."""
    recovery: bool | Unknown
    tags: Tags | Unknown

    @property
    def is_local(self) -> bool:
        """Whether it is DynamoDB Local that answered."""
        return not isinstance(self.table, Unknown) and _LOCAL in str(self.table.get("TableArn", ""))


async def look(control: Control) -> Snapshot:
    """Four calls; what is forbidden or not known here is left out. Raises `StoreUnavailable`'s other subclasses."""
    table = await _known(control, control.describe)
    arn = None if isinstance(table, Unknown) else table.get("TableArn")
    return Snapshot(
        place=control.place,
        table=table,
        ttl=await _known(control, control.expiry),
        recovery=await _known(control, control.recovery),
        tags=await _known(control, lambda: control.tags(arn)) if arn else _no_arn(table),
    )


async def _known(control: Control, ask: Callable[[], Awaitable[T]]) -> T | Unknown:
    try:
        return await ask()
    except AccessDenied as error:
        if error.permission is None:
            raise
        return Unknown(f"needs the permission {error.permission}", error.permission)
    except (TableNotFound, TableMismatch):
        raise
    except StoreMisconfigured:
        if is_amazon(control.place.endpoint):
            raise
        return Unknown("cannot be checked here: this engine does not know it")


def _no_arn(table: Mapping[str, Any] | Unknown) -> Unknown:
    if isinstance(table, Unknown):
        return table
    return Unknown("cannot be checked here: this engine gives its tables no name for that")

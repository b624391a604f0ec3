"""Mends what a running table lacks, one part after the other, and tells how it goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.control import Control, WaitedInVain
from ratelimit.dynamodb.description import billing_of, is_settled
from ratelimit.dynamodb.snapshot import look
from ratelimit.dynamodb.spec import MODES, TableSpec
from ratelimit.dynamodb.verify import Line, Part, compare
from ratelimit.errors import StoreMisconfigured, StoreThrottled, TableNotFound

Tell: TypeAlias = Callable[[str], object]
"""Takes a line of progress, for a person."""

PATIENCE: Final = 600.0
"""Seconds that each change is waited for, unless the caller says otherwise. A large index takes hours to fill."""

_SILENCE: Final = 10.0
# What one part's trouble may be, without the others having to wait for it.
_TROUBLE: Final = (StoreMisconfigured, StoreThrottled, WaitedInVain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded:
    """What was done, what could not be, and how the table compares now."""

    mended: tuple[str, ...]
    """The names of the lines that were changed."""
    failed: Mapping[str, str]
    """The names of the lines that could not be, and why."""
    lines: tuple[Line, ...]


class Upgrade:
    """One run over a table."""

    def __init__(
        self, control: Control, spec: TableSpec, *, tell: Tell = lambda _: None, within: float = PATIENCE
    ) -> None:
        self._control = control
        self._spec = spec
        self._tell = tell
        self._within = within
        # What frees a table to be changed comes first, what takes longest comes last.
        self._menders: dict[Part, Callable[[Line], Awaitable[None]]] = {
            "protection": self._protection,
            "expiry": self._expiry,
            "recovery": self._recovery,
            "tag": self._tag,
            "billing": self._billing,
            "encryption": self._encryption,
            "index": self._index,
        }

    async def run(self) -> Upgraded:
        """Mend what can be. Raises `TableNotFound`, and what no part alone is to blame for."""
        mended: list[str] = []
        failed: dict[str, str] = {}
        to_mend = [line for line in compare(await look(self._control), self._spec) if line.mendable]
        order = list(self._menders)
        for line in sorted(to_mend, key=lambda line: order.index(line.part)):
            self._tell(f"{line.name}: {line.found}, should be {line.wanted}")
            try:
                await self._menders[line.part](line)
            except TableNotFound:
                raise
            except _TROUBLE as error:
                failed[line.name] = str(error)
                self._tell(f"{line.name}: {error}")
            else:
                mended.append(line.name)
                self._tell(f"{line.name}: done")
        lines = compare(await look(self._control), self._spec)
        return Upgraded(mended=tuple(mended), failed=failed, lines=lines)

    async def _protection(self, line: Line) -> None:
        await self._update(line, DeletionProtectionEnabled=self._spec.protected)

    async def _expiry(self, _: Line) -> None:
        self._check(await self._control.turn_on_expiry())

    async def _recovery(self, _: Line) -> None:
        self._check(await self._control.turn_on_recovery())

    def _check(self, is_on: bool) -> None:
        """An engine for development that has told how a thing stands may still not let it be changed."""
        if not is_on:
            raise StoreMisconfigured(f"{self._control.place} does not let it be turned on")

    async def _tag(self, line: Line) -> None:
        arn = (await self._control.describe())["TableArn"]
        name = line.name.removeprefix("tag ")
        await self._control.call("tag_resource", ResourceArn=arn, Tags=[{"Key": name, "Value": self._spec.tags[name]}])

    async def _billing(self, line: Line) -> None:
        mode, throughput = MODES[self._spec.billing or "on-demand"], self._spec.throughput
        if throughput is None:
            await self._update(line, BillingMode=mode)
            return
        table = await self._control.describe()
        changes: dict[str, Any] = {"BillingMode": mode, "ProvisionedThroughput": throughput}
        indexes = [index["IndexName"] for index in table.get("GlobalSecondaryIndexes") or ()]
        if indexes and billing_of(table) != mode:  # a table that turns to units needs them for its indexes as well
            changes["GlobalSecondaryIndexUpdates"] = [
                {"Update": {"IndexName": name, "ProvisionedThroughput": self._spec.index_throughput(name)}}
                for name in indexes
            ]
        await self._update(line, **changes)

    async def _encryption(self, line: Line) -> None:
        await self._update(line, SSESpecification=self._spec.encryption())

    async def _index(self, line: Line) -> None:
        """DynamoDB makes one index at a time."""
        name = line.name.removeprefix("index ")
        table = await self._control.describe()
        index = schema.index_definition(name)
        if billing_of(table) == MODES["provisioned"]:
            found = table["ProvisionedThroughput"]
            units = {unit: found[unit] for unit in ("ReadCapacityUnits", "WriteCapacityUnits")}
            index["ProvisionedThroughput"] = self._spec.index_throughput(name) or units
        await self._update(
            line,
            AttributeDefinitions=schema.attribute_definitions((name,)),
            GlobalSecondaryIndexUpdates=[{"Create": index}],
        )

    async def _update(self, line: Line, **changes: Any) -> None:
        """DynamoDB takes one change of this kind at a time, and it may have been at another when we came."""
        await self._settle(line, "is done with an earlier change")
        await self._control.call("update_table", **changes)
        await self._settle(line, f"has changed ({line.name})")

    async def _settle(self, line: Line, until: str) -> None:
        said, told_at = "", 0.0
        async for waited in self._control.polls(until, within=self._within):
            table = await self._control.describe()
            if is_settled(table):
                return
            state = _state(table)
            if state != said or waited - told_at >= _SILENCE:
                self._tell(f"{line.name}: {state}, {waited:.0f} s so far")
                said, told_at = state, waited


def _state(table: Mapping[str, Any]) -> str:
    """`table UPDATING, index GSI1 CREATING (filling)`: what is still going on."""
    states = [] if table["TableStatus"] == "ACTIVE" else [f"table {table['TableStatus']}"]
    for index in table.get("GlobalSecondaryIndexes") or ():
        if index.get("IndexStatus", "ACTIVE") != "ACTIVE":
            filling = " (filling)" if index.get("Backfilling") else ""
            states.append(f"index {index['IndexName']} {index['IndexStatus']}{filling}")
    return ", ".join(states) or f"encryption {(table.get('SSEDescription') or {}).get('Status')}"

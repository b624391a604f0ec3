"""`TableSpec`: the table as somebody wants it; `TableDiff`: what is, against what should be, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.control import (
    billing_of,
    indexes_of,
    is_strong,
    keys_of,
    replicas_of,
    replicas_problem,
    shown_replicas,
)
from ratelimit.dynamodb.errors import Place
from ratelimit.errors import ConfigError
from ratelimit.regions.regions import RegionsMode

T = TypeVar("T")

Billing: TypeAlias = Literal["on-demand", "provisioned"]

MODES: Final[Mapping[str, str]] = {"on-demand": "PAY_PER_REQUEST", "provisioned": "PROVISIONED"}
"""What DynamoDB calls them."""

_DIRECTORY_UNITS: Final = 5
_MAX_KEY: Final = 128
_MAX_VALUE: Final = 256
_MAX_TAGS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """What to create, to compare with, or to mend towards. Raises `ConfigError` naming the bad part.

    `gsi2`       also the index of an action's timeline.
    `recovery`   point-in-time recovery; False asks for nothing, and turns nothing off.
    `protected`  against deletion; None asks for nothing.
    `kms_key`    the ARN, id or alias of a key in KMS (`alias/aws/dynamodb` is AWS's own in the account); None asks for
                 nothing: DynamoDB then encrypts with a key of its own.
    `tags`       those that have to be there; others may be.
    `billing`    None is on demand for a new table, and leaves a table that is there as it is. `provisioned` goes with
                 `read` and `write`, in units a second; without them, `verify` leaves the units to auto scaling.
    `regions`    those that are to have a replica, and to count by `mode`; () asks for nothing.
    """

    gsi2: bool = False
    recovery: bool = True
    protected: bool | None = None
    kms_key: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    billing: Billing | None = None
    read: int | None = None
    write: int | None = None
    regions: tuple[str, ...] = ()
    mode: RegionsMode | None = None

    def __post_init__(self) -> None:
        if self.billing is not None and self.billing not in get_args(Billing):
            raise ConfigError("billing", f"{self.billing!r} is unknown; there are on-demand and provisioned")
        _check_units(self)
        _check_tags(self.tags)
        if self.kms_key is not None and not self.kms_key.strip():
            raise ConfigError("kms_key", "is empty; give the key's ARN, or leave it out")

    @property
    def indexes(self) -> tuple[str, ...]:
        return (schema.GSI1, schema.GSI2) if self.gsi2 else (schema.GSI1,)

    @property
    def throughput(self) -> dict[str, int] | None:
        if self.read is None or self.write is None:
            return None
        return _throughput(self.read, self.write)

    def index_throughput(self, index: str) -> dict[str, int] | None:
        """Return an index's. `GSI1` holds users and plans, which few writes touch; `GSI2` would hold every event."""
        if self.read is None or self.write is None:
            return None
        if index == schema.GSI1:
            return _throughput(min(self.read, _DIRECTORY_UNITS), min(self.write, _DIRECTORY_UNITS))
        return _throughput(self.read, self.write)

    def encryption(self) -> dict[str, Any]:
        return {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": self.kms_key}


def _throughput(read: int, write: int) -> dict[str, int]:
    return {"ReadCapacityUnits": read, "WriteCapacityUnits": write}


def _check_units(spec: TableSpec) -> None:
    units = {"read": spec.read, "write": spec.write}
    for name, value in units.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(name, f"must be a whole number of units of at least 1, not {value!r}")
    given = [name for name, value in units.items() if value is not None]
    if given and spec.billing != "provisioned":
        raise ConfigError(given[0], "units are for provisioned billing; leave them out, or choose that")
    if len(given) == 1:
        raise ConfigError("write" if given == ["read"] else "read", "is missing: provisioned billing needs both")


def _check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > _MAX_TAGS:
        raise ConfigError("tags", f"{len(tags)} are too many; a table has {_MAX_TAGS} at most")
    for name, value in tags.items():
        if not 0 < len(name) <= _MAX_KEY or name.startswith("aws:"):
            raise ConfigError(
                "tags", f"{name!r} is no name for a tag: 1 to {_MAX_KEY} characters, not starting with 'aws:'"
            )
        if len(value) > _MAX_VALUE:
            raise ConfigError(f"tags.{name}", f"has {len(value)} characters; {_MAX_VALUE} is the most")


# DynamoDB Local puts this where the region belongs. It takes any encryption and any tags, and forgets them.
_LOCAL: Final = ":ddblocal:"


@dataclass(frozen=True, slots=True)
class Unknown:
    why: str
    permission: str | None = None
    """The IAM action that would let it be looked at; None where this engine does not know the part at all."""


Tags: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSnapshot:
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
        return not isinstance(self.table, Unknown) and _LOCAL in str(self.table.get("TableArn", ""))


TTL_FEATURE: Final = "expiry (ttl)"
RECOVERY_FEATURE: Final = "point-in-time recovery"
OWN_KEY: Final = "DynamoDB's own key"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """What is known of a table. None where the engine or the permissions do not let it be known."""

    name: str
    region: str
    endpoint: str
    status: str
    """DynamoDB's word: `ACTIVE`, `CREATING`, `UPDATING`, `DELETING`."""
    keys: tuple[str, ...]
    """The attributes of the primary key, each with its type: `PK (S)`, `SK (S)`."""
    indexes: tuple[str, ...]
    billing: str
    """DynamoDB's word: `PAY_PER_REQUEST`, `PROVISIONED`."""
    read_units: int | None
    """A second; None where it is billed on demand. So is `write_units`."""
    write_units: int | None
    items: int
    """Counted by DynamoDB every six hours or so."""
    size_bytes: int
    ttl: str | None
    """The attribute that says when an item expires; None where nothing does."""
    point_in_time_recovery: bool | None
    encrypted_with: str
    protected: bool
    """Against deletion."""
    tags: Mapping[str, str] | None
    missing: tuple[str, ...]
    """What the project's table has and this one lacks, in words."""
    unknown: Mapping[str, str]
    """The parts that could not be looked at, and why."""
    created: bool = False
    """Whether it was this call that created it."""


def to_status(description: Mapping[str, Any], snapshot: TableSnapshot, spec: TableSpec) -> TableStatus:
    parts: dict[str, object] = {"expiry": snapshot.ttl, "recovery": snapshot.recovery, "tags": snapshot.tags}
    indexes = indexes_of(description)
    throughput = description.get("ProvisionedThroughput") or {}
    lacks = {
        TTL_FEATURE: snapshot.ttl != schema.TTL and not is_strong(description),
        RECOVERY_FEATURE: snapshot.recovery is False,
        **{f"index {name}": name not in indexes for name in spec.indexes},
    }
    return TableStatus(
        name=snapshot.place.table,
        region=snapshot.place.region,
        endpoint=snapshot.place.endpoint,
        status=description["TableStatus"],
        keys=keys_of(description, description),
        indexes=indexes,
        billing=billing_of(description),
        read_units=throughput.get("ReadCapacityUnits") or None,
        write_units=throughput.get("WriteCapacityUnits") or None,
        items=description.get("ItemCount", 0),
        size_bytes=description.get("TableSizeBytes", 0),
        ttl=_or_none(snapshot.ttl),
        point_in_time_recovery=_or_none(snapshot.recovery),
        encrypted_with=(description.get("SSEDescription") or {}).get("SSEType", OWN_KEY),
        protected=bool(description.get("DeletionProtectionEnabled")),
        tags=_or_none(snapshot.tags),
        missing=tuple(feature for feature, is_missing in lacks.items() if is_missing),
        unknown={part: value.why for part, value in parts.items() if isinstance(value, Unknown)},
    )


def _or_none(part: T | Unknown) -> T | None:
    return None if isinstance(part, Unknown) else part


TablePart: TypeAlias = Literal[
    "state", "key", "index", "expiry", "recovery", "encryption", "protection", "billing", "replicas", "tag"
]
TableVerdict: TypeAlias = Literal["ok", "differs", "unknown", "not asked for"]

UPGRADE: Final = "`ratelimit table upgrade` mends it"

_NEW_TABLE: Final = "the keys of a table never change: create another one, and move the data"
_REMAKE: Final = "an index never changes: delete it, then run `ratelimit table upgrade`"
_OTHER_EXPIRY: Final = "turn that off first; an hour later `ratelimit table upgrade` turns the right one on"
_BILLING: Final = (
    "if it is not on purpose, `ratelimit table upgrade --billing on-demand` changes it; else say --billing provisioned"
)
_NO_UNITS: Final = "`ratelimit table upgrade` changes it when it knows the units: --read and --write"
_WAIT: Final = "it is being changed: look again in a few minutes"
_ALIAS: Final = "which key an alias stands for is not to be seen here: give the key's ARN"
_NO_KEYS: Final = "cannot be checked here: this engine does not know it"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDiff:
    part: TablePart
    name: str
    """Of the part, as a person reads it: `partition key`, `index GSI1`, `tag team`."""
    found: str
    wanted: str
    """Empty where nothing is asked for."""
    verdict: TableVerdict
    remedy: str = ""
    """What to do, or why it is unknown."""
    permission: str | None = None
    """The IAM action that is missing to look at it."""

    @property
    def mendable(self) -> bool:
        return self.verdict == "differs" and self.remedy == UPGRADE


def compare(snapshot: TableSnapshot, spec: TableSpec) -> tuple[TableDiff, ...]:
    """Compare every part that a specification can name, in a fixed order."""
    return (*_described(snapshot, spec), _expiry(snapshot), _recovery(snapshot, spec), *_tags(snapshot, spec))


def _described(snapshot: TableSnapshot, spec: TableSpec) -> Iterator[TableDiff]:
    table = snapshot.table
    if isinstance(table, Unknown):
        yield _line("state", "keys, indexes, billing, encryption, protection", table, "as asked for")
        return
    yield _line("state", "state", str(table.get("TableStatus")), "ACTIVE", remedy=_WAIT)
    yield from _keys(table)
    yield from _indexes(table, spec)
    yield _billing(table, spec)
    yield _encryption(snapshot, table, spec)
    yield _protection(table, spec)
    if spec.mode is not None or replicas_of(table, snapshot.place.region):
        yield _replicas(snapshot, table, spec)


def _replicas(snapshot: TableSnapshot, table: Mapping[str, Any], spec: TableSpec) -> TableDiff:
    found = shown_replicas(table, snapshot.place, spec.mode)
    problem = replicas_problem(table, snapshot.place, spec.mode, spec.regions)
    if problem is None:
        return _line("replicas", "replicas", found, found)
    wanted = "a mode to count in" if spec.mode is None else f"{', '.join(spec.regions)}, for {spec.mode}"
    return _line("replicas", "replicas", found, wanted, remedy=problem)


def _keys(table: Mapping[str, Any]) -> Iterator[TableDiff]:
    found = [*keys_of(table, table), "none", "none"]
    for position, name in enumerate(("partition key", "sort key")):
        yield _line("key", name, found[position], f"{schema.KEY_SCHEMA[position][0]} (S)", remedy=_NEW_TABLE)


def _indexes(table: Mapping[str, Any], spec: TableSpec) -> Iterator[TableDiff]:
    there = {index["IndexName"]: index for index in table.get("GlobalSecondaryIndexes") or ()}
    for name in spec.indexes:
        yield _index(table, name, there.pop(name, None))
    for name, index in there.items():
        yield _line("index", f"index {name}", _index_text(table, index), "")


def _index(table: Mapping[str, Any], name: str, index: Mapping[str, Any] | None) -> TableDiff:
    keys = ", ".join(f"{key} (S)" for key, _ in schema.INDEX_SCHEMAS[name])
    wanted = f"{keys}; projects {schema.PROJECTION}"
    if index is None:
        return _line("index", f"index {name}", "missing", wanted, remedy=UPGRADE)
    found, status = _index_text(table, index), index.get("IndexStatus", "ACTIVE")
    if found == wanted and status not in ("ACTIVE", "UPDATING"):
        return _line("index", f"index {name}", f"{found}; {status}", wanted, remedy=_WAIT)
    return _line("index", f"index {name}", found, wanted, remedy=_REMAKE)


def _index_text(table: Mapping[str, Any], index: Mapping[str, Any]) -> str:
    projection = (index.get("Projection") or {}).get("ProjectionType", "nothing")
    return f"{', '.join(keys_of(table, index))}; projects {projection}"


def _billing(table: Mapping[str, Any], spec: TableSpec) -> TableDiff:
    mode, throughput = billing_of(table), table.get("ProvisionedThroughput") or {}
    found = next((words for words, name in MODES.items() if name == mode), mode)
    wanted, remedy = str(spec.billing or "on-demand"), UPGRADE
    if spec.throughput:
        wanted = f"{wanted}, {_units(spec.throughput)}"
        found = f"{found}, {_units(throughput)}" if mode == MODES["provisioned"] else found
    elif spec.billing != "on-demand":
        remedy = _NO_UNITS if spec.billing else _BILLING
    return _line("billing", "billing", found, wanted, remedy=remedy)


def _units(throughput: Mapping[str, Any]) -> str:
    return f"{throughput.get('ReadCapacityUnits')} read, {throughput.get('WriteCapacityUnits')} write"


def _encryption(snapshot: TableSnapshot, table: Mapping[str, Any], spec: TableSpec) -> TableDiff:
    description = table.get("SSEDescription") or {}
    key = description.get("KMSMasterKeyArn", "") if description.get("Status") not in (None, "DISABLED") else ""
    found = f"KMS, {key}" if key else OWN_KEY
    if spec.kms_key is None:
        return _line("encryption", "encryption", found, "")
    wanted = f"KMS, {spec.kms_key}"
    if snapshot.is_local:
        return _line("encryption", "encryption", Unknown(_NO_KEYS), wanted)
    if key and "alias/" in spec.kms_key and not key.endswith(spec.kms_key):
        return replace(_line("encryption", "encryption", Unknown(_ALIAS), wanted), found=found)
    # An id or an alias is the end of an ARN.
    is_it = key == spec.kms_key or key.endswith((f"/{spec.kms_key}", f":{spec.kms_key}"))
    return _line("encryption", "encryption", found, f"KMS, {key}" if is_it else wanted, remedy=UPGRADE)


def _protection(table: Mapping[str, Any], spec: TableSpec) -> TableDiff:
    wanted = "" if spec.protected is None else _switch(spec.protected)
    found = _switch(bool(table.get("DeletionProtectionEnabled")))
    return _line("protection", "deletion protection", found, wanted, remedy=UPGRADE)


def _expiry(snapshot: TableSnapshot) -> TableDiff:
    found, wanted = snapshot.ttl, f"by {schema.TTL}"
    if not isinstance(snapshot.table, Unknown) and is_strong(snapshot.table):
        return _line("expiry", "expiry", "not on such replicas: `ratelimit table sweep` deletes what has expired", "")
    remedy = UPGRADE if found is None else _OTHER_EXPIRY
    text = found if isinstance(found, Unknown) else "off" if found is None else f"by {found}"
    return _line("expiry", "expiry", text, wanted, remedy=remedy)


def _recovery(snapshot: TableSnapshot, spec: TableSpec) -> TableDiff:
    found, wanted = snapshot.recovery, "on" if spec.recovery else ""
    text = found if isinstance(found, Unknown) else _switch(found)
    return _line("recovery", "point-in-time recovery", text, wanted, remedy=UPGRADE)


def _tags(snapshot: TableSnapshot, spec: TableSpec) -> Iterator[TableDiff]:
    for name, value in spec.tags.items():
        tags = snapshot.tags
        found = tags if isinstance(tags, Unknown) else repr(tags[name]) if name in tags else "missing"
        yield _line("tag", f"tag {name}", found, repr(value), remedy=UPGRADE)


_switch: Final[Callable[[bool], str]] = {True: "on", False: "off"}.__getitem__


def _line(part: TablePart, name: str, found: str | Unknown, wanted: str, *, remedy: str = "") -> TableDiff:
    text = "not known" if isinstance(found, Unknown) else found
    verdict: TableVerdict = "ok" if found == wanted else "differs" if wanted else "not asked for"
    if verdict == "differs" and isinstance(found, Unknown):
        return TableDiff(
            part=part, name=name, found=text, wanted=wanted, verdict="unknown", remedy=found.why,
            permission=found.permission,
        )  # fmt: skip
    remedy = remedy if verdict == "differs" else ""
    return TableDiff(part=part, name=name, found=text, wanted=wanted, verdict=verdict, remedy=remedy)

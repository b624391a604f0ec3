"""`TableSpec`: the table as somebody wants it, beyond the keys and the expiry that every table of this project has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

from ratelimit.dynamodb import schema
from ratelimit.errors import ConfigError

Billing: TypeAlias = Literal["on-demand", "provisioned"]

MODES: Final[Mapping[str, str]] = {"on-demand": "PAY_PER_REQUEST", "provisioned": "PROVISIONED"}
"""What DynamoDB calls them."""

_DIRECTORY_UNITS: Final = 5
_LONGEST_KEY: Final = 128
_LONGEST_VALUE: Final = 256
_MOST_TAGS: Final = 50


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
    """

    gsi2: bool = False
    recovery: bool = True
    protected: bool | None = None
    kms_key: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    billing: Billing | None = None
    read: int | None = None
    write: int | None = None

    def __post_init__(self) -> None:
        if self.billing is not None and self.billing not in get_args(Billing):
            raise ConfigError("billing", f"{self.billing!r} is unknown; there are on-demand and provisioned")
        _check_units(self)
        _check_tags(self.tags)
        if self.kms_key is not None and not self.kms_key.strip():
            raise ConfigError("kms_key", "is empty; give the key's ARN, or leave it out")

    @property
    def indexes(self) -> tuple[str, ...]:
        """The names of the indexes."""
        return (schema.GSI1, schema.GSI2) if self.gsi2 else (schema.GSI1,)

    @property
    def throughput(self) -> dict[str, int] | None:
        """The table's, in wire form; None where it is not fixed."""
        if self.read is None or self.write is None:
            return None
        return _throughput(self.read, self.write)

    def index_throughput(self, index: str) -> dict[str, int] | None:
        """Of an index. `GSI1` holds users and plans only, which few writes touch; `GSI2` would hold every event."""
        if self.read is None or self.write is None:
            return None
        if index == schema.GSI1:
            return _throughput(min(self.read, _DIRECTORY_UNITS), min(self.write, _DIRECTORY_UNITS))
        return _throughput(self.read, self.write)

    def encryption(self) -> dict[str, Any]:
        """The `SSESpecification`."""
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
    if len(tags) > _MOST_TAGS:
        raise ConfigError("tags", f"{len(tags)} are too many; a table has {_MOST_TAGS} at most")
    for name, value in tags.items():
        if not 0 < len(name) <= _LONGEST_KEY or name.startswith("aws:"):
            raise ConfigError(
                "tags", f"{name!r} is no name for a tag: 1 to {_LONGEST_KEY} characters, not starting with 'aws:'"
            )
        if len(value) > _LONGEST_VALUE:
            raise ConfigError(f"tags.{name}", f"has {len(value)} characters; {_LONGEST_VALUE} is the most")

"""Which table, and as what it is wanted: the options that the commands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

from ratelimit.cli.settings import ConfigOption, load
from ratelimit.errors import ConfigError
from ratelimit.wiring import table_settings

if TYPE_CHECKING:
    from ratelimit.dynamodb import Settings, TableSpec
    from ratelimit.dynamodb.spec import Billing

TableArgument: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="[TABLE]", help="Its name, or its URL; by default that of --store or as configured."),
]
Gsi2Option: TypeAlias = Annotated[bool, typer.Option("--gsi2", help="Also the index of an action's timeline.")]
RecoveryOption: TypeAlias = Annotated[bool, typer.Option("--recovery/--no-recovery", help="Point-in-time recovery.")]
ProtectOption: TypeAlias = Annotated[
    bool | None, typer.Option("--protect/--no-protect", help="Against deletion; by default not asked for.")
]
KmsKeyOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--kms-key", metavar="ARN", help="Encrypt with this key in KMS; by default with DynamoDB's own."),
]
TagOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="May be repeated; other tags stay.")
]
BillingOption: TypeAlias = Annotated[
    str | None, typer.Option("--billing", metavar="MODE", help="on-demand (default) or provisioned.")
]
ReadOption: TypeAlias = Annotated[
    int | None, typer.Option("--read", metavar="UNITS", help="Provisioned read units a second.")
]
WriteOption: TypeAlias = Annotated[
    int | None, typer.Option("--write", metavar="UNITS", help="Provisioned write units a second.")
]


def settings_of(table: str | None, store: str | None, config: ConfigOption) -> Settings:
    """A name alone takes the rest (region, endpoint) from the store that is configured, if that has a table."""
    if table is not None and "://" in table:
        return table_settings(table)
    url = load(config, store).store
    if table is None:
        return table_settings(url)
    settings = table_settings(f"dynamodb://{table}")
    return settings if url.startswith("memory://") else replace(table_settings(url), table=settings.table)


def spec_of(
    *,
    gsi2: bool,
    recovery: bool,
    protect: bool | None,
    kms_key: str | None,
    tag: Sequence[str] | None,
    billing: str | None,
    read: int | None,
    write: int | None,
) -> TableSpec:
    """The options as a specification; units alone mean provisioned billing. Raises `ConfigError`."""
    from ratelimit.dynamodb import TableSpec

    if billing is None and (read is not None or write is not None):
        billing = "provisioned"
    return TableSpec(
        gsi2=gsi2,
        recovery=recovery,
        protected=protect,
        kms_key=kms_key,
        tags=dict(map(_tag, tag or ())),
        billing=cast("Billing | None", billing),
        read=read,
        write=write,
    )


def _tag(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError("--tag", f"{text!r} is no tag; write it like team=payments")
    return name, value

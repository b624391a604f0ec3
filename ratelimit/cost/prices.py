"""`Prices`: what AWS asks for in one region, read from a dated file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from ratelimit.errors import ConfigError

DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """In US dollars, as of a day."""

    region: str
    as_of: date
    write_million: Fraction
    """A million write units on demand."""
    read_million: Fraction
    write_hour: Fraction
    """One provisioned write unit for an hour."""
    read_hour: Fraction
    storage_gb: Fraction
    """A month."""
    recovery_gb: Fraction
    """Point-in-time recovery, a month."""
    vcpu_hour: Fraction
    memory_gb_hour: Fraction
    balancer_hour: Fraction
    balancer_unit_hour: Fraction


def load_prices(region: str = DEFAULT_REGION, path: Path | None = None) -> Prices:
    """Return those of a region, from the file that comes along or from one's own. Raise `ConfigError`."""
    document = _document(path)
    regions = document.get("regions")
    if not isinstance(regions, dict) or not isinstance(document.get("as_of"), date):
        raise ConfigError("prices", "the file needs `as_of` (a date) and a table `[regions.NAME]` for each region")
    if region not in regions:
        known = ", ".join(sorted(regions))
        raise ConfigError(
            "region", f"no prices for {region!r} ({known}); give --prices FILE, a copy of ratelimit/cost/prices.toml"
        )
    return Prices(region=region, as_of=document["as_of"], **_numbers(region, regions[region]))


def _document(path: Path | None) -> dict[str, Any]:
    try:
        text = (files("ratelimit.cost") / "prices.toml" if path is None else path).read_text(encoding="utf-8")
        return tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise ConfigError("prices", f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("prices", f"{path} is no TOML: {error}") from None


def _numbers(region: str, table: object) -> dict[str, Fraction]:
    wanted = {field.name for field in fields(Prices)} - {"region", "as_of"}
    given = table if isinstance(table, dict) else {}
    for name in sorted(wanted ^ set(given)):
        problem = "is missing" if name in wanted else "is unknown"
        raise ConfigError(f"prices.regions.{region}.{name}", problem)
    for name, value in given.items():
        if not _is_price(value):
            raise ConfigError(f"prices.regions.{region}.{name}", f"must be a number of dollars, not {value}")
    return {name: Fraction(value) for name, value in given.items()}


def _is_price(value: object) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite() and value >= 0
    return type(value) is int and value >= 0

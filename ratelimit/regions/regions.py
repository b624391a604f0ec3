"""`Regions`: which regions there are, which of them this process is in, and by which mode a quota holds in all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias, cast

from ratelimit.errors import ConfigError
from ratelimit.policy import Policy
from ratelimit.settings import keep, one_of, plain, texts, truth, unknown

RegionsMode: TypeAlias = Literal["home", "sum", "strong", "split"]

PROMISES: Final[Mapping[RegionsMode, str]] = {
    "home": "exact: a user is counted in one region, which the others ask",
    "sum": "each region counts by itself, and sees the others a moment later: usage is exact, a quota nearly",
    "strong": "exact: conditions hold in all regions at once",
    "split": "exact: each region has a fixed share of every quota, and no more",
}
"""What holds of a quota, for people."""

NOT_A_SUM: Final = (
    "buckets, slots and reservations are no sums of what each region counts: use a fixed or sliding window, or "
    "mode = 'home'"
)
MAX_REGIONS: Final = 32
MAX_SHARE: Final = 1_000_000
MIN_FAILOVER_REGIONS: Final = 3
MAX_CACHED_HOMES: Final = 10_000
_REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def is_region(name: str) -> bool:
    """Return whether it may be the name of a region, `eu-west-1` or one to come."""
    return _REGION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Regions:
    """Raises `ConfigError` naming the bad part.

    `all`        every region that counts, in an order that all processes write alike.
    `here`       the one that this process is in; None leaves it to the store's URL, or `AWS_REGION`.
    `endpoints`  servers other than Amazon's own, by region.
    `shares`     of each region of `all`, in that order, for `split`: whole numbers, equal ones where there are none.
    `failover`   whether the users of a lost region may be moved to the others, for `home`.
    """

    mode: RegionsMode
    all: tuple[str, ...]
    here: str | None = None
    endpoints: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[int, ...] = ()
    failover: bool = False

    def __post_init__(self) -> None:
        keep(self, "mode", one_of(RegionsMode))
        keep(self, "all", _check_all)
        _check_shares(self.mode, self.all, self.shares)
        keep(self, "failover", truth)
        if self.failover and (self.mode != "home" or len(self.all) < MIN_FAILOVER_REGIONS):
            raise ConfigError(
                "failover",
                "is for mode = 'home' over three regions or more: what most of them say holds, and of two no one is",
            )
        for name, regions in (("here", () if self.here is None else (self.here,)), ("endpoints", self.endpoints)):
            for region in regions:
                if region not in self.all:
                    raise ConfigError(name, not_in_list(region, self.all))


def _check_all(regions: tuple[object, ...]) -> object:
    if not regions or len(regions) > MAX_REGIONS:
        raise ConfigError("", f"expected 1 to {MAX_REGIONS} regions, as in ['eu-west-1', 'us-east-1']")
    for position, region in enumerate(regions):
        if not isinstance(region, str) or not is_region(region):
            raise ConfigError(f"[{position}]", f"{region!r} is not a region; write it like 'eu-west-1'")
        if region in regions[:position]:
            raise ConfigError(f"[{position}]", f"{region!r} is there twice")
    return regions


def _check_shares(mode: object, regions: tuple[object, ...], shares: tuple[object, ...]) -> None:
    if not shares:
        return
    if mode != "split":
        raise ConfigError("shares", f"are for mode = 'split', not {mode!r}: leave them out")
    if len(shares) != len(regions):
        raise ConfigError("shares", f"expected one for each of the {len(regions)} regions, not {len(shares)}")
    for position, share in enumerate(shares):
        if type(share) is not int or not 0 <= share <= MAX_SHARE:
            raise ConfigError(f"shares[{position}]", f"must be a whole number from 0 to {MAX_SHARE}, not {share!r}")
    if not any(shares):
        raise ConfigError("shares", "all are 0: nobody could do anything anywhere")


def check_policies(regions: Regions, policies: Mapping[str, Policy], *, directory: bool) -> None:
    """Raise `ConfigError` for what the mode cannot keep."""
    if regions.mode == "strong" and directory:
        raise ConfigError("directory", f"users and plans are changed in transactions, {_NO_TRANSACTIONS}")
    for name, policy in policies.items():
        if regions.mode == "sum" and (policy.algorithm == "gcra" or policy.holds):
            raise ConfigError(f"policies.{name}", NOT_A_SUM)
        for place, other in enumerate(policy.together):
            path = f"policies.{name}.together[{place}]"
            if regions.mode == "strong":
                raise ConfigError(path, f"what is decided together is written in a transaction, {_NO_TRANSACTIONS}")
            if (
                regions.mode == "home"
                and len(regions.all) > 1
                and other in policies
                and (policies[other].user_from != policy.user_from)
            ):
                raise ConfigError(
                    path,
                    f"{other!r} has another user_from, so that its user may be counted in another region, and nothing "
                    "is written all or none over two: give both the same user_from, or check them one after the other",
                )


def not_in_list(region: str, regions: tuple[str, ...]) -> str:
    """Return what is wrong with a region that is not among those that count, and what to do."""
    return (
        f"{region!r} is not in the list ({', '.join(regions)}); add it, in the configuration of every process, "
        "or start this process in a region that is"
    )


def read_regions(value: object) -> Regions | None:
    """Take a table, as a configuration has it, or `off`. Raises `ConfigError`."""
    if isinstance(value, Regions):
        return value
    if value is None or (isinstance(value, str) and value == "off"):
        return None
    if not isinstance(value, Mapping):
        raise ConfigError("", f"expected 'off', or a table as in {_EXAMPLE}, not {value!r}")
    table: dict[str, Any] = dict(value)
    for name in table:
        if name not in _NAMES:
            raise unknown(str(name), str(name), _NAMES)
    for name in ("mode", "all"):
        if name not in table:
            raise ConfigError(name, f"is missing; write {_EXAMPLE}")
    try:
        table["all"] = cast("tuple[str, ...]", texts(table["all"]))
    except ConfigError as error:
        raise error.under("all") from None
    table["shares"] = _tuple(table.get("shares", ()))
    endpoints = table.get("endpoints", {})
    if not isinstance(endpoints, Mapping) or not all(isinstance(each, str) for each in endpoints.values()):
        raise ConfigError("endpoints", "expected URLs by region, as in { eu-west-1 = 'http://localhost:4566' }")
    return Regions(**table)


def _tuple(shares: object) -> tuple[int, ...]:
    if not isinstance(shares, list | tuple):
        raise ConfigError("shares", f"expected whole numbers in the order of `all`, as in [2, 1], not {shares!r}")
    return tuple(shares)


def shown_regions(regions: Regions | None) -> object:
    if regions is None:
        return "off"
    return {name: plain(value) for name in _NAMES if (value := getattr(regions, name))}


def regions_of_text(text: str) -> object:
    """Read `mode=split all=eu-west-1,us-east-1 shares=2,1`, as an environment variable has it; give back text that is
    not like that, for the check to complain about."""
    parts = [part.partition("=") for part in text.split()]
    if not all(separator for _, separator, _ in parts):
        return text
    table: dict[str, object] = {name: value for name, _, value in parts}
    for name in table.keys() & {"all", "shares"}:
        table[name] = [item for item in str(table[name]).split(",") if item]
    if table.get("failover") in ("true", "false"):
        table["failover"] = table["failover"] == "true"
    if "shares" in table:
        table["shares"] = [int(item) if item.isdecimal() else item for item in table["shares"]]  # type: ignore[attr-defined]
    return table


@lru_cache(maxsize=MAX_CACHED_HOMES)
def home_of(user: str, regions: tuple[str, ...]) -> str:
    """Return the region in which a user is counted: the one that draws the highest number for the user's name.

    Where a region comes or goes, only the users move whose home it becomes or was. The order does not matter.
    """
    name = user.encode()
    return max(regions, key=lambda region: (blake2b(name, digest_size=8, key=region.encode()[:64]).digest(), region))


_NO_TRANSACTIONS: Final = "which a table that is strongly consistent over its regions does not have: use mode = 'home'"
_NAMES: Final = tuple(each.name for each in fields(Regions))
_EXAMPLE: Final = (
    "{ mode = 'home', all = ['eu-west-1', 'us-east-1'] }, or RATELIMIT_REGIONS='mode=home all=eu-west-1,us-east-1'"
)

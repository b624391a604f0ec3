"""What the commands about plans and users share: the way to the table, options, and how quotas are typed and shown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import typer

from ratelimit.cli.options import load
from ratelimit.directory import Directory, UnknownPlan
from ratelimit.errors import ConfigError
from ratelimit.factory import build_store, table_settings
from ratelimit.quota import Quotas, QuotasLike
from ratelimit.store.directory import Identity, Plan

T = TypeVar("T")

QuotaOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--quota", metavar="ACTION=QUOTAS", help="As in hint=5/day or run=unlimited; may be repeated."),
]
WithoutOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="ACTION", help="Take back what was said of this action; may be repeated."),
]
PepperOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--pepper-file", metavar="FILE", help="The secret that API keys are digested with, as in the app."),
]
YesOption: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_EXAMPLE = "write --quota hint=5/day"


def run(work: Callable[[Directory], Awaitable[T]], *, store: str | None, config: Path | None) -> T:
    """The result of `work` on the directory in the configured table."""
    settings = load(config, store)
    table_settings(settings.store)  # says what is wrong with a store that keeps nothing from one run to the next

    async def opened() -> T:
        table = build_store(settings)
        try:
            await table.open()
            return await work(Directory(table.directory))
        finally:
            await table.close()

    return asyncio.run(opened())


def read_quotas(pairs: list[str] | None) -> dict[str, QuotasLike]:
    """`hint=5/day` and so on, by action; what the quotas mean is found out later. Raises `ConfigError`."""
    found: dict[str, QuotasLike] = {}
    for pair in pairs or ():
        action, equals, quotas = pair.partition("=")
        if not equals or not action or not quotas.strip():
            raise ConfigError("--quota", f"{pair!r} is not ACTION=QUOTAS; {_EXAMPLE}")
        found[action] = f"{found[action]}; {quotas}" if action in found else quotas
    return found


def merged(
    old: Mapping[str, Quotas], given: Mapping[str, QuotasLike], without: list[str] | None
) -> dict[str, QuotasLike]:
    """The quotas there were, with those given over them. Raises `ConfigError` for taking back what was never said."""
    left: dict[str, QuotasLike] = {**old, **given}
    for action in without or ():
        if action not in left:
            raise ConfigError("--without", f"nothing is said of {action!r} (there are: {', '.join(left) or 'none'})")
        del left[action]
    return left


@contextmanager
def as_options() -> Iterator[None]:
    """A `ConfigError` in here names the option that it is about: `quotas.hint` is `--quota hint`."""
    try:
        yield
    except ConfigError as error:
        raise _of_option(error) from None


def _of_option(error: ConfigError) -> ConfigError:
    if error.path.startswith("-"):
        return error
    root, _, rest = error.path.partition(".")
    options = {"quotas": "--quota", "name": "NAME", "id": "USER", "identities": "--email, --api-key"}
    option = options.get(root.partition("[")[0], f"--{root.replace('_', '-')}")
    return ConfigError(f"{option} {rest}".rstrip(), error.problem)


def show_quotas(quotas: Quotas) -> str:
    """As they may be typed."""
    return "; ".join(map(str, quotas)) or "unlimited"


def quotas_document(quotas: Mapping[str, Quotas]) -> dict[str, str]:
    """For `--json`."""
    return {action: show_quotas(several) for action, several in quotas.items()}


def read_key(key: str, pepper: Path | None) -> Identity:
    """An API key's digest; `-` reads the key from stdin, so that it stays out of the shell's history."""
    secret = sys.stdin.readline().strip() if key == "-" else key
    return Identity.api_key(secret, pepper=_secret_in(pepper))


def _secret_in(file: Path | None) -> bytes:
    if file is None:
        return b""
    try:
        pepper = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError("--pepper-file", f"cannot read {file}: {error.strerror}") from None
    if not pepper:
        raise ConfigError("--pepper-file", f"{file} is empty")
    return pepper


async def known_plan(directory: Directory, name: str) -> Plan:
    """Raises `UnknownPlan`, naming the nearest there is."""
    if (plan := await directory.store.read(Plan, name)) is not None:
        return plan
    names = [plan.name async for plan in directory.plans()]
    near = get_close_matches(name, names, n=1)
    known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
    raise UnknownPlan(f"there is no plan {name!r}; {known} (make one with `ratelimit plan set`)")

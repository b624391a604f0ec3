"""Options that several commands share, written once, and the configuration and table that they lead to."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

import typer

from ratelimit.cli.output import Answer, note, say_json
from ratelimit.config import Config
from ratelimit.errors import ConfigError
from ratelimit.factory import build_store, configured_table, load_checked
from ratelimit.numerals import to_float, to_int
from ratelimit.store import TableStore

R = TypeVar("R")
T = TypeVar("T")
N = TypeVar("N", int, float)

StoreOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="memory:// or dynamodb://TABLE?region=…; by default as configured."),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The TOML file; by default the one that RATELIMIT_CONFIG names."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
YesOption: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")]


def whole(least: int | None = None, most: int | None = None) -> dict[str, Any]:
    """Return what makes an option of a whole number, in ASCII digits: `typer.Option(**whole(1, 64), help=…)`."""
    return _number(to_int, "INTEGER", least, most)


def decimal(least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """Return what makes an option of a number."""
    return _number(to_float, "NUMBER", least, most)


def _number(read: Callable[[str], N], name: str, least: N | None, most: N | None) -> dict[str, Any]:
    low, high = ("" if bound is None else f"{bound:,}" for bound in (least, most))
    bounds = f"between {low} and {high}" if low and high else f"{low} at least" if low else f"{high} at most"

    def parse(text: str | N) -> N:
        try:
            value = read(text) if isinstance(text, str) else text  # a default comes as it is
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if (least is not None and value < least) or (most is not None and value > most):
            raise typer.BadParameter(f"{value} is not {bounds}")
        return value

    return {"parser": parse, "metavar": f"{name} {low}-{high}" if low and high else name}


def spread(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of a dataclass in the place of each parameter that is one."""
    hints = get_type_hints(command)
    groups: dict[str, Any] = {name: hints[name] for name in hints if name != "return" and is_dataclass(hints[name])}
    options = [
        option
        for parameter in _parameters_of(command)
        for option in (_parameters_of(groups[parameter.name]) if parameter.name in groups else [parameter])
    ]

    @wraps(command)
    def run(**given: Any) -> R:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind) if field.init})
        return command(**given)

    return _with_options(run, options)


def answering(command: Callable[..., Answer]) -> Callable[..., int]:
    """Give a command `--json` beside its options, as `spread` does, and print what it returns. The exit status is the
    answer's."""
    inner = spread(command)

    @wraps(inner)
    def run(*, as_json: bool, **given: Any) -> int:
        answer = inner(**given)
        if as_json:
            say_json(answer.document)
        else:
            answer.show()
        for each in answer.notes:
            note(each)
        return answer.status

    json = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)
    return _with_options(run, [*inspect.signature(inner).parameters.values(), json])


def _with_options(command: Callable[..., R], options: list[inspect.Parameter]) -> Callable[..., R]:
    # Typer reads both; what `wraps` has taken over is that of the command as it is written.
    command.__dict__["__signature__"] = inspect.Signature(options)
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _parameters_of(command: Any) -> Iterator[inspect.Parameter]:
    annotations = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        yield parameter.replace(annotation=annotations[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)


@contextmanager
def as_options(**names: str) -> Iterator[None]:
    """Make a `ConfigError` in here name the option that it is about: `quotas.hint` is `--quota hint`, where the names
    have `quotas="--quota"`. Others are options of their own names."""
    try:
        yield
    except ConfigError as error:
        if error.path.startswith("-"):
            raise
        root, _, rest = error.path.partition(".")
        root = root.partition("[")[0]
        option = names.get(root, f"--{root.replace('_', '-')}")
        raise ConfigError(f"{option} {rest}".rstrip(), error.problem) from None


@dataclass(frozen=True)
class Configured:
    """`--store` and `--config`: which configuration holds."""

    store: StoreOption = None
    config: ConfigOption = None

    def load(self) -> Config:
        """Return the configuration; a store named on the command line goes over `RATELIMIT_STORE` too.

        Raises `ConfigError`.
        """
        if self.store is None:
            return load_checked(self.config)
        env = {name: value for name, value in os.environ.items() if name != "RATELIMIT_STORE"}
        return load_checked(self.config, env=env, store=self.store)

    def run(self, work: Callable[[TableStore, Config], Awaitable[T]]) -> T:
        """Return the result of `work` on the configured table, opened for it. Raises `ConfigError` for `memory://`."""
        settings = self.load()
        configured_table(settings)  # says what is wrong with a store that keeps nothing

        async def opened() -> T:
            table = build_store(settings)
            try:
                await table.open()
                return await work(table, settings)
            finally:
                await table.close()

        return asyncio.run(opened())

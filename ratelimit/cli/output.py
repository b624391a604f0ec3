"""How commands speak: readable on a terminal, one JSON document with `--json`, errors as one line on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ratelimit.errors import InvalidInput, StoreMisconfigured, StoreUnavailable

ALLOWED: Final = 0
REFUSED: Final = 1
INVALID: Final = 2
UNAVAILABLE: Final = 3
MAX_PIPE_WIDTH: Final = 10_000
"""Characters of a table's line where no terminal breaks it."""

# What would move the cursor, speak to the terminal or turn the text around: it may be a stranger's, as a path is.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SPANS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


@dataclass(frozen=True)
class Answer:
    """What a command has found."""

    document: object
    """For `--json`."""
    show: Callable[[], None]
    """Prints it for people."""
    notes: Sequence[str] = ()
    """What a reader of either should know."""
    status: int = ALLOWED


def visible(text: str) -> str:
    """Return a text for a terminal, where no part of it is a command."""
    return _CONTROLS.sub("\ufffd", text)


def say(text: str, *, style: str = "") -> None:
    """Print a line on stdout as it is: what a user typed is no markup."""
    _console().print(visible(text), style=style, soft_wrap=True)


def note(text: str) -> None:
    """Print what a reader should know on stderr, out of a program's way."""
    typer.echo(f"note: {text}", err=True)


def complain(problem: object, status: int) -> int:
    """Print an error on stderr, and return the exit status to leave with."""
    typer.echo(f"error: {problem}", err=True)
    return status


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless that was answered already. Raises `typer.Abort`; `InvalidInput` where there is no terminal."""
    if yes:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise InvalidInput("there is no terminal to ask on, and nothing was done; add --yes")
    typer.confirm(question, abort=True, err=True)


@contextmanager
def explained(name: str, again: str = "") -> Iterator[None]:
    """Make bad input of a file that cannot be used; say of what broke off how to go on, where that is possible."""
    hint = f"; {again}" if again else ""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = "" if isinstance(error, FileNotFoundError) else hint
        raise InvalidInput(f"{error.filename or name}: {error.strerror or error}{hint}") from None
    except StoreMisconfigured:
        raise
    except (StoreUnavailable, KeyboardInterrupt):
        if again:
            note(f"{name}: not finished{hint}")
        raise


def say_json(document: object) -> None:
    """Print one document, indented."""
    typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def toml_value(value: object) -> str:
    """Return a value as TOML has it: text, numbers and lists of text are written alike in JSON and TOML."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {toml_value(each)}' for name, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns: a narrow terminal breaks cells, and in a pipe no line is too long."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, min_width=len(column), overflow="fold")
    for row in rows:
        table.add_row(*[visible(str(cell)) for cell in row])
    _console().print(table)


def say_rows(columns: Sequence[str], rows: Collection[Sequence[object]], nothing: str) -> None:
    """Print rows as `say_table` does; where there are none, say so in these words."""
    if rows:
        say_table(columns, rows)
    else:
        say(nothing)


def say_fields(fields: dict[str, Any]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, fields))
    for name, value in fields.items():
        say(f"  {name:<{width}}  {value}")


def in_words(seconds: float) -> str:
    """Return `7 h 12 min`, `41 s`, `0.25 s`: the two largest units, rounded up in the last."""
    if seconds < 1:
        return f"{seconds:.3g} s" if seconds else "now"
    whole = -(-round(seconds * 1000) // 1000)
    for position, (unit, length) in enumerate(_SPANS):
        if whole >= length:
            smaller, size = (*_SPANS, ("s", 1))[position + 1]
            count, rest = divmod(-(-whole // size), length // size)
            return f"{count} {unit} {rest} {smaller}" if rest else f"{count} {unit}"
    return f"{whole} s"


def _console() -> Console:
    # Made anew each time: stdout may have been replaced since.
    width = None if sys.stdout.isatty() else MAX_PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)

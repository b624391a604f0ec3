"""Markdown from values: tables, their cells, and blocks of code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

_WIDTH: Final = 100


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Cells are Markdown already: see `cell`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text on one line, in which nothing but a code span may hold a `|`."""
    return "`".join(part if code else part.replace("|", "\\|") for code, part in _spans(" ".join(text.split())))


def _spans(text: str) -> Iterable[tuple[bool, str]]:
    return ((number % 2 == 1, part) for number, part in enumerate(text.split("`")))


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def in_lines(value: object, indent: str = "") -> str:
    """JSON in which whatever fits stands on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent and len(indent) + len(line) <= _WIDTH):
        return line
    inner = f"{indent}  "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(name)}: {in_lines(one, inner)}" for name, one in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + in_lines(one, inner) for one in value) + f"\n{indent}]"

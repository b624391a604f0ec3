"""Our docstrings as Markdown: lists of names in columns, as this project writes them, become lists on the page.

    `limit`    units in each window;
               at least 0

is `- `limit`: units in each window; at least 0`. For mkdocstrings it is an extension of griffe, which reads the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from griffe import Extension, Object

_NAME: Final = re.compile(r"(`[^`]+`)( {2,})(\S.*)|(`[^`]+`)( )(\S.*)")


class Definitions(Extension):
    """Rewrites each docstring when griffe has read it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The same text, in which every list of names is a list of Markdown's."""
    blocks = re.split(r"\n{2,}", text)
    return "\n\n".join(_as_list(block) if _is_list(block) else block for block in blocks)


def definitions_of(text: str) -> dict[str, str]:
    """What each name of the lists in a docstring means."""
    lists = (block for block in re.split(r"\n{2,}", text) if _is_list(block))
    return {name.strip("`"): meaning for block in lists for name, meaning in _entries(block)}


def _is_list(block: str) -> bool:
    """Every line begins with a name and stands in the same two columns, or goes on in the second one."""
    column = None
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 0:
            found = _NAME.match(line)
            if found is None:
                return False
            here = found.end(2) if found[2] else found.end(5)
            if column is None and not found[2]:
                return False
            if column is not None and here != column:
                return False
            column = here
        elif indent != column:
            return False
    return column is not None


def _entries(block: str) -> Iterator[tuple[str, str]]:
    lines = re.sub(r"\n +", " ", block).splitlines()
    for line in lines:
        name, _, meaning = line.partition("` ")
        yield f"{name}`", " ".join(meaning.split())


def _as_list(block: str) -> str:
    return "\n".join(f"- {name}: {meaning}" for name, meaning in _entries(block))

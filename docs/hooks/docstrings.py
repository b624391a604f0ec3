"""Our docstrings as Markdown: lists of names in columns, as this project writes them, become lists on the page.

    `limit`    units in each window;
               at least 0

is `- `limit`: units in each window; at least 0`. For mkdocstrings it is an extension of griffe, which reads the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from griffe import Attribute, Class, ExprCall, ExprName, ExprSubscript, ExprTuple, Extension, Object

_NAME: Final = re.compile(r"(`[^`]+`)( {2,})(\S.*)|(`[^`]+`)( )(\S.*)")


class Definitions(Extension):
    """Rewrites each docstring when griffe has read it, and a setting's field into what a caller sees of it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_class_instance(self, *, cls: Class, **_: Any) -> None:
        """Called for every class: `converting_dataclass` makes a dataclass."""
        for decorator in cls.decorators:
            if str(decorator.value) == "converting_dataclass":
                decorator.value = ExprName("dataclasses.dataclass")

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Called for every attribute: `setting(1, check)` is a default of 1, `Converted[In, Out]` takes `In`."""
        if isinstance(attr.value, ExprCall) and str(attr.value.function) == "setting":
            attr.value = attr.value.arguments[0]
        match attr.annotation:
            case ExprSubscript(left=left, slice=ExprTuple(elements=[taken, _])) if str(left) == "Converted":
                attr.annotation = taken


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

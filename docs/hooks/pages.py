"""What mkdocs calls for each page: generated parts, drawings, and links that lead out of `docs`.

A line `<!-- generated: settings -->` becomes what `GENERATED["settings"]` makes when the site is built. A drawing that
stands alone on its line becomes a part of the page, so that it takes the text's colour. A link out of `docs`
(`../examples/app.py`) becomes plain text: the site holds only what is in `docs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from docs.hooks import items
from docs.hooks.commands import command_reference
from docs.hooks.settings import example_file, policy_reference, settings_reference, store_reference

ROOT: Final = Path(__file__).parents[2]
MARK: Final = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_DRAWING = re.compile(r"^!\[([^]]*)]\((images/[\w-]+\.svg)\)$", re.MULTILINE)
# The second word is how tests find an example: the theme's Markdown wants it as a title.
_NAMED = re.compile(r"^```(\w+) ([\w.-]+)$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^]]+)]\(\.\./[^)]*\)")


def changelog() -> str:
    """`CHANGELOG.md`, without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings_reference,
    "policy": policy_reference,
    "store": store_reference,
    "example": example_file,
    "commands": command_reference,
    "changelog": changelog,
    "request": items.request_block,
    **{f"item-{name}": partial(items.sample_block, name) for name in items.NAMES},
}


def on_page_markdown(markdown: str, *, page: object, config: object, files: object) -> str:
    """Called by mkdocs with the text of each page. Raises `KeyError` for a mark that nothing is generated for."""
    markdown = MARK.sub(lambda found: GENERATED[found[1]](), markdown)
    markdown = _DRAWING.sub(lambda found: drawing(found[2], found[1]), markdown)
    markdown = _NAMED.sub(r'```\1 title="\2"', markdown)
    return _OUTSIDE.sub(r"\1", markdown)


def drawing(path: str, caption: str) -> str:
    """An SVG as a part of the page, so that it takes the text's colour."""
    svg = (ROOT / "docs" / path).read_text(encoding="utf-8")
    text = re.sub(r"<style>.*?</style>|<!--.*?-->|\n\s*", "", svg, flags=re.DOTALL)
    return f'<figure class="drawing" role="img" aria-label="{caption}">{text}</figure>'

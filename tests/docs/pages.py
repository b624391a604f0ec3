"""The README and the pages of `docs/`, their blocks of code, and how each kind of them is carried out."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple

from docs.hooks.commands import commands

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

_FENCE: Final = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_TITLE: Final = re.compile(r'title="([^"]+)"')
_TYPED: Final = re.compile(r"(\w+=\S* )*(ratelimit|pip|make|curl|aws|uvicorn|docker|openssl)\b")
_OPERATORS: Final = frozenset("();<>|&")


class Block(NamedTuple):
    """A fenced block of code, as it stands on its page."""

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Line(NamedTuple):
    """A command line that a page shows: the variables before it, and its words."""

    page: str
    env: dict[str, str]
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def text_of(page: str) -> str:
    """A page by its path (`docs/usage.md`), as it is in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language: str, *pages: str) -> list[Block]:
    """The blocks of a language; of all pages unless some are named."""
    return [block for page in pages or PAGES for block in _blocks(page) if block.language == language]


def titled(page: str, title: str) -> Block:
    """The one block of a page that has this title."""
    (block,) = [block for block in _blocks(page) if block.title == title]
    return block


def _blocks(page: str) -> Iterator[Block]:
    text = text_of(page)
    for found in _FENCE.finditer(text):
        title = _TITLE.search(found[3])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[2], title[1] if title else "", dedent(found[4]))


def awaits(block: Block) -> bool:
    """Whether Python awaits outside of a function."""
    return bool(_compiled(block).co_flags & inspect.CO_COROUTINE)


def _compiled(block: Block | str) -> CodeType:
    text, place = (block, "page") if isinstance(block, str) else (block.text, str(block))
    code = compile(text, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    return code


async def run(block: Block | str) -> dict[str, Any]:
    """Python as a module of its own, in which `await` may stand at the top; and its tests. Gives its names.

    What awaits nothing is run by a thread without an event loop, as it would be by a reader.
    """
    code = _compiled(block)
    # In its place among the modules, where frameworks look up the annotations of what it defines.
    module = sys.modules["page"] = ModuleType("page")
    names = vars(module)
    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, names)
    else:
        await asyncio.to_thread(_evaluate, code, names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            await (value() if inspect.iscoroutinefunction(value) else asyncio.to_thread(value))
    return names


def _evaluate(code: CodeType, names: dict[str, Any]) -> None:
    eval(code, names)
    with suppress(RuntimeError):  # where nobody has made one, as Mangum does
        asyncio.get_event_loop().close()
        asyncio.set_event_loop(None)


def lay_out(page: str, folder: Path) -> None:
    """The configuration that a page shows first, as `ratelimit.toml`."""
    if shown := blocks("toml", page):
        (folder / "ratelimit.toml").write_text(shown[0].text, encoding="utf-8")


def command_lines(page: str, *, fenced_only: bool = False) -> list[Line]:
    """What a page tells to type that begins with `ratelimit`: in blocks of `sh`, and in indented ones."""
    shown = [block.text for block in blocks("sh", page)]
    if not fenced_only:
        shown += re.findall(r"(?m)^ {4}(\S.*)$", _FENCE.sub("", text_of(page)).replace("\\\n", " "))
    joined = "\n".join(shown).replace("\\\n", " ")
    return [line for text in joined.splitlines() if (line := _line(page, text)) is not None]


def unquoted(line: str) -> str:
    """What a shell would take for something else, in a line to type: zsh refuses a pattern that matches no file, and
    any shell puts what ends in `&` into the background. Comments, and variables that are set, are left out."""
    found, quote, previous = "", "", " "
    line = re.sub(r"^(\w+=\S* )+", "", line)
    for number, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote and previous != "\\" else quote
        elif letter in "\"'" and previous != "\\":
            quote = letter
        elif letter == "#" and previous.isspace():
            break
        elif (letter in "?*[" and previous != "\\") or (
            letter == "&"
            and not previous.isspace()
            and previous not in "&>"
            and line[number + 1 : number + 2].isalnum()
        ):
            found += letter
        previous = letter
    return found


def shown_lines() -> dict[str, str]:
    """Every line of `ratelimit` and of what goes with it that a page, a block or a help text shows, by where it is."""
    found: dict[str, str] = {}
    for page in PAGES:
        shown = [block.text for block in blocks("sh", page)]
        shown += re.findall(r"(?m)^ {4}(\S.*)$", _FENCE.sub("", text_of(page)).replace("\\\n", " "))
        shown += re.findall(r"(?<!`)`((?:\w+=\S* )*(?:ratelimit|pip|make|curl|aws) [^`]+)`", text_of(page))
        lines = "\n".join(shown).replace("\\\n", " ").splitlines()
        found |= {f"{page}: {line}": line for line in lines if _TYPED.match(line)}
    for path, command, _ in commands():
        texts = [command.help, command.epilog, *(getattr(one, "help", None) for one in command.params)]
        for text in filter(None, texts):
            lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
            lines += re.findall(r"`(ratelimit [^`]+)`", text)
            found |= {f"{path}: {line}": line for line in lines}
    return found


def _line(page: str, text: str) -> Line | None:
    if not re.match(r"(\w+=\S* )*ratelimit\b", text):
        return None
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    env: dict[str, str] = {}
    words: list[str] = []
    for word in lexer:
        name, separator, value = word.partition("=")
        if set(word) <= _OPERATORS:
            break
        if not words and separator and name.isidentifier():
            env[name] = value
        else:
            words.append(word)
    return Line(page, env, words)

"""The reference of the command line: every command of the `ratelimit` program, as its own `--help` knows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer

from docs.hooks.text import cell, table


def program() -> Any:
    """The program, as typer builds it; its class has no public name in every version of typer."""
    # `ratelimit.cli.app` is the module; as an attribute of its package it may be hidden by what the package exports.
    return typer.main.get_command(import_module("ratelimit.cli.app").app)


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Name in full (`ratelimit usage export`), command and context of every command, groups included, in order."""
    yield from _walk(program(), "ratelimit", None)


def _walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    context = typer.Context(command, info_name=name, parent=parent)
    yield (context.command_path, command, context)
    for below, one in getattr(command, "commands", {}).items():
        yield from _walk(one, below, context)


def command_reference() -> str:
    """Markdown: a section for each command, those of a group below it."""
    return "\n\n".join(_section(*one) for one in commands())


def _section(path: str, command: Any, context: Any) -> str:
    level = min(2 + max(0, path.count(" ") - 1), 3)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"{'#' * level} `{path}`", _prose(command.help or ""), f"```text\n{usage}\n```"]
    parts += [_parameters(command, context), _prose(command.epilog or "")]
    return "\n\n".join(part for part in parts if part)


def _prose(text: str) -> str:
    """A command's help as Markdown: its indented lines are code already, and its blank lines part paragraphs."""
    text = re.sub(r"(?m)^( {4}.*)\n\n(?= {4})", r"\1\n", text.replace("\b", ""))
    paragraphs = [part if part.startswith("    ") else escaped(part) for part in text.split("\n\n")]
    return "\n\n".join(paragraphs).strip("\n")


def escaped(text: str) -> str:
    """Prose that was written for a terminal, in which `<`, `*` and `_` mean themselves."""
    return re.sub(r"(`[^`]*`)|([<*_])", lambda found: found[1] or "\\" + found[2], text)


def _parameters(command: Any, context: Any) -> str:
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            written, meaning = record
            rows.append([cell(f"`{written}`"), cell(escaped(meaning))])
    return table(["argument or option", "meaning"], rows) if rows else ""

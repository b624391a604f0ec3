"""The reference of the configuration, from the types that hold it: `Config`, `Policy`, `Settings`.

What a setting means is said once, in the code: the text below a field of `Config` and `Policy`, and the list in the
docstring of `Settings`. A setting about which nothing is said there is an error here, and so the site is not built.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

from docs.hooks.docstrings import definitions_of
from docs.hooks.text import cell, table
from ratelimit.config import SETTINGS, Config
from ratelimit.dynamodb import Settings
from ratelimit.policy import POLICY_SETTINGS, Policy
from ratelimit.settings import Setting

ROOT: Final = Path(__file__).parents[2]
_HEAD: Final = ["setting", "default", "meaning"]


def settings_reference() -> str:
    """Markdown: a row for each setting of the file's top level."""
    return _reference(Config, SETTINGS)


def policy_reference() -> str:
    """Markdown: a row for each setting of a policy."""
    return _reference(Policy, POLICY_SETTINGS)


def _reference(kind: type[Any], settings: Mapping[str, Setting]) -> str:
    meanings, defaults = field_docstrings(kind), {field.name: field.default for field in fields(kind)}
    rows = []
    for name, each in settings.items():
        default = defaults[name]
        rows.append(_row(name, default if default is MISSING else each.shown(default), meanings[name]))
    return table(_HEAD, rows)


def store_reference() -> str:
    """Markdown: a row for each parameter of a table's URL that its settings explain."""
    meanings = definitions_of(inspect.getdoc(Settings) or "")
    defaults = {field.name: field.default for field in fields(Settings)}
    return table(["parameter", *_HEAD[1:]], [_row(name, defaults[name], meanings[name]) for name in meanings])


def example_file() -> str:
    """The example that shows every setting, as it is in the repository."""
    text = (ROOT / "examples" / "ratelimit.toml").read_text(encoding="utf-8")
    return f"```toml\n{text.rstrip()}\n```"


def field_docstrings(kind: type[Any]) -> Mapping[str, str]:
    """The text below each field of a class, by field: read from the source, as at run time it is forgotten."""
    (body,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        match before, after:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _row(name: str, default: object, meaning: str) -> list[str]:
    return [f"`{name}`", _shown(default), cell(meaning)]


def _shown(default: object) -> str:
    """As TOML has it."""
    if default is MISSING:
        return "needed"
    if default is None:
        return "none"
    text = _toml(list(default) if isinstance(default, tuple) else default)
    assert tomllib.loads(f"value = {text}") is not None
    return cell(f"`{text}`")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)

"""The compiled build: what is compiled, and what has to be kept out of it."""

from __future__ import annotations

import ast
import importlib
import os
import tomllib
from pathlib import Path

import pytest

import ratelimit
from ratelimit import COMPILED

ROOT = Path(__file__).parents[1]
MODULES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "hooks"
]["custom"]["modules"]


def _names(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("path", MODULES)
def test_what_is_listed_is_compiled_in_the_compiled_build_only(path: str) -> None:
    file = importlib.import_module(_names(path)).__file__
    assert file is not None
    assert file.endswith(".py") is not COMPILED


def test_it_is_the_build_that_was_asked_for() -> None:
    assert os.environ.get("RATELIMIT_TEST_BUILD") == ("compiled" if COMPILED else None)


def test_all_of_it_is_in_the_package() -> None:
    """mypyc's library as well, which it puts beside the package by default, where another one's would lie too."""
    package = Path(ratelimit.__file__).parent
    assert list(package.parent.glob("*__mypyc*")) == []
    assert bool(list(package.glob("*__mypyc*"))) is COMPILED


@pytest.mark.parametrize("path", MODULES)
def test_nothing_is_awaited_where_an_exception_is_held(path: str) -> None:
    """mypyc 2.4 keeps the exception of a `finally` with an `await` in it, and raises it in the next call as well."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Try):
            held = [*node.finalbody, *(part for handler in node.handlers for part in handler.body)]
            awaits = [inner for part in held for inner in ast.walk(part) if isinstance(inner, ast.Await)]
            assert not awaits, f"{path}:{awaits[0].lineno}"


@pytest.mark.parametrize("path", MODULES)
def test_no_class_has_options(path: str) -> None:
    """mypyc 2.4 drops them without a word: `class Refused(Struct, rename=...)` would read nothing."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ClassDef):
            assert not node.keywords, f"{path}:{node.lineno}"
            assert not any("Struct" in ast.unparse(base) for base in node.bases), f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", ratelimit.__all__)
def test_nothing_that_users_call_or_extend_is_compiled(name: str) -> None:
    """A compiled class cannot be the base of one that is not, and takes no values but those it declares."""
    home = getattr(getattr(ratelimit, name), "__module__", "")
    assert home not in map(_names, MODULES)

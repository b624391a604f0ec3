"""What the package leans on inside its dependencies, beyond what they document: a list, and a cap for each."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import textwrap
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.httpsession import AIOHTTPSession
from botocore import auth
from hpack import huffman_table
from hpack.table import HeaderTable
from packaging.requirements import Requirement
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

import ratelimit.dynamodb

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: list[list[str]] = list(PROJECT["optional-dependencies"].values())

LEANED_ON: dict[Any, str] = {
    AIOHTTPSession: "_get_session send",
    auth: "AUTH_TYPE_MAPS",
    auth.SigV4Auth: "_modify_request_before_signing",
    CORSMiddleware: "app send",
    HeaderTable: "STATIC_TABLE",
    huffman_table: "decode_huffman",
    Request: "_body _get_form _json body headers json stream",
    Starlette: "router user_middleware",
}
CAPPED = {"aiobotocore", "hpack", "starlette"}  # aiobotocore pins its botocore


def has(owner: Any, name: str) -> bool:
    """Also where only its instances have it."""
    return hasattr(owner, name) or f"self.{name}" in "".join(map(inspect.getsource, bases(owner)))


def bases(owner: Any) -> list[type]:
    """Those classes of other people's that a class is made of."""
    known = getattr(owner, "__mro__", ())
    return [each for each in known if each.__module__.partition(".")[0] in CAPPED | {"botocore"}]


@pytest.mark.parametrize("owner", LEANED_ON, ids=lambda owner: owner.__name__)
def test_what_is_leaned_on_is_there(owner: Any) -> None:
    distribution = (owner.__name__ if inspect.ismodule(owner) else owner.__module__).partition(".")[0]
    missing = [name for name in LEANED_ON[owner].split() if not has(owner, name)]
    assert missing == [], f"{distribution} {version(distribution)} has none of it any more"


def subclasses(owner: type) -> set[type]:
    """Ours of a class, in the rooms that know its package, and those of these."""
    known: list[type] = type.__subclasses__(owner)
    found = {each for each in known if each.__module__.startswith("ratelimit.")}
    return found.union(*map(subclasses, found))


@pytest.mark.heavy
def test_what_our_subclasses_use_of_theirs_is_listed() -> None:
    for module in pkgutil.walk_packages(ratelimit.dynamodb.__path__, "ratelimit.dynamodb."):
        import_module(module.name)
    ours: set[type] = set().union(*(subclasses(owner) for owner in LEANED_ON if inspect.isclass(owner)))
    assert len(ours) >= 2
    for each in ours:
        check_listed(each)


def check_listed(ours: type) -> None:
    listed = {name for base in bases(ours) for name in LEANED_ON.get(base, "").split()}
    used = {name for each in ours.__mro__ if each.__module__.startswith("ratelimit.") for name in uses(each)}
    assert {name for name in used if any(has(base, name) for base in bases(ours))} <= listed, ours


def uses(each: type) -> set[str]:
    """What a class takes from itself or from what it extends, and what it overrides."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))))
    taken = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
    }
    return {name for name in taken | vars(each).keys() if not name.startswith(("__", "_abc_"))}


@pytest.mark.parametrize("name", sorted(CAPPED))
def test_it_is_capped(name: str) -> None:
    (found,) = [each for line in sum(EXTRAS, PROJECT["dependencies"]) if (each := Requirement(line)).name == name]
    assert any(bound.operator == "<" for bound in found.specifier), f"{found}: nobody has seen it with a later one"
    assert found.specifier.contains(version(name))

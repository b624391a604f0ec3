"""Which paths a request is read as, and which of them nobody can tell."""

from __future__ import annotations

from time import process_time
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.http.routing import MAX_FORMS, RequestTarget, ambiguity, forms
from tests.http.apps import scope_of
from tests.http.spellings import DOTTED, PLAIN, UNCLEAR


def forms_of(target: str, *, root: str = "") -> set[str] | None:
    raw = target.encode()
    found = forms(scope_of(unquote(target), raw_path=raw, root_path=root))
    return None if found is None else set(found)


@pytest.mark.parametrize(
    ("target", "read_as"),
    [
        ("/hints", {"/hints"}),
        ("/", {"/"}),
        ("", {"/"}),
        ("/hints/", {"/hints"}),
        ("/a//b", {"/a//b", "/a/b"}),
        ("/hints%0A", {"/hints\n", "/hints"}),
        ("/hints%00.png", {"/hints\0.png", "/hints"}),
        ("/a/./b", {"/a/./b", "/a/b"}),
        ("/a/.b/..c/d.", {"/a/.b/..c/d."}),
        ("/a;x=1/b", {"/a;x=1/b", "/a/b"}),
        ("/a%5Cb", {"/a\\b", "/a/b"}),
        ("/a%3Fb", {"/a?b", "/a"}),
        ("/a%23b", {"/a#b", "/a"}),
        ("/a%2Fb", {"/a/b", "/a%2Fb"}),
        ("/%61b", {"/ab", "/%61b"}),
        ("/caf%C3%A9%20au%20lait", {"/café au lait"}),
        ("//z/a", {"//z/a", "/z/a", "/a"}),
        ("a", {"a", "/a"}),
        ("/a/../b", None),
        ("/a/%2e%2E/b", None),
        ("/a/..;x/b", None),
        ("/a\\..\\b", None),
        ("/..", None),
    ],
)
def test_every_form_of_a_path(target: str, read_as: set[str] | None) -> None:
    assert forms_of(target) == read_as


@pytest.mark.parametrize(
    ("target", "root", "read_as"),
    [
        ("/api/hints", "/api", {"/hints"}),
        ("/api", "/api", {"/"}),
        ("/hints", "/api", {"/hints"}),
        ("/api/hints%0A", "/api", {"/hints\n", "/hints"}),
        ("/apihints", "/api", {"/apihints", "/hints"}),
        ("/x/api/hints", "/api", {"/x/api/hints", "/hints"}),
        ("/api/api/hints", "/api", {"/api/hints"}),
        ("/api/a%2Fb", "/api", {"/a/b", "/a%2Fb"}),
    ],
)
def test_every_form_of_a_path_less_the_prefix_it_is_mounted_under(target: str, root: str, read_as: set[str]) -> None:
    assert forms_of(target, root=root) == read_as


def test_a_path_that_was_rewritten_is_not_what_was_sent() -> None:
    assert forms(scope_of("/a", raw_path=b"/v1%2Fa")) == ("/a",)


def test_a_method_is_taken_in_capitals() -> None:
    assert RequestTarget(scope_of(method="post")).method == "POST"
    assert RequestTarget(scope_of(kind="websocket")).method == "WEBSOCKET"


@pytest.mark.parametrize("target", [*DOTTED, *UNCLEAR])
def test_what_nobody_can_tell(target: str) -> None:
    assert ambiguity(unquote(target)) is not None


@pytest.mark.parametrize("target", [*PLAIN, "/a//b", "/a%5Cb", "/a%2Fb", "/v1...v2", "/.well-known/x", "/100%"])
def test_what_may_pass(target: str) -> None:
    assert ambiguity(unquote(target.partition("?")[0])) is None


@given(st.text("/.;\\?#%2Fe\0\n a", max_size=40))
def test_forms_are_few_and_tidy(path: str) -> None:
    found = forms(scope_of(path, raw_path=path.encode()))
    assert found is None or 1 <= len(found) <= MAX_FORMS
    assert all(form == "/" or not form.endswith("/") for form in found or ())


@pytest.mark.parametrize("piece", ["/", "/.", ";", "\\", "%2F", "?", "\n", "/;x\\."])
def test_a_path_made_for_it_does_not_hold_everybody_up(piece: str) -> None:
    path = "/" + piece * (60_000 // len(piece)) + "x"
    began = process_time()
    forms(scope_of(path, raw_path=path.encode()))
    assert process_time() - began < 1

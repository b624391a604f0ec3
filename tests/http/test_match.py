"""Patterns: what fits, what does not, what cannot slip past, and what is refused as nonsense."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path

from ratelimit.errors import ConfigError
from ratelimit.http.match import Pattern, Patterns
from ratelimit.http.target import app_method, app_path, tidy
from tests.http.apps import scope_of


@pytest.mark.parametrize(
    ("pattern", "method", "path"),
    [
        ("POST /hints", "POST", "/hints"),
        ("post /hints", "POST", "/hints"),
        ("  POST   /hints ", "POST", "/hints"),
        ("/hints", "DELETE", "/hints"),
        ("GET,PUT /items/{id}", "PUT", "/items/7"),
        ("GET, PUT /items/{id}", "PUT", "/items/7"),
        ("GET /items/{id}", "HEAD", "/items/7"),
        ("GET /feed", "WEBSOCKET", "/feed"),
        ("WEBSOCKET /feed", "WEBSOCKET", "/feed"),
        ("/items/{id:int}/votes", "GET", "/items/7/votes"),
        ("/items/*/votes", "GET", "/items/7/votes"),
        ("/items/{id}.json", "GET", "/items/7.json"),
        ("/api/**", "GET", "/api"),
        ("/api/**", "GET", "/api/v1/x"),
        ("/files/{rest:path}", "GET", "/files/a/b"),
        ("/**", "GET", "/"),
        ("/**", "GET", "/a/b"),
        ("/", "GET", "/"),
        ("/a.b", "GET", "/a.b"),
        ("/café/*", "GET", "/café/ü"),
    ],
)
def test_fits(pattern: str, method: str, path: str) -> None:
    assert Pattern(pattern).matches(method, path)


@pytest.mark.parametrize(
    ("pattern", "method", "path"),
    [
        ("POST /hints", "GET", "/hints"),
        ("POST /feed", "WEBSOCKET", "/feed"),
        ("/hints", "GET", "/Hints"),
        ("/hints", "GET", "/hints/1"),
        ("/hints/*", "GET", "/hints"),
        ("/hints/*", "GET", "/hints/1/2"),
        ("/api/**", "GET", "/apix"),
        ("/a.b", "GET", "/axb"),
        ("/", "GET", "/a"),
    ],
)
def test_does_not_fit(pattern: str, method: str, path: str) -> None:
    assert not Pattern(pattern).matches(method, path)


@pytest.mark.parametrize(
    "path", ["/hints/7", "/hints/7/", "//hints/7", "/hints//7", "/hints///7//", "/hints/7\n", "/hints/\n"]
)
def test_slashes_and_line_feeds_do_not_slip_past(path: str) -> None:
    seen = app_path(scope_of(path))
    assert Pattern("/hints/*").matches("GET", seen)
    assert Pattern("/hints/*/").matches("GET", seen)
    assert Pattern("/hints/**").matches("GET", seen)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("GET /tiles/{z}-{x}-{y}.png", "/tiles/" + "-" * 60_000),
        ("GET /reports/{year}-{month}/pdf", "/reports/" + "-" * 60_000 + "/x"),
        ("GET /a/{b}a{c}a{d}a{e}/*-*/z", "/a/" + "a" * 60_000 + "/" + "-" * 100),
        ("GET /{a}{b}{c}{d}/x", "/" + "a" * 60_000 + "/y"),
    ],
)
def test_a_path_made_for_a_pattern_does_not_hold_everybody_up(pattern: str, path: str) -> None:
    """Were it to try all the ways to share the dashes out, the test's own time would not do."""
    assert not Pattern(pattern).matches("GET", path)


@given(
    st.lists(st.sampled_from(["*", "a", "b", "-", "ab", "/"]), min_size=1, max_size=8).filter(
        lambda parts: "**" not in "".join(parts) and "//" not in "".join(parts)
    ),
    st.text(alphabet="ab-/", max_size=12),
)
def test_a_pattern_fits_where_its_placeholders_can_be_shared_out_at_all(parts: list[str], path: str) -> None:
    text = tidy("/" + "".join(parts))
    every_way = "".join("[^/]+" if part == "*" else re.escape(part) for part in text)
    seen = tidy(f"/{path}")
    assert Pattern(text).matches("GET", seen) == (re.fullmatch(every_way, seen) is not None)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("hints", "must start with /"),
        ("POST hints", "must start with /"),
        ("POST", "must start with /"),
        ("", "must start with /"),
        ("POTS /hints", "did you mean POST"),
        ("XYZZY /hints", "unknown method 'XYZZY'; use some of"),
        ("GET, /hints", "unknown method ''"),
        ("/a/**/b", "last"),
        ("/a/b**", "last"),
        ("/a/x{rest:path}", "last"),
        ("/items/{id", "braces"),
        ("/items/{}", "braces"),
        ("/items/id}", "braces"),
    ],
)
def test_nonsense_is_refused_with_its_place(pattern: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Patterns(["/fine", pattern])
    assert caught.value.path == "[1]"


@pytest.mark.parametrize(
    ("root", "path", "seen"),
    [
        ("", "/hints", "/hints"),
        ("/api", "/api/hints", "/hints"),
        ("/api", "/api", "/"),
        ("/api", "/apix", "/apix"),
        ("/api", "/other", "/other"),
        ("/api", "/api//hints", "/hints"),
    ],
)
def test_the_path_is_the_apps_own(root: str, path: str, seen: str) -> None:
    scope = scope_of(path, root_path=root)
    assert app_path(scope) == seen == tidy(get_route_path(scope))
    assert app_method(scope) == "POST"
    assert app_method(scope_of(kind="websocket")) == "WEBSOCKET"


@given(st.text(), st.text(alphabet="/ab*{}:. \n"), st.text(alphabet="/api"))
def test_any_pattern_is_compiled_or_refused_and_any_path_matched(method: str, path: str, root: str) -> None:
    scope = scope_of(f"/{path}", root_path=root)
    assert app_path(scope) == tidy(get_route_path(scope))
    try:
        pattern = Pattern(f"{method} /{path}")
    except ConfigError:
        return
    assert pattern.matches("GET", app_path(scope)) in (True, False)

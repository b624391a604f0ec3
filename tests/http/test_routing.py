"""Patterns: what fits, what does not, what cannot slip past, and what is refused as nonsense."""

from __future__ import annotations

import re
from time import process_time
from typing import Literal
from unicodedata import normalize
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path

from ratelimit.errors import ConfigError
from ratelimit.http.routing import (
    MAX_FORMS,
    Pattern,
    Patterns,
    RequestTarget,
    ambiguity,
    app_method,
    app_path,
    forms,
    tidy,
)
from tests.http.apps import scope_of
from tests.http.spellings import DOTTED, PLAIN, UNCLEAR


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
    ("pattern", "path"),
    [("/hints", "/HINTS"), ("/Hints/{id}", "/hints/7"), ("/hints/x-*", "/Hints/X-a"), ("/café/**", "/CAFÉ/a")],
)
def test_a_policy_takes_capitals_for_small_letters_and_an_exemption_does_not(pattern: str, path: str) -> None:
    asked = RequestTarget(scope_of(path))
    assert Patterns([pattern], any_case=True).fit(asked)
    assert not Patterns([pattern]).fit(asked)
    assert not Patterns([pattern]).cover(scope_of(path))


@pytest.mark.parametrize("has_raw", [True, False])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("pattern", ["/menú/café", "/menú/**"])
def test_a_path_is_the_same_composed_or_not(pattern: str, form: Literal["NFC", "NFD"], has_raw: bool) -> None:
    """As it is to the file systems of macOS."""
    path = normalize(form, "/menú/café")
    for written in ("NFC", "NFD"):
        scope = scope_of(path, raw_path=quote(path).encode() if has_raw else None)
        assert Patterns([normalize(written, pattern)], any_case=True).fit(RequestTarget(scope))


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
        ("ANY /hints", "or none for all of them"),
        ("GET|POST /hints", "unknown method 'GET|POST'; did you mean GET,POST?"),
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
    ("pattern", "meant"),
    [
        # Flask, Django
        ("/x/<int:id>", "/x/{id}"),
        ("POST /x/<id>/y", "POST /x/{id}/y"),
        ("/x/<path:rest>", "/x/**"),
        ("/x/<string(length=2):lang>/", "/x/{lang}/"),
        ("hints/<int:id>/", "/hints/{id}/"),
        # Express, Rails, Go, Next
        ("/x/:id", "/x/{id}"),
        ("GET,PUT /x/:id/y", "GET,PUT /x/{id}/y"),
        ("/x/:id(\\d+)", "/x/{id}"),
        ("/x/:id?", "/x/{id}"),
        ("/x/:rest*", "/x/**"),
        ("/flights/:from-:to", "/flights/{from}-{to}"),
        ("/x(.:format)", "/x.{format}"),
        ("/x/{rest...}", "/x/**"),
        ("/x/[id]", "/x/{id}"),
        ("/x/[...rest]", "/x/**"),
        # Spring, ASP.NET, aiohttp
        ("/x/{id:[0-9]+}", "/x/{id}"),
        ("/x/{id:[0-9]{4}}", "/x/{id}"),
        ("/x/{id?}", "/x/{id}"),
        ("/x/{*rest}", "/x/**"),
        ("/x/{rest:.*}", "/x/**"),
        # Regular expressions
        ("/x/\\d+", "/x/*"),
        ("^/x/(?P<id>\\d+)/$", "/x/{id}/"),
        ("GET /x/(\\d+)/y", "GET /x/*/y"),
        ("/x/[^/]+", "/x/*"),
        ("/x/.*", "/x/**"),
        ("/x/(.*)", "/x/**"),
        ("/x$", "/x"),
        # Not paths as they are compared
        ("GET /search?q=1", "GET /search"),
        ("/search#top", "/search"),
        ("/caf%C3%A9", "/café"),
        ("/a%20b", "/a*b"),
        ("/a%2Fb", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/hints\u200b", "/hints"),
    ],
)
def test_what_could_fit_nothing_is_refused_with_what_was_meant(pattern: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Patterns([pattern])
    assert f"did you mean {meant!r}?" in str(caught.value)
    assert caught.value.path == "[0]"
    Pattern(meant)


@pytest.mark.parametrize(
    "pattern", ["/(a|b)", "/a, /b", "POST /a, GET /b", "/a b", "http://host/a", "POST http://host/a"]
)
def test_what_could_fit_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError):
        Pattern(pattern)


@pytest.mark.parametrize(
    "path",
    ["/Products(1)", "/$metadata", "/v1/items:batchGet", "/.well-known/x", "/c++", "/100%", "/@a/~b/c!d&e=f,g", "/a.b"],
)
def test_what_paths_may_have_is_fitted_as_it_is(path: str) -> None:
    assert Pattern(path).matches("GET", path)


def test_a_word_behind_a_star_is_pointed_at(caplog: pytest.LogCaptureFixture) -> None:
    """Express writes all the rest so; here it fits one segment, which may be meant."""
    assert Pattern("/x/*rest").matches("GET", "/x/the-rest")
    assert "write '/x/**'" in caplog.text


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


# Which paths a request is read as, and which of them nobody can tell.


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
        ("/a/.b/..c/.../d", {"/a/.b/..c/.../d"}),
        ("/a./b..%20", {"/a./b.. ", "/a./b..", "/a/b"}),
        ("/a::$DATA", {"/a::$DATA", "/a"}),
        ("/a:$b/c", {"/a:$b/c", "/a/c"}),
        ("/a::b/c:d", {"/a::b/c:d"}),
        ("/index.php/a/b", {"/index.php/a/b", "/a/b"}),
        ("/x/index.php/a", {"/x/index.php/a", "/x/a"}),
        ("/a/index.php", {"/a/index.php"}),
        ("/a;x=1/b", {"/a;x=1/b", "/a/b"}),
        ("/a%5Cb", {"/a\\b", "/a/b"}),
        ("/a%3Fb", {"/a?b", "/a"}),
        ("/a%23b", {"/a#b", "/a"}),
        ("/a%2Fb", {"/a/b", "/a%2Fb"}),
        ("/%61b", {"/ab", "/%61b"}),
        ("/%2561b", {"/%61b", "/ab"}),
        ("/100%25", {"/100%"}),
        ("/%u0061b/%U0061", {"/%u0061b/%U0061", "/ab/a"}),
        ("/%252e%252e/b", None),
        ("/caf%C3%A9%20au%20lait", {"/café au lait"}),
        ("//z/a", {"//z/a", "/z/a", "/a"}),
        ("*", {"*", "/*"}),
        ("http://z/a", {"http://z/a", "http:/z/a", "/a", "/http://z/a", "/http:/z/a"}),
        ("a", None),
        ("z:/a", None),
        ("http:/a", None),
        ("http:///a", None),
        ("%20http://z/a", None),
        ("http://z/a%0Ab", None),
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
    assert RequestTarget(scope_of(method="post")).methods == {"POST"}
    assert RequestTarget(scope_of(kind="websocket")).methods == {"WEBSOCKET"}


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

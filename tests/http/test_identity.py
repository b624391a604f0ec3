"""Who a request is from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.authentication import SimpleUser, UnauthenticatedUser
from starlette.requests import HTTPConnection

from ratelimit.errors import ConfigError, InvalidUser
from ratelimit.http.addresses import Addresses
from ratelimit.http.identity import Identity
from ratelimit.names import check_user
from ratelimit.policy import UserFrom
from tests.http.apps import scope_of

ADDRESS = "ip:203.0.113.7"


async def user_of(*sources: UserFrom, headers: dict[str, str] | None = None, **scope: Any) -> str:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    connection = HTTPConnection(scope_of(headers=raw, **scope))
    return await Identity(sources, Addresses()).user_of(connection)


class User(SimpleNamespace):
    is_authenticated = True


class StarletteUser(SimpleUser):
    @property
    def identity(self) -> str:
        return "id-7"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (StarletteUser("Alice"), "id-7"),
        (SimpleUser("alice"), "alice"),
        (UnauthenticatedUser(), ADDRESS),
        (User(pk=42), "42"),
        (User(identity="", display_name=None, pk=42), "42"),
        (User(identity="id", display_name="Alice", pk=42), "id"),
        (User(), ADDRESS),
        (User(identity="ip:10.0.0.1"), ADDRESS),
        (User(identity="x" * 300), ADDRESS),
        (None, ADDRESS),
    ],
)
async def test_the_authenticated_user(user: object, expected: str) -> None:
    assert await user_of("user", "address", user=user) == expected


async def test_the_first_source_that_answers_counts() -> None:
    sources: tuple[UserFrom, ...] = ("header:X-API-Key", "cookie:session", "address")
    assert await user_of(*sources, headers={"x-api-key": " k1 ", "cookie": "session=s1"}) == "k1"
    assert await user_of(*sources, headers={"cookie": "a=b; session=s1"}) == "s1"
    assert await user_of(*sources) == ADDRESS


@pytest.mark.parametrize("value", ["ip:10.0.0.1", "", " ", "a\x7fb", "x" * 257])
async def test_no_header_or_cookie_poses_as_an_address_or_breaks_anything(value: str) -> None:
    assert await user_of("header:x-api-key", headers={"x-api-key": value}) == ADDRESS
    assert await user_of("cookie:session", headers={"cookie": f"session={value}"}) == ADDRESS


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        ("header:x-api-key", [("x-api-key", "made-up"), ("x-api-key", "real")]),
        ("header:x-api-key", [("x-api-key", "real"), ("accept", "*/*"), ("x-api-key", "")]),
        ("cookie:session", [("cookie", "session=real; session=made-up")]),
        ("cookie:session", [("cookie", "a=b; session=real"), ("cookie", "session=made-up")]),
        ("cookie:session", [("cookie", 'session=real;session="made-up"')]),
    ],
)
async def test_values_that_differ_under_one_name_do_not_count(source: str, headers: list[tuple[str, str]]) -> None:
    """Whichever the app takes for real, the others could be made up for a fresh quota with each request."""
    raw = [(name.encode(), value.encode()) for name, value in headers]
    connection = HTTPConnection(scope_of(headers=raw))
    assert await Identity([source], Addresses()).user_of(connection) == ADDRESS
    assert await Identity([source, lambda _: "next"], Addresses()).user_of(connection) == "next"
    assert Identity([source], Addresses()).read(connection.scope) == ADDRESS


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        ("header:x-api-key", [("x-api-key", "real"), ("x-api-key", "real")]),
        ("cookie:session", [("cookie", "session=real; session=real")]),
        ("cookie:session", [("cookie", "a=b"), ("cookie", "c; session = real ;=session")]),
        ("cookie:session", [("cookie", 'session="real"')]),
        ("cookie:session", [("cookie", "Session=other; xsession=other; session=real")]),
    ],
)
async def test_the_same_value_twice_does(source: str, headers: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    assert Identity([source], Addresses()).read(scope_of(headers=raw)) == "real"


async def test_the_address_is_the_last_resort_of_every_order() -> None:
    assert await user_of() == ADDRESS
    assert await user_of("user") == ADDRESS
    assert await user_of("address", "header:x-api-key", headers={"x-api-key": "k1"}) == ADDRESS
    assert await user_of(lambda _: None) == ADDRESS


async def test_functions_sync_and_async() -> None:
    async def tenant(connection: HTTPConnection) -> str | None:
        return connection.headers.get("x-tenant")

    assert await user_of(tenant, headers={"x-tenant": "acme"}) == "acme"
    assert await user_of(tenant, "header:x-api-key", headers={"x-api-key": "k1"}) == "k1"
    assert await user_of(lambda connection: connection.url.path) == "/hints"
    assert await user_of(lambda _: "ip:mine") == "ip:mine"


@pytest.mark.parametrize("answer", ["", "a\nb", "x" * 257, True, 7.0, b"alice"])
async def test_an_unusable_answer_of_the_apps_own_function_is_an_error(answer: object) -> None:
    def source(_: HTTPConnection) -> Any:
        return answer

    with pytest.raises(InvalidUser):
        await user_of(source, "address")


@pytest.mark.parametrize(
    ("sources", "path", "says"),
    [
        (["user", "heder:x"], "user_from[1]", "did you mean 'header:'"),
        (["header:"], "user_from[0]", "'header:x-api-key'"),
        (["cookie:a b"], "user_from[0]", "'cookie:session'"),
        (["ip"], "user_from[0]", "unknown source 'ip'"),
        ([7], "user_from[0]", "unknown source 7"),
        (7, "user_from", "expected a list"),
    ],
)
def test_options_are_validated_with_their_path(sources: Any, path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Identity(sources, Addresses())
    assert caught.value.path == path


@given(st.binary(), st.binary(), st.text())
async def test_whatever_comes_there_is_a_user(header: bytes, cookie: bytes, name: str) -> None:
    headers = [(b"x-api-key", header), (b"cookie", b"session=" + cookie)]
    connection = HTTPConnection(scope_of(headers=headers, user=User(identity=name)))
    for sources in (["header:x-api-key"], ["cookie:session"], ["user"]):
        check_user(await Identity(sources, Addresses()).user_of(connection))

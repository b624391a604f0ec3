"""Who a request is from."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import itsdangerous
import pytest
from django.core import signing
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar, get
from litestar.connection import ASGIConnection
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware
from starlette.applications import Starlette
from starlette.authentication import SimpleUser, UnauthenticatedUser
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ratelimit import ConfigError, InvalidUser, Limiter, MemoryStore, Policy, RateLimitMiddleware
from ratelimit.http.addresses import Addresses, warn_once
from ratelimit.http.identity import UserResolver
from ratelimit.names import check_user
from ratelimit.policy import UserFrom
from tests.http.apps import client_of, limiter_of, scope_of

ADDRESS = "ip:203.0.113.7"


async def user_of(*sources: UserFrom, headers: dict[str, str] | None = None, **scope: Any) -> str:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    connection = HTTPConnection(scope_of(headers=raw, **scope))
    return await UserResolver(sources, Addresses()).user_of(connection)


class User(SimpleNamespace):
    is_authenticated = True


@dataclass
class Claimant:
    """As Litestar's handlers return one: it says nothing of whether it is authenticated."""

    sub: str
    name: str = "Alice"


class Unspeakable:
    pass


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
        (User(display_name="Alice", pk=42), "42"),
        (User(display_name="Alice", id=42), "42"),
        (User(username="alice", display_name="Alice"), "alice"),
        (User(id=UUID(int=7), name="Alice"), str(UUID(int=7))),
        (User(id=0, name="Alice"), "0"),
        (User(id=True, name="Alice"), "Alice"),
        (User(id=len, name="Alice"), "Alice"),
        (User(id=Unspeakable(), pk={"a": 1}), ADDRESS),
        (User(display_name=unicodedata.normalize("NFD", "josé")), "josé"),
        (SimpleNamespace(is_authenticated=False, pk=42), ADDRESS),
        (SimpleNamespace(pk=42), "42"),
        (Claimant("auth0|7"), "auth0|7"),
        ({"sub": "auth0|7", "name": "Alice", "iat": 1}, "auth0|7"),
        ({"user_id": 7}, "7"),
        ({}, ADDRESS),
        ("alice", "alice"),
        ("", ADDRESS),
        (42, "42"),
        (True, ADDRESS),
        (UUID(int=7), str(UUID(int=7))),
        (Unspeakable(), ADDRESS),
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
    assert await UserResolver([source], Addresses()).user_of(connection) == ADDRESS
    assert await UserResolver([source, lambda _: "next"], Addresses()).user_of(connection) == "next"
    assert UserResolver([source], Addresses()).read(connection.scope) == ADDRESS


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
    assert UserResolver([source], Addresses()).read(scope_of(headers=raw)) == "real"


@pytest.mark.parametrize("value", ["Bearer " + "x" * 250, "#" * 90, "a\tb"], ids=["long", "long as stored", "control"])
async def test_a_value_that_cannot_be_a_user_is_told_of_once_with_its_source(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its clients are counted, all the same: by the next source, and by their address in the end."""
    warn_once.cache_clear()
    for _ in range(2):
        assert await user_of("header:x-api-key", "address", headers={"x-api-key": value}) == ADDRESS
    (record,) = caplog.records
    assert "'header:x-api-key' cannot be a user, who has at most 256 bytes" in record.message
    assert value not in record.message
    named = await user_of("header:x-api-key", "cookie:id", headers={"x-api-key": value, "cookie": "id=alice"})
    assert named == "alice"


async def test_an_empty_value_is_no_value(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    assert await user_of("header:x-api-key", "address", headers={"x-api-key": " "}) == ADDRESS
    assert not caplog.records


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
        UserResolver(sources, Addresses())
    assert caught.value.path == path


@given(st.binary(), st.binary(), st.text())
async def test_whatever_comes_there_is_a_user(header: bytes, cookie: bytes, name: str) -> None:
    headers = [(b"x-api-key", header), (b"cookie", b"session=" + cookie)]
    connection = HTTPConnection(scope_of(headers=headers, user=User(identity=name)))
    for sources in (["header:x-api-key"], ["cookie:session"], ["user"]):
        check_user(await UserResolver(sources, Addresses()).user_of(connection))


def named_by(source: str, *lines: bytes) -> str:
    kind, _, name = source.partition(":")
    headers = [((name.lower() if kind == "header" else kind).encode(), line) for line in lines]
    return UserResolver([source], Addresses()).read(scope_of(headers=headers))


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0."
SPELLINGS = {
    "Bearer tok": [b"Bearer tok", b"bearer tok", b"BEARER tok", b"Bearer  tok", b" Bearer\ttok ", b"bearer \t tok"],
    "Basic YWxpY2U6cHc=": [
        b"Basic YWxpY2U6cHc=", b"basic YWxpY2U6cHc=", b"Basic YWxpY2U6cHc", b"Basic YWxpY2U6cHd=",
        b"BASIC  YWxp!Y2U6cHc=", b"Basic YWxpY2U6cHc===",
    ],
    f"Bearer {JWT}AAAA": [f"Bearer {JWT}AAAA".encode(), f"bearer {JWT}AAAA==".encode(), f"Bearer {JWT}A!AAA".encode()],
    f"Bearer {JWT}AAA": [f"Bearer {JWT}AAA".encode(), f"Bearer {JWT}AAB".encode()],
    f"Bearer {JWT[:-1]}.AAAA.AAA.AAAA": [
        f"Bearer {JWT[:-1]}.AAAA.AAA.AAAA".encode(), f"Bearer {JWT[:-1]}.A!AAA.AAB.AAAA=".encode(),
    ],
    "Bearer 1.2.3.4.5": [b"Bearer 1.2.3.4.5"],
    "Apikey k1": [b"ApiKey k1", b"apikey k1", b"APIKEY\t k1"],
    "k1": [b"k1", b" k1 "],
}  # fmt: skip


@pytest.mark.parametrize(("user", "line"), [(user, line) for user, lines in SPELLINGS.items() for line in lines])
def test_credentials_are_one_user_however_they_are_spelled(user: str, line: bytes) -> None:
    assert named_by("header:Authorization", line) == user
    assert named_by("header:authorization", line, line) == user


@pytest.mark.parametrize(
    "line",
    [
        b'Digest username="alice", nonce="1", response="2"',
        b'Digest username="alice",nonce="1",response="2"',
        b"AWS4-HMAC-SHA256 Credential=a, Signature=b",
        b"Negotiate YIIKhgYGKwYBBQUCoIIKejCCCnYw",
        b"NTLM TlRMTVNTUAABAAAAB4IIogAAAAA=",
        b"Bearer tok made-up",
        b"Basic x",
    ],
)
def test_a_signature_of_one_request_names_nobody(line: bytes) -> None:
    assert named_by("header:authorization", line) == ADDRESS


def test_credentials_that_differ_do_not_count() -> None:
    assert named_by("header:authorization", b"Bearer tok", b"Bearer other") == ADDRESS


async def test_a_spent_token_is_spent_in_every_spelling() -> None:
    limiter = limiter_of(Policy("hint", "2/day", match="/**", user_from="header:authorization"))
    async with client_of(RateLimitMiddleware(Starlette(), limiter=limiter)) as client:
        lines = [line.decode() for line in SPELLINGS["Bearer tok"]]
        answers = [(await client.get("/", headers={"authorization": line.strip()})).status_code for line in lines]
    assert answers == [404, 404, 429, 429, 429, 429]


@pytest.mark.parametrize(
    "line",
    [
        b"session=abc", b"session=%61bc", b"session=a%62%63", b'session="abc"', b'session="\\141bc"', b"session = abc ",
        b"$Version=1; session=abc; $Path=/", b"x=\xff; session=abc", b";;session=abc;;", b"session=abc; session=abc",
    ],
)  # fmt: skip
def test_a_cookie_is_one_user_however_it_is_encoded(line: bytes) -> None:
    assert named_by("cookie:session", line) == "abc"


@pytest.mark.parametrize("source", ["header:x-access-token", "cookie:token"])
@pytest.mark.parametrize(
    ("token", "others"),
    [
        (f"{JWT}AAA", [f"{JWT}AAB", f"{JWT}AAA=", f"{JWT}A!AA", f"{JWT}AA~A"]),
        (f"{JWT[:-1]}.AAAA.AAA.AAAA", [f"{JWT[:-1]}.AAAA.AAB.AAAA", f"{JWT[:-1]}.AAA~A.AAA.AAAA="]),
        ("eyJ.a.b.c", []),
        ("10.0.0.1", []),
        ("a.b.c", []),
    ],
)
def test_a_token_is_one_user_however_what_it_does_not_sign_is_spelled(
    source: str, token: str, others: list[str]
) -> None:
    prefix = "token=" if source.startswith("cookie") else ""
    for spelling in (token, *others):
        assert named_by(source, f"{prefix}{spelling}".encode()) == token


@pytest.mark.parametrize("value", ['"abc', '"abcd', '"abc1', '"', '"abc"x', '"%61bc1'])
def test_a_cookie_whose_quotation_does_not_end_is_no_name(value: str) -> None:
    """Express's parser took the first and the last character off, whatever that was: a new user each time."""
    assert named_by("cookie:session", f"session={value}".encode()) == ADDRESS


@pytest.mark.parametrize("source", ["header:x-user", "cookie:user"])
@pytest.mark.parametrize("name", ["josé", "Ünal", "日本", "ñ#1"])
async def test_a_name_in_utf_8_is_the_one_of_the_api(source: str, name: str) -> None:
    """And of the CLI and of whatever calls the limiter: text, composed or not."""
    prefix = b"user=" if source.startswith("cookie") else b""
    limiter = Limiter(MemoryStore(), [Policy("hint", "5/day")])
    for form in ("NFC", "NFD"):
        spelled = unicodedata.normalize(form, name)
        assert named_by(source, prefix + spelled.encode()) == name
        await limiter.check(spelled, "hint")
    assert (await limiter.peek(name, "hint")).used == 2


@pytest.mark.parametrize(("source", "prefix"), [("header:x-user", b""), ("cookie:user", b"user=")])
def test_a_name_in_latin_1_is_the_same_user(source: str, prefix: bytes) -> None:
    assert named_by(source, prefix + "josé".encode("latin-1")) == "josé"
    # Another cookie's bytes do not change how this one is read.
    assert named_by("cookie:user", b"x=\xff; user=" + "josé".encode()) == "josé"


ROLLING = {
    "starlette": itsdangerous.TimestampSigner("secret").sign(b"eyJ1c2VyX2lkIjogN30=").decode(),
    "flask": itsdangerous.URLSafeTimedSerializer("secret", salt="cookie-session").dumps({"user_id": 7}),
    "django": signing.TimestampSigner(key="secret", salt="s", fallback_keys=()).sign_object({"user_id": 7}),
    "rails": "TXlTZXNzaW9uRGF0YQ%3D%3D--MDEyMzQ1Njc4OTAx--AAECAwQFBgcICQoLDA0ODw%3D%3D",
    "laravel": "eyJpdiI6IkFBRUNBd1FGQmdjSUNRb0xEQTBPRHc9PSIsInZhbHVlIjoieCIsIm1hYyI6InkifQ%3D%3D",
    "fernet": "gAAAAABnZ0Y5c2VjcmV0LXNlc3Npb24tZGF0YS1oZXJl",
}


SPELLED_OTHERWISE: dict[str, Callable[[str], str]] = {
    "as it is": lambda value: value,
    "padded": lambda value: f"{value}=",
    "with what decoders pass over": lambda value: f"{value[:-3]}~~!~{value[-3:]}",
    "with that in the beginning": lambda value: f"{value[:2]}~~!~{value[2:]}",
}


def test_apps_take_a_session_that_is_spelled_otherwise() -> None:
    """Else the ones below would prove nothing."""
    signer = itsdangerous.TimestampSigner("secret")
    for spell in ("padded", "with what decoders pass over"):
        assert signer.unsign(SPELLED_OTHERWISE[spell](ROLLING["starlette"])) == b"eyJ1c2VyX2lkIjogN30="


@pytest.mark.parametrize("spell", SPELLED_OTHERWISE)
@pytest.mark.parametrize("kind", ROLLING)
def test_a_session_kept_in_the_cookie_is_no_name(kind: str, spell: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    value = SPELLED_OTHERWISE[spell](ROLLING[kind])
    for _ in range(2):
        assert named_by("cookie:session", f"session={value}".encode()) == ADDRESS
    (record,) = caplog.records
    assert "the cookie 'session' is a session that changes from answer to answer" in record.getMessage()
    assert "connection.session.get('user_id')" in record.getMessage()


@pytest.mark.parametrize(
    "value",
    ["0123456789abcdef0123456789abcdef", "s:Yk3tWw1q2e.1q2w3e4r5t6y7u8i9o0p1q2w3e4r5t6y7u8i9o0p1q2", str(UUID(int=7)),
     JWT + "c2lnbmF0dXJlLW9mLXRoaXJ0eS10d28tYnl0ZXMtbG9uZw", "2d8c1f7e5b6a4938.example"],
)  # fmt: skip
def test_the_id_of_a_session_is_one(value: str) -> None:
    assert named_by("cookie:session", f"session={value}".encode()) == value


async def test_an_honest_client_with_a_rolling_session_is_one_user() -> None:
    """Starlette's own sessions: each answer that changes something sets another cookie."""

    async def view(request: Request) -> JSONResponse:
        request.session["seen"] = request.session.get("seen", 0) + 1
        return JSONResponse(request.session["seen"])

    app = Starlette(routes=[Route("/", view)])
    app.add_middleware(
        RateLimitMiddleware, limiter=limiter_of(Policy("view", "3/day", match="/**")), user_from=["cookie:session"]
    )
    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with client_of(app) as client:
        answers = [await client.get("/") for _ in range(5)]
        assert len({answer.headers.get("set-cookie") for answer in answers[:3]}) == 3
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]


def test_an_authenticated_user_whom_nothing_names_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    for _ in range(2):
        assert UserResolver(["user"], Addresses()).read(scope_of(user=Unspeakable())) == ADDRESS
    (record,) = caplog.records
    assert "scope['user'], a Unspeakable" in record.getMessage()
    assert "give it one of identity, pk, id" in record.getMessage()


@pytest.mark.parametrize("kind", [Claimant, lambda sub: {"sub": sub}, str])
async def test_whom_litestars_authentication_has_let_in(kind: Callable[[str], object]) -> None:
    class Authentication(AbstractAuthenticationMiddleware):
        async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
            return AuthenticationResult(user=kind(connection.headers["x-token"]), auth=None)

    @get("/")
    async def view() -> str:
        return "seen"

    limits = DefineMiddleware(cast(Any, RateLimitMiddleware), limiter=limiter_of(Policy("view", "2/day", match="/**")))
    app = Litestar([view], middleware=[DefineMiddleware(Authentication), limits], logging_config=None)
    async with client_of(cast(ASGIApp, app)) as client:
        answers = [(await client.get("/", headers={"x-token": who})).status_code for who in ("a", "a", "b", "a", "b")]
    assert answers == [200, 200, 200, 429, 200]

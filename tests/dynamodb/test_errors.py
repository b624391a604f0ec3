"""Everything a bad day brings, from a real socket to our typed errors, and what is tried again because of it."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator

import pytest

from ratelimit.dynamodb import AnswerLost, DynamoDBStore, StoreUnreachable
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreRefused,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)
from ratelimit.names import Key
from ratelimit.store import Add, Outcome, Write
from ratelimit.store.directory import User
from tests.faults import (
    Behaviour,
    FaultServer,
    error,
    garbage,
    half,
    hang_up,
    internal_error,
    ok,
    slow,
    status,
    throttled,
    transaction_conflict,
)
from tests.faults.oddities import redirect

pytestmark = pytest.mark.heavy

ALICE = Key.of("alice", "hint")
ADD = Write((Add("d1", 1, 5),), 1_999_999_999)


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
async def store(
    request: pytest.FixtureRequest, server: FaultServer, pauses: list[float]
) -> AsyncIterator[DynamoDBStore]:
    store = DynamoDBStore(
        table="limits",
        endpoint=server.endpoint,
        read_timeout=20,
        fast=request.param,
    )
    async with store:
        yield store


async def apply(store: DynamoDBStore) -> Outcome:
    return await store.apply(ALICE, ADD, now=0)


NEVER_EXECUTED = [
    (throttled(), StoreThrottled),
    (error("ThrottlingException"), StoreThrottled),
    (error("RequestLimitExceeded"), StoreThrottled),
    (transaction_conflict(), StoreThrottled),
]
NOBODY_KNOWS = [
    (internal_error(), AnswerLost),
    (internal_error(executed=True), AnswerLost),
    (error("ServiceUnavailable", status=503), AnswerLost),
    (status(500), AnswerLost),
    (status(502, b""), AnswerLost),
    (status(200), AnswerLost),
    (status(404), AnswerLost),
    (garbage(), AnswerLost),
    (garbage(b""), AnswerLost),
    (garbage(b"[]"), AnswerLost),
    (garbage(b"null"), AnswerLost),
    (garbage(b'{"Attributes": 5}'), AnswerLost),
    (garbage(b'{"Attributes": {"d1": "5"}}'), AnswerLost),
    (status(500, b"[1]"), AnswerLost),
    (status(400, b"[1]"), AnswerLost),
    (half(), AnswerLost),
    (hang_up(), AnswerLost),
]
MISCONFIGURED = [
    (error("ResourceNotFoundException"), TableNotFound),
    (error("AccessDeniedException"), AccessDenied),
    (error("UnrecognizedClientException"), AccessDenied),
    (error("InvalidSignatureException"), AccessDenied),
    (error("ExpiredTokenException"), AccessDenied),
    (error("MissingAuthenticationTokenException"), AccessDenied),
    (error("ValidationException", "The provided key element does not match the schema"), TableMismatch),
    (error("ValidationException", "Invalid UpdateExpression"), StoreRefused),
    (error("SerializationException"), StoreRefused),
    (error("SomethingNew"), StoreMisconfigured),
]


@pytest.mark.parametrize(("behaviour", "expected"), NEVER_EXECUTED)
async def test_what_was_not_executed_is_sent_again(
    server: FaultServer, store: DynamoDBStore, behaviour: Behaviour, expected: type[StoreUnavailable]
) -> None:
    server.then(behaviour, behaviour)
    assert await apply(store) == Outcome(True, {"d1": 1})
    assert server.received["UpdateItem"] == 3
    server.then(*[behaviour] * 3)
    with pytest.raises(expected) as caught:
        await apply(store)
    assert type(caught.value) is expected
    assert store.stats.retries == 4
    assert store.stats.throttles == 5
    assert store.stats.calls == {"DescribeTable": 1, "UpdateItem": 6}


@pytest.mark.parametrize(("behaviour", "expected"), NOBODY_KNOWS)
async def test_an_addition_that_may_have_been_executed_is_never_sent_again(
    server: FaultServer, store: DynamoDBStore, behaviour: Behaviour, expected: type[StoreUnavailable]
) -> None:
    server.then(behaviour)
    with pytest.raises(expected) as caught:
        await apply(store)
    assert type(caught.value) is expected
    assert server.received["UpdateItem"] == 1
    assert store.stats.retries == 0
    assert (await apply(store)).applied


@pytest.mark.parametrize("behaviour", [internal_error(), status(500), garbage(b""), half(), hang_up(), throttled()])
async def test_a_read_may_be_sent_again(server: FaultServer, store: DynamoDBStore, behaviour: Behaviour) -> None:
    await apply(store)
    server.then(behaviour, behaviour)
    assert await store.read(ALICE) == {"d1": 1}
    assert server.received["GetItem"] == 3


@pytest.mark.parametrize("body", [b"", b"oops", b"[]", b'{"Item": []}', b'{"Item": {"d1": {"N": "1.5"}}}'])
async def test_garbage_is_not_an_empty_record(server: FaultServer, store: DynamoDBStore, body: bytes) -> None:
    """An empty record would be a quota that nobody has spent from."""
    server.always(garbage(body))
    with pytest.raises(StoreUnavailable):
        await store.read(ALICE)


@pytest.mark.parametrize(
    "body",
    [b"[]", b'{"Responses": []}', b'{"Responses": {"limits": [{"PK": "alice"}]}}', b'{"UnprocessedKeys": 1}', b"{}"],
)
async def test_garbage_is_not_a_batch_of_empty_records(server: FaultServer, store: DynamoDBStore, body: bytes) -> None:
    server.always(garbage(body))
    with pytest.raises(StoreUnavailable):
        await store.read_all([ALICE, Key("bob", "hint")])


@pytest.mark.parametrize(("behaviour", "expected"), MISCONFIGURED)
async def test_what_waiting_does_not_help_is_not_tried_again(
    server: FaultServer, store: DynamoDBStore, behaviour: Behaviour, expected: type[StoreUnavailable]
) -> None:
    server.always(behaviour)
    with pytest.raises(expected) as caught:
        await apply(store)
    assert type(caught.value) is expected
    assert store.stats.retries == 0
    # The fast transport asks the slow one about what it does not expect, once.
    assert server.received["UpdateItem"] == 1 + sum(store.stats.fallbacks.values()) <= 2


async def test_pauses_grow_and_are_random_from_zero_up(
    server: FaultServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DynamoDBStore(table="limits", endpoint=server.endpoint, attempts=6) as store:
        server.then(*[throttled()] * 5)
        assert (await apply(store)).applied
        assert pauses == pytest.approx([0.04, 0.08, 0.16, 0.2, 0.2])
        monkeypatch.setattr(random, "random", lambda: 0.0)
        server.then(throttled())
        assert (await apply(store)).applied
        assert pauses[-1] == 0.0


async def test_a_crash_and_a_comeback(server: FaultServer, store: DynamoDBStore) -> None:
    """Where no connection can be made nothing was sent, so it is tried again, and the store recovers by itself."""
    assert (await apply(store)).applied
    await server.refuse()
    await asyncio.sleep(0.01)
    for _ in range(2):  # the first finds the end of the connection that was open, and sends nothing there
        with pytest.raises(StoreUnreachable):
            await apply(store)
    assert store.stats.calls["UpdateItem"] == 1 + 3 + 3
    await server.listen()
    assert (await apply(store)).record == {"d1": 2}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
async def test_a_silent_server_is_given_up(server: FaultServer, fast: bool) -> None:
    server.then(slow(600))
    async with DynamoDBStore(table="limits", endpoint=server.endpoint, read_timeout=1, fast=fast) as store:
        with pytest.raises(AnswerLost, match="in time"):
            await apply(store)
        assert server.received["UpdateItem"] == 1


async def test_a_deadline_of_the_caller_cuts_in_and_harms_nobody(server: FaultServer, store: DynamoDBStore) -> None:
    server.always(slow(600))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await apply(store)
    server.recover()
    assert (await apply(store)).applied


async def test_messages_say_what_where_and_what_to_do(server: FaultServer, store: DynamoDBStore) -> None:
    expected: dict[str, tuple[Behaviour, list[str]]] = {
        "missing": (
            error("ResourceNotFoundException"),
            ["no table 'limits' in eu-west-1", server.endpoint, "ratelimit table create limits", "?region="],
        ),
        "denied": (
            error(
                "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized to perform: dynamodb:UpdateItem"
            ),
            ["'limits'", "lacks the permission dynamodb:UpdateItem"],
        ),
        "unnamed": (error("AccessDeniedException", ""), ["lacks the permission dynamodb:UpdateItem"]),
        "expired": (error("ExpiredTokenException"), ["have expired"]),
        "stranger": (error("InvalidSignatureException"), ["does not accept the credentials", "region and clock"]),
        "keys": (
            error("ValidationException", "The provided key element does not match"),
            ["PK and SK", "another table"],
        ),
        "throttled": (throttled(), ["nothing was written"]),
        "page": (status(200), ["does not speak DynamoDB", "check the endpoint"]),
        "proxy": (status(502), ["answered 502"]),
    }
    for behaviour, parts in expected.values():
        server.always(behaviour)
        with pytest.raises(StoreUnavailable) as caught:
            await apply(store)
        for part in parts:
            assert part in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(server: FaultServer, store: DynamoDBStore, code: int) -> None:
    """The session token would go along to whoever is named there."""
    async with FaultServer() as elsewhere:
        server.always(redirect(elsewhere.endpoint, code))
        for call in (apply(store), store.read(ALICE), store.delete(ALICE), store.directory.read(User, "alice")):
            with pytest.raises(
                StoreMisconfigured, match=rf"answered with a redirect \({code}\), which is not followed"
            ):
                await call
        assert server.received.total() == 1 + 4
        server.everything(redirect(elsewhere.endpoint, code))
        with pytest.raises(StoreMisconfigured, match="redirect"):
            await DynamoDBStore(store.settings).open()
        assert not elsewhere.received


async def test_secrets_are_not_repeated(monkeypatch: pytest.MonkeyPatch, server: FaultServer) -> None:
    """DynamoDB explains a bad signature by the canonical request, which holds the session token."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "tokensecret")
    told = "The Canonical String should have been 'x-amz-security-token:tokensecret AKIASECRET topsecret'"
    async with DynamoDBStore(table="limits", endpoint=server.endpoint) as store:
        for code in ("InvalidSignatureException", "UnrecognizedClientException", "IncompleteSignatureException"):
            server.always(error(code, told))
            with pytest.raises(AccessDenied) as caught:
                await apply(store)
            assert "secret" not in str(caught.value).lower()
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__


async def test_a_name_that_leads_nowhere() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreUnreachable, match="cannot reach table 'limits'"):
            await DynamoDBStore(table="limits", endpoint=endpoint).open()


@pytest.mark.parametrize("behaviour", [ok(), throttled(), hang_up(), garbage()])
async def test_close_in_any_weather(server: FaultServer, store: DynamoDBStore, behaviour: Behaviour) -> None:
    server.then(behaviour)
    (result,) = await asyncio.gather(apply(store), return_exceptions=True)
    assert isinstance(result, Outcome | StoreUnavailable)
    await store.close()
    await store.close()
    assert (await apply(store)).applied

"""`FastTransport`: what is written all the time, without aiobotocore's machinery.

It does the ordinary only. Whatever is unusual, and certainly not executed, goes to aiobotocore for that one request
and is counted (`Stats.fallbacks`): so this transport never has to be complete.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from botocore.exceptions import ClientError
from msgspec.json import decode as from_json
from msgspec.json import encode as to_json

from ratelimit.clock import SECOND
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import EXPECTED, Stats, capacity
from ratelimit.dynamodb.errors import (
    CONDITION_FAILED,
    ConnectionStale,
    UnusableAnswer,
    boto_errors,
    code_of,
    explain,
    is_bare,
    unsignable,
)
from ratelimit.dynamodb.expressions import encode
from ratelimit.dynamodb.schema import PK, SK, STATE, TTL, limit_pk
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.transport.base import (
    MAX_KNOWN_WRITES,
    ErrorBody,
    Transport,
    UpdateResult,
    check_shape,
    decode_error,
    decode_numbers,
    decode_update,
)
from ratelimit.dynamodb.transport.connection import Endpoint, Response, elapsed
from ratelimit.dynamodb.transport.pool import BasePool
from ratelimit.dynamodb.transport.signing import CredentialsCache, Signer, Unsignable
from ratelimit.errors import AccessDenied, StoreMisconfigured, TableMismatch, TableNotFound
from ratelimit.names import Key
from ratelimit.store.base import Add, Drop, Expect, Outcome, Put, Write

if TYPE_CHECKING:
    from _hashlib import HASH


def read_update(response: Response) -> Outcome | UpdateResult:
    """Return the answer in a success. Raise `UnusableAnswer`."""
    try:
        numbers = decode_numbers(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _read_item(response)
    if numbers.ConsumedCapacity is not None:
        return _read_item(response)
    # (What is no number is no field, and of what is, only the time to live.)
    record = {name: value.N for name, value in numbers.Attributes.items() if value.N is not None}
    record.pop(TTL, None)
    return Outcome(True, record)


def _read_item(response: Response) -> UpdateResult:
    try:
        answer = decode_update(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnusableAnswer("a success without attributes") from None
    consumed = answer.ConsumedCapacity
    return UpdateResult(True, answer.Attributes, 0.0 if consumed is None else consumed.CapacityUnits)


def read_any(response: Response) -> dict[str, Any]:
    """Return the answer, as botocore reads it. Raise `UnusableAnswer`."""
    try:
        check_shape(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnusableAnswer(f"status {response.status} without a JSON answer") from None
    answer: dict[str, Any] = from_json(response.body)
    return answer


def read_error(response: Response, operation: str) -> UpdateResult | ClientError:
    """Return the answer where a condition failed, else the error that botocore would raise. Raise `UnusableAnswer`."""
    try:
        answer = decode_error(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if not is_bare(response.status):
            raise UnusableAnswer(f"status {response.status} without a JSON answer") from None
        answer = ErrorBody()
    # "com.amazonaws.dynamodb.v20120810#Name", and from some servers "Name:http://..." after it
    code = answer.type.rpartition("#")[2].partition(":")[0]
    if code == CONDITION_FAILED:
        return UpdateResult(applied=False, item=answer.Item)
    error = {"Code": code or str(response.status), "Message": answer.message or answer.Message or ""}
    details: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": response.status}}
    return ClientError(details, operation)


# The JSON of an `UpdateItem`, made without making it: a known write costs one concatenation, a known shape one `%`.
# The partition key comes last, so that everything before it is one constant for every user, and hashed once:
# {"TableName":"t","UpdateExpression":"...","ExpressionAttributeValues":{":v1":{"N":"5"}},"Key":{...,"PK":{"S":"USR#

Shape: TypeAlias = tuple[object, ...]
"""All of a write that decides what its expressions look like: everything but the numbers."""

_VALUES: Final = "ExpressionAttributeValues"
_KEY: Final = f',"Key":{{"{SK}":{{"S":"{STATE}"}},"{PK}":{{"S":'.encode()
_END: Final = b"}}}"


class RequestBodies:
    """Bodies of the updates of one table. Keeps those of writes that recur, and templates of what all look like."""

    __slots__ = ("_constant", "_known", "_limit", "_templates")

    def __init__(self, constant: Mapping[str, str], *, limit: int = MAX_KNOWN_WRITES) -> None:
        """`constant` are the parameters that every request carries: the table, and whether to report capacity."""
        self._constant = constant
        self._limit = limit
        self._known: OrderedDict[Write, tuple[bytes, HASH]] = OrderedDict()
        self._templates: dict[Shape, bytes] = {}

    def body(self, pk: str, write: Write) -> tuple[bytes, str]:
        """Return the body of one request, and its SHA-256."""
        start, hashed = self._known.get(write) or self._render(write)
        end = to_json(pk) + _END
        digest = hashed.copy()
        digest.update(end)
        return start + end, digest.hexdigest()

    def _render(self, write: Write) -> tuple[bytes, HASH]:
        """Keep one that recurs, first in, first out: if it has to go, that costs one more look at its template."""
        shape, numbers = shape_of(write)
        template = self._templates.get(shape)
        if template is None:
            if len(self._templates) >= self._limit:
                self._templates.clear()
            template = self._templates[shape] = self._template(write, numbers)
        rendered = template % tuple(numbers)
        known = rendered, sha256(rendered)
        if write.recurs:
            if len(self._known) >= self._limit:
                self._known.popitem(last=False)
            self._known[write] = known
        return known

    def _template(self, write: Write, numbers: list[int]) -> bytes:
        update = encode(write)
        values: Mapping[str, Mapping[str, Any]] = update[_VALUES]
        found = [int(value["N"]) for value in values.values() if "N" in value]
        if found != numbers:
            raise AssertionError(f"expressions and payload disagree about {write}: {found}, {numbers}")
        blanks = {name: {"N": "\0"} if "N" in value else value for name, value in values.items()}
        text = to_json({**self._constant, **update, _VALUES: blanks})[:-1] + _KEY
        return text.replace(b"%", b"%%").replace(rb'"\u0000"', b'"%d"')


def shape_of(write: Write) -> tuple[Shape, list[int]]:
    """Return the shape, and the numbers in the order in which `expressions` hands out placeholders for them."""
    shape: list[object] = [write.whole]
    numbers = [write.expires_at]
    for op in write.ops:
        shape.append(op.field)
        if type(op) is Add:
            amount, at_most = op.amount, op.at_most
            numbers.append(amount)
            if at_most is None:
                shape.append("+")
            else:
                numbers.append(at_most - amount)
                shape.append("+<" if amount <= at_most else "+!")
        elif type(op) is Expect:
            low, high = op.low, op.high
            if low is not None:
                numbers.append(low)
            if high is not None and high != low:
                numbers.append(high)
            shape += (op.or_missing, low is None, high is None, low == high)
        elif type(op) is Put:
            numbers.append(op.value)
            shape.append("=")
        elif type(op) is Drop:
            shape.append("-")
    return tuple(shape), numbers


_UNSIGNED: Final = {"accept-encoding": "identity", "user-agent": "ratelimit-dynamodb (fast lane)"}


class _Operation:
    """One of DynamoDB's: how it is signed, and how its answer is read."""

    __slots__ = ("name", "read", "signer")

    def __init__(
        self, name: str, endpoint: Endpoint, read: Callable[[Response], Outcome | UpdateResult | dict[str, Any]]
    ) -> None:
        self.name = name
        self.read = read
        self.signer = Signer(
            host=endpoint.host_header, region=endpoint.region, target=f"DynamoDB_20120810.{name}", unsigned=_UNSIGNED
        )


async def _nothing() -> None:
    return None


def _refused(response: Response, name: str, outcome: UpdateResult | ClientError) -> ClientError | None:
    """Return what botocore raises where a condition failed, with all that the answer says; None for anything else.

    Raise `UnusableAnswer`.
    """
    code = CONDITION_FAILED if isinstance(outcome, UpdateResult) else code_of(outcome)
    if code not in EXPECTED:
        return None
    answer: Any = read_any(response)
    return ClientError({**answer, "Error": {"Code": code, "Message": str(answer.get("message") or "")}}, name)


class FastTransport:
    """The one for a tenth of the CPU. `slow` takes what this one does not."""

    def __init__(
        self,
        client: Client,
        endpoint: Endpoint,
        slow: Transport,
        settings: Settings,
        stats: Stats,
        *,
        pool: BasePool,
        credentials: CredentialsCache,
    ) -> None:
        self._place = client.place
        self._slow = slow
        self._stats = stats
        self._server_clock = client.clock
        self._clock = client.clock.clock
        self._credentials = credentials
        self._bodies = RequestBodies({"TableName": settings.table, **capacity(settings)})
        self._update = _Operation("UpdateItem", endpoint, read_update)
        self._endpoint = endpoint
        self._others: dict[str, _Operation] = {}
        self.pool = pool

    def apply(self, key: Key, write: Write) -> Coroutine[Any, Any, Outcome | UpdateResult]:
        body, digest = self._bodies.body(limit_pk(key), write)
        return self._send(self._update, body, digest, self._slow.apply, (key, write))

    async def call(self, name: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send any other operation, and return its answer; None where it has to be sent in another way.

        Raise `ClientError` for a condition that failed, as botocore does.
        """
        operation = self._others.get(name)
        if operation is None:
            operation = self._others[name] = _Operation(name, self._endpoint, read_any)
        body = to_json(request)
        digest = sha256(body).hexdigest()
        result: dict[str, Any] | ClientError | None = await self._send(operation, body, digest, _nothing, ())
        if isinstance(result, ClientError):
            raise result
        return result

    async def close(self) -> None:
        await self._credentials.close()
        await self.pool.close()

    async def _send(
        self,
        operation: _Operation,
        body: bytes,
        digest: str,
        send_slowly: Callable[..., Awaitable[Any]],
        request: tuple[Any, ...],
        after: str = "",
    ) -> Any:
        """Return the answer, or what `send_slowly` does with the `request`; `after` is why it is sent once more."""
        skew = self._server_clock.skew
        try:
            secrets = self._credentials.at_hand() or await self._credentials.secrets()
            now = elapsed()
            connection = self.pool.take(now)
            if connection is None:
                connection = await self.pool.wait()
                now = elapsed()
            try:
                signed = operation.signer.request(body, digest, secrets, self._clock.now() // SECOND + skew)
                answer = connection.ask(signed, now)
                response = answer if isinstance(answer, Response) else await answer
            except BaseException:
                # Out of time, or worse: an answer that still comes must not be the next one's.
                connection.end("cancelled")
                raise
            self.pool.release(connection, elapsed())
            if response.status == 200:
                return operation.read(response)
            unusual = self._unusual(operation, response, skew, after)
        except Unsignable:
            raise unsignable(self._place) from None
        except boto_errors() as error:
            if after or not isinstance(error, ConnectionStale):
                explanation = explain(error, self._place)
                raise explanation from (None if isinstance(explanation, AccessDenied) else error)
            unusual = "stale"
        if not isinstance(unusual, str):
            return unusual
        return await self._send_again(operation, body, digest, send_slowly, request, unusual)

    async def _send_again(
        self,
        operation: _Operation,
        body: bytes,
        digest: str,
        send_slowly: Callable[..., Awaitable[Any]],
        request: tuple[Any, ...],
        reason: str,
    ) -> Any:
        """Send in the way that the reason asks for."""
        if reason == "stale":
            self._stats.retries += 1
            self._stats.calls[operation.name] += 1
            self.pool.end_idle()
        else:
            self._stats.fallbacks[reason] += 1
            if reason != "clock":
                return await send_slowly(*request)
        return await self._send(operation, body, digest, send_slowly, request, reason)

    def _unusual(
        self, operation: _Operation, response: Response, skew: int, after: str
    ) -> UpdateResult | ClientError | str:
        """Return an answer after all, or the reason to ask in another way. Raise what aiobotocore would otherwise."""
        outcome = read_error(response, operation.name)
        if operation.read is read_any and (refused := _refused(response, operation.name, outcome)) is not None:
            return refused
        if isinstance(outcome, UpdateResult):
            return outcome
        if after == "clock":
            return "denied"
        if response.status < 400:  # a redirect: aiobotocore would not follow it either
            raise outcome
        error = explain(outcome, self._place)
        if isinstance(error, AccessDenied):
            date = response.date.decode("latin-1")
            return "clock" if self._server_clock.learn(date, skew) else "denied"
        if isinstance(error, StoreMisconfigured) and not isinstance(error, TableNotFound | TableMismatch):
            return "unknown_error"
        raise outcome

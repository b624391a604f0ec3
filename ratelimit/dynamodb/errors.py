"""What goes wrong between us and DynamoDB, as this project's typed errors: what happened, where, and what to do.

Two questions matter to a retry, and the type answers both: was the request executed, and is waiting of any use?

    StoreThrottled                          not executed, worth another try
    StoreUnreachable                        not sent, worth another try
    AnswerLost                              executed or not, nobody knows: an addition must not be sent again
    StoreRefused                            not executed, and never will be: the request itself is at fault
    TableNotFound, TableMismatch, AccessDenied, StoreMisconfigured      waiting does not help

A message never quotes what may hold a secret: the answer to a bad signature repeats the signed headers, session token
included.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import gaierror
from typing import Final, Self

from botocore import exceptions as aws

from ratelimit.dynamodb.settings import Settings, is_amazon, without_userinfo
from ratelimit.errors import (
    AccessDenied,
    StoreMisconfigured,
    StoreRefused,
    StoreThrottled,
    StoreUnavailable,
    TableMismatch,
    TableNotFound,
)


class StoreUnreachable(StoreUnavailable):
    """No connection was made, so nothing was sent."""


class AnswerLost(StoreUnavailable):
    """The request was sent, and no usable answer came: it may have been executed."""


class UnusableAnswer(Exception):
    """What came back is not DynamoDB's protocol. Raised by the client's own parser, never seen by callers."""


class ConnectionStale(aws.ConnectionClosedError):  # type: ignore[misc]
    """The connection had been idle for long, and ended without a word."""


@dataclass(frozen=True, slots=True)
class Place:
    table: str
    region: str
    endpoint: str
    is_replica: bool = False
    """Whether it is one of several regions that count."""

    @classmethod
    def of(cls, settings: Settings, region: str, endpoint: str) -> Self:
        return cls(settings.table, region, without_userinfo(endpoint), len(settings.regions) > 1)

    def __str__(self) -> str:
        server = "" if not self.endpoint or is_amazon(self.endpoint) else f" at {self.endpoint}"
        return f"table {self.table!r} in {self.region}{server}"


_BOTO_ERRORS: Final = (aws.ClientError, aws.BotoCoreError, UnusableAnswer, OSError)

CONDITION_FAILED: Final = "ConditionalCheckFailedException"
"""DynamoDB's name for a conditional write that it refuses."""
TRANSACTION_CANCELED: Final = "TransactionCanceledException"
PART_REFUSED: Final = "ConditionalCheckFailed"
"""Among the reasons of a canceled transaction, one for each part."""
_PART_NOT_NOW: Final = ("TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded", "None")
_STILL_UNDER_WAY: Final = "TransactionInProgressException"

ISSUER: Final = "issuer"
"""Of an error's details: who was asked, where that was not the table's server, but one that gives credentials."""

_THROTTLES: Final = frozenset((
    "ProvisionedThroughputExceededException", "ThrottlingException", "Throttling", "ThrottledException",
    "RequestLimitExceeded", "RequestThrottled", "TooManyRequestsException", "LimitExceededException",
    "TransactionConflictException", "ReplicatedWriteConflictException",
))  # fmt: skip
_STRANGERS: Final = frozenset((
    "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch",
    "IncompleteSignature", "IncompleteSignatureException", "MissingAuthenticationToken",
    "MissingAuthenticationTokenException", "RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed",
))  # fmt: skip
_EXPIRED: Final = frozenset(("ExpiredTokenException", "ExpiredToken"))
_DENIED: Final = frozenset(("AccessDeniedException", "AccessDenied", "NotAuthorized", "OptInRequired"))
_NO_CREDENTIALS: Final = (
    aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError, aws.TokenRetrievalError,
    aws.NoAuthTokenError, aws.ProfileNotFound, aws.SSOError,
)  # fmt: skip
# botocore's words for what happens on the way; all others that it has are about the set-up.
_TRANSPORT: Final = (aws.HTTPClientError, aws.ConnectionError)
_TRANSACTION: Final = "TransactWriteItems"
# What IAM calls the parts of a transaction: it has no word for the whole.
_OF_A_TRANSACTION: Final = "dynamodb:PutItem, dynamodb:UpdateItem or dynamodb:DeleteItem"
# Who gives credentials: their operations, which botocore calls by itself.
_CREDENTIALS_FROM: Final = {
    "AssumeRole": "STS",
    "AssumeRoleWithSAML": "STS",
    "AssumeRoleWithWebIdentity": "STS",
    "GetRoleCredentials": "IAM Identity Center",
    "CreateToken": "IAM Identity Center",
    "CreateOAuth2Token": "AWS Sign-In",
}
_MAX_QUOTED: Final = 300
# botocore's word for credentials that were expired as they came.
_STILL_EXPIRED: Final = "refreshed credentials are still expired"


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turn whatever a call raises for a reason outside of this program into one of our errors."""
    try:
        yield
    except boto_errors() as error:
        explanation = explain(error, place)
        raise explanation from (None if isinstance(explanation, AccessDenied) else error)
    except RuntimeError as error:
        if _STILL_EXPIRED not in str(error):
            raise
        raise AccessDenied(
            f"the AWS credentials for {place} have expired, and so had those that replaced them"
        ) from None


def boto_errors() -> tuple[type[Exception], ...]:
    return (*_BOTO_ERRORS, *imported("botocore.parsers", "ResponseParserError"), *imported("aiohttp", "ClientError"))


def imported(module: str, name: str) -> tuple[type, ...]:
    """Return a class in a tuple; nothing where nobody has imported the module, so that nobody has one of its objects.

    Threads do without aiohttp, and where the environment says all without most of botocore.
    """
    found = sys.modules.get(module)
    return () if found is None else (getattr(found, name),)


def code_of(error: BaseException) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, aws.ClientError) else ""


def is_bare(status: int) -> bool:
    """Return whether the status alone says all, whatever the body: a redirect, a proxy's own page."""
    return status >= 500 or 300 <= status < 400


def canceled(reasons: Sequence[str]) -> StoreUnavailable:
    """Return the error for a transaction that was not executed, no condition being the reason."""
    error = StoreThrottled if all(reason in _PART_NOT_NOW for reason in reasons) else StoreMisconfigured
    return error(f"the transaction was canceled ({', '.join(reasons)}); nothing was written")


def is_denied(code: str) -> bool:
    """Return whether DynamoDB or STS says by this name that it does not accept who asks."""
    return code in _STRANGERS or code in _EXPIRED or code in _DENIED


def unsignable(place: Place) -> AccessDenied:
    return AccessDenied(
        f"the AWS credentials for {place} cannot be sent: a key or the token is empty, or holds a line break, a space "
        "or another character that none has; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and "
        "the profile"
    )


def explain(error: BaseException, place: Place) -> StoreUnavailable:
    if isinstance(error, aws.ClientError):
        return _no_credentials(error, place) if error.operation_name in _CREDENTIALS_FROM else _answered(error, place)
    cause = error.kwargs.get("error") if isinstance(error, aws.HTTPClientError) else error
    if isinstance(cause, OSError) and cause.filename:
        return StoreMisconfigured(
            f"the AWS set-up for {place} names a file that cannot be read: {cause.filename}: {cause.strerror}"
        )
    if type(cause) is ValueError:  # aiohttp's word for a header that would be two
        return unsignable(place)
    if isinstance(error, (UnusableAnswer, *imported("botocore.parsers", "ResponseParserError"))):
        return AnswerLost(f"what answers for {place} does not speak DynamoDB: {error}; check the endpoint")
    if isinstance(error, aws.NoRegionError):
        return no_region(place.table)
    if isinstance(error, _NO_CREDENTIALS):
        return AccessDenied(
            f"no AWS credentials for {place}: {_short(error)}; set the standard AWS variables or a profile"
        )
    if isinstance(error, aws.BotoCoreError) and not isinstance(error, _TRANSPORT):
        return StoreMisconfigured(f"the AWS set-up does not work for {place}: {_short(error)}")
    return _transport(error, place)


def no_region(table: str) -> StoreMisconfigured:
    return StoreMisconfigured(
        f"the region of table {table!r} is unknown; add ?region=eu-west-1 to the store URL, or set AWS_REGION"
    )


def _no_credentials(error: aws.ClientError, place: Place) -> StoreUnavailable:
    code, issuer = code_of(error), _CREDENTIALS_FROM[error.operation_name]
    told = f"no AWS credentials for {place}: {issuer} answered {error.operation_name} with {_short(code)}"
    if code in _THROTTLES or code == "IDPCommunicationError" or _status(error) >= 500:
        return StoreUnreachable(f"{told}; it is tried again")
    return AccessDenied(f"{told}: {_message(error)}; look at the role, its trust policy and the token")


def _transport(error: BaseException, place: Place) -> StoreUnavailable:
    if (issuer := getattr(error, "kwargs", {}).get(ISSUER)) is not None:
        return StoreUnreachable(f"no AWS credentials for {place}: {issuer} gives no answer ({_short(error)})")
    if isinstance(error, (aws.SSLError, *imported("aiohttp", "ClientSSLError"))):
        return StoreUnreachable(
            f"no trusted connection to {place}: {_short(error)}; "
            "check AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and the endpoint"
        )
    if _never_sent(error):
        return StoreUnreachable(f"cannot reach {place}; is the region right, and does its endpoint answer?")
    if isinstance(error, aws.ReadTimeoutError | TimeoutError):
        return AnswerLost(f"no answer in time from {place}")
    cause = getattr(error, "kwargs", {}).get("error", error)
    return AnswerLost(f"the connection to {place} broke before the answer ({type(cause).__name__})")


def _never_sent(error: BaseException) -> bool:
    """aiobotocore reports a broken connection as it does a refused one; what it was made of tells them apart."""
    connector_error = imported("aiohttp", "ClientConnectorError")
    if isinstance(error, (aws.ConnectTimeoutError, aws.ProxyConnectionError, *connector_error)):
        return True
    if isinstance(error, aws.EndpointConnectionError):
        return isinstance(
            error.kwargs.get("error"),
            (gaierror, *imported("urllib3.exceptions", "NewConnectionError"), *connector_error),
        )
    return False


def _answered(error: aws.ClientError, place: Place) -> StoreUnavailable:
    code = code_of(error)
    status = _status(error)
    if 300 <= status < 400:
        return StoreMisconfigured(
            f"{place} answered with a redirect ({status}), which is not followed, as the credentials would go along; "
            "name the endpoint that it leads to"
        )
    if code in _THROTTLES:
        return StoreThrottled(f"{place} is throttled ({code}); nothing was written")
    if code in _EXPIRED:
        return AccessDenied(f"the AWS credentials for {place} have expired; refresh them")
    if code in _STRANGERS:
        return AccessDenied(f"AWS does not accept the credentials for {place} ({code}); check keys, region and clock")
    if code in _EXPLANATIONS:
        return _EXPLANATIONS[code](error, place)
    if code in _DENIED:
        return _denied(error, place)
    if not 400 <= status < 500 or code == _STILL_UNDER_WAY:
        return AnswerLost(f"{place} answered {status or 'an error'} ({_short(code)})")
    return StoreMisconfigured(f"{place} refused the request: {_short(code)}: {_message(error)}")


def _missing(error: aws.ClientError, place: Place) -> StoreUnavailable:
    if place.is_replica:
        return TableNotFound(
            f"there is no replica of {place}: add one to the table of the other regions, which fills by itself, or "
            "stop all processes, take the region out of the list, run `ratelimit table regions --change`, "
            "and start them"
        )
    return TableNotFound(
        f"there is no {place}; create it with `ratelimit table create {place.table}`, "
        "add create=true to the store URL, or check ?region="
    )


def _invalid(error: aws.ClientError, place: Place) -> StoreUnavailable:
    message = _message(error)
    if "key element" in message or "key schema" in message.lower() or "keys in the key" in message.lower():
        return key_mismatch(place)
    return StoreRefused(f"{place} refused the request: {message}")


def key_mismatch(place: Place, found: str = "") -> TableMismatch:
    has = f"; it has {found}" if found else ""
    return TableMismatch(
        f"{place} lacks the keys of this project, PK and SK, both strings{has}; "
        "use another table name, or create a table with `ratelimit table create`"
    )


def _denied(error: aws.ClientError, place: Place) -> StoreUnavailable:
    said = _message(error)
    action = re.search(r"perform:? ([a-z0-9-]+:\w+)", said) or re.search(r"(dynamodb:\w+)", said)
    missing = action[1] if action else f"dynamodb:{error.operation_name}"
    if error.operation_name == _TRANSACTION and not action:
        missing = _OF_A_TRANSACTION
    why = "; a policy denies it explicitly" if "explicit deny" in said else ""
    message = f"the AWS identity in use may not work on {place}: it lacks the permission {missing}{why}"
    return AccessDenied(message, permission=missing)


def _busy(error: aws.ClientError, place: Place) -> StoreUnavailable:
    return StoreThrottled(f"{place} is being created, changed or deleted; try again in a moment")


_EXPLANATIONS: Final[dict[str, Callable[[aws.ClientError, Place], StoreUnavailable]]] = {
    "ResourceNotFoundException": _missing,
    "TableNotFoundException": _missing,
    "ResourceInUseException": _busy,
    "ContinuousBackupsUnavailableException": _busy,
    "ValidationException": _invalid,
    "SerializationException": _invalid,
}


def _status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _message(error: aws.ClientError) -> str:
    return _short(str(error.response.get("Error", {}).get("Message", "")))


def _short(text: object) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…"

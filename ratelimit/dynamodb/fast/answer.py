"""What came back, read without building what is not needed."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from botocore.exceptions import ClientError

from ratelimit.dynamodb.fast.shapes import Refused, read_applied, read_batch, read_refused
from ratelimit.dynamodb.fast.wire import Response
from ratelimit.dynamodb.faults import UnusableAnswer
from ratelimit.dynamodb.lane import Answer, Written
from ratelimit.dynamodb.schema import Item

_NOTHING: Final[Item] = {}


def applied(response: Response) -> Answer:
    """The answer in a success. Raises `UnusableAnswer`."""
    try:
        answer = read_applied(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnusableAnswer("a success without attributes") from None
    consumed = answer.ConsumedCapacity
    return Answer(
        applied=True,
        item=answer.Attributes,
        write_units=0.0 if consumed is None else consumed.CapacityUnits,
    )


def written(response: Response) -> Written:
    """What a batch left. Raises `UnusableAnswer`."""
    try:
        answer = read_batch(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnusableAnswer("a batch without what was not processed") from None
    left = [request for requests in answer.UnprocessedItems.values() for request in requests]
    return Written(left, sum(part.CapacityUnits for part in answer.ConsumedCapacity))


def refused(response: Response, operation: str) -> Answer | ClientError:
    """The answer where a condition failed, else the error as botocore would have raised it. Raises `UnusableAnswer`."""
    try:
        answer = read_refused(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if response.status < 500:
            raise UnusableAnswer(f"status {response.status} without a JSON answer") from None
        answer = Refused()  # a proxy's own page: the status says it all
    # "com.amazonaws.dynamodb.v20120810#Name", and from some servers "Name:http://..." after it
    code = answer.type.rpartition("#")[2].partition(":")[0]
    if code == "ConditionalCheckFailedException":
        return Answer(applied=False, item=_NOTHING if answer.Item is None else answer.Item)
    error = {"Code": code or str(response.status), "Message": answer.message or answer.Message or ""}
    details: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": response.status}}
    return ClientError(details, operation)

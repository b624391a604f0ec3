"""What came back, read without building what is not needed."""

from __future__ import annotations

from typing import Any

import msgspec
from botocore.exceptions import ClientError

from ratelimit.dynamodb.fast.shapes import Refused, read_applied, read_batch, read_refused
from ratelimit.dynamodb.fast.wire import Response
from ratelimit.dynamodb.faults import UnusableAnswer, is_bare
from ratelimit.dynamodb.lane import Answer, Written


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
        if not is_bare(response.status):
            raise UnusableAnswer(f"status {response.status} without a JSON answer") from None
        answer = Refused()
    # "com.amazonaws.dynamodb.v20120810#Name", and from some servers "Name:http://..." after it
    code = answer.type.rpartition("#")[2].partition(":")[0]
    if code == "ConditionalCheckFailedException":
        return Answer(applied=False, item=answer.Item)
    error = {"Code": code or str(response.status), "Message": answer.message or answer.Message or ""}
    details: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": response.status}}
    return ClientError(details, operation)

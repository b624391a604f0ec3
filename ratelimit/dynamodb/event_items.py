"""Usage events as items, and back: in wire form, with short names, most of what is usual left out."""

from __future__ import annotations

import json
from typing import Any, Final

from ratelimit.dynamodb.schema import (
    ACTION,
    AT,
    CREATED,
    DATA,
    EVENT_TYPE,
    ID_TYPE,
    PK,
    SK,
    TTL,
    TYPE,
    Attribute,
    Item,
    event_pk,
    event_sk,
    id_pk,
    id_sk,
    parse_event_sk,
)
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.store.events import Position, day_of, position_of

_COST: Final = "cst"
_ALLOWED: Final = "ok"
_STATUS: Final = "sts"
_DURATION: Final = "ms"
_RESOURCE: Final = "pid"
_REQUEST_ID: Final = "rid"
_METADATA: Final = "met"


def event_item(event: UsageEvent) -> dict[str, Attribute]:
    """The item of an event; its key is a function of the event, so that a repeated write changes nothing."""
    data: dict[str, Attribute] = {
        ACTION: {"S": event.action},
        _COST: {"N": str(event.cost)},
        _ALLOWED: {"BOOL": event.allowed},
    }
    if event.status is not None:
        data[_STATUS] = {"N": str(event.status)}
    if event.duration is not None:
        data[_DURATION] = {"N": str(event.duration)}
    if event.resource is not None:
        data[_RESOURCE] = {"S": event.resource}
    if event.request_id is not None:
        data[_REQUEST_ID] = {"S": event.request_id}
    if event.metadata:
        # As text: it comes back exactly as it was, and costs less than a map, in bytes and in time.
        data[_METADATA] = {"S": encode_metadata(event.metadata).decode()}
    return {
        PK: {"S": event_pk(event.user, day_of(event.at))},
        SK: {"S": event_sk(position_of(event))},
        TYPE: {"S": EVENT_TYPE},
        DATA: {"M": data},
        CREATED: {"N": str(event.at // 1000)},
        TTL: {"N": str(event.expires_at)},
    }


def event_of(user: str, item: Item) -> UsageEvent | None:
    """The event that an item holds; None where it is another project's. Raises `ValueError`, `KeyError`, ..."""
    position = parse_event_sk(item[SK]["S"])
    if position is None:
        return None
    data = item[DATA]["M"]
    return UsageEvent(
        id=position.id,
        user=user,
        action=position.action,
        at=position.at,
        cost=int(data[_COST]["N"]),
        allowed=data[_ALLOWED]["BOOL"],
        status=_number(data, _STATUS, int),
        duration=_number(data, _DURATION, float),
        resource=data.get(_RESOURCE, {}).get("S"),
        request_id=data.get(_REQUEST_ID, {}).get("S"),
        metadata=json.loads(data[_METADATA]["S"]) if _METADATA in data else {},
    )


def _number(data: Item, name: str, kind: type[Any]) -> Any:
    return kind(data[name]["N"]) if name in data else None


def id_item(event: UsageEvent) -> dict[str, Attribute]:
    """The note of where an id was first seen."""
    return {
        **id_key(event),
        TYPE: {"S": ID_TYPE},
        AT: {"N": str(event.at)},
        ACTION: {"S": event.action},
        TTL: {"N": str(event.expires_at)},
    }


def id_key(event: UsageEvent) -> dict[str, Attribute]:
    """The key of that note."""
    return {PK: {"S": id_pk(event.user)}, SK: {"S": id_sk(event.id)}}


def noted_position(event_id: str, item: Item) -> Position:
    """Where the id was first seen."""
    return Position(int(item[AT]["N"]), item[ACTION]["S"], event_id)

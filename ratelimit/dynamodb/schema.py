"""Every key string and attribute name that this project stores in DynamoDB: the one file that spells them.

One table; `PK` and `SK` are strings. A limiter item is one user and one action:

    PK = USR#<user>#LIM#<action>   SK = STATE   tp = lim   ttl = <epoch seconds>   <field> = <number> ...

The fields of a record are attributes of their own, under their own names (`ratelimit.algorithms.fields`).

A usage event, in the partition of its user and UTC day; and, only for an id that was given and not made for the event,
the note of where that id was first seen:

    PK = USR#<user>#ULOG#<yyyymmdd>   SK = ULOG#<ms, 13 digits>#<action>#<event id>
    tp = ulog   dat = {act, cst, ok, sts?, ms?, pid?, rid?, met? (JSON text)}   crt = <epoch seconds>   ttl
    PK = USR#<user>#UID               SK = UID#<event id>      tp = uid   at = <ms>   act = <action>    ttl

Users and plans. `GSI1` holds these only: it lists the plans, and the users of a plan, those without one under an empty
name. An e-mail or an API key has an item of its own, so that its key keeps it to one user, and finds that user by a
consistent read:

    PK = USR#<user>                   SK = META   tp = usr    dat = {plan?, rol, quo {action: quotas}, act, ids?}
    PK = PLAN#<plan>                  SK = META   tp = plan   dat = {action: quotas}
         quotas = "5/day; 100/month", or -1 for no limit   crt, upd = <epoch seconds>   ver = <number>
         GSI1PK = PLAN#<plan of the user>   GSI1SK = USR#<user>       GSI1PK = PLANS   GSI1SK = PLAN#<plan>
    PK = EMAIL#<e-mail>               SK = META   tp = idn    usr = <user>   crt
    PK = KEY#<digest, hexadecimal>    SK = META   tp = idn    usr = <user>   crt

How the regions of a table with replicas count, so that all processes do it alike:

    PK = REGIONS                      SK = META   tp = rgn    mod = home | sum | strong | split
         all = <regions, with commas>   shr = <their shares, with commas>, where they have some
         fov = on, where the users of a region may be moved

`GSI2` is made on request, for the timeline of an action across all users. It holds the events of actions that are to
have one, by action, UTC day, outcome (`A` allowed, `D` denied) and shard; no counter is ever on it:

    GSI2PK = ACT#<action>#<yyyymmdd>#<A or D><shard>   GSI2SK = <ms, 13 digits>#<digest of user and event id, 14 digits>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final, TypeAlias

from ratelimit.names import Key
from ratelimit.store.base import Position, Record, TimelinePlace
from ratelimit.store.directory import Identity, IdentityKind

Attribute: TypeAlias = Mapping[str, Any]
"""One value in DynamoDB's wire form: `{"N": "5"}`, `{"S": "lim"}`."""
Item: TypeAlias = Mapping[str, Attribute]

PK: Final = "PK"
SK: Final = "SK"
TYPE: Final = "tp"
TTL: Final = "ttl"
GSI1: Final = "GSI1"
GSI1PK: Final = "GSI1PK"
GSI1SK: Final = "GSI1SK"
GSI2: Final = "GSI2"
GSI2PK: Final = "GSI2PK"
GSI2SK: Final = "GSI2SK"

LIMIT_TYPE: Final = "lim"
STATE: Final = "STATE"
EVENT_TYPE: Final = "ulog"
ID_TYPE: Final = "uid"
DATA: Final = "dat"
CREATED: Final = "crt"
AT: Final = "at"
ACTION: Final = "act"
STATUS: Final = "sts"
RESOURCE: Final = "pid"
USER_TYPE: Final = "usr"
PLAN_TYPE: Final = "plan"
IDENTITY_TYPE: Final = "idn"
META: Final = "META"
UPDATED: Final = "upd"
VERSION: Final = "ver"
OWNER: Final = "usr"
ALL_PLANS: Final = "PLANS"
REGIONS: Final = "REGIONS"
REGIONS_TYPE: Final = "rgn"
MODE: Final = "mod"
ALL: Final = "all"
SHARES: Final = "shr"
FAILOVER: Final = "fov"

_IDENTITY_PREFIXES: Final[dict[IdentityKind, str]] = {"email": "EMAIL#", "api_key": "KEY#"}

NOT_FIELDS: Final = frozenset((PK, SK, TYPE, TTL, GSI1PK, GSI1SK))
"""Attributes of a limiter item that are no fields of its record."""

KeySchema: TypeAlias = tuple[tuple[str, str], ...]
"""Attributes, each with its part: `HASH` or `RANGE`. All of them are strings."""

KEY_SCHEMA: Final[KeySchema] = ((PK, "HASH"), (SK, "RANGE"))
INDEX_SCHEMAS: Final[Mapping[str, KeySchema]] = {
    GSI1: ((GSI1PK, "HASH"), (GSI1SK, "RANGE")),
    GSI2: ((GSI2PK, "HASH"), (GSI2SK, "RANGE")),
}
PROJECTION: Final = "ALL"


def escape(part: str) -> str:
    """Return a part of a key: `#` separates parts there, so it is written `%23`, and `%` is `%25`."""
    if "%" in part:
        part = part.replace("%", "%25")
    return part.replace("#", "%23") if "#" in part else part


def unescape(part: str) -> str:
    return part.replace("%23", "#").replace("%25", "%")


def limit_pk(key: Key) -> str:
    user, action = key
    pk = f"USR#{user}#LIM#{action}"
    if "%" in pk or pk.count("#") > 3:
        return f"USR#{escape(user)}#LIM#{escape(action)}"
    return pk


def item_key(pk: str, sk: str) -> dict[str, Attribute]:
    return {PK: {"S": pk}, SK: {"S": sk}}


def limit_key(key: Key) -> dict[str, Attribute]:
    return item_key(limit_pk(key), STATE)


def record_of(item: Item) -> Record:
    """Return the fields among an item's attributes. Raise `ValueError` for a number that is not whole."""
    return {name: int(value["N"]) for name, value in item.items() if name not in NOT_FIELDS and "N" in value}


def parse_limit_pk(pk: str) -> Key | None:
    match pk.split("#"):
        case ["USR", user, "LIM", action]:
            return Key(unescape(user), unescape(action))
    return None


def event_pk(user: str, day: date) -> str:
    return f"USR#{escape(user)}#ULOG#{day:%Y%m%d}"


def parse_event_pk(pk: str) -> str | None:
    match pk.split("#"):
        case ["USR", user, "ULOG", _]:
            return unescape(user)
    return None


def event_sk(position: Position) -> str:
    return f"{event_sk_bound(position.at)}#{escape(position.action)}#{escape(position.id)}"


def event_sk_bound(at: int) -> str:
    """Return what sorts before every event of this millisecond, and after all earlier ones."""
    return f"ULOG#{at:013}"


def parse_event_sk(sk: str) -> Position | None:
    match sk.split("#"):
        case ["ULOG", at, action, event_id] if at.isascii() and at.isdecimal():
            return Position(int(at), unescape(action), unescape(event_id))
    return None


def action_of_event_sk(sk: str) -> str:
    """Return the action in a sort key, also in one of an earlier layout."""
    return unescape([*sk.split("#"), "", ""][2])


TIMELINE_SHARDS: Final = 4
"""Partitions of an action's day and outcome: each takes 1,000 events a second, and a page asks all of them."""


def timeline_pk(action: str, day: date, allowed: bool, shard: int) -> str:
    return f"ACT#{escape(action)}#{day:%Y%m%d}#{'A' if allowed else 'D'}{shard}"


def timeline_sk(place: TimelinePlace) -> str:
    """Return what sorts as the place does; where `tie` is below 0, before all of its millisecond."""
    return f"{place.at:013}" if place.tie < 0 else f"{place.at:013}#{place.tie:014x}"


def parse_timeline_sk(sk: str) -> TimelinePlace:
    at, _, tie = sk.partition("#")
    return TimelinePlace(int(at), int(tie, 16))


def id_pk(user: str) -> str:
    return f"USR#{escape(user)}#UID"


def id_sk(event_id: str) -> str:
    return f"UID#{escape(event_id)}"


def user_pk(user: str) -> str:
    return f"USR#{escape(user)}"


def plan_pk(plan: str | None) -> str:
    """Return the partition key of a plan; in the index, where its users are, and for None those without a plan."""
    return f"PLAN#{escape(plan or '')}"


def identity_pk(identity: Identity) -> str:
    return _IDENTITY_PREFIXES[identity.kind] + escape(identity.value)


def parse_name(pk: str) -> str:
    return unescape(pk.partition("#")[2])


def table_definition(table: str, indexes: Sequence[str] = (GSI1,)) -> dict[str, Any]:
    """Return the `CreateTable` request: on-demand billing, sparse indexes; `GSI1` lists plans and their users."""
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": attribute_definitions(indexes),
        "KeySchema": _keys(KEY_SCHEMA),
        "GlobalSecondaryIndexes": [index_definition(name) for name in indexes],
    }


def index_definition(name: str) -> dict[str, Any]:
    return {"IndexName": name, "KeySchema": _keys(INDEX_SCHEMAS[name]), "Projection": {"ProjectionType": PROJECTION}}


def attribute_definitions(indexes: Sequence[str]) -> list[dict[str, str]]:
    schemas = (KEY_SCHEMA, *(INDEX_SCHEMAS[name] for name in indexes))
    return [{"AttributeName": name, "AttributeType": "S"} for schema in schemas for name, _ in schema]


def _keys(schema: KeySchema) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": kind} for name, kind in schema]

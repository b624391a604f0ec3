"""Users, plans and identities as items, and back: in wire form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from ratelimit.clock import SECOND
from ratelimit.dynamodb.schema import (
    ALL_PLANS,
    CREATED,
    DATA,
    GSI1PK,
    GSI1SK,
    IDENTITY_TYPE,
    META,
    OWNER,
    PK,
    PLAN_TYPE,
    SK,
    TYPE,
    UPDATED,
    USER_TYPE,
    VERSION,
    Attribute,
    Item,
    identity_pk,
    parse_name,
    plan_pk,
    user_pk,
)
from ratelimit.quota import Quotas, QuotasLike
from ratelimit.store.directory import Entry, Identity, Plan, UnreadableEntry, User

T = TypeVar("T", bound=Entry)

_PLAN: Final = "plan"
_ROLE: Final = "rol"
_QUOTAS: Final = "quo"
_ACTIVE: Final = "act"
_IDENTITIES: Final = "ids"
_UNLIMITED: Final = "-1"


def entry_key(kind: type[Any], name: str) -> dict[str, Attribute]:
    """The primary key of a user or a plan."""
    return {PK: {"S": user_pk(name) if kind is User else plan_pk(name)}, SK: {"S": META}}


def entry_values(entry: Entry, *, now: int, version: int) -> dict[str, Attribute]:
    """Every attribute of a user or a plan but its key and `crt`."""
    own = _user_values(entry) if isinstance(entry, User) else _plan_values(entry)
    return {**own, UPDATED: {"N": str(now // SECOND)}, VERSION: {"N": str(version)}}


def entry_of(kind: type[T], item: Item) -> T:
    """The user or plan that an item holds. Raises `UnreadableEntry`."""
    name = parse_name(item[PK]["S"])
    try:
        version = int(item[VERSION]["N"]) if VERSION in item else 0
        data = item[DATA]["M"]
        return cast(T, _user(name, data, version) if kind is User else Plan(name, _quotas(data), version=version))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        what = USER_TYPE if kind is User else PLAN_TYPE
        raise UnreadableEntry(f"the row of {what} {name!r} cannot be read: {error}; set it anew") from error


def identity_key(identity: Identity) -> dict[str, Attribute]:
    """The primary key of an identity."""
    return {PK: {"S": identity_pk(identity)}, SK: {"S": META}}


def identity_item(identity: Identity, user: str, *, now: int) -> dict[str, Attribute]:
    """Whose it is."""
    return {
        **identity_key(identity),
        TYPE: {"S": IDENTITY_TYPE},
        OWNER: {"S": user},
        CREATED: {"N": str(now // SECOND)},
    }


def _user_values(user: User) -> dict[str, Attribute]:
    data: dict[str, Attribute] = {
        _ROLE: {"S": user.role},
        _QUOTAS: {"M": _quota_values(user.quotas)},
        _ACTIVE: {"BOOL": user.active},
    }
    if user.plan is not None:
        data[_PLAN] = {"S": user.plan}
    if user.identities:
        data[_IDENTITIES] = {"L": [{"S": str(identity)} for identity in user.identities]}
    return {
        TYPE: {"S": USER_TYPE},
        DATA: {"M": data},
        GSI1PK: {"S": plan_pk(user.plan)},
        GSI1SK: {"S": user_pk(user.id)},
    }


def _plan_values(plan: Plan) -> dict[str, Attribute]:
    return {
        TYPE: {"S": PLAN_TYPE},
        DATA: {"M": _quota_values(plan.quotas)},
        GSI1PK: {"S": ALL_PLANS},
        GSI1SK: {"S": plan_pk(plan.name)},
    }


def _quota_values(quotas: Mapping[str, Quotas]) -> dict[str, Attribute]:
    return {
        action: {"S": "; ".join(map(str, several))} if several else {"N": _UNLIMITED}
        for action, several in quotas.items()
    }


def _user(name: str, data: Mapping[str, Any], version: int) -> User:
    """What is missing is as it is for a new user."""
    return User(
        name,
        plan=data[_PLAN]["S"] if _PLAN in data else None,
        quotas=_quotas(data[_QUOTAS]["M"]) if _QUOTAS in data else {},
        role=data[_ROLE]["S"] if _ROLE in data else "user",
        active=data[_ACTIVE]["BOOL"] if _ACTIVE in data else True,
        identities=[Identity.parse(text["S"]) for text in data[_IDENTITIES]["L"]] if _IDENTITIES in data else (),
        version=version,
    )


def _quotas(data: Mapping[str, Any]) -> dict[str, QuotasLike]:
    return {action: int(value["N"]) if "N" in value else value["S"] for action, value in data.items()}

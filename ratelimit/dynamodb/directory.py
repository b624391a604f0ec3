"""`DynamoDBDirectoryStore`: users and plans in the same table as the counters, changed in transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, cast
from uuid import uuid4

from ratelimit.clock import SECOND
from ratelimit.cursor import MAX_PAGE, Page, check_count
from ratelimit.dynamodb import schema
from ratelimit.dynamodb.calls import HARMLESS, ConditionFailed, TableCalls
from ratelimit.dynamodb.errors import PART_REFUSED, canceled
from ratelimit.dynamodb.schema import Attribute, Item
from ratelimit.quota import Quotas, QuotasLike
from ratelimit.store.directory import (
    Entry,
    Identity,
    IdentityTaken,
    Plan,
    UnreadableEntry,
    User,
    check_pair,
    decode_place,
    encode_place,
    name_of,
    next_version,
)

T = TypeVar("T", bound=Entry)

_PLAN: Final = "plan"
_ROLE: Final = "rol"
_QUOTAS: Final = "quo"
_ACTIVE: Final = "act"
_IDENTITIES: Final = "ids"
_UNLIMITED: Final = "-1"


def entry_key(kind: type[Any], name: str) -> dict[str, Attribute]:
    return schema.item_key(schema.user_pk(name) if kind is User else schema.plan_pk(name), schema.META)


def entry_values(entry: Entry, *, now: int, version: int) -> dict[str, Attribute]:
    own = _user_values(entry) if isinstance(entry, User) else _plan_values(entry)
    return {**own, schema.UPDATED: {"N": str(now // SECOND)}, schema.VERSION: {"N": str(version)}}


def entry_of(kind: type[T], item: Item) -> T:
    name = schema.parse_name(item[schema.PK]["S"])
    try:
        version = int(item[schema.VERSION]["N"]) if schema.VERSION in item else 0
        data = item[schema.DATA]["M"]
        return cast(T, _user(name, data, version) if kind is User else Plan(name, _quotas(data), version=version))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        what = schema.USER_TYPE if kind is User else schema.PLAN_TYPE
        raise UnreadableEntry(f"the row of {what} {name!r} cannot be read: {error}; set it anew") from error


def identity_key(identity: Identity) -> dict[str, Attribute]:
    return schema.item_key(schema.identity_pk(identity), schema.META)


def identity_item(identity: Identity, user: str, *, now: int) -> dict[str, Attribute]:
    return {
        **identity_key(identity),
        schema.TYPE: {"S": schema.IDENTITY_TYPE},
        schema.OWNER: {"S": user},
        schema.CREATED: {"N": str(now // SECOND)},
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
        schema.TYPE: {"S": schema.USER_TYPE},
        schema.DATA: {"M": data},
        schema.GSI1PK: {"S": schema.plan_pk(user.plan)},
        schema.GSI1SK: {"S": schema.user_pk(user.id)},
    }


def _plan_values(plan: Plan) -> dict[str, Attribute]:
    return {
        schema.TYPE: {"S": schema.PLAN_TYPE},
        schema.DATA: {"M": _quota_values(plan.quotas)},
        schema.GSI1PK: {"S": schema.ALL_PLANS},
        schema.GSI1SK: {"S": schema.plan_pk(plan.name)},
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


Change: TypeAlias = dict[str, dict[str, Any]]
"""One part of a transaction."""

_PLACE: Final = (schema.PK, schema.SK, schema.GSI1PK, schema.GSI1SK)


class DynamoDBDirectoryStore:
    """A `DirectoryStore` on the table of a `DynamoDBStore`: it opens and closes with that.

    One read finds a user by id, two by an identity. A change is one transaction: the user, and every identity that
    comes or goes.
    """

    def __init__(self, calls: TableCalls) -> None:
        self._calls = calls
        self._table = {"TableName": calls.table}

    async def read(self, kind: type[T], name: str) -> T | None:
        item = await self._get(entry_key(kind, name))
        return entry_of(kind, item) if item else None

    async def find(self, identity: Identity) -> str | None:
        item = await self._get(identity_key(identity))
        return str(item[schema.OWNER]["S"]) if schema.OWNER in item else None

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        check_count("limit", limit, MAX_PAGE)
        listing = f"{kind.__name__}:{plan or ''}"
        start: Item | None = None
        if cursor is not None:
            place = decode_place(cursor, listing, parts=len(_PLACE))
            start = {name: {"S": part} for name, part in zip(_PLACE, place, strict=True)}
        found: list[T] = []
        while len(found) < limit:
            items, start = await self._list(kind, plan, start, limit - len(found))
            found += (entry_of(kind, item) for item in items)
            if start is None:
                break
        rest = None if start is None else encode_place(listing, *(start[name]["S"] for name in _PLACE))
        return Page(tuple(found), rest)

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        entry = check_pair(old, new)
        before = old.identities if isinstance(old, User) else ()
        after = new.identities if isinstance(new, User) else ()
        come = [identity for identity in after if identity not in before]
        gone = [identity for identity in before if identity not in after]
        return await self._transact(
            [
                self._entry_change(old, new, now),
                *(self._take(identity, name_of(entry), now) for identity in come),
                *(self._release(identity, name_of(entry)) for identity in gone),
            ],
            come,
        )

    def _entry_change(self, old: Entry | None, new: Entry | None, now: int) -> Change:
        entry = check_pair(old, new)
        condition, values = _still(old)
        where = {**self._table, "Key": entry_key(type(entry), name_of(entry)), "ConditionExpression": condition}
        if new is None:
            return {"Delete": {**where, **({"ExpressionAttributeValues": values} if values else {})}}
        sets = entry_values(new, now=now, version=next_version(old, now))
        values |= {f":{name}": value for name, value in sets.items()}
        created = f"{schema.CREATED} = if_not_exists({schema.CREATED}, :{schema.UPDATED})"
        update = f"SET {', '.join([created, *(f'{name} = :{name}' for name in sets)])}"
        return {"Update": {**where, "UpdateExpression": update, "ExpressionAttributeValues": values}}

    def _take(self, identity: Identity, user: str, now: int) -> Change:
        return {"Put": {**self._table, "Item": identity_item(identity, user, now=now), **_nobody_elses(user)}}

    def _release(self, identity: Identity, user: str) -> Change:
        return {"Delete": {**self._table, "Key": identity_key(identity), **_nobody_elses(user)}}

    async def _transact(self, changes: list[Change], come: Sequence[Identity]) -> bool:
        # The token makes a second sending of a transaction that was executed a success, for ten minutes.
        request = {"TransactItems": changes, "ClientRequestToken": str(uuid4())}

        async def send() -> bool:
            try:
                await self._calls.send("TransactWriteItems", **request)
            except ConditionFailed as failed:
                return _verdict(
                    [reason.get("Code", "None") for reason in failed.response.get("CancellationReasons") or ()], come
                )
            return True

        return await self._calls.retry("TransactWriteItems", send, on=HARMLESS)

    async def _get(self, key: Item) -> Item:
        answer = await self._calls.run("GetItem", Key=key, ConsistentRead=True)
        return dict(answer.get("Item", {}))

    async def _list(
        self, kind: type[Any], plan: str | None, start: Item | None, limit: int
    ) -> tuple[list[Item], Item | None]:
        everybody = kind is User and plan is None
        request: dict[str, Any] = {"IndexName": schema.GSI1, "Limit": limit}
        if everybody:
            request |= {
                "FilterExpression": f"{schema.TYPE} = :type",
                "ExpressionAttributeValues": {":type": {"S": schema.USER_TYPE}},
            }
        else:
            place = schema.plan_pk(plan) if kind is User else schema.ALL_PLANS
            request |= {
                "KeyConditionExpression": f"{schema.GSI1PK} = :place",
                "ExpressionAttributeValues": {":place": {"S": place}},
            }

        return await self._calls.page("Scan" if everybody else "Query", start=start, **request)


def _verdict(codes: Sequence[str], come: Sequence[Identity]) -> bool:
    """Tell why a transaction was not executed: somebody was faster, somebody else has the identity, or others were at
    work on the same items just now. One code for each part."""
    entry, *identities = codes or ("None",)
    if entry == PART_REFUSED:
        return False
    for identity, code in zip(come, identities, strict=False):
        if code == PART_REFUSED:
            raise IdentityTaken(identity) from None
    if PART_REFUSED in identities:  # one to be released is not ours: what was read is out of date
        return False
    raise canceled(codes) from None


def _still(old: Entry | None) -> tuple[str, dict[str, Attribute]]:
    if old is None:
        return f"attribute_not_exists({schema.PK})", {}
    if old.version == 0:  # written by another program, without one
        return f"attribute_exists({schema.PK}) AND attribute_not_exists({schema.VERSION})", {}
    return f"{schema.VERSION} = :old", {":old": {"N": str(old.version)}}


def _nobody_elses(user: str) -> dict[str, Any]:
    return {
        "ConditionExpression": f"attribute_not_exists({schema.PK}) OR {schema.OWNER} = :user",
        "ExpressionAttributeValues": {":user": {"S": user}},
    }

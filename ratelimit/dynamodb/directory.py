"""`DynamoDBDirectoryStore`: users and plans in the same table as the counters, changed in transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, cast
from uuid import uuid4

from botocore.exceptions import ClientError

from ratelimit.clock import SECOND
from ratelimit.dynamodb.client import Client
from ratelimit.dynamodb.errors import AnswerLost, code_of, explained
from ratelimit.dynamodb.retries import HARMLESS, Retries
from ratelimit.dynamodb.schema import (
    ALL_PLANS,
    CREATED,
    DATA,
    GSI1,
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
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.errors import StoreMisconfigured, StoreThrottled
from ratelimit.quota import Quotas, QuotasLike
from ratelimit.store.directory import (
    Entry,
    Identity,
    IdentityTaken,
    Page,
    Plan,
    UnreadableEntry,
    User,
    check_limit,
    check_pair,
    decode_place,
    encode_place,
    name_of,
    next_version,
)

# Users, plans and identities as items, and back: in wire form.

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


Change: TypeAlias = dict[str, dict[str, Any]]
"""One part of a transaction."""

_CANCELLED: Final = "TransactionCanceledException"
_REFUSED: Final = "ConditionalCheckFailed"
_NOT_NOW: Final = ("TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded", "None")
_PLACE: Final = (PK, SK, GSI1PK, GSI1SK)


class DynamoDBDirectoryStore:
    """A `DirectoryStore` on the table of a `DynamoDBStore`, and on its connection: it opens and closes with that.

    One read finds a user by id, two by an identity. A change is one transaction: the user, and every identity that
    comes or goes.
    """

    def __init__(
        self, connection: Callable[[], Awaitable[Client]], settings: Settings, stats: Stats, retries: Retries
    ) -> None:
        self._connection = connection
        self._stats = stats
        self._retries = retries
        self._table = {"TableName": settings.table}
        self._constant: dict[str, str] = {"ReturnConsumedCapacity": "TOTAL"} if settings.consumed else {}

    async def read(self, kind: type[T], name: str) -> T | None:
        """See `DirectoryStore.read`."""
        item = await self._get(entry_key(kind, name))
        return entry_of(kind, item) if item else None

    async def find(self, identity: Identity) -> str | None:
        """See `DirectoryStore.find`."""
        item = await self._get(identity_key(identity))
        return str(item[OWNER]["S"]) if OWNER in item else None

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        """See `DirectoryStore.page`. All users are a scan of the index, which holds no counters and no events."""
        check_limit(limit)
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
        """See `DirectoryStore.replace`."""
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
        created = f"{CREATED} = if_not_exists({CREATED}, :{UPDATED})"
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
                await self._call("transact_write_items", request)
            except _Cancelled as cancelled:
                return _verdict(cancelled, come)
            return True

        return await self._retries.run("TransactWriteItems", send, on=HARMLESS)

    async def _get(self, key: Item) -> Item:
        request = {**self._table, "Key": key, "ConsistentRead": True}

        async def send() -> Item:
            answer: Item = (await self._call("get_item", request)).get("Item", {})
            return answer

        return await self._retries.run("GetItem", send, on=HARMLESS)

    async def _list(
        self, kind: type[Any], plan: str | None, start: Item | None, limit: int
    ) -> tuple[list[Item], Item | None]:
        everybody = kind is User and plan is None
        paging = {"Limit": limit} | ({} if start is None else {"ExclusiveStartKey": start})
        request: dict[str, Any] = {**self._table, "IndexName": GSI1, **paging}
        if everybody:
            request |= {"FilterExpression": f"{TYPE} = :type", "ExpressionAttributeValues": {":type": {"S": USER_TYPE}}}
        else:
            place = plan_pk(plan) if kind is User else ALL_PLANS
            request |= {
                "KeyConditionExpression": f"{GSI1PK} = :place",
                "ExpressionAttributeValues": {":place": {"S": place}},
            }

        async def send() -> dict[str, Any]:
            answer = await self._call("scan" if everybody else "query", request)
            if "Items" not in answer:
                raise AnswerLost(f"table {self._table['TableName']!r} answered a query without items")
            return answer

        answer = await self._retries.run("Scan" if everybody else "Query", send, on=HARMLESS)
        return answer["Items"], answer.get("LastEvaluatedKey") or None

    async def _call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        connection = await self._connection()
        method: Callable[..., Awaitable[dict[str, Any]]] = getattr(connection.client, operation)
        with explained(connection.place):
            try:
                answer = await method(**request, **self._constant)
            except ClientError as error:
                if code_of(error) != _CANCELLED:
                    raise
                raise _Cancelled(error.response.get("CancellationReasons") or ()) from None
        self._count_units(operation, answer)
        return answer

    def _count_units(self, operation: str, answer: Mapping[str, Any]) -> None:
        consumed = answer.get("ConsumedCapacity") or ()
        units = sum(part.get("CapacityUnits", 0.0) for part in ([consumed] if isinstance(consumed, dict) else consumed))
        if operation == "transact_write_items":
            self._stats.write_units += units
        else:
            self._stats.read_units += units


class _Cancelled(Exception):
    """A transaction was not executed; `codes` say why, one for each part of it."""

    def __init__(self, reasons: Sequence[Mapping[str, Any]]) -> None:
        self.codes = [reason.get("Code", "None") for reason in reasons]
        super().__init__(", ".join(self.codes))


def _verdict(cancelled: _Cancelled, come: Sequence[Identity]) -> bool:
    """Somebody was faster, somebody else has the identity, or others were at work on the same items just now."""
    entry, *identities = cancelled.codes or ("None",)
    if entry == _REFUSED:
        return False
    for identity, code in zip(come, identities, strict=False):
        if code == _REFUSED:
            raise IdentityTaken(identity) from None
    if _REFUSED in identities:  # one to be released is not ours: what was read is out of date
        return False
    error = StoreThrottled if all(code in _NOT_NOW for code in cancelled.codes) else StoreMisconfigured
    raise error(f"the change was not made ({cancelled}); nothing was written") from None


def _still(old: Entry | None) -> tuple[str, dict[str, Attribute]]:
    """The condition that what is there is what was read."""
    if old is None:
        return f"attribute_not_exists({PK})", {}
    if old.version == 0:  # written by another program, without one
        return f"attribute_exists({PK}) AND attribute_not_exists({VERSION})", {}
    return f"{VERSION} = :old", {":old": {"N": str(old.version)}}


def _nobody_elses(user: str) -> dict[str, Any]:
    return {
        "ConditionExpression": f"attribute_not_exists({PK}) OR {OWNER} = :user",
        "ExpressionAttributeValues": {":user": {"S": user}},
    }

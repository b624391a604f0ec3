"""`RawTable`: items of a table as they are, for what the stores have no question for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from ratelimit.cursor import decode_cursor, encode_cursor
from ratelimit.dynamodb.calls import HARMLESS, Retries, Stats
from ratelimit.dynamodb.client import Client, connect
from ratelimit.dynamodb.errors import AnswerLost, code_of, explained
from ratelimit.dynamodb.schema import Item
from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import StoreThrottled, StoreUnavailable

_KEYS_AT_ONCE: Final = 100
"""DynamoDB's bound for one `BatchGetItem`."""


class RawTable:
    """Reads, save for the two that delete. Every method raises `StoreUnavailable`'s subclasses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._retries = Retries(max(5, settings.attempts), Stats())
        self._connection: Client | None = None

    async def open(self) -> None:
        """Sends nothing yet."""
        if self._connection is None:
            self._connection = await connect(self.settings)

    async def close(self) -> None:
        """Harmless when closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def description(self) -> Mapping[str, Any]:
        """What `DescribeTable` says."""
        answer = await self._call("describe_table", TableName=self.settings.table)
        return dict(answer.get("Table") or {})

    async def scan(self, *, limit: int, after: str | None = None) -> tuple[Sequence[Item], str | None]:
        """Some items in the table's own order, and where the rest begins. The keys are `PK` and `SK`."""
        request: dict[str, Any] = {"TableName": self.settings.table, "Limit": limit, "ConsistentRead": True}
        if after is not None:
            pk, sk = decode_cursor(after, tuple[str, str])
            request["ExclusiveStartKey"] = {"PK": {"S": pk}, "SK": {"S": sk}}
        answer = await self._call("scan", **request)
        if "Items" not in answer:
            raise AnswerLost(f"table {self.settings.table!r} answered a scan without items")
        last = answer.get("LastEvaluatedKey")
        return answer["Items"], encode_cursor((last["PK"]["S"], last["SK"]["S"])) if last else None

    async def present(self, keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which of these primary keys have an item: half a read unit each, or one where it is larger than 4 KB."""
        parts = [keys[start : start + _KEYS_AT_ONCE] for start in range(0, len(keys), _KEYS_AT_ONCE)]
        found: set[tuple[str, str]] = set()
        for each in await asyncio.gather(*map(self._present, parts)):
            found |= each
        return found

    async def delete(self, keys: Sequence[tuple[str, str]]) -> None:
        """Delete the items of these primary keys, at most 25. Harmless when repeated."""
        table = self.settings.table
        left: list[Any] = [{"DeleteRequest": {"Key": {"PK": {"S": pk}, "SK": {"S": sk}}}} for pk, sk in keys]

        async def send() -> None:
            nonlocal left
            answer = await self._send("batch_write_item", RequestItems={table: left})
            if "UnprocessedItems" not in answer:
                raise AnswerLost(f"table {table!r} answered a batch without a word on what is left of it")
            left = answer["UnprocessedItems"].get(table, [])
            if left:
                raise StoreThrottled(f"table {table!r} is throttled: {len(left)} items were not deleted")

        await self._retries.run("BatchWriteItem", send, on=HARMLESS)

    async def delete_if(self, key: Item, *, equal: Mapping[str, int], absent: Sequence[str]) -> bool:
        """Delete an item whose numbers are still these, and in which none of the others has come; whether it was so."""
        names = {f"#n{at}": name for at, name in enumerate((*equal, *absent))}
        still = [f"#n{at} = :v{at}" for at in range(len(equal))]
        still += [f"attribute_not_exists(#n{at})" for at in range(len(equal), len(names))]
        values = {f":v{at}": {"N": str(value)} for at, value in enumerate(equal.values())}
        try:
            await self._send(
                "delete_item", TableName=self.settings.table, Key=key, ConditionExpression=" AND ".join(still),
                ExpressionAttributeNames=names, ExpressionAttributeValues=values,
            )  # fmt: skip
        except StoreUnavailable as error:
            if error.__cause__ is None or code_of(error.__cause__) != "ConditionalCheckFailedException":
                raise
            return False
        return True

    async def _present(self, keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        left: list[Any] = [{"PK": {"S": pk}, "SK": {"S": sk}} for pk, sk in keys]
        found: set[tuple[str, str]] = set()
        table = self.settings.table

        async def send() -> None:
            nonlocal left
            asked = {table: {"Keys": left, "ProjectionExpression": "PK, SK"}}
            answer = await self._send("batch_get_item", RequestItems=asked)
            if "Responses" not in answer:
                raise AnswerLost(f"table {table!r} answered a batch without responses")
            found.update((item["PK"]["S"], item["SK"]["S"]) for item in answer["Responses"].get(table, ()))
            left = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
            if left:
                raise StoreThrottled(f"table {table!r} is throttled: {len(left)} items were not read")

        await self._retries.run("BatchGetItem", send, on=HARMLESS)
        return found

    async def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        return await self._retries.run(operation, lambda: self._send(operation, **request), on=HARMLESS)

    async def _send(self, operation: str, **request: Any) -> dict[str, Any]:
        assert self._connection is not None
        with explained(self._connection.place):
            answer: dict[str, Any] = await getattr(self._connection.api, operation)(**request)
        return answer

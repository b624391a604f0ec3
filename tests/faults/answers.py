"""The good answers: one table in a dict, its updates applied and its conditions taken for granted.

Not an engine: a server that refuses the fourth of three is ministack or DynamoDB Local.
"""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

_CLAUSE = re.compile(r"(SET|ADD|REMOVE) (.*?)(?= (?:SET|ADD|REMOVE) |$)")


class TinyTable:
    """Answers an operation as DynamoDB would on a good day."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Json] = {}

    def answer(self, operation: str, body: Json) -> Json:
        """The answer's JSON; empty for whatever it does not know."""
        match operation:
            case "DescribeTable":
                return {"Table": _describe(body["TableName"])}
            case "UpdateItem":
                return self._update(body)
            case "GetItem":
                item = self.items.get(_key(body))
                return {} if item is None else {"Item": {**body["Key"], **item}}
            case "DeleteItem":
                self.items.pop(_key(body), None)
            case "BatchWriteItem":
                return self._batch(body)
        return {}

    def _batch(self, body: Json) -> Json:
        for requests in body["RequestItems"].values():
            for request in requests:
                item = dict(request["PutRequest"]["Item"])
                self.items[item.pop("PK")["S"], item.pop("SK")["S"]] = item
        return {"UnprocessedItems": {}}

    def _update(self, body: Json) -> Json:
        item = self.items.setdefault(_key(body), {})
        names, values = body["ExpressionAttributeNames"], body["ExpressionAttributeValues"]
        touched: Json = {}
        for verb, parts in _CLAUSE.findall(body["UpdateExpression"]):
            for part in parts.split(", "):
                words = part.split()
                name = names[words[0]]
                if verb == "REMOVE":
                    item.pop(name, None)
                    continue
                value = values[words[-1]]
                if verb == "ADD":
                    value = {"N": str(int(item.get(name, {"N": "0"})["N"]) + int(value["N"]))}
                item[name] = touched[name] = value
        return {"Attributes": {**body["Key"], **item} if body["ReturnValues"] == "ALL_NEW" else touched}


def _key(body: Json) -> tuple[str, str]:
    return body["Key"]["PK"]["S"], body["Key"]["SK"]["S"]


def _describe(table: str) -> Json:
    return {
        "TableName": table,
        "TableStatus": "ACTIVE",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("PK", "SK")],
        "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
    }

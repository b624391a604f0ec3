"""A `Write` as DynamoDB's expressions, in wire form: the one place that speaks that language.

    Add(f, n)             ADD f n
    Add(f, n, at_most=m)  the same, if  attribute_not_exists(f) OR f <= m - n
    Put(f, v)             SET f = v
    Drop(f)               REMOVE f
    Expect(f, lo, hi)     if  f >= lo AND f <= hi

`tp` and `ttl` are set with every write, so an applied update always answers with attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from ratelimit.dynamodb.schema import LIMIT_TYPE, NOT_FIELDS, TTL, TYPE, Attribute
from ratelimit.store.base import Add, Drop, Expect, Op, Put, Write

Update: TypeAlias = Mapping[str, Any]
"""The parameters of an `UpdateItem` that do not depend on the key."""


def encode(write: Write) -> Update:
    draft = _Draft()
    draft.set(TYPE, {"S": LIMIT_TYPE})
    draft.set(TTL, number(write.expires_at))
    for op in write.ops:
        draft.take(op)
    return draft.update(whole=write.whole)


def part_of_transaction(write: Write) -> Update:
    """Return the parameters of an `Update` in a `TransactWriteItems`, which answers with no attributes."""
    return {name: value for name, value in encode(write).items() if name != "ReturnValues"}


def number(value: int) -> Attribute:
    return {"N": str(value)}


class _Draft:
    __slots__ = ("_changed", "_conditions", "_names", "_values", "adds", "removes", "sets")

    def __init__(self) -> None:
        self.sets: list[str] = []
        self.adds: list[str] = []
        self.removes: list[str] = []
        self._conditions: list[str] = []
        self._names: dict[str, str] = {}
        self._values: dict[str, Attribute] = {}
        self._changed: set[str] = set()

    def take(self, op: Op) -> None:
        if op.field in NOT_FIELDS:
            raise ValueError(f"{op.field!r} is not a field of a record")
        if type(op) is Expect:
            self._expect(op)
            return
        if type(op) is Put:
            self.set(op.field, number(op.value))
            return
        name = self._change(op.field)
        if type(op) is Drop:
            self.removes.append(name)
        elif type(op) is Add:
            self.adds.append(f"{name} {self._value(number(op.amount))}")
            if op.at_most is not None:
                self._room(name, op.amount, op.at_most)

    def set(self, field: str, value: Attribute) -> None:
        self.sets.append(f"{self._change(field)} = {self._value(value)}")

    def update(self, *, whole: bool) -> Update:
        clauses = [
            f"{verb} {', '.join(parts)}"
            for verb, parts in (("SET", self.sets), ("ADD", self.adds), ("REMOVE", self.removes))
            if parts
        ]
        update: dict[str, Any] = {
            "UpdateExpression": " ".join(clauses),
            "ExpressionAttributeNames": {placeholder: name for name, placeholder in self._names.items()},
            "ExpressionAttributeValues": self._values,
            "ReturnValues": "ALL_NEW" if whole else "UPDATED_NEW",
        }
        if self._conditions:
            update["ConditionExpression"] = " AND ".join(self._conditions)
            update["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        return update

    def _room(self, name: str, amount: int, at_most: int) -> None:
        fits = f"{name} <= {self._value(number(at_most - amount))}"
        # A missing field counts as 0: an amount above `at_most` does not fit there either.
        self._conditions.append(f"(attribute_not_exists({name}) OR {fits})" if amount <= at_most else fits)

    def _expect(self, op: Expect) -> None:
        if op.low is None and op.high is None and op.or_missing:
            return
        name = self._name(op.field)
        bounds = []
        if op.low is not None and op.low == op.high:
            bounds.append(f"{name} = {self._value(number(op.low))}")
        else:
            # Not BETWEEN: DynamoDB calls that invalid where low > high, and here it means "only if missing".
            if op.low is not None:
                bounds.append(f"{name} >= {self._value(number(op.low))}")
            if op.high is not None:
                bounds.append(f"{name} <= {self._value(number(op.high))}")
        if not bounds:
            bounds.append(f"attribute_exists({name})")
        if not op.or_missing:
            self._conditions.extend(bounds)
            return
        inner = bounds[0] if len(bounds) == 1 else f"({' AND '.join(bounds)})"
        self._conditions.append(f"(attribute_not_exists({name}) OR {inner})")

    def _change(self, field: str) -> str:
        if field in self._changed:
            raise ValueError(f"the field {field!r} is changed twice in one write")
        self._changed.add(field)
        return self._name(field)

    def _name(self, field: str) -> str:
        return self._names.setdefault(field, f"#f{len(self._names)}")

    def _value(self, value: Attribute) -> str:
        placeholder = f":v{len(self._values)}"
        self._values[placeholder] = value
        return placeholder

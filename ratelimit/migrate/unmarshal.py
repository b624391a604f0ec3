"""Items from DynamoDB's wire form to plain values: whole numbers as `int`, others as `float`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratelimit.dynamodb.schema import Attribute, Item


def unmarshal(item: Item) -> dict[str, Any]:
    """All attributes by name."""
    return {name: _value(attribute) for name, attribute in item.items()}


def _value(attribute: Attribute) -> Any:
    ((kind, value),) = attribute.items()
    if kind == "N":
        return _number(value)
    if kind == "M":
        return _map(value)
    if kind == "L":
        return [_value(each) for each in value]
    if kind == "NS":
        return [_number(each) for each in value]
    return None if kind == "NULL" else value


def _map(value: Mapping[str, Attribute]) -> dict[str, Any]:
    return {name: _value(each) for name, each in value.items()}


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return int(number) if number.is_integer() else number

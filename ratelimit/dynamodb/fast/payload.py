"""The JSON of an `UpdateItem`, made without making it: a known write costs one concatenation, a known shape one `%`.

The partition key comes last, so that everything before it is one constant for every user:

    {"TableName":"t","UpdateExpression":"...","ExpressionAttributeValues":{":v1":{"N":"5"}},"Key":{...,"PK":{"S":"USR#
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from msgspec.json import encode as to_json

from ratelimit.dynamodb.expressions import encode
from ratelimit.dynamodb.schema import PK, SK, STATE
from ratelimit.store.write import Add, Drop, Expect, Put, Write

Shape: TypeAlias = tuple[object, ...]
"""All of a write that decides what its expressions look like: everything but the numbers."""

_KEPT: Final = 512
_VALUES: Final = "ExpressionAttributeValues"
_KEY: Final = f',"Key":{{"{SK}":{{"S":"{STATE}"}},"{PK}":{{"S":'.encode()
_END: Final = b"}}}"


class Bodies:
    """Bodies of the updates of one table. Keeps what writes of late looked like, and templates of their shapes."""

    __slots__ = ("_constant", "_known", "_limit", "_templates")

    def __init__(self, constant: Mapping[str, str], *, limit: int = _KEPT) -> None:
        """`constant` are the parameters that every request carries: the table, and whether to report capacity."""
        self._constant = constant
        self._limit = limit
        self._known: OrderedDict[Write, bytes] = OrderedDict()
        self._templates: dict[Shape, bytes] = {}

    def body(self, pk: str, write: Write) -> bytes:
        """The body of one request."""
        known = self._known.get(write)
        if known is None:
            known = self._remember(write)
        return known + to_json(pk) + _END

    def _remember(self, write: Write) -> bytes:
        """First in, first out: a write in constant use that has to go costs one more look at its template."""
        shape, numbers = shape_of(write)
        template = self._templates.get(shape)
        if template is None:
            if len(self._templates) >= self._limit:
                self._templates.clear()
            template = self._templates[shape] = self._template(write, numbers)
        if len(self._known) >= self._limit:
            self._known.popitem(last=False)
        known = self._known[write] = template % tuple(numbers)
        return known

    def _template(self, write: Write, numbers: list[int]) -> bytes:
        update = encode(write)
        values: Mapping[str, Mapping[str, Any]] = update[_VALUES]
        found = [int(value["N"]) for value in values.values() if "N" in value]
        if found != numbers:
            raise AssertionError(f"expressions and payload disagree about {write}: {found}, {numbers}")
        blanks = {name: {"N": "\0"} if "N" in value else value for name, value in values.items()}
        text = to_json({**self._constant, **update, _VALUES: blanks})[:-1] + _KEY
        return text.replace(b"%", b"%%").replace(rb'"\u0000"', b'"%d"')


def shape_of(write: Write) -> tuple[Shape, list[int]]:
    """The shape, and the numbers in the order in which `expressions` hands out placeholders for them."""
    shape: list[object] = [write.whole]
    numbers = [write.expires_at]
    for op in write.ops:
        if type(op) is Add:
            numbers.append(op.amount)
            if op.at_most is None:
                shape += (op.field, "+")
            else:
                numbers.append(op.at_most - op.amount)
                shape += (op.field, "+<" if op.amount <= op.at_most else "+!")
        elif type(op) is Expect:
            shape += (op.field, _bounds(op, numbers))
        elif type(op) is Put:
            numbers.append(op.value)
            shape += (op.field, "=")
        elif type(op) is Drop:
            shape += (op.field, "-")
    return tuple(shape), numbers


def _bounds(op: Expect, numbers: list[int]) -> tuple[str, bool]:
    if op.low is not None and op.low == op.high:
        numbers.append(op.low)
        return "==", op.or_missing
    kind = "?"
    if op.low is not None:
        numbers.append(op.low)
        kind += ">"
    if op.high is not None:
        numbers.append(op.high)
        kind += "<"
    return kind, op.or_missing

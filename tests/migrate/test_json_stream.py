"""A document read piece by piece says what it says as a whole."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.errors import InvalidInput
from ratelimit.migrate import json_stream
from ratelimit.migrate.json_stream import JsonStream, UnreadableJson

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def all_of(stream: JsonStream) -> list[tuple[str | None, Any]]:
    return [(key, stream.value()) for key in stream.elements()]


class Drops(io.StringIO):
    """Gives three characters at a time."""

    def read(self, size: int | None = -1, /) -> str:
        return super().read(3)


@given(st.lists(VALUES) | st.dictionaries(st.text(), VALUES), st.sampled_from([None, 2]))
def test_elements_one_by_one(document: Any, indent: int | None) -> None:
    stream = JsonStream(Drops(json.dumps(document, indent=indent)))
    assert all_of(stream) == (
        list(document.items()) if isinstance(document, dict) else [(None, each) for each in document]
    )


@pytest.mark.parametrize("text", ["", "[1", "[1,]", '{"a" 1}', "{1: 2}", '"text"', "[1 2]", "[tru]", '{"a": [}'])
def test_what_is_no_document(text: str) -> None:
    with pytest.raises(InvalidInput, match="not JSON"):
        all_of(JsonStream(io.StringIO(text)))


def test_an_element_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 100)
    monkeypatch.setattr(json_stream, "_CHUNK", 10)
    stream = JsonStream(io.StringIO(json.dumps(["x" * 1000])))
    with pytest.raises(UnreadableJson, match="longer than 100 characters"):
        all_of(stream)


@pytest.mark.slow
@given(st.lists(VALUES, min_size=1), st.integers(0, 5), st.booleans())
def test_an_element_that_is_too_much_is_passed(document: list[Any], at: int, is_object: bool) -> None:
    """Whatever it holds, and wherever the reading of the file stops in it."""
    at = min(at, len(document) - 1)
    elements = [json.dumps(value) for value in document]
    elements[at] = f'{{"": ["{chr(92) * 2}", {json.dumps(document)}, {"9" * 5000}]}}'
    keyed = [f'"{number}": {text}' for number, text in enumerate(elements)]
    stream = JsonStream(Drops("{" + ",".join(keyed) + "}" if is_object else "[" + ",".join(elements) + "]"))
    for number, _ in enumerate(stream.elements()):
        if number == at:
            with pytest.raises(UnreadableJson, match="cannot be read"):
                stream.value()
        else:
            assert stream.value() == document[number]
    stream.end()


@pytest.mark.parametrize("text", ["[1] [2]", "[]]", '{"a": 1} oops', "[1]x"])
def test_nothing_may_come_behind_a_document(text: str) -> None:
    stream = JsonStream(io.StringIO(text))
    all_of(stream)
    with pytest.raises(InvalidInput, match="the end was expected"):
        stream.end()

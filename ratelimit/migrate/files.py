"""`FileSource`: JSON (a list, an object keyed by id, or both under names of tables) and JSON lines, a file or a folder.

A file is about what its name says (`usage_log.json`, `users.jsonl`), or what its sections say (`{"users": [...],
"usage_log": {...}}`), or what the only `--entity` says. Of several that are about the same, all are read. That is done
from the beginning in every run: going on skips what was done, and rows without a key are counted alike.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from ratelimit.errors import InvalidInput
from ratelimit.migrate.convert import Converter
from ratelimit.migrate.json_stream import MAX_ELEMENT, JsonStream, Unreadable
from ratelimit.migrate.nth import Nth
from ratelimit.migrate.rows import Batch, Entity, Read
from ratelimit.usage.lines import read_lines

_LINES: Final = (".jsonl", ".ndjson")
_SUFFIXES: Final = (*_LINES, ".json")
_MOST_SECTIONS: Final = 20
_KINDS: Final[tuple[Entity, ...]] = ("plans", "users", "events")


class _Place(NamedTuple):
    """Where an entity is: the file, and the section in it; None for all of it."""

    path: Path
    section: str | None


class _Row(NamedTuple):
    where: str
    fields: dict[str, Any]
    problem: str
    text: str
    done: int


class FileSource:
    """A file, or a folder of them. `only` is the entity that a file is about whose name does not say it."""

    keyed = False
    totals = False

    def __init__(self, path: Path, converter: Converter, *, only: Entity | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._converter = converter
        self._only = only
        self._places: dict[Entity, list[_Place]] = {}
        self._ignored: list[str] = []

    async def open(self) -> None:
        """See `Source.open`. Raises `InvalidInput` where nothing in it is known."""
        await asyncio.to_thread(self._look)
        if not self._places:
            raise InvalidInput(
                f"{self._path} says nowhere what it holds; name it usage_log.json, users.json or "
                "subscription_plan.json, or say --entity events"
            )

    async def entities(self) -> Sequence[Entity]:
        """See `Source.entities`."""
        found = [kind for kind in _KINDS if kind in self._places]
        return [*found, "counters"] if "events" in found else found

    async def size(self, entity: Entity) -> int | None:
        """See `Source.size`: bytes."""
        return sum(place.path.stat().st_size for place in self._places_of(entity))

    async def batches(self, entity: Entity, *, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        """See `Source.batches`."""
        rows = self._rows(entity)
        count, nth = int(after or 0), Nth()
        try:
            await asyncio.to_thread(self._pass, entity, islice(rows, count), nth)
            while page := await asyncio.to_thread(lambda: list(islice(rows, size))):
                count += len(page)
                yield Batch([self._read(entity, row, nth) for row in page], str(count), page[-1].done)
        finally:
            rows.close()

    async def notes(self) -> Sequence[str]:
        """See `Source.notes`."""
        return [f"left alone, as they hold no usage: {', '.join(self._ignored)}"] if self._ignored else []

    async def close(self) -> None:
        """See `Source.close`."""

    @property
    def files(self) -> Sequence[Path]:
        """See `Source.files`."""
        return tuple(dict.fromkeys(place.path for places in self._places.values() for place in places))

    def stamp(self) -> str:
        """See `Source.stamp`."""
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return json.dumps(found)

    def _read(self, entity: Entity, row: _Row, nth: Nth) -> Read:
        if row.problem:
            return Read(row.where, None, row.problem, row.text)
        return self._converter.read(entity, row.where, row.fields, nth=self._nth(entity, row, nth))

    def _pass(self, entity: Entity, rows: Iterable[_Row], nth: Nth) -> None:
        for row in rows:
            self._nth(entity, row, nth)

    def _nth(self, entity: Entity, row: _Row, nth: Nth) -> int:
        is_counted = entity in ("events", "counters") and self._converter.key(row.fields) is None
        return nth.of(row.fields) if is_counted else 0

    def _places_of(self, entity: Entity) -> Sequence[_Place]:
        """Counters are counted from the events."""
        entity = "events" if entity == "counters" else entity
        if entity not in self._places:
            raise InvalidInput(f"{self.name} holds no {entity}")
        return self._places[entity]

    def _look(self) -> None:
        """Which entity is where."""
        if not self._path.is_dir():
            self._place_file(self._path, self._only or self._kind_of(self._path.stem))
            return
        for path in sorted(self._path.iterdir()):
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                self._place_file(path, self._kind_of(path.stem))

    def _place_file(self, path: Path, kind: Entity | None) -> None:
        if sections := _sections(path, self._kind_of):
            for section, of in sections.items():
                if of is None:
                    self._ignored.append(section)
                else:
                    self._places.setdefault(of, []).append(_Place(path, section))
        elif kind is not None:
            self._places.setdefault(kind, []).append(_Place(path, None))
        else:
            self._ignored.append(path.name)

    def _kind_of(self, name: str) -> Entity | None:
        mapping = self._converter.mapping
        tables = {"plans": mapping.plans.table, "users": mapping.users.table, "events": mapping.events.table}
        return next((kind for kind in _KINDS if name.lower() in tables[kind]), None)

    def _rows(self, entity: Entity) -> Generator[_Row, None, None]:
        before = 0
        for place in self._places_of(entity):
            for row in _lines(place.path) if _is_lines(place.path) else _elements(place):
                yield row._replace(done=before + row.done)
            before += place.path.stat().st_size


def _is_lines(path: Path) -> bool:
    """By its suffix; a `.json` that begins with one whole object in a line, and has more of them, is lines too."""
    if path.suffix.lower() in _LINES:
        return True
    with path.open("rb") as file:
        first, second = file.readline(MAX_ELEMENT), file.readline(MAX_ELEMENT)
    try:
        return bool(second.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Generator[_Row, None, None]:
    for line in read_lines(path, "jsonl", longest=MAX_ELEMENT):
        yield _Row(f"{path.name} line {line.number}", line.fields, line.problem, line.text, line.end)


def _elements(place: _Place) -> Generator[_Row, None, None]:
    with place.path.open(encoding="utf-8-sig", errors="strict") as file:
        stream = JsonStream(file)
        try:
            yield from _in_section(place, stream)
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{place.path} is not UTF-8: {error.reason}") from None
        except InvalidInput as error:
            raise InvalidInput(f"{place.path}: {error}") from None


def _in_section(place: _Place, stream: JsonStream) -> Generator[_Row, None, None]:
    if place.section is None:
        yield from _records(place.path.name, stream)
        stream.end()
        return
    for name in stream.elements():
        if name == place.section:
            yield from _records(f"{place.path.name} {name}", stream)
            return  # nothing behind it is of any concern
        stream.skip()


def _records(where: str, stream: JsonStream) -> Generator[_Row, None, None]:
    """The elements of a list, or of an object whose keys are the ids."""
    for number, key in enumerate(stream.elements(), 1):
        here = f"{where} [{number}]" if key is None else f"{where} {key!r}"
        try:
            value = stream.value()
        except Unreadable as error:
            yield _Row(here, {}, str(error), "", stream.done)
            continue
        if not isinstance(value, dict):
            yield _Row(here, {}, "is no JSON object", json.dumps(value)[:1000], stream.done)
        else:
            yield _Row(here, value if key is None else {"id": key, **value}, "", "", stream.done)


def _sections(path: Path, kind_of: Callable[[str], Entity | None]) -> dict[str, Entity | None]:
    """The sections of a document, each with what it holds; empty where it has none that is known."""
    if _is_lines(path):
        return {}
    found: dict[str, Entity | None] = {}
    with path.open(encoding="utf-8-sig") as file:
        stream = JsonStream(file)
        try:
            if stream.peek() != "{":
                return {}
            for name in stream.elements():
                found[str(name)] = kind_of(str(name))
                if len(found) >= _MOST_SECTIONS and not any(found.values()):
                    return {}  # keyed by ids, then
                stream.skip()
            stream.end()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{path} is not UTF-8: {error.reason}") from None
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None
    return found if any(found.values()) else {}

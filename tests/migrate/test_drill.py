"""From every kind of source: dry run, run, `kill -9` in the middle, resume, verify: all rows once, counters right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import Engine
from tests.migrate.drill import drilled
from tests.migrate.servers import NotInstalled, is_required
from tests.migrate.world import World

# Some six processes one after the other, on a machine that may be ten times slower.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "postgresql", "jsonl", "earlier"])
def test_a_killed_migration_ends_as_if_it_had_not_been(kind: str, engine: Engine, tmp_path: Path) -> None:
    world = World(users=40, rows=900)
    try:
        with drilled(kind, world, engine, tmp_path, slowly=("--rate", "300", "--batch-size", "100")) as drill:
            before = _bytes_of(tmp_path)
            figures = drill.all()
            assert _bytes_of(tmp_path) == before, "the source was changed"
    except NotInstalled as error:
        if is_required():
            raise
        pytest.skip(str(error))
    assert 300 <= figures.killed_at < 900
    assert figures.resumed["counts"]["events"]["read"] == 900
    for name, mb in figures.grown.items():
        assert mb < 100, name


def _bytes_of(folder: Path) -> dict[str, bytes]:
    """The source's files: not what a migration puts beside them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files if ".backup-" not in path.name and "work" not in path.parts}

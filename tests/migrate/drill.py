"""The whole drill, from one source: dry run, run, `kill -9` in the middle, resume, verify. With the figures it took.

    python -m tests.migrate.drill mariadb --rows 200000 --users 5000

Every step is the command itself, as a process of its own. What comes of it is not asked of the command alone: all that
the table holds is read and compared with the world that the source was made from.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from ratelimit.dynamodb import DynamoDBStore, create_table, parse_url
from ratelimit.migrate import migration_settings
from tests.engines import Engine, choose, isolate, start
from tests.migrate.legacy_table import fill
from tests.migrate.servers import new_database, running
from tests.migrate.sources import earlier_items, to_json, to_jsonl, to_sql, to_sqlite
from tests.migrate.world import World

KINDS = ("sqlite", "mariadb", "postgresql", "json", "jsonl", "earlier")
PATIENCE = 3600.0
ROOT = Path(__file__).parents[2]


@dataclass
class Figures:
    """What a drill took."""

    seconds: dict[str, float] = field(default_factory=dict)
    grown: dict[str, float] = field(default_factory=dict)
    """Megabytes of memory, from the beginning of the work to its peak."""
    killed_at: int = 0
    """Events that were written then."""
    written: int = 0
    resumed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drill:
    """One source, one table, one folder to work in."""

    world: World
    source: str
    store: str
    folder: Path
    email_users: bool = False
    slowly: tuple[str, ...] = ()
    """Options of the run that is killed: a small world is over too soon."""

    def all(self) -> Figures:
        """Raises `AssertionError` where anything is not as it should be."""
        figures = Figures()
        asyncio.run(_make(self.store))
        forecast = self._command("dry run", figures, "migrate", self.source, "--dry-run")
        assert forecast["counts"]["events"]["written"] == self.world.rows, forecast
        assert not list(self.folder.glob("*.checkpoint"))
        figures.killed_at = self._killed_in_the_middle()
        done = figures.resumed = self._command("resumed run", figures, "migrate", self.source)
        events = done["counts"]["events"]
        figures.written = events["written"]
        assert events["written"] + events["there"] == self.world.rows, events
        assert not list(self.folder.glob("*.checkpoint"))
        verdict = self._command("verify", figures, "migrate", "verify", self.source)
        assert verdict["entities"]["events"]["target"] == self.world.rows, verdict
        asyncio.run(self._holds())
        return figures

    def paced(self, rate: int) -> float:
        """Write units a second that a run with `--rate` takes, from its first checkpoint of events to its last."""
        asyncio.run(_make(self.store))
        seen: list[tuple[float, float]] = []
        with self.start("migrate", self.source, "--rate", str(rate), "--batch-size", "100") as process:
            while process.poll() is None:
                units = self._units()
                if units and (not seen or units != seen[-1][1]):
                    seen.append((time.monotonic(), units))
                time.sleep(0.005)
        assert process.returncode == 0
        (began, first), (ended, last) = seen[0], seen[-1]
        return (last - first) / (ended - began)

    def _units(self) -> float:
        for file in self.folder.glob("*.checkpoint"):
            with suppress(OSError, ValueError):
                found = json.loads(file.read_text())
                return float(found["units"]) if found["entity"] == "events" else 0.0
        return 0.0

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "ratelimit", *args, "--store", self.store, "--json"]
        if "--dry-run" not in args:
            line += ["--work-dir", str(self.folder)]
        return subprocess.Popen(line, text=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def _command(self, name: str, figures: Figures, *args: str) -> dict[str, Any]:
        began = time.monotonic()
        with self.start(*args) as process, _watched(process.pid) as memory:
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{name}: {out}{err}"
        figures.seconds[name] = time.monotonic() - began
        figures.grown[name] = memory.grown
        answer: dict[str, Any] = json.loads(out)
        return answer

    def _killed_in_the_middle(self) -> int:
        with self.start("migrate", self.source, *self.slowly) as process:
            until = time.monotonic() + PATIENCE
            while self._written() < self.world.rows // 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.01)
            process.kill()
        assert process.returncode == -9
        return self._written()

    def _written(self) -> int:
        for file in self.folder.glob("*.checkpoint"):
            counts = json.loads(file.read_text())["counts"]
            return int(counts.get("events", {}).get("written", 0))
        return 0

    async def _holds(self) -> None:
        """All rows once, and of every user and action the count since midnight, and each day's before."""
        ids: Counter[str] = Counter()
        async with DynamoDBStore(migration_settings(parse_url(self.store))) as store:
            cursor: str | None = None
            while True:
                page = await store.scans.events(since=0, until=10**13, cursor=cursor)
                ids.update(event.id for event in page.entries)
                if (cursor := page.cursor) is None:
                    break
            assert len(ids) == sum(ids.values()) == self.world.rows
            records: dict[tuple[str, str], Any] = {}
            while True:
                found = await store.scans.records(cursor=cursor)
                records |= {(key.user, key.action): record for key, record in found.entries}
                if (cursor := found.cursor) is None:
                    break
        today, day = self.world.now.strftime("u%y%m%d"), f"d{int(self.world.now.timestamp()) // 86_400}"
        counted = {key: record[day] for key, record in records.items() if day in record}
        totals = {key: record[today] for key, record in records.items() if today in record}
        assert counted == totals == self._named(self.world.today())

    def _named(self, counts: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
        if not self.email_users:
            return dict(counts)
        return {
            (f"user{user}@example.com" if int(user) % 10 == 0 else user, action): count
            for (user, action), count in counts.items()
        }


@dataclass
class MemoryUse:
    """Of a process, in MB."""

    start: float = 0.0
    peak: float = 0.0

    @property
    def grown(self) -> float:
        return self.peak - self.start


@contextmanager
def _watched(pid: int) -> Iterator[MemoryUse]:
    """The start is a process that has loaded what it needs: a second after its first threads are there."""
    import threading

    memory, stop = MemoryUse(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            status = _status(pid)
            if status.get("Threads", 1) > 1:
                memory.start = memory.start or status["VmRSS"] / 1024
                memory.peak = max(memory.peak, status["VmHWM"] / 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM", "Threads")))
    return {name.rstrip(":"): int(value) for name, value, *_ in found}


@contextmanager
def drilled(kind: str, world: World, engine: Engine, folder: Path, *, slowly: tuple[str, ...] = ()) -> Iterator[Drill]:
    """A drill from a source of this kind, made for it."""
    name = uuid4().hex[:8]
    with ExitStack() as stack:
        source = _SOURCES[kind](world, engine, folder, stack)
        url = engine.store_url(f"drill-{name}")
        yield Drill(world, source, url, folder / "work", email_users=kind == "earlier", slowly=slowly)


def _server(kind: str) -> Callable[[World, Engine, Path, ExitStack], str]:
    return lambda world, engine, folder, stack: to_sql(world, new_database(stack.enter_context(running(kind))))


def _earlier(world: World, engine: Engine, folder: Path, stack: ExitStack) -> str:
    return asyncio.run(fill(engine.store_url(f"earlier-{uuid4().hex[:8]}"), earlier_items(world)))


_SOURCES: dict[str, Callable[[World, Engine, Path, ExitStack], str]] = {
    "sqlite": lambda world, engine, folder, stack: to_sqlite(world, folder / "app.db"),
    "mariadb": _server("mariadb"),
    "postgresql": _server("postgresql"),
    "json": lambda world, engine, folder, stack: to_json(world, folder / "dump.json"),
    "jsonl": lambda world, engine, folder, stack: to_jsonl(world, folder / "dump"),
    "earlier": _earlier,
}


async def _make(url: str) -> None:
    await create_table(parse_url(url))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--rate", type=int, help="only measure how a run with this --rate keeps to it")
    asked = parser.parse_args()
    isolate(os.environ)
    choice = choose(os.environ)
    for kind in asked.kinds:
        with TemporaryDirectory() as folder, start(choice.name, endpoint=choice.endpoint) as engine:
            with drilled(kind, World(asked.users, asked.rows), engine, Path(folder)) as drill:
                if asked.rate:
                    took = drill.paced(asked.rate)
                    print(f"{kind}: {took:.1f} units a second, where --rate says {asked.rate}", flush=True)  # noqa: T201
                    continue
                figures = drill.all()
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures.seconds.items())
        grown = ", ".join(f"{name} +{mb:.0f} MB" for name, mb in figures.grown.items())
        print(  # noqa: T201
            f"{kind}: {asked.rows:,} rows once; killed at {figures.killed_at:,}, then {figures.written:,} in all; "
            f"{times}; memory {grown}; {figures.resumed['write_units']:,.0f} units",
            flush=True,
        )


if __name__ == "__main__":
    main()

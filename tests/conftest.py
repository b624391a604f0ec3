"""What every test shares: an environment of its own, and an engine where it asks for one."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from uuid import uuid4

import certifi
import httpx
import pytest
import trustme
from botocore import hooks, httpsession
from botocore.hooks import EventAliaser, HierarchicalEmitter

from ratelimit import Config, Directory, Limiter, retry, sync
from ratelimit.dynamodb import DynamoDBStore, create_table
from ratelimit.dynamodb.settings import Settings
from ratelimit.http import health, lifespan
from ratelimit.regions import home
from ratelimit.server import webhook
from ratelimit.store import mirror
from ratelimit.usage import journal
from tests import profiles as profiles
from tests.deploy.recording import every_call_is_granted as every_call_is_granted
from tests.engines import AUTHORITY, Choice, Engine, EngineError, choose, isolate, start
from tests.faults.apart import Apart

_CHOICE = pytest.StashKey[Choice]()
_ENGINE = pytest.StashKey[Engine | None]()
_LOG_START = pytest.StashKey[int]()

# botocore works out anew for every session what the events of its 120 handlers are called, and which of them take any
# keyword: half of connecting.
_event_name = cache(EventAliaser(HierarchicalEmitter())._alias_event_name)
EventAliaser._alias_event_name = lambda self, name: _event_name(name)
_accepts_kwargs = cache(hooks.accepts_kwargs)
hooks.accepts_kwargs = lambda handler: _accepts_kwargs(getattr(handler, "__func__", handler))

# A busy machine takes its time: the deadlines of production are for production, and a test of one names its own.
_LONG_S = 30.0
for _kind, _names in (
    *((each, ["deadline"]) for each in (Limiter, Directory, sync.Limiter, sync.Directory)),
    (Settings, ["connect_timeout", "read_timeout"]),
    *((each, ["timeout"]) for each in (httpx.Client, httpx.AsyncClient)),
):
    _kind.__init__.__kwdefaults__ = {**(_kind.__init__.__kwdefaults__ or {}), **dict.fromkeys(_names, _LONG_S)}
for _module, _name in (
    *((health, "DEADLINE_S"), (home, "REQUEST_TIMEOUT_S"), (journal, "_DISK_TIMEOUT_S"), (lifespan, "OPEN_WAIT_S")),
    *((lifespan, "DRAIN_TIMEOUT_S"), (mirror, "_DEADLINE_S"), (webhook, "TIMEOUT_S")),
):
    setattr(_module, _name, _LONG_S)
Config.__init__.__defaults__ = tuple(
    _LONG_S if each.name in ("deadline", "directory_deadline") else each.default for each in fields(Config)
)
certifi.where = httpsession.where = lambda: AUTHORITY  # what clients trust where nothing is said


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: nothing may look for real credentials."""
    isolate(os.environ)
    # What a shell starts in the background ignores Ctrl-C, and so would the programs that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        config.stash[_CHOICE] = choose(os.environ)
    except EngineError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> str:
    """Which engine it is."""
    choice = config.stash[_CHOICE]
    return f"engine: {choice.name}" + (f" at {choice.endpoint}" if choice.endpoint else "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever needs the engine is found by `-m engine`, a database by `-m slow`; quick ones run first."""
    for item in items:
        if _needs_engine(item):
            item.add_marker("engine")
        if _has_parameter(item, "mariadb", "postgresql"):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("engine") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported meanwhile stays: to look for garbage in it would take a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _needs_engine(item: pytest.Item) -> bool:
    """It asks for the fixture, or is the `dynamodb` variant of a test that runs on several stores."""
    return "engine" in getattr(item, "fixturenames", ()) or _has_parameter(item, "dynamodb")


def _has_parameter(item: pytest.Item, *values: str) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and any(value in callspec.params.values() for value in values)


@pytest.fixture(autouse=True)
def no_program_where_it_is_not_said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test-quick` stays quick: of these marks it runs none."""
    if not any(request.node.get_closest_marker(name) for name in ("engine", "process", "slow")):
        monkeypatch.setattr(subprocess.Popen, "__init__", _mark_it)


def _mark_it(*_: object, **__: object) -> None:
    pytest.fail("a test that starts another program is marked: @pytest.mark.process", pytrace=False)


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """A running engine: `.name`, `.endpoint`, `.store_url(table)`. Every test makes tables of its own on it.

    Not async, so that it belongs to no event loop. Where it cannot start, each test that needs it is an error.
    """
    yield from _started(pytestconfig)


@pytest.fixture(scope="module")
def own_engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """For modules that add an index to a table, as their `engine`: where many tables come and go, DynamoDB Local may
    never finish one."""
    yield from _started(pytestconfig)


@pytest.fixture(scope="module")
def table(engine: Engine) -> DynamoDBStore:
    """Made for the module, and not open yet: each example of Hypothesis opens it in an event loop of its own."""
    store = DynamoDBStore(table=f"module-{uuid4().hex[:8]}", region="eu-west-1", endpoint=engine.endpoint)
    asyncio.run(_create(store))
    return store


async def _create(store: DynamoDBStore) -> None:
    await create_table(store.settings)


def _started(config: pytest.Config) -> Iterator[Engine]:
    before = config.stash.get(_ENGINE, None)
    try:
        choice = config.stash[_CHOICE]
        with start(choice.name, endpoint=choice.endpoint) as running:
            config.stash[_ENGINE] = running
            yield running
            # What fails while it ends finds no log of it any more.
            config.stash[_ENGINE] = before
    except EngineError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Remember where the engine's log stood, for the report of a failure."""
    if running := item.config.stash.get(_ENGINE, None):
        item.stash[_LOG_START] = running.log_size()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what the engine said meanwhile."""
    report = yield
    running = item.config.stash.get(_ENGINE, None)
    if report.failed and running and item.get_closest_marker("engine"):
        said = running.log_since(item.stash.get(_LOG_START, 0))
        report.sections.append((f"Log of {running.name}", said or "(nothing)"))
    return report


@pytest.fixture
def apart() -> Iterator[Apart]:
    with Apart() as apart:
        yield apart


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))


@pytest.fixture
def user() -> str:
    """Nobody else's: tests share tables."""
    return f"user-{uuid4()}"


@pytest.fixture
def plan() -> str:
    return f"plan-{uuid4()}"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries do not wait: the pauses that they would have made, in seconds, each as long as it may be."""
    made: list[float] = []

    async def note(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(retry, "sleep", note)
    monkeypatch.setattr(random, "random", lambda: 1.0)
    return made

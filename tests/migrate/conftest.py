"""What migrations start from and go to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.dynamodb import create_table, parse_url
from tests.engines import Engine
from tests.migrate.servers import NotInstalled, is_required, new_database, running

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a database server is slow by nature; SQLite and files show the same promises."""
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        if item.path.parent == _HERE and any(each in ("mariadb", "postgresql") for each in map(str, parameters)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def table(engine: Engine) -> str:
    """The store URL of an empty table."""
    url = engine.store_url(f"target-{uuid4().hex[:8]}")
    asyncio.run(create_table(parse_url(url)))
    return url


@pytest.fixture(scope="session")
def _servers() -> Iterator[Callable[[str], str]]:
    started: dict[str, str] = {}
    with ExitStack() as stack:

        def server(name: str) -> str:
            if name not in started:
                started[name] = stack.enter_context(running(name))
            return started[name]

        yield server


@pytest.fixture
def database(_servers: Callable[[str], str], tmp_path: Path) -> Callable[[str], str]:
    """`database("mariadb")`: the URL of an empty one."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'app.db'}"
        try:
            return new_database(_servers(kind))
        except NotInstalled as error:
            if is_required():
                pytest.fail(str(error))
            pytest.skip(str(error))

    return make

"""`ratelimit table create|status|delete`, on a real engine."""

from __future__ import annotations

import io
from uuid import uuid4

import pytest

from tests.cli.command import Command
from tests.engines import Engine


@pytest.fixture
def url(engine: Engine) -> str:
    return engine.store_url(f"cli-{uuid4().hex[:8]}")


def name_in(url: str) -> str:
    return url.removeprefix("dynamodb://").partition("?")[0]


def test_from_nothing_to_nothing(ratelimit: Command, url: str) -> None:
    name = name_in(url)
    status, out, err = ratelimit("table", "status", "--store", url)
    assert (status, out) == (3, "")
    assert err.startswith(f"error: there is no table '{name}'")
    created = ratelimit("table", "create", "--store", url)
    assert created.status == 0
    assert created.out.startswith(f"{name}: created\n")
    assert ratelimit("table", "create", "--store", url).out.startswith(f"{name}: was there already\n")
    found = ratelimit("table", "status", "--store", url, "--json").json
    assert (found["name"], found["status"], found["keys"]) == (name, "ACTIVE", ["PK (S)", "SK (S)"])
    assert ratelimit("table", "delete", "--store", url, "--yes").out == f"{name}: deleted\n"
    again = ratelimit("table", "delete", "--store", url, "--json")
    assert (again.status, again.json) == (0, {"name": name, "deleted": False})


def test_the_table_may_be_named_or_configured(ratelimit: Command, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_in(url)
    monkeypatch.setenv("RATELIMIT_STORE", url)
    assert ratelimit("table", "create", "--json").json["name"] == name
    assert ratelimit("table", "create", f"{name}-2", "--json").json["name"] == f"{name}-2"
    monkeypatch.delenv("RATELIMIT_STORE")
    for table in (url, url.replace(name, f"{name}-2")):
        assert ratelimit("table", "delete", table, "--yes").status == 0


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_delete_asks(
    ratelimit: Command, url: str, monkeypatch: pytest.MonkeyPatch, typed: str, status: int
) -> None:
    ratelimit("table", "create", "--store", url)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    result = ratelimit("table", "delete", "--store", url)
    assert result.status == status
    assert f"Delete table {name_in(url)} in eu-west-1 (items" in result.err
    assert ("nothing was done" in result.err) == (status == 1)
    assert ratelimit("table", "status", "--store", url).status == (3 if status == 0 else 0)
    ratelimit("table", "delete", "--store", url, "--yes")


def test_a_store_without_a_table(ratelimit: Command) -> None:
    status, out, err = ratelimit("table", "status")
    assert (status, out) == (2, "")
    assert err.startswith("error: store: memory:// has no table; name one: --store dynamodb://")


def test_a_name_that_no_table_can_have(ratelimit: Command) -> None:
    status, _, err = ratelimit("table", "create", "a/b")
    assert status == 2
    assert err.startswith("error: store")


def test_unreachable(ratelimit: Command) -> None:
    status, out, err = ratelimit("table", "status", "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9")
    assert (status, out) == (3, "")
    assert err.startswith("error: cannot reach table 'limits'")
    assert err.count("\n") == 1

"""`ratelimit table create|status|verify|upgrade|delete`, on a real engine."""

from __future__ import annotations

import io
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cli.command import Command, Terminal
from tests.engines import Engine


@pytest.fixture(scope="module")
def engine(own_engine: Engine) -> Engine:
    """See `own_engine`."""
    return own_engine


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


def test_a_policy_with_a_timeline_asks_for_its_index(ratelimit: Command, url: str, tmp_path: Path) -> None:
    """However the table is named."""
    config = tmp_path / "ratelimit.toml"
    config.write_text(f'store = "{url}"\n[policies.hint]\nquotas = "5/day"\ntimeline = true\n', encoding="utf-8")
    assert ratelimit("table", "create", url).status == 0
    for named in ((), (name_in(url),), (url,)):
        at = (*named, "--config", str(config))
        assert "index GSI2" in ratelimit("table", "status", *at, "--json").json["missing"]
        assert "index GSI2: missing" in ratelimit("table", "create", *at).err
        found = ratelimit("table", "verify", *at, "--json").json["lines"]
        assert [line["verdict"] for line in found if line["name"] == "index GSI2"] == ["differs"]
    assert "GSI2" not in ratelimit("table", "verify", url, "--json").out
    assert ratelimit("table", "upgrade", url, "--config", str(config)).status in (0, 1)
    assert ratelimit("table", "status", url, "--json").json["indexes"] == ["GSI1", "GSI2"]
    assert ratelimit("table", "delete", url, "--yes").status == 0


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_delete_asks(ratelimit: Command, url: str, monkeypatch: pytest.MonkeyPatch, typed: str, status: int) -> None:
    ratelimit("table", "create", "--store", url)
    ratelimit("check", "alice", "hint", "--quota", "5/day", "--store", url)
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    result = ratelimit("table", "delete", "--store", url)
    assert result.status == status
    assert f"Delete table {name_in(url)} in eu-west-1, with 1 item?" in result.err
    assert ("nothing was done" in result.err) == (status == 1)
    assert ratelimit("table", "status", "--store", url).status == (3 if status == 0 else 0)
    ratelimit("table", "delete", "--store", url, "--yes")


@pytest.mark.parametrize("line", ["table delete", "usage erase alice", "plan remove free", "user remove alice"])
def test_what_deletes_needs_yes_without_a_terminal(
    ratelimit: Command, url: str, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    ratelimit("table", "create", "--store", url)
    ratelimit("plan", "set", "free", "--quota", "hint=5/day", "--store", url)
    ratelimit("user", "set", "alice", "--plan", "free", "--store", url)
    for typed in (io.StringIO("y\n"), None):
        monkeypatch.setattr("sys.stdin", typed)
        status, _, err = ratelimit(*line.split(), "--store", url)
        assert (status, err) == (2, "error: there is no terminal to ask on, and nothing was done; add --yes\n")
    assert ratelimit("user", "show", "alice", "--store", url).status == 0
    assert ratelimit("table", "delete", "--store", url, "--yes").status == 0


def test_a_protected_table_is_not_deleted(ratelimit: Command, url: str) -> None:
    name = name_in(url)
    assert "protection  on" in ratelimit("table", "create", "--store", url, "--protect").out
    status, _, err = ratelimit("table", "delete", "--store", url, "--yes")
    assert status == 1
    assert f"run `ratelimit table upgrade {name} --no-protect` first" in err
    assert ratelimit("table", "upgrade", "--store", url, "--no-protect").status == 0
    assert ratelimit("table", "delete", "--store", url, "--yes").out == f"{name}: deleted\n"


def test_verify_then_upgrade_then_verify(ratelimit: Command, url: str) -> None:
    ratelimit("table", "create", "--store", url, "--no-recovery")
    wanted = ("--store", url, "--gsi2", "--protect", "--read", "7", "--write", "9")
    found = ratelimit("table", "verify", *wanted)
    assert found.status == 1
    assert found.out.startswith(f"{name_in(url)}: ")
    for said in (
        "missing; should be GSI2PK (S), GSI2SK (S); projects ALL",
        "on-demand; should be provisioned, 7 read, 9 write",
        "deletion protection  ",
        "off; should be on",
    ):
        assert said in found.out
    upgraded = ratelimit("table", "upgrade", *wanted)
    assert (upgraded.status, "billing: done" in upgraded.err) == (0, True)
    document = ratelimit("table", "verify", *wanted, "--json")
    assert (document.status, document.json["differences"]) == (0, 0)
    # Asked for nothing but the usual, a table that is billed otherwise is told of, and left alone.
    plain = ratelimit("table", "upgrade", "--store", url)
    assert plain.status == 1
    assert "provisioned; should be on-demand" in plain.out
    assert "--billing on-demand" in plain.out
    assert ratelimit("table", "verify", "--store", url, "--billing", "provisioned").status == 0
    assert ratelimit("table", "upgrade", "--store", url, "--billing", "on-demand", "--no-protect").status == 0
    ratelimit("table", "delete", "--store", url, "--yes")


def test_create_on_a_table_that_differs_says_so(ratelimit: Command, url: str) -> None:
    ratelimit("table", "create", "--store", url)
    again = ratelimit("table", "create", "--store", url, "--protect")
    assert again.status == 0
    assert "deletion protection: off; should be on; `ratelimit table upgrade` mends it" in again.err
    ratelimit("table", "delete", "--store", url, "--yes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tag", "team"), "write it like team=payments"),
        (("--read", "5"), "provisioned billing needs both"),
        (("--billing", "cheap"), "there are on-demand and provisioned"),
        (("--billing", "on-demand", "--read", "5", "--write", "5"), "units are for provisioned billing"),
        (("--billing", "provisioned"), "needs its read and write units"),
        (("--read", "0", "--write", "5"), "at least 1"),
        (("--tag", "aws:x=1"), "no name for a tag"),
        (("--kms-key", " "), "give the key's ARN"),
    ],
)
def test_options_that_cannot_be(ratelimit: Command, options: tuple[str, ...], message: str) -> None:
    status, out, err = ratelimit("table", "create", "limits", *options)
    assert (status, out, err.startswith("error: --")) == (2, "", True)
    assert message in err


def test_a_store_without_a_table(ratelimit: Command) -> None:
    status, out, err = ratelimit("table", "status")
    assert (status, out) == (2, "")
    assert err.startswith("error: store: memory:// has no table; name one: --store 'dynamodb://")


def test_a_name_that_no_table_can_have(ratelimit: Command) -> None:
    status, _, err = ratelimit("table", "create", "a/b")
    assert status == 2
    assert err.startswith("error: store")


def test_unreachable(ratelimit: Command) -> None:
    status, out, err = ratelimit("table", "status", "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9")
    assert (status, out) == (3, "")
    assert err.startswith("error: cannot reach table 'limits'")
    assert err.count("\n") == 1

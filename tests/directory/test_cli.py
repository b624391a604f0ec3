"""`ratelimit plan` and `ratelimit user`, on a real engine, as the shell sees them."""

from __future__ import annotations

import io
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cli.command import Command, Terminal
from tests.cli.command import ratelimit as ratelimit
from tests.engines import Engine

KEY = "an-api-key-that-is-long-enough"


@pytest.fixture
def table(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of its own, configured as an app would have it."""
    monkeypatch.setenv("RATELIMIT_STORE", engine.store_url(f"people-{uuid4().hex[:8]}", create="true"))


pytestmark = pytest.mark.usefixtures("table")


def test_a_plan_is_made_changed_and_shown(ratelimit: Command) -> None:
    assert ratelimit("plan", "list").out == "no plans; make one with `ratelimit plan set free --quota hint=5/day`\n"
    made = ratelimit("plan", "set", "free", "--quota", "hint=5/day", "--quota", "run=100/hour; 1000/day")
    assert made.status == 0
    assert made.out.splitlines()[0] == "free"
    ratelimit("plan", "set", "free", "--quota", "hint=-1", "--without", "run")
    shown = ratelimit("plan", "show", "free", "--json").json
    assert shown == {"name": "free", "quotas": {"hint": "unlimited"}}
    assert ratelimit("plan", "list", "--json").json == [shown]
    assert ratelimit("plan", "remove", "free", "--yes", "--json").json == {"name": "free", "removed": True}
    assert ratelimit("plan", "remove", "free", "--yes").out == "free: there is no such plan; nothing to remove\n"


def test_a_user_is_made_changed_and_found(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ratelimit("plan", "set", "pro", "--quota", "hint=50/day", "--quota", "run=9/day")
    made = ratelimit(
        "user", "set", "alice", "--plan", "pro", "--quota", "hint=7/day", "--email", "Alice@Example.com",
        "--api-key", KEY, "--json",
    ).json  # fmt: skip
    assert made["in_force"] == [
        {"action": "hint", "quotas": "7/day", "from": "the user"},
        {"action": "run", "quotas": "9/day", "from": "the plan"},
    ]
    assert made["identities"][0] == "email:alice@example.com"
    assert made["identities"][1].startswith("api_key:")
    assert KEY not in str(made)
    for option in (("alice",), ("--email", "ALICE@example.com"), ("--api-key", KEY)):
        assert ratelimit("user", "show", *option, "--json").json == made
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    assert ratelimit("user", "show", "--api-key", "-", "--json").json == made

    changed = ratelimit(
        "user", "set", "alice", "--no-plan", "--inactive", "--without", "hint",
        "--without-identity", "email:alice@example.com", "--json",
    ).json  # fmt: skip
    assert changed["plan"] is None
    assert changed["in_force"] == [{"action": "(every)", "quotas": "refused", "from": "inactive"}]
    assert changed["identities"] == made["identities"][1:]
    assert ratelimit("user", "show", "--email", "alice@example.com").status == 2

    assert ratelimit("user", "remove", "alice", "--yes").out == "alice: removed\n"
    assert ratelimit("user", "show", "--api-key", KEY).err == (
        "error: there is no user with this api key; make one with `ratelimit user set`\n"
    )


def test_users_are_listed_by_plan(ratelimit: Command) -> None:
    assert ratelimit("user", "list").out == "no users\n"
    ratelimit("plan", "set", "pro", "--quota", "hint=50/day")
    ratelimit("user", "set", "bob", "--plan", "pro")
    ratelimit("user", "set", "alice", "--role", "admin")
    assert [user["id"] for user in ratelimit("user", "list", "--json").json] == ["alice", "bob"]
    assert [user["id"] for user in ratelimit("user", "list", "--plan", "pro", "--json").json] == ["bob"]
    assert ratelimit("user", "list", "--plan", "free").out == "no users with plan free\n"
    lines = ratelimit("user", "list").out.splitlines()
    assert [line.split() for line in lines[3:5]] == [
        ["alice", "-", "admin", "active", "-"],
        ["bob", "pro", "user", "active", "-"],
    ]


def test_an_admin_is_shown_as_unlimited(ratelimit: Command) -> None:
    shown = ratelimit("user", "set", "root", "--role", "admin", "--quota", "hint=5/day", "--json").json
    assert shown["in_force"] == [
        {"action": "hint", "quotas": "5/day", "from": "the user"},
        {"action": "(every other)", "quotas": "unlimited", "from": "admin"},
    ]


def test_keys_are_digested_with_the_pepper(ratelimit: Command, tmp_path: Path) -> None:
    (pepper := tmp_path / "pepper").write_text("secret\n")
    ratelimit("user", "set", "alice", "--api-key", KEY, "--pepper-file", str(pepper))
    assert ratelimit("user", "show", "--api-key", KEY).status == 2
    assert ratelimit("user", "show", "--api-key", KEY, "--pepper-file", str(pepper)).status == 0
    pepper.write_text("")
    assert "is empty" in ratelimit("user", "show", "--api-key", KEY, "--pepper-file", str(pepper)).err


def test_an_action_that_no_policy_is_named_after_is_told(ratelimit: Command, tmp_path: Path) -> None:
    file = tmp_path / "ratelimit.toml"
    file.write_text('[policies.hint]\nquotas = "5/day"\n')
    for line in (("plan", "set", "typo"), ("user", "set", "zoe")):
        told = ratelimit(*line, "--quota", "hnit=50/day", "--quota", "hint=9/day", "--config", str(file))
        assert (told.status, told.err) == (0, "note: no policy is named 'hnit'; did you mean 'hint'?\n")
    ratelimit("plan", "remove", "typo", "--yes")


def test_who_is_inactive_is_refused_as_such(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ratelimit("user", "set", "ivan", "--inactive")
    monkeypatch.setenv("RATELIMIT_DIRECTORY", "true")
    monkeypatch.setenv("RATELIMIT_POLICIES__HINT__QUOTAS", "5/day")
    assert ratelimit("check", "ivan", "hint") == (1, "refused: ivan hint; the user is inactive\n", "")


def test_a_plan_that_was_removed_is_told(ratelimit: Command) -> None:
    ratelimit("plan", "set", "pro", "--quota", "hint=50/day")
    ratelimit("user", "set", "alice", "--plan", "pro")
    ratelimit("plan", "remove", "pro", "--yes")
    shown = ratelimit("user", "show", "alice")
    assert (shown.status, shown.err) == (0, "note: there is no plan 'pro': the policies' own quotas hold\n")


def test_what_others_have_is_not_taken(ratelimit: Command) -> None:
    ratelimit("user", "set", "alice", "--email", "a@example.com")
    taken = ratelimit("user", "set", "bob", "--email", "A@example.com")
    assert (taken.status, taken.err) == (2, "error: another user has this email already (a@example.com)\n")
    assert ratelimit("user", "show", "bob").status == 2


@pytest.mark.parametrize("command", [("plan", "remove", "free"), ("user", "remove", "alice")])
def test_removing_asks(ratelimit: Command, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert ratelimit(*command).status == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("plan", "set", "free", "--quota", "hint=5/fortnight"), "--quota hint: unknown unit 'fortnight'; use one of"),
        (("plan", "set", "free", "--quota", "hint"), "--quota: 'hint' is not ACTION=QUOTAS; write --quota hint=5/day"),
        (("plan", "set", "free", "--without", "hint"), "--without: nothing is said of 'hint' (there are: none)"),
        (("plan", "set", ""), "NAME: the plan's name is empty"),
        (("plan", "show", "pro"), "there is no plan 'pro'; there are: none (make one with `ratelimit plan set`)"),
        (("user", "set", "alice", "--plan", "pro"), "there is no plan 'pro'; there are: none"),
        (("user", "set", "alice", "--plan", "pro", "--no-plan"), "--plan: cannot go with --no-plan"),
        (("user", "set", "alice", "--role", "admn"), "--role: unknown value 'admn'; did you mean 'admin'?"),
        (("user", "set", "alice", "--email", "alice"), "--email: 'alice' is not an e-mail address"),
        (("user", "set", "alice", "--api-key", "short"), "--api-key: must be text of 16 to 4096 characters"),
        (("user", "set", "alice", "--without-identity", "x"), "--without-identity: unknown value 'x'"),
        (("user", "set", "a\nb"), "USER: the user holds the control character"),
        (("user", "show", "alice"), "there is no user 'alice'; make one with `ratelimit user set`"),
        (("user", "show"), "USER: name one user: by id, by --email, or by --api-key"),
        (("user", "show", "alice", "--email", "a@b.c"), "USER: name one user"),
        (("plan", "list", "--store", "memory://"), "store: memory:// has no table; name one: --store 'dynamodb://"),
    ],
)
def test_bad_input_is_one_clear_line(ratelimit: Command, command: tuple[str, ...], problem: str) -> None:
    status, out, err = ratelimit(*command)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {problem}")
    assert err.count("\n") == 1


def test_quotas_that_a_policy_cannot_keep_are_refused(ratelimit: Command, tmp_path: Path) -> None:
    file = tmp_path / "ratelimit.toml"
    file.write_text("[policies.api]\nquotas = '5/day'\ntogether = 'org'\n[policies.org]\nquotas = '9/day'\n")
    for command in (("plan", "set", "pro"), ("user", "set", "acme")):
        status, out, err = ratelimit(*command, "--quota", "org=2 concurrent", "--config", str(file))
        assert (status, out) == (2, "")
        assert err.startswith("error: --quota org: 'org' is decided together with other policies")


def test_a_near_miss_is_named(ratelimit: Command) -> None:
    ratelimit("plan", "set", "premium", "--quota", "hint=50/day")
    assert "did you mean 'premium'?" in ratelimit("user", "set", "alice", "--plan", "premum").err


def test_a_store_that_does_not_answer(ratelimit: Command) -> None:
    url = "dynamodb://people?region=eu-west-1&endpoint=http://127.0.0.1:9"
    status, _, err = ratelimit("user", "show", "alice", "--store", url)
    assert status == 3
    assert err.startswith("error: cannot reach table 'people'")

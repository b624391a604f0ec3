"""A password in a URL is never shown, in no output and in no error, whatever is in it and wherever it is given."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from ratelimit.config import document, load_config, masked, masked_path, redacted
from ratelimit.errors import RateLimitError
from ratelimit.server.upstream import Upstream
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit

# Each part between the special characters is a word that nothing else says.
PASSWORDS = [
    "zqfirst",
    "zqfirst/zqlast",
    "zqfirst?zqlast",
    "zqfirst@zqlast",
    "zqfirst#zqlast",
    "zqfirst%zqlast",
    "zqfirst:zqlast",
    "12/zqlast",
    "zqfirst@zqmid/zqlast",
    "/zqlast",
    "@zqlast",
    "zqfirst//zqlast@",
    "zqfirst zqlast",
    "zqfirst\nzqlast",
    "zqfirst?zqmid=1&zqlast=2",
    "zqfirst[zqlast",
    "zqfirst\\zqlast",
    quote("zqfirst/@zqlast", safe=""),
]
SCHEMES = ["mysql", "postgresql", "nonsense", "http"]
FEW = [password for password in PASSWORDS if password in ("zqfirst/zqlast", "zqfirst@zqlast", "12/zqlast")]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", [*SCHEMES, "dynamodb", "memory"])
def test_no_part_of_it_is_in_what_is_shown(scheme: str, password: str) -> None:
    for url in (
        f"{scheme}://app:{password}@127.0.0.1:9/app",
        f"{scheme}://app:{password}@127.0.0.1:9/app?charset=utf8",
        f"{scheme}:/app:{password}@127.0.0.1",
        f"app:{password}@127.0.0.1",
    ):
        assert "zq" not in masked(url), url
        assert "zq" not in redacted(f"cannot parse {url} ({password}), {password.split('/')[0]}", url), url
        assert "zq" not in masked_path(url) or "://" not in url, url


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_source(
    scheme: str, password: str, ratelimit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ratelimit.retry.STORE_ATTEMPTS", 1)
    source = f"{scheme}://app:{password}@127.0.0.1:9/app"
    store = "dynamodb://t?region=eu-west-1&endpoint=http://127.0.0.1:9"
    for command in (("run",), ("run", "--json"), ("run", "--dry-run"), ("verify",), ("verify", "--json")):
        name, *options = command
        result = ratelimit("migrate", name, source, "--store", store, "--work-dir", str(tmp_path), *options)
        assert result.status in (2, 3), result
        assert "zq" not in result.out + result.err
        assert "Traceback" not in result.err
    assert not any("zq" in each.name or b"zq" in each.read_bytes() for each in tmp_path.iterdir())


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_store_an_upstream_and_a_webhook(
    password: str, ratelimit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = f"me:{password}@127.0.0.1:9"
    for store in (
        f"dynamodb://{place}",
        f"dynamodb://t?region=eu-west-1&endpoint=http://{place}",
        f"dynamodb://t?region=eu-west-1&endpoint={quote('http://' + place, safe='')}",
        f"redis://{place}",
        f"//{place}",
        place,
    ):
        more = (
            ("table", "create"),
            ("usage", "totals", "alice"),
            ("migrate", "run", str(tmp_path)),
            ("serve", "--port", "1", "--action", "hint", "--quota", "5/day"),
        )
        for command in (("check", "alice", "hint", "--quota", "5/day"), *(more if password == FEW[0] else ())):
            result = ratelimit(*command, "--store", store)
            assert result.status in (1, 2, 3), (command, store)
            assert "zq" not in result.out + result.err, (command, store)
    result = ratelimit("serve", "--upstream", f"http://{place}", "--action", "hint", "--quota", "5/day")
    assert (result.status, "zq" in result.out + result.err) == (2, False), result
    for asking in (("top", "--url"), ("cost", "--from-metrics")):
        result = ratelimit(*asking, f"http://{place}")
        assert (result.status, "zq" in result.out + result.err) == (2, False), result
    monkeypatch.setenv("RATELIMIT_STORE", f"dynamodb://t?region=eu-west-1&endpoint=http://{place}")
    monkeypatch.setenv("RATELIMIT_ALERT_WEBHOOK", f"https://{place}/a")
    for words in (("config", "show"), ("config", "check"), ("check", "alice", "hint")):
        result = ratelimit(*words)
        assert "zq" not in result.out + result.err, words


@pytest.mark.parametrize("password", FEW)
def test_the_endpoint_of_the_environment(password: str, ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://me:{password}@127.0.0.1:9")
    for command in (("check", "alice", "hint", "--quota", "5/day"), ("table", "create")):
        result = ratelimit(*command, "--store", "dynamodb://t?region=eu-west-1")
        assert result.status in (1, 2, 3)
        assert "zq" not in result.out + result.err


@pytest.mark.parametrize("password", PASSWORDS)
def test_errors_in_code(password: str) -> None:
    with pytest.raises(RateLimitError) as caught:
        Upstream.parse(f"http://me:{password}@127.0.0.1:x")
    assert "zq" not in str(caught.value)
    url, shown = f"https://me:{password}@127.0.0.1/a", ""
    try:
        config = load_config(env={"RATELIMIT_ALERT_WEBHOOK": url})
        shown = f"{document(config)} {config}"
    except RateLimitError as error:
        shown = str(error)
    assert "zq" not in shown

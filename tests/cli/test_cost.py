"""`ratelimit cost`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.cost.metrics_text import text, worker

EXAMPLE = ("--checks", "50M", "--denied", "20%", "--users", "100k", "--log", "all", "--log-sample", "10%")


def test_a_month_in_lines(ratelimit: Command) -> None:
    status, out, err = ratelimit("cost", *EXAMPLE, "--tasks", "2")
    assert status == 0
    for said in (
        "writes: refused checks",
        "point-in-time recovery",
        "Fargate",
        "provisioned, auto scaled",
        "would save",
    ):
        assert said in out
    assert "check before you rely on it" in err


def test_one_document(ratelimit: Command) -> None:
    found = ratelimit("cost", *EXAMPLE, "--json").json
    assert found["as_of"] == "2026-11-01"
    assert Decimal(found["total"]) == sum(Decimal(line["dollars"]) for line in found["lines"])
    assert {saving["name"] for saving in found["savings"]} >= {"denial cache", "leases", "coalescing", 'log = "none"'}
    assert found["units"] == {"writes": 86_800_000, "reads": 0}
    assert found["measured"] is None


def test_prices_of_ones_own(ratelimit: Command, tmp_path: Path) -> None:
    usual = ratelimit("cost", "--checks", "50M", "--region", "eu-west-1", "--json").json
    (tmp_path / "prices.toml").write_text("as_of = 2030-01-01\n[regions.x]\nwrite_million = 1\n")
    status, _, err = ratelimit("cost", "--checks", "50M", "--region", "x", "--prices", str(tmp_path / "prices.toml"))
    assert (usual["region"], status) == ("eu-west-1", 2)
    assert "prices.regions.x.balancer_hour: is missing" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--checks: say how many"),
        (("--checks", "5X"), "--checks: '5X' is no amount; write it like 1500, 1.5k, 50M or 2G"),
        (("--checks", "5M", "--denied", "20"), "did you mean 20%?"),
        (("--checks", "5M", "--log", "some"), "log: unknown value 'some'"),
        (("--checks", "5M", "--vcpu", "nan"), "--vcpu: 'nan' is no number"),
        (("--checks", "5M", "--peak", "0.5"), "peak: must be at least 1"),
        (("--checks", "5M", "--region", "mars-1"), "no prices for 'mars-1'"),
        (("--checks", "5M", "--from-metrics", "http://127.0.0.1:9"), "--checks: say how many"),
        (("--from-metrics", "127.0.0.1:8081"), "--from-metrics: '127.0.0.1:8081' is no URL"),
    ],
)
def test_options_that_cannot_be(ratelimit: Command, options: tuple[str, ...], message: str) -> None:
    status, out, err = ratelimit("cost", *options)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


class Service(BaseHTTPRequestHandler):
    """An admin listener that asks for a token."""

    body = ""

    def do_GET(self) -> None:
        known = self.path == "/metrics" and self.headers["Authorization"] == "Bearer " + "t" * 16
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(self.body.encode() if known else b"")

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    hour_ago = time.time() - 3600
    monkeypatch.setattr(
        Service, "body", text(worker(allowed=1000, denied=200, cached=150, logged=70, started=hour_ago))
    )
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_from_life(ratelimit: Command, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ratelimit("cost", "--from-metrics", service)
    assert (refused.status, "answered 401; set RATELIMIT_ADMIN_TOKEN" in refused.err) == (3, True)
    monkeypatch.setenv("RATELIMIT_ADMIN_TOKEN", "t" * 16)
    found = ratelimit("cost", "--from-metrics", f"{service}/metrics", "--json").json
    # The clock went on since the service started: a little less than 730 hours like the first.
    assert 0.5 * 730 * 1120 < found["units"]["writes"] <= 730 * 1120
    assert found["measured"]["units_by_dynamodb"] is False
    status, out, err = ratelimit("cost", "--from-metrics", service)
    assert (status, "16.7% of them refused" in out, "consumed=true" in err) == (0, True, True)


def test_nobody_there(ratelimit: Command) -> None:
    status, _, err = ratelimit("cost", "--from-metrics", "http://127.0.0.1:9/metrics")
    assert status == 3
    assert err.startswith("error: nothing answers at http://127.0.0.1:9/metrics: ")


def test_a_redirect_is_not_followed_with_the_token(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(307)
            self.send_header("location", f"http://localhost:{server.server_port}/stolen")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RATELIMIT_ADMIN_TOKEN", "t" * 16)
    status, _, err = ratelimit("cost", "--from-metrics", f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert (status, asked) == (3, ["/metrics"])
    assert "answered 307" in err

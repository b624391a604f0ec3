"""`ratelimit top`: the live data of a running sidecar, drawn again and again in place."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ratelimit.cli.admin_client import TOKEN, ask
from ratelimit.cli.options import ConfigOption, answering, decimal
from ratelimit.cli.output import Answer, in_words
from ratelimit.config import load_config
from ratelimit.errors import ConfigError, StoreUnavailable

_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
_BARS: Final = "▁▂▃▄▅▆▇█"
_PIPE_LINES: Final = 60
_REDRAWS_PER_SECOND: Final = 4
"""So that a terminal that is resized looks right soon."""


@answering
def top(
    *,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of the sidecar's admin listener; by default where the configuration has it."),
    ] = None,
    config: ConfigOption = None,
    interval: Annotated[float, typer.Option(**decimal(0.1, 3600), help="Seconds between two questions.")] = 2.0,
) -> Answer:
    """Watch a running sidecar: checks, latencies, policies, who is refused, and which keys are hot. Ctrl-C ends it.

    The token is that of `RATELIMIT_ADMIN_TOKEN`, or of the configuration. In a pipe, and with `--json`, it is asked
    once.

    Examples:

        ratelimit top

        ratelimit top --url http://10.0.0.7:8081 --interval 5

        ratelimit top --json | jq '.refused[:3]'
    """
    place, token = _listener(url, config)
    found = _asked(place, token)

    def show() -> None:
        if not sys.stdout.isatty():
            _console(height=_PIPE_LINES).print(Screen(found))
            return
        with suppress(KeyboardInterrupt):
            _watch(place, token, found, interval)

    return Answer(found, show)


def _listener(url: str | None, path: Path | None) -> tuple[str, str | None]:
    """Return where to ask, and the token. A URL of the command line gets no token out of a file that it does not name.

    Raises `ConfigError`.
    """
    if url is not None and path is None:
        return url, os.environ.get(TOKEN)
    config = load_config(path)
    if url is None and config.admin == "off":
        raise ConfigError("--url", "the configuration has no admin listener (admin = 'off'); say where one is")
    host, _, port = config.admin.rpartition(":")
    return url or f"http://{_ANYWHERE.get(host, host)}:{port}", config.admin_read_token or config.admin_token


def _asked(url: str, token: str | None) -> dict[str, Any]:
    """Return the live data. Raises `ConfigError`, `StoreUnavailable`."""
    answer = ask(url, "live", token=token, option="--url")
    try:
        found = msgspec.json.decode(answer)
    except msgspec.DecodeError as error:
        raise StoreUnavailable(f"no live data from {url}: {error}") from None
    if not isinstance(found, dict) or not {"series", "policies", "covers"} <= found.keys():
        raise StoreUnavailable(f"no live data from {url}: is it the admin listener of `ratelimit serve`?")
    return found


def _watch(url: str, token: str | None, found: dict[str, Any], interval: float) -> None:
    screen = Screen(found)
    with Live(screen, console=_console(), screen=True, refresh_per_second=_REDRAWS_PER_SECOND):
        while True:
            time.sleep(interval)
            try:
                screen.show(_asked(url, token))
            except StoreUnavailable as error:
                screen.problem = str(error)


def _console(height: int | None = None) -> Console:
    return Console(height=height, markup=False, highlight=False, emoji=False)


class Screen:
    """What is shown, in as many lines and columns as there are."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.problem = ""
        """Why what is shown is old."""
        self._found = found

    def show(self, found: dict[str, Any]) -> None:
        """Show something newer."""
        self._found, self.problem = found, ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = self._found
        height, width = options.height or console.height, options.max_width
        for line in [*_head(found, self.problem, width), Text()]:
            line.truncate(width, overflow="ellipsis")
            yield line
            height -= 1
        rows = max(2, height - 3)  # without what stands above them, and an empty line between both tables
        keys = min(max(len(found["refused"]), len(found["hot"]), 1), rows // 2)
        policies = found["policies"][: rows - keys]
        yield _policies(policies, found["policies_left_out"] + len(found["policies"]) - len(policies))
        yield Text()
        yield _keys(found, max(1, rows - len(policies)))


def _head(found: Mapping[str, Any], problem: str, width: int) -> list[Text]:
    series, covers = found["series"], found["covers"]
    silent = f", and {len(covers['silent'])} silent" if covers["silent"] else ""
    workers = f"{covers['workers']} worker{'s' if covers['workers'] != 1 else ''}{silent}"
    status = found["health"]["status"]
    title = Text.assemble(
        ("ratelimit  ", "bold"), (status, "green" if status == "ok" else "bold red"),
        f"  {workers}, up {_age(found)}  {found['at'][11:19]} UTC  {found['store']}",
    )  # fmt: skip
    lines = [
        title,
        Text.assemble(
            f"{_rate(series, 'allowed')} allowed/s  ", (f"{_rate(series, 'denied')} denied/s", "yellow"),
            f"  {_rate(series, 'shadow_denied')} in shadow/s  {_rate(series, 'unavailable')} unavailable/s  ",
            (_sparkline(series, max(0, min(60, width - 76))), "cyan"),
        ),
        Text(
            f"p50 {_last(series['p50_ms'])} ms  p99 {_last(series['p99_ms'])} ms   {_rate(series, 'writes')} writes/s  "
            f"{_rate(series, 'reads')} reads/s  {_rate(series, 'throttles')} throttles/s{_cost(found['cost'])}"
        ),
    ]  # fmt: skip
    if problem:
        lines.append(Text(problem, style="bold red"))
    elif bad := _unwell(found["health"]["workers"]):
        lines.append(Text(bad, style="red"))
    return lines


def _age(found: Mapping[str, Any]) -> str:
    at, since = (datetime.fromisoformat(text) for text in (found["at"], found["covers"]["since"]))
    return in_words(max(0, round((at - since).total_seconds())))


def _unwell(workers: Mapping[str, Mapping[str, Any]]) -> str:
    told = []
    for number, worker in workers.items():
        if worker["status"] == "silent":
            told.append(f"worker {number} is silent")
        elif worker["status"] != "ok":
            store = f"store {worker['store_state']}, breaker {worker['breaker']}"
            told.append(f"worker {number}: {worker['status']}, {store}")
    return "; ".join(told)


def _cost(cost: Mapping[str, Any] | None) -> str:
    return "" if cost is None else f"   ${cost['total']} a month by the last {in_words(cost['seconds'])}"


def _policies(policies: Sequence[Mapping[str, Any]], left_out: int) -> Table:
    more = f"POLICY (and {left_out:,} more)" if left_out else "POLICY"
    table = _table(more, "QUOTAS", "MODE", ">ALLOW/S", ">DENY/S", ">SHADOW/S", ">UNAV/S", ">DENIED")
    for policy in policies:
        series, totals = policy["series"], policy["totals"]
        table.add_row(
            Text(policy["name"]),
            Text("; ".join(policy.get("quotas", ()))),
            policy.get("mode", ""),
            *(_rate(series, outcome) for outcome in ("allowed", "denied", "shadow_denied", "unavailable")),
            _share(totals["denied"] + totals["shadow_denied"], sum(totals.values())),
        )
    return table


def _keys(found: Mapping[str, Any], rows: int) -> Table:
    """The two lists beside each other."""
    window = in_words(found["keys_window_s"]) if found["keys_window_s"] else "few seconds"
    table = _table(f"REFUSED in the last {window}", "ACTION", ">TIMES", "", "WRITTEN", "ACTION", ">TIMES")
    refused, hot = found["refused"][:rows], found["hot"][:rows]
    for row in range(max(len(refused), len(hot))):
        table.add_row(*_key(refused, row, "count"), "", *_key(hot, row, "writes"))
    return table


def _key(keys: Sequence[Mapping[str, Any]], row: int, counted: str) -> tuple[Text, Text, str]:
    if row >= len(keys):
        return Text(), Text(), ""
    key = keys[row]
    most, error = key[counted], key["error"]
    return Text(key["user"]), Text(key["action"]), f"{most - error:,}-{most:,}" if error else f"{most:,}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="reverse", expand=True)
    for column in columns:
        if column.startswith(">"):
            table.add_column(column[1:], justify="right", no_wrap=True, min_width=len(column) - 1)
        else:
            table.add_column(column, no_wrap=True)
    return table


def _rate(series: Mapping[str, Sequence[float | None]], name: str) -> str:
    return _last(series[name])


def _last(numbers: Sequence[float | None]) -> str:
    number = numbers[-1] if numbers else None
    return "-" if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _sparkline(series: Mapping[str, Sequence[float | None]], width: int) -> str:
    """Draw all checks of the last intervals."""
    outcomes = ("allowed", "denied", "shadow_denied", "unavailable")
    sums = [sum(number or 0 for number in each) for each in zip(*(series[name] for name in outcomes), strict=True)]
    most = max(sums[-width:], default=0) or 1
    return "".join(_BARS[min(len(_BARS) - 1, int(each * len(_BARS) / most))] for each in sums[-width:])

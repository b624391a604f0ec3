"""The Grafana dashboard of our metrics, as JSON that Grafana imports: `ratelimit deploy render grafana`.

What is looked at stands in `ROWS`; all panels are laid out alike. A query may be put to whichever Prometheus scrapes a
sidecar or an app, or is written to by an OpenTelemetry collector.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

_WHERE: Final = 'job=~"$job",instance=~"$instance"'
_POLICY: Final = 'policy=~"$policy"'
_DECISIONS: Final = "ratelimit_decisions_total"
_BREAKER: Final = "ratelimit_breaker_state"
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_GRID_WIDTH: Final = 24


class Panel(NamedTuple):
    """What is drawn: queries by their legends, in which `{{label}}` stands for a label's value."""

    title: str
    queries: dict[str, str]
    unit: str = "ops"
    kind: Literal["timeseries", "stat"] = "timeseries"
    meaning: str = ""
    good: Literal["", "zero", "some"] = ""
    """Of a stat: which value is green, any other being red."""


def _rate(metric: str, by: str = "", where: str = "") -> str:
    return f"sum {_by(by)}(rate({metric}{_selector(where)}[$__rate_interval]))"


def _rates(prefix: str, *names: str) -> dict[str, str]:
    return {name.replace("_", " "): _rate(f"{prefix}{name}_total") for name in names}


def _now(metric: str, by: str = "", where: str = "") -> str:
    return f"sum {_by(by)}({metric}{_selector(where)})"


def _refused(by: str = "") -> str:
    denied = _POLICY + ',outcome="denied"'
    return f"{_rate(_DECISIONS, by, denied)} / {_rate(_DECISIONS, by, _POLICY)}"


def _quantile(quantile: float) -> str:
    return f"histogram_quantile({quantile}, {_rate('ratelimit_check_seconds_bucket', 'le')})"


def _by(labels: str) -> str:
    return f"by ({labels}) " if labels else ""


def _selector(where: str) -> str:
    return f"{{{_WHERE}{',' if where else ''}{where}}}"


ROWS: Final[dict[str, list[Panel]]] = {
    "Checks": [
        Panel("Checks", {"": _rate(_DECISIONS, where=_POLICY)}, kind="stat"),
        Panel("Refused", {"": _refused()}, "percentunit", "stat"),
        Panel("p99 of a check", {"": _quantile(0.99)}, "s", "stat"),
        Panel("Breakers open", {"": _now(_BREAKER, where='state="open"')}, "none", "stat", good="zero"),
        Panel("Workers up", {"": _now("ratelimit_up")}, "none", "stat", "Of `ratelimit serve`.", "some"),
        Panel(
            "Usage events lost", {"": f"sum (increase(ratelimit_usage_dropped_total{_selector('')}[$__range]))"},
            "none", "stat", "In the time that is shown.", "zero",
        ),
        Panel("Checks by outcome", {"{{outcome}}": _rate(_DECISIONS, "outcome", _POLICY)}),
        Panel("Checks by policy", {"{{policy}}": _rate(_DECISIONS, "policy", _POLICY)}),
        Panel("Refused, part of all", {"{{policy}}": _refused("policy")}, "percentunit"),
        Panel("How long a check takes", {"p50": _quantile(0.5), "p99": _quantile(0.99)}, "s"),
        Panel(
            "Decided without the store",
            {"{{policy}}: {{outcome}}": _rate(_DECISIONS, "policy,outcome", _POLICY + ',reason="unavailable"')},
            meaning="By a policy's on_unavailable: the store was down or late. No data is good.",
        ),
        Panel(
            "Spared the store",
            {"refusals repeated": _rate("ratelimit_denials_cached_total"),
             "granted from leases": _rate("ratelimit_checks_leased_total"),
             "written with another": _rate("ratelimit_checks_coalesced_total")},
        ),
    ],
    "Store": [
        Panel("Requests", {"{{operation}}": _rate("ratelimit_store_calls_total", "operation")}),
        Panel(
            "Capacity", {"{{kind}}": _rate("ratelimit_store_units_total", "kind")},
            meaning="Units a second; known with consumed=true in the store's URL.",
        ),
        Panel(
            "Throttled and tried again",
            {**_rates("ratelimit_store_", "throttles", "retries"),
             "slow path: {{reason}}": _rate("ratelimit_store_fallbacks_total", "reason")},
        ),
        Panel("Circuit breaker", {"{{state}}": _now(_BREAKER, "state")}, "none"),
        Panel(
            "Connections",
            {"made": _rate("ratelimit_store_connections_total"),
             "ended: {{reason}}": _rate("ratelimit_store_connections_dropped_total", "reason")},
        ),
        Panel("Units lost", {"{{kind}}": _rate("ratelimit_units_lost_total", "kind")}),
        Panel("Requests by region", {"{{region}}": _rate("ratelimit_region_requests_total", "region")}),
        Panel(
            "What regions do not see of each other",
            {"a quota may be exceeded by": f"max(ratelimit_region_excess_units{_selector('')})",
             "found a second": _rate("ratelimit_region_units_found_total")},
            "none",
        ),
        Panel("Mirror", _rates("ratelimit_mirror_", "written", "failed", "dropped", "different")),
        Panel("Mirror: writes that wait", {"": _now("ratelimit_mirror_waiting", "instance")}, "none"),
        Panel(
            "Records in memory://",
            {"records": _now("ratelimit_store_records"), "evicted a second": _rate("ratelimit_store_evicted_total")},
            "none",
        ),
    ],
    "Usage log": [
        Panel(
            "Events",
            _rates("ratelimit_usage_", "accepted", "written", "indexed", "retried", "spilled", "replayed", "erased"),
        ),
        Panel("Lost or damaged", _rates("ratelimit_usage_", "dropped", "unjournaled", "torn", "damaged")),
        Panel(
            "Waiting", {"in memory": _now("ratelimit_usage_depth"), "on their way": _now("ratelimit_usage_in_flight")},
            "none",
        ),
        Panel("Journal", {"{{instance}}": _now("ratelimit_usage_journal_bytes", "instance")}, "bytes"),
    ],
    "Users and plans": [
        Panel("Questions", _rates("ratelimit_directory_", "hits", "reads", "shared", "stale", "evicted")),
        Panel(
            "Not answered as they should",
            _rates("ratelimit_directory_", "failures", "spared", "late", "without", "unknown_plans"),
        ),
    ],
    "Service": [
        Panel("Requests under way", {"{{instance}}": _now("ratelimit_requests_in_progress", "instance")}, "none"),
        Panel(
            "Configuration",
            {"last reload refused": _now("ratelimit_reload_rejected"), "at work": _now("ratelimit_configurations"),
             "reloads {{result}}, a second": _rate("ratelimit_reloads_total", "result")}, "none",
        ),
        Panel("Envoy's calls", {"{{answer}}": _rate("ratelimit_envoy_calls_total", "answer")}),
        Panel(
            "Alerts about users",
            {"{{result}}": _rate("ratelimit_alerts_total", "result"),
             "dropped": _rate("ratelimit_alerts_dropped_total")},
        ),
        Panel("CPU", {"{{instance}}": _rate("process_cpu_seconds_total", "instance")}, "none", meaning="Of one core."),
        Panel("Memory", {"{{instance}}": _now("process_resident_memory_bytes", "instance")}, "bytes"),
        Panel("Open files", {"{{instance}}": _now("process_open_fds", "instance")}, "none"),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard, as Grafana 10 and later import it; it asks which Prometheus to use."""
    return {
        "uid": "ratelimit",
        "title": "ratelimit",
        "tags": ["ratelimit"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            _variable("job", f"label_values({_DECISIONS}, job)"),
            _variable("instance", f'label_values({_DECISIONS}{{job=~"$job"}}, instance)'),
            _variable("policy", f"label_values({_DECISIONS}{_selector('')}, policy)"),
        ]},
        "panels": _laid_out(),
    }  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "type": "query", "query": query, "datasource": _DATASOURCE, "refresh": 2, "sort": 1,
        "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def _laid_out() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    x = y = line = 0
    for title, panels in ROWS.items():
        found.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y + line, "w": _GRID_WIDTH, "h": 1}})
        x, y, line = 0, y + line + 1, 0
        for panel in panels:
            width, height = (4, 4) if panel.kind == "stat" else (8, 8)
            if x + width > _GRID_WIDTH or line not in (0, height):
                x, y, line = 0, y + line, 0
            found.append({**_drawn(panel), "gridPos": {"x": x, "y": y, "w": width, "h": height}})
            x, line = x + width, height
    return [{"id": number, **panel} for number, panel in enumerate(found, 1)]


def _drawn(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never"}
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        options = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": legend}
    elif panel.good:
        few, many = ("green", "red") if panel.good == "zero" else ("red", "green")
        steps = [{"color": few, "value": None}, {"color": many, "value": 1}]
        defaults |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    targets = [
        {"refId": chr(ord("A") + number), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind, "title": panel.title, "description": panel.meaning, "datasource": _DATASOURCE,
        "targets": targets, "options": options, "fieldConfig": {"defaults": defaults, "overrides": []},
    }  # fmt: skip

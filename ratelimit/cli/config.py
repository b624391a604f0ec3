"""`ratelimit config check|show`: what a configuration comes to, or everything that is wrong with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ratelimit.cli.options import ConfigOption, Configured, answering
from ratelimit.cli.output import Answer, say, say_fields, say_table, toml_value
from ratelimit.config import Config, document

# A name that TOML takes without quotes.
_BARE = re.compile(r"[A-Za-z0-9_-]+")

app = typer.Typer(help="Look at a configuration: a TOML file, with the RATELIMIT_* variables over it.")


@app.command()
@answering
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="By default the one that RATELIMIT_CONFIG names.")
    ] = None,
) -> Answer:
    """Check a file as the app would read it, environment variables included, and print what was understood.

    Exit status: 0 if all is well, 2 with every error on stderr. The store is not contacted.

    Example:

        ratelimit config check ratelimit.toml
    """
    config = Configured(config=file).load()
    return Answer({"ok": True, **document(config)}, lambda: _report(file, config))


def _report(file: Path | None, config: Config) -> None:
    # With the limits of Envoy's files, which are policies as well.
    found = document(replace(config, policies=(*config.policies, *config.envoy_config.policies)))
    policies = found.pop("policies")
    say(f"{'' if file is None else f'{file}: '}ok", style="bold green")
    say_fields({name: _shown(value) for name, value in found.items()})
    if policies:
        columns = ("policy", "quotas", "algorithm", "mode", "on_unavailable", "match")
        say_table(columns, [_row(name, policies) for name in policies])
    else:
        say("no policies: nothing is limited, unless the app asks with quotas of its own")


@app.command()
@answering
def show(config: ConfigOption = None) -> Answer:
    """Print the configuration in effect, defaults included, as TOML; credentials in URLs are masked.

    Example:

        RATELIMIT_DEADLINE=0.1 ratelimit config show --config ratelimit.toml
    """
    found = document(Configured(config=config).load())
    return Answer(found, lambda: typer.echo(_toml(found)))


def _row(name: str, policies: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    policy = policies[name]
    above = [other for other, its in policies.items() if name in its["together"]]
    match = ", ".join(policy["match"]) or (f"(with {', '.join(above)})" if above else "(asked by name)")
    return (name, _shown(policy["quotas"]), policy["algorithm"], policy["mode"], policy["on_unavailable"], match)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)


def _toml(found: dict[str, Any]) -> str:
    policies = found["policies"]
    lines = [f"{name} = {toml_value(value)}" for name, value in found.items() if name != "policies"]
    for name, policy in policies.items():
        lines += ["", f"[policies.{name if _BARE.fullmatch(name) else toml_value(name)}]"]
        lines += [f"{key} = {toml_value(value)}" for key, value in policy.items()]
    return "\n".join(lines)

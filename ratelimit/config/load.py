"""`load_config`: lay the layers over each other, check what results, and report everything that is wrong at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from ratelimit.config.environment import FILE, from_environment
from ratelimit.config.layers import Layer, from_file, from_table
from ratelimit.config.model import Config, SettingArgs
from ratelimit.config.problems import Problems, unknown
from ratelimit.config.settings import POLICY_SETTINGS, SETTINGS
from ratelimit.errors import ConfigError
from ratelimit.policy import Policy
from ratelimit.quota import UNLIMITED


def load_config(
    path: str | Path | None = None, *, env: Mapping[str, str] = os.environ, **settings: Unpack[SettingArgs]
) -> Config:
    """The configuration that holds: environment variables over `settings` over the file over the defaults.

    The file is `path`, or else the one that `RATELIMIT_CONFIG` names, if it does. Raises `ConfigError` with the path to
    every bad value, and where it was set.
    """
    config, problems = read_config(path, env=env, **settings)
    problems.raise_any()
    return config


def read_config(
    path: str | Path | None = None, *, env: Mapping[str, str] = os.environ, **settings: Unpack[SettingArgs]
) -> tuple[Config, Problems]:
    """As `load_config`, but what is wrong is left out and handed over: for those who look for more of it."""
    merged = _file(path, env)
    merged.lay(from_table(settings))
    variables: list[ConfigError] = []
    merged.lay(from_environment(env, merged.policies, variables))
    problems = Problems(variables, merged.origin_of)
    values: dict[str, Any] = _settings(merged, problems)
    return Config(policies=_policies(merged, problems), **values), problems


def _file(path: str | Path | None, env: Mapping[str, str]) -> Layer:
    if path is not None:
        return from_file(path)
    if named := env.get(FILE, "").strip():
        return from_file(named, named_by=f"named by {FILE}")
    return Layer()


def _settings(merged: Layer, problems: Problems) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in merged.settings.items():
        try:
            if name in POLICY_SETTINGS and name not in SETTINGS:
                raise ConfigError("", "belongs to a policy: put it below [policies.NAME]")
            if name not in SETTINGS:
                raise unknown("", name, [*SETTINGS, "policies"])
            found[name] = SETTINGS[name].check(value)
        except ConfigError as error:
            problems.add(error.under(name))
    return found


def _policies(merged: Layer, problems: Problems) -> tuple[Policy, ...]:
    found: list[Policy] = []
    for name, table in merged.policies.items():
        here: list[ConfigError] = []
        policy = _policy(name, table, here)
        for error in here:
            problems.add(error.under(f"policies.{name}"))
        if policy is not None:
            found.append(policy)
    return tuple(found)


def _policy(name: str, table: object, errors: list[ConfigError]) -> Policy | None:
    """The policy of a table, or what is wrong with it: a setting found bad is left out, and the rest is tried again."""
    if not isinstance(table, dict):
        errors.append(ConfigError("", f"expected a table: [policies.{name}] with quotas = '5/day', not {table!r}"))
        return None
    values = _known(table, errors)
    if "quotas" not in table:
        errors.append(ConfigError("quotas", "missing; write quotas = '5/day', or 'unlimited' for no limit"))
    while True:
        try:
            return Policy(name, **({"quotas": UNLIMITED} | values))
        except ConfigError as error:
            errors.append(error)
            bad = error.path.partition(".")[0].partition("[")[0]
            if values.pop(bad, None) is None:
                return None


def _known(table: dict[str, object], errors: list[ConfigError]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            if key not in POLICY_SETTINGS:
                raise unknown("", key, POLICY_SETTINGS)
            values[key] = POLICY_SETTINGS[key].check(value)
        except ConfigError as error:
            errors.append(error.under(key))
    return values

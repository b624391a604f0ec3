"""`load_config`: lay the layers over each other, check what results, and report everything that is wrong at once."""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Unpack

from ratelimit.config.settings import SETTINGS, Config, SettingArgs
from ratelimit.errors import ConfigError, nearest
from ratelimit.policy import POLICY_SETTINGS, Policy, check_costs, check_together
from ratelimit.quota import UNLIMITED
from ratelimit.settings import unknown

logger = logging.getLogger("ratelimit")


# The layers a configuration is made of, each still unchecked: the file, the keyword arguments, the environment.


@dataclass
class Layer:
    """Raw values by setting, raw policies by name, and where each was set (by path; for the reader of an error)."""

    settings: dict[str, object] = field(default_factory=dict)
    policies: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    origin: str = ""

    def origin_of(self, path: str) -> str:
        """Return where a setting, or what it is part of, was set (`policies.hint.quotas[1]` → `policies.hint` → …)."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.origin

    def lay(self, over: Layer) -> None:
        """Put another layer over this one: settings replace settings, also inside a policy."""
        for name, value in over.settings.items():
            self.settings[name] = value
            self.origins[name] = over.origin_of(name)
        for name, value in over.policies.items():
            below = self.policies.get(name)
            if not isinstance(value, dict) or not isinstance(below, dict):
                self.policies[name] = value
                self.origins[f"policies.{name}"] = over.origin_of(f"policies.{name}")
                below = None
            for key in value if isinstance(value, dict) else ():
                path = f"policies.{name}.{key}"
                self.origins[path] = over.origin_of(path)
            if below is not None and isinstance(value, dict):
                self.policies[name] = below | value


def from_file(path: str | Path, *, named_by: str = "") -> Layer:
    """Read a TOML file. Raises `ConfigError` naming the file, and the line of a mistake in its syntax."""
    by = f" ({named_by})" if named_by else ""
    try:
        # Some editors begin a file with a byte order mark.
        table = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else (error.strerror or "cannot be read").lower()
        raise ConfigError(str(path), f"{reason}{by}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"not valid TOML: {error}{by}") from error
    except RecursionError:
        raise ConfigError(str(path), f"not TOML that can be read: it is nested too deeply{by}") from None
    return from_table(table, origin=f"in {path}")


def from_table(table: Mapping[str, Any], *, origin: str = "") -> Layer:
    """Read a file's content, or keyword arguments. Raises `ConfigError` where `policies` are not policies at all."""
    settings = dict(table)
    policies = settings.pop("policies", {})
    layer = Layer(settings, origin=origin)
    if isinstance(policies, Mapping):
        layer.policies = {str(name): _as_table(value) for name, value in policies.items()}
    elif isinstance(policies, Iterable) and not isinstance(policies, str):
        layer.policies = _by_name(policies)
    else:
        raise ConfigError("policies", f"expected a table of policies, such as [policies.hint], not {policies!r}")
    return layer


def _by_name(policies: Iterable[object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for number, policy in enumerate(policies):
        if not isinstance(policy, Policy):
            raise ConfigError(f"policies[{number}]", f"expected a Policy (or a table: [policies.NAME]), not {policy!r}")
        if policy.name in found:
            raise ConfigError(f"policies[{number}]", f"a second policy named {policy.name!r}; names are unique")
        found[policy.name] = _as_table(policy)
    return found


def _as_table(policy: object) -> object:
    """Return a `Policy` as the table it could have been, so that the environment may change one setting of it."""
    if not isinstance(policy, Policy):
        return dict(policy) if isinstance(policy, Mapping) else policy
    return {each.name: getattr(policy, each.name) for each in fields(policy) if each.name != "name"}


# Environment variables as a layer: `RATELIMIT_STORE`, `RATELIMIT_POLICIES__HINT__QUOTAS`.

PREFIX: Final = "RATELIMIT_"
FILE: Final = "RATELIMIT_CONFIG"
# Read elsewhere: by the test suite, and by the DynamoDB client.
_NOT_OURS: Final = ("RATELIMIT_TEST_", "RATELIMIT_FAST_LANE")
_EXAMPLE: Final = "RATELIMIT_POLICIES__HINT__QUOTAS"
# What Kubernetes and Docker tell each container of a service or link called `ratelimit` or `ratelimit-…`.
_SERVICE = re.compile(r"RATELIMIT(_\w+)?_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL)
# The settings of Flask-Limiter, slowapi and django-ratelimit, which have the same prefix.
_OTHERS: Final = frozenset({
    "APPLICATION", "APPLICATION_COST", "APPLICATION_DEDUCT_WHEN", "APPLICATION_EXEMPT_WHEN", "APPLICATION_PER_METHOD",
    "CACHE_PREFIX", "DEFAULT", "DEFAULTS_COST", "DEFAULTS_DEDUCT_WHEN", "DEFAULTS_EXEMPT_WHEN", "DEFAULTS_PER_METHOD",
    "ENABLE", "FAIL_ON_FIRST_BREACH", "FAIL_OPEN", "GLOBAL", "HASH_ALGORITHM", "HEADERS_ENABLED",
    "HEADER_LIMIT", "HEADER_REMAINING", "HEADER_RESET", "HEADER_RETRY_AFTER", "HEADER_RETRY_AFTER_VALUE",
    "IN_MEMORY_FALLBACK", "IN_MEMORY_FALLBACK_ENABLED", "IPV4_MASK", "IPV6_MASK", "IP_META_KEY", "KEY_PREFIX", "META",
    "META_BREACH_CALLBACK", "ON_BREACH_CALLBACK", "REQUEST_IDENTIFIER", "STORAGE_OPTIONS", "STORAGE_URI",
    "STORAGE_URL", "STRATEGY", "SWALLOW_ERRORS", "USE_CACHE", "VIEW",
})  # fmt: skip


def from_environment(env: Mapping[str, str], policies: Iterable[str], errors: list[ConfigError]) -> Layer:
    """Read what the variables set; an empty one is not set. `policies` are the names known from elsewhere: case does
    not matter, nor `-` or `_`. A policy that nothing else names is made, its name in lower case.

    A variable that is neither ours nor known to be another's is warned of, with the nearest that is ours: whoever
    started this process may have had other reasons for it."""
    layer = Layer()
    names = list(policies)
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable == FILE or _is_foreign(variable, env[variable]):
            continue
        try:
            _read(variable, env[variable], names, layer)
        except ConfigError as error:
            errors.append(error)
    return layer


def _is_foreign(variable: str, text: str) -> bool:
    if variable.startswith(_NOT_OURS) or variable.removeprefix(PREFIX) in _OTHERS or _SERVICE.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _SERVICE_URL.fullmatch(text) is not None


def _read(variable: str, text: str, names: list[str], layer: Layer) -> None:
    parts = variable.removeprefix(PREFIX).lower().split("__")
    origin = f"set by {variable}"
    if parts[0] == "policies":
        if len(parts) != 3 or not all(parts):
            raise ConfigError(variable, f"name the policy and the setting, as in {_EXAMPLE}=5/day")
        if parts[2] not in POLICY_SETTINGS:
            prefix = variable[: variable.rindex("__") + 2]
            raise _unknown(variable, [prefix + setting.upper() for setting in POLICY_SETTINGS])
        if text.strip():
            name = _policy_name(variable, parts[1], names)
            values = layer.policies.setdefault(name, {})
            assert isinstance(values, dict)
            values[parts[2]] = POLICY_SETTINGS[parts[2]].from_text(text.strip())
            layer.origins[f"policies.{name}.{parts[2]}"] = layer.origins[f"policies.{name}"] = origin
    elif len(parts) > 1 or parts[0] not in SETTINGS:
        known = [FILE, _EXAMPLE, *(PREFIX + setting.upper() for setting in SETTINGS)]
        if len(parts) > 1:
            # Nobody else parts names like this: it would be a limit that is not there.
            raise _unknown(variable, known)
        _warn(str(_unknown(variable, known)))
    elif text.strip():
        layer.settings[parts[0]] = SETTINGS[parts[0]].from_text(text.strip())
        layer.origins[parts[0]] = origin


@cache
def _warn(message: str) -> None:
    # Once in each process, however often the configuration is read.
    logger.warning("%s", message)


def _policy_name(variable: str, name: str, names: list[str]) -> str:
    same = [each for each in names if each.lower().replace("-", "_") == name.replace("-", "_")]
    if len(same) > 1:
        raise ConfigError(variable, f"could mean the policy {same[0]!r} or {same[1]!r}; set it in the file instead")
    return same[0] if same else name


def _unknown(variable: str, known: list[str]) -> ConfigError:
    near = nearest(variable, known, form="{}", cutoff=0.7)
    return ConfigError(variable, f"unknown environment variable; {near}")


class Problems:
    """Collects errors; `raise_any` throws them as one `ConfigError`, a line for each.

    `origin_of` tells where the value of a path was set, for the reader: `in ratelimit.toml`, `set by RATELIMIT_STORE`.
    """

    def __init__(self, found: Iterable[ConfigError], origin_of: Callable[[str], str]) -> None:
        self._found = list(found)
        self._origin_of = origin_of

    def add(self, error: ConfigError) -> None:
        """Add one, its path seen from the top."""
        origin = self._origin_of(error.path)
        self._found.append(ConfigError(error.path, f"{error.problem} ({origin})") if origin else error)

    def raise_any(self) -> None:
        """Raise the one error there is, or one that lists them all."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            lines = "".join(f"\n  {error}" for error in self._found)
            raise ConfigError("", f"{len(self._found)} settings cannot be used:{lines}")


def load_config(
    path: str | Path | None = None, *, env: Mapping[str, str] = os.environ, **settings: Unpack[SettingArgs]
) -> Config:
    """Return the configuration that holds: environment variables over `settings` over the file over the defaults.

    The file is `path`, or else the one that `RATELIMIT_CONFIG` names, if it does. Raises `ConfigError` with the path to
    every bad value, and where it was set.
    """
    config, problems = read_config(path, env=env, **settings)
    problems.raise_any()
    return config


def read_config(
    path: str | Path | None = None, *, env: Mapping[str, str] = os.environ, **settings: Unpack[SettingArgs]
) -> tuple[Config, Problems]:
    """Load as `load_config` does, but leave out what is wrong and hand it over: for those who look for more of it."""
    merged = _file(path, env)
    merged.lay(from_table(settings))
    variables: list[ConfigError] = []
    merged.lay(from_environment(env, merged.policies, variables))
    problems = Problems(variables, merged.origin_of)
    values: dict[str, Any] = _settings(merged, problems)
    policies = _policies(merged, problems, has_plans=bool(values.get("directory")))
    return Config(policies=policies, **values), problems


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


def _policies(merged: Layer, problems: Problems, *, has_plans: bool) -> tuple[Policy, ...]:
    found: list[Policy] = []
    is_whole = True
    for name, table in merged.policies.items():
        here: list[ConfigError] = []
        policy = _policy(name, table, here)
        for error in here:
            problems.add(error.under(f"policies.{name}"))
        is_whole = is_whole and not here
        if policy is not None:
            found.append(policy)
    by_name = {policy.name: policy for policy in found if is_whole}
    try:
        check_together(by_name)
        if not has_plans:
            check_costs(by_name)
    except ConfigError as error:
        problems.add(error)
        is_whole = False
    return tuple(found if is_whole else [replace(policy, together=(), share=None) for policy in found])


def _policy(name: str, table: object, errors: list[ConfigError]) -> Policy | None:
    """Return the policy of a table; a setting found bad is told in `errors` and left out, and the rest tried again."""
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
            values[key] = POLICY_SETTINGS[key].from_file(value)
        except ConfigError as error:
            errors.append(error.under(key))
    return values

"""The layers a configuration is made of, each still unchecked: the file, the keyword arguments, the environment."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ratelimit.errors import ConfigError
from ratelimit.policy import Policy


@dataclass
class Layer:
    """Raw values by setting, raw policies by name, and where each was set (by path; for the reader of an error)."""

    settings: dict[str, object] = field(default_factory=dict)
    policies: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    origin: str = ""

    def origin_of(self, path: str) -> str:
        """Of the setting itself, or of what it is part of (`policies.hint.quotas[1]` → `policies.hint.quotas` → …)."""
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
    hint = f" ({named_by})" if named_by else ""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else (error.strerror or "cannot be read").lower()
        raise ConfigError(str(path), f"{reason}{hint}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"not valid TOML: {error}{hint}") from error
    except RecursionError:
        raise ConfigError(str(path), f"not TOML that can be read: it is nested too deeply{hint}") from None
    return from_table(table, origin=f"in {path}")


def from_table(table: Mapping[str, Any], *, origin: str = "") -> Layer:
    """A file's content, or keyword arguments. Raises `ConfigError` where `policies` are not policies at all."""
    settings = dict(table)
    policies = settings.pop("policies", {})
    layer = Layer(settings, origin=origin)
    if isinstance(policies, Mapping):
        layer.policies = {str(name): _plain(value) for name, value in policies.items()}
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
        found[policy.name] = _plain(policy)
    return found


def _plain(policy: object) -> object:
    """A `Policy` as the table it could have been, so that the environment may change one setting of it."""
    if not isinstance(policy, Policy):
        return dict(policy) if isinstance(policy, Mapping) else policy
    return {each.name: getattr(policy, each.name) for each in fields(policy) if each.name != "name"}

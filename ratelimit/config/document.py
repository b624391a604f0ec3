"""`document`: a configuration as plain values, for people and programs to look at. Whatever is secret is masked."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from ratelimit.config.model import Config
from ratelimit.config.secrets import MASK, masked, masked_path
from ratelimit.config.settings import POLICY_SETTINGS
from ratelimit.policy import Policy

_SECRET: Final = ("token", "secret", "key")
_SECRET_URL: Final = "webhook"


def document(config: Config) -> dict[str, Any]:
    """Every setting by its name, in the order of `Config`; what is not set is left out. Fit for JSON and TOML."""
    found = {field.name: _shown(field.name, getattr(config, field.name)) for field in fields(config)}
    found["policies"] = {policy.name: _policy(policy) for policy in config.policies}
    return {name: value for name, value in found.items() if value is not None}


def _policy(policy: Policy) -> dict[str, Any]:
    found: dict[str, Any] = {"quotas": [str(quota) for quota in policy.quotas] or "unlimited"}
    for name in POLICY_SETTINGS:
        value = getattr(policy, name)
        if name not in found and value is not None:
            found[name] = _plain(value)
    return found


def _shown(name: str, value: object) -> object:
    if name.endswith(_SECRET):
        return None if value is None else MASK
    if isinstance(value, str) and "://" in value:
        return masked_path(value) if name.endswith(_SECRET_URL) else masked(value)
    return _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return f"function {getattr(value, '__qualname__', value)}" if callable(value) else value

"""Environment variables as a layer: `RATELIMIT_STORE`, `RATELIMIT_POLICIES__HINT__QUOTAS`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Final

from ratelimit.config.layers import Layer
from ratelimit.config.settings import POLICY_SETTINGS, SETTINGS
from ratelimit.errors import ConfigError

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
    "ENABLE", "ENABLED", "FAIL_ON_FIRST_BREACH", "FAIL_OPEN", "GLOBAL", "HASH_ALGORITHM", "HEADERS_ENABLED",
    "HEADER_LIMIT", "HEADER_REMAINING", "HEADER_RESET", "HEADER_RETRY_AFTER", "HEADER_RETRY_AFTER_VALUE",
    "IN_MEMORY_FALLBACK", "IN_MEMORY_FALLBACK_ENABLED", "IPV4_MASK", "IPV6_MASK", "IP_META_KEY", "KEY_PREFIX", "META",
    "META_BREACH_CALLBACK", "ON_BREACH_CALLBACK", "REQUEST_IDENTIFIER", "STORAGE_OPTIONS", "STORAGE_URI",
    "STORAGE_URL", "STRATEGY", "SWALLOW_ERRORS", "USE_CACHE", "VIEW",
})  # fmt: skip

logger = logging.getLogger("ratelimit")


def from_environment(env: Mapping[str, str], policies: Iterable[str], errors: list[ConfigError]) -> Layer:
    """What the variables set; an empty one counts as not set. `policies` are the names known from elsewhere: case does
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
            name = _policy(variable, parts[1], names)
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
    """Once in each process, however often the configuration is read."""
    logger.warning("%s", message)


def _policy(variable: str, name: str, names: list[str]) -> str:
    same = [each for each in names if each.lower().replace("-", "_") == name.replace("-", "_")]
    if len(same) > 1:
        raise ConfigError(variable, f"could mean the policy {same[0]!r} or {same[1]!r}; set it in the file instead")
    return same[0] if same else name


def _unknown(variable: str, known: list[str]) -> ConfigError:
    near = get_close_matches(variable, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return ConfigError(variable, f"unknown environment variable; {hint}")

"""`Planners`: which policy a check goes by, compiled once: a named one, one with the call's quotas, or a plan's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, UnknownAction
from ratelimit.limiter.planner import Planner
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy, QuotaSource
from ratelimit.quota import INACTIVE, UNLIMITED, Quota, Quotas, QuotasLike, to_quotas

_MAX_PLANNERS: Final = 1024


class Planners:
    """The planners of the named policies, and the most used of those that came with a call or from the directory."""

    def __init__(self, policies: Iterable[Policy], directory: QuotaSource | None) -> None:
        self.policies: Mapping[str, Policy] = MappingProxyType(_by_name(policies))
        self._directory = directory
        self._named = {name: Planner(policy) for name, policy in self.policies.items()}
        self.named: Mapping[str, Planner] = self._named if directory is None else {}
        """The planners that hold for everybody, by action; none where each user may have quotas of their own."""
        self._made: dict[tuple[object, ...], Planner] = {}

    async def of(self, key: Key, quotas: QuotasLike | None, algorithm: AlgorithmName | None) -> Planner:
        """By the quotas of the call, else those of the user's plan, else the policy's own.

        Raises `UnknownAction` where there are none of them, and `InvalidQuota`.
        """
        if quotas is not None:
            return self._with(key.action, to_quotas(quotas), algorithm)
        if self._directory is not None:
            found = await self._directory.quotas_for(key.user, key.action)
            if found is not None:
                return self._with(key.action, self._usable(key.action, found, algorithm), algorithm)
        planner = self._named.get(key.action)
        if planner is None:
            raise UnknownAction(
                f"no policy is named {key.action!r} (there are: {', '.join(self.policies) or 'none'}); "
                "add one, or pass quotas with the call"
            )
        return planner if algorithm is None else self._with(key.action, planner.policy.quotas, algorithm)

    def of_decision(self, decision: Decision) -> Planner:
        """Return the planner of what a decision took from, whatever holds for its user by now."""
        quotas = tuple([state.quota for state in decision.quotas]) or UNLIMITED
        # Windows are given back to alike, be they fixed or sliding; a bucket says so by its position.
        algorithm: AlgorithmName = "gcra" if any(state.position for state in decision.quotas) else "fixed_window"
        key = (decision.policy, quotas, algorithm)
        planner = self._made.get(key)
        return planner or self._keep(key, Planner(Policy(decision.policy, quotas, algorithm=algorithm)))

    def _with(self, action: str, quotas: Quotas, algorithm: AlgorithmName | None) -> Planner:
        """The action's policy with these quotas, or a new one."""
        key = (action, quotas, quotas is UNLIMITED, quotas is INACTIVE, algorithm)
        planner = self._made.get(key)
        if planner is None:
            changes: dict[str, Any] = {"quotas": quotas}
            if algorithm is not None:
                changes["algorithm"] = algorithm
            policy = self.policies.get(action)
            made = Policy(action, **changes) if policy is None else replace(policy, **changes)
            planner = self._keep(key, Planner(made, inactive=quotas is INACTIVE))
        return planner

    def _keep(self, key: tuple[object, ...], planner: Planner) -> Planner:
        if len(self._made) >= _MAX_PLANNERS:
            self._made.clear()
        self._made[key] = planner
        return planner

    def _usable(self, action: str, quotas: Quotas, algorithm: AlgorithmName | None) -> Quotas:
        """A plan does not know the algorithms of the policies it is used with: a burst is for GCRA only."""
        policy = self.policies.get(action)
        named = algorithm or ("fixed_window" if policy is None else policy.algorithm)
        if named == "gcra" or all(quota.burst is None for quota in quotas):
            return quotas
        return tuple(Quota(quota.limit, quota.window) for quota in quotas)


def _by_name(policies: Iterable[Policy]) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for number, policy in enumerate(policies):
        if not isinstance(policy, Policy):
            raise ConfigError(f"policies[{number}]", f"expected a Policy, not {policy!r}")
        if policy.name in found:
            raise ConfigError(f"policies[{number}]", f"a second policy named {policy.name!r}; names must differ")
        found[policy.name] = policy
    return found

"""`PolicyResolver`: which policy a check goes by, and each of them compiled once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from types import MappingProxyType
from typing import Any, Final

from ratelimit.cache import LRUCache
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, InvalidInput, SlotNeeded, UnknownAction, no_policy
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy, QuotaSource, check_together, members_of
from ratelimit.quota import INACTIVE, UNLIMITED, Quota, Quotas, QuotasLike, to_quotas
from ratelimit.regions.sum import SplitStore

MAX_RESOLVED_POLICIES: Final = 1024


class PolicyResolver:
    """Which policy a check goes by, compiled once: a named one, one with the quotas of the call, or of the user's plan.

    Of the latter two the most recently used ones are kept.
    """

    def __init__(
        self,
        policies: Iterable[Policy],
        directory: QuotaSource | None,
        *,
        enabled: bool = True,
        split: SplitStore | None = None,
    ) -> None:
        found = _by_name(policies)
        if split is not None:
            found = {name: split.share_policy(policy) for name, policy in found.items()}
        self.policies: Mapping[str, Policy] = MappingProxyType(found)
        self._split = split
        """Whose share of every quota holds; None where all of it does."""
        self._enabled = enabled
        self._directory = directory if enabled else None
        check_together(self.policies)
        self._named = {
            name: CompiledPolicy(policy if enabled else replace(policy, quotas=UNLIMITED, together=(), share=None))
            for name, policy in self.policies.items()
        }
        alone = {name: one for name, one in self._named.items() if not one.is_concurrent and not one.policy.together}
        self.named: Mapping[str, CompiledPolicy] = alone if self._directory is None else {}
        """Those that a check goes by, whoever the user is, by action; none where each may have quotas of their own."""
        self._made: LRUCache[tuple[object, ...], CompiledPolicy] = LRUCache(MAX_RESOLVED_POLICIES)

    async def of(self, key: Key, quotas: QuotasLike | None, algorithm: AlgorithmName | None) -> CompiledPolicy:
        """Return the policy: by the quotas of the call, else those of the user's plan, else the policy's own.

        Raises `UnknownAction` where there are none of them, and `InvalidQuota`.
        """
        if not self._enabled and (quotas is None or key.action in self._named):
            quotas = algorithm = None
        if quotas is not None:
            own = to_quotas(quotas) if self._enabled else UNLIMITED
            return self._with(key.action, own if self._split is None else self._split.share(own), algorithm)
        if self._directory is not None:
            found = await self._directory.quotas_for(key.user, key.action)
            if found is not None:
                found = found if self._split is None else self._split.share(found)
                return self._with(key.action, self._usable(key.action, found, algorithm), algorithm)
        compiled = self._named.get(key.action)
        if compiled is None:
            raise UnknownAction(f"{no_policy(key.action, self.policies)}; add one, or pass quotas with the call")
        return compiled if algorithm is None else self._with(key.action, compiled.policy.quotas, algorithm)

    async def of_spending(self, key: Key, quotas: QuotasLike | None, algorithm: AlgorithmName | None) -> CompiledPolicy:
        """Return the policy of what spends and gives nothing back. Raises as `of` does, and `SlotNeeded`."""
        compiled = await self.of(key, quotas, algorithm)
        if compiled.is_concurrent:
            raise SlotNeeded(
                f"{key.action!r} limits how many go on at the same time, and a check has no end: a slot is taken by a"
                " request through the middleware or the sidecar, and in Python by"
                f" `async with limiter.slot({key.user!r}, {key.action!r}):`"
            )
        return compiled

    async def of_check(self, key: Key, quotas: QuotasLike | None, algorithm: AlgorithmName | None) -> CompiledPolicy:
        """Return the policy of a check of one key. Raises `InvalidInput` for one that is decided with others, too."""
        compiled = await self.of_spending(key, quotas, algorithm)
        if compiled.policy.together:
            members = ", ".join(f"(…, {name!r})" for name in members_of(self.policies, key.action))
            raise InvalidInput(
                f"{key.action!r} is decided together with others: `limiter.check_all([{members}])`, or a batch of the"
                ' API with `"together": true`'
            )
        return compiled

    def of_group(self, group: Sequence[CompiledPolicy]) -> list[CompiledPolicy]:
        """Return the policies of checks that are decided together, each with its share of another, if that is there."""
        by_name = {compiled.policy.name: compiled for compiled in group}
        return [self._with_share(compiled, by_name) for compiled in group]

    def _with_share(self, compiled: CompiledPolicy, group: Mapping[str, CompiledPolicy]) -> CompiledPolicy:
        policy = compiled.policy
        whole = group.get(policy.together[0]) if policy.share is not None else None
        if whole is None or compiled.inactive:
            return compiled
        shared = self._with_share(whole, group).policy.quotas
        return self._with(policy.name, _with_shares(policy, shared), policy.algorithm) if shared else compiled

    def of_decision(self, decision: Decision) -> CompiledPolicy:
        """Return the policy of what a decision took from, whatever holds for its user by now."""
        quotas = tuple([state.quota for state in decision.quotas]) or UNLIMITED
        # Windows are given back to alike, be they fixed or sliding; a bucket says so by its position.
        algorithm: AlgorithmName = "gcra" if any(state.position for state in decision.quotas) else "fixed_window"
        key = (decision.policy, quotas, algorithm)
        compiled = self._made.get(key)
        if compiled is None:
            compiled = CompiledPolicy(Policy(decision.policy, quotas, algorithm=algorithm))
            self._made.put(key, compiled)
        return compiled

    def _with(self, action: str, quotas: Quotas, algorithm: AlgorithmName | None) -> CompiledPolicy:
        key = (action, quotas, quotas is UNLIMITED, quotas is INACTIVE, algorithm)
        compiled = self._made.get(key)
        if compiled is None:
            changes: dict[str, Any] = {"quotas": quotas}
            if algorithm is not None:
                changes["algorithm"] = algorithm
            if any(quota.is_concurrent for quota in quotas) or algorithm not in (None, "fixed_window"):
                changes["lease"] = None  # which only spares writes: units of these are not taken in advance
            policy = self.policies.get(action)
            made = Policy(action, **changes) if policy is None else replace(policy, **changes)
            compiled = CompiledPolicy(made, inactive=quotas is INACTIVE)
            self._made.put(key, compiled)
        return compiled

    def _usable(self, action: str, quotas: Quotas, algorithm: AlgorithmName | None) -> Quotas:
        """Return a plan's quotas as its policy can use them: a plan knows no algorithm, a burst is for GCRA only."""
        policy = self.policies.get(action)
        named = algorithm or ("fixed_window" if policy is None else policy.algorithm)
        if named == "gcra" or all(quota.burst is None for quota in quotas):
            return quotas
        return tuple(Quota(quota.limit, quota.window) for quota in quotas)


def _with_shares(policy: Policy, shared: Quotas) -> Quotas:
    """Return a policy's quotas and its share of others: of two with the same window, the smaller."""
    by_window = {quota.window: quota for quota in policy.quotas}
    for quota in shared:
        if quota.is_concurrent:
            continue
        limit = max(1, floor(Fraction(str(policy.share)) * quota.limit))
        own = by_window.get(quota.window)
        if own is None or own.limit > limit:
            burst = None if own is None or own.burst is None else min(own.burst, limit)
            by_window[quota.window] = Quota(limit, quota.window, burst)
    return tuple(by_window.values())


def _by_name(policies: Iterable[Policy]) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for number, policy in enumerate(policies):
        if not isinstance(policy, Policy):
            raise ConfigError(f"policies[{number}]", f"expected a Policy, not {policy!r}")
        if policy.name in found:
            raise ConfigError(f"policies[{number}]", f"a second policy named {policy.name!r}; names must differ")
        found[policy.name] = policy
    return found

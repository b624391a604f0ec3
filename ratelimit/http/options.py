"""`Surface`: how a surface is set up, resolved once: who a user is, what is exempt, how headers are written."""

from __future__ import annotations

from collections.abc import Iterable

from ratelimit.errors import ConfigError, UnknownAction
from ratelimit.http.addresses import DEFAULT_IPV6_PREFIX, Addresses, TrustedProxies
from ratelimit.http.charges import Exemption, Gate
from ratelimit.http.headers import HeaderStyle, HeaderWriter
from ratelimit.http.identity import DEFAULT_USER_FROM, Identity
from ratelimit.limiter import Limiter
from ratelimit.policy import Exempt, UserFrom


class Surface:
    """Options as in `RateLimitMiddleware`. Raises `ConfigError` with the path to a bad one."""

    __slots__ = ("_addresses", "_gates", "exempt", "identifying", "identity", "writer")

    def __init__(
        self,
        *,
        user_from: UserFrom | Iterable[UserFrom] = DEFAULT_USER_FROM,
        trusted_proxies: TrustedProxies = 0,
        ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
        headers: HeaderStyle = "draft",
        exempt: Exempt | Iterable[Exempt] = (),
    ) -> None:
        self._addresses = Addresses(trusted_proxies, ipv6_prefix)
        self.identity = Identity(user_from, self._addresses)
        self.identifying = self.identity.headers
        """The fields that say who somebody is, here or to a policy of its own `user_from`."""
        self.writer = HeaderWriter(headers)
        self.exempt = Exemption(exempt)
        self._gates: dict[tuple[int, str], Gate] = {}

    def gate(self, limiter: Limiter, action: str) -> Gate:
        """The gate of one of the limiter's policies, made when first asked for. Raises `UnknownAction`."""
        # A gate holds on to its limiter, so an id in here is not used again for another one.
        gate = self._gates.get((id(limiter), action))
        if gate is None:
            gate = self._gates[id(limiter), action] = self._make(limiter, action)
        return gate

    def warn(self, root: str) -> None:
        """Tell the log of patterns that begin with the prefix that the app is mounted under."""
        self.exempt.warn(root)
        for gate in self._gates.values():
            gate.warn(root)

    def _make(self, limiter: Limiter, action: str) -> Gate:
        policy = limiter.policies.get(action)
        if policy is None:
            raise UnknownAction(f"no policy is named {action!r} (there are: {', '.join(limiter.policies) or 'none'})")
        if not policy.user_from:
            return Gate(limiter, policy, self.identity)
        try:
            identity = Identity(policy.user_from, self._addresses)
            self.identifying |= identity.headers
            return Gate(limiter, policy, identity)
        except ConfigError as error:
            if error.path.startswith("user_from"):
                raise error.under(f"policies.{action}") from error
            raise

"""The client's address as a user: `ip:203.0.113.7`. A header is believed only as far as trusted proxies wrote it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from starlette.types import Scope

from ratelimit.config.settings import check_ipv6_prefix
from ratelimit.errors import ConfigError, within

PREFIX: Final = "ip:"
UNKNOWN: Final = PREFIX + "unknown"

TrustedProxies: TypeAlias = "int | str | Iterable[str]"
Address: TypeAlias = IPv4Address | IPv6Address

DEFAULT_IPV6_PREFIX: Final = 64

NO_ADDRESS: Final = (
    "at a unix socket nobody has an address that could be in a network, and so all clients would share one; "
    "write how many proxies there are instead, as in trusted_proxies = 1"
)
_MAX_HOPS: Final = 32
# Translated from IPv4 (RFC 6052): the well-known prefix of 96 bits, in front of the address itself; and those of one's
# own network (RFC 8215), where each address is one of IPv4 as well, in whatever bits.
_NAT64: Final = 0x0064_FF9B << 64
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
# The longest address is 45 characters; a zone, brackets and a port may come with it.
_MAX_ENTRY_LENGTH: Final = 80
_WITH_PORT = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<bare>[^:\[\]]*))(?::\d{1,5})?")

logger = logging.getLogger("ratelimit")


class Addresses:
    """Finds the address that a request came from.

    `trusted_proxies` is how many proxies of your own stand in front (each appends to `X-Forwarded-For` the address that
    it saw), or their networks. The header is read from the right, one entry for each trusted proxy, and no further than
    the last one that is an address. 0 or an empty list: it is not looked at. A number is safe only where nobody can
    reach the app around the proxies. `ipv6_prefix` is how many bits of an IPv6 address are one subscriber's. Raises
    `ConfigError`.
    """

    __slots__ = ("_hops", "_networks", "_prefix")

    def __init__(self, trusted_proxies: TrustedProxies = 0, ipv6_prefix: int = DEFAULT_IPV6_PREFIX) -> None:
        self._hops = 0
        with within("ipv6_prefix"):
            self._prefix = check_ipv6_prefix(ipv6_prefix)
        self._networks: tuple[IPv4Network | IPv6Network, ...] = ()
        if isinstance(trusted_proxies, int):
            self._hops = _hops(trusted_proxies)
        else:
            self._networks = _networks(trusted_proxies)

    def of(self, scope: Scope) -> str:
        """Return `ip:203.0.113.7`, `ip:2001:db8::/64`, or `ip:unknown` where there is none (a socket) or garbage."""
        client = scope.get("client")
        peer: str = client[0] if client else ""
        if not self._hops and not self._networks:
            return as_user(peer, self._prefix)
        return _as_user(self._through_proxies(_parse(peer), scope), self._prefix)

    def trusts_peer(self, scope: Scope) -> bool:
        client = scope.get("client")
        return self._trusts(_parse(client[0] if client else ""), 0)

    def _through_proxies(self, address: Address | None, scope: Scope) -> Address | None:
        forwarded = b",".join([value for name, value in scope["headers"] if name == b"x-forwarded-for"])
        entries = forwarded.decode("latin-1").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]
        for hop, entry in enumerate(reversed(entries)):
            if not self._trusts(address, hop):
                break
            nearer_to_the_client = _entry(entry)
            if nearer_to_the_client is None:
                break
            address = nearer_to_the_client
        return address

    def _trusts(self, address: Address | None, hop: int) -> bool:
        if self._hops:
            return hop < self._hops
        if address is None and self._networks:
            warn_once(f"trusted_proxies: {NO_ADDRESS}")
        return address is not None and any(address in network for network in self._networks)


@lru_cache(maxsize=4096)
def as_user(text: str, ipv6_prefix: int = DEFAULT_IPV6_PREFIX) -> str:
    """Name a user by an address. IPv6 goes by its prefix, which is what one subscriber holds; but where it stands for
    an IPv4 address (mapped, NAT64, 6to4, Teredo), by that one."""
    return _as_user(_parse(text), ipv6_prefix)


@cache
def warn_once(message: str) -> None:
    """Say what shows with the first request, and not with each."""
    logger.warning("%s", message)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _as_user(address: Address | None, ipv6_prefix: int) -> str:
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv4Address):
        return f"{PREFIX}{address}"
    if (translated := _ipv4_of(address)) is not None:
        return f"{PREFIX}{translated}"
    if address in _LOCAL_NAT64:
        ipv6_prefix = 128
    shift = 128 - ipv6_prefix
    return f"{PREFIX}{IPv6Network((int(address) >> shift << shift, ipv6_prefix))}"


def _ipv4_of(address: IPv6Address) -> IPv4Address | None:
    """A holder of one IPv4 address has 65,536 /64s of 6to4 (RFC 3056), and shares one with all others who come by
    NAT64 (RFC 6052) or by the same Teredo server (RFC 4380)."""
    if int(address) >> 32 == _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)


@lru_cache(maxsize=4096)
def _parse(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _entry(text: str) -> Address | None:
    """Read one entry of the header: an address, perhaps with a port, in brackets if it is an IPv6 one that has one."""
    text = text.strip(" \t")
    if len(text) > _MAX_ENTRY_LENGTH:
        return None
    if found := _WITH_PORT.fullmatch(text):
        text = found["bracketed"] if found["bare"] is None else found["bare"]
    return _parse(text)


def _hops(number: int) -> int:
    if isinstance(number, bool) or not 0 <= number <= _MAX_HOPS:
        raise ConfigError("trusted_proxies", f"must be 0 to {_MAX_HOPS} hops, or a list of networks, not {number!r}")
    return number


def _networks(texts: str | Iterable[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable):
        raise ConfigError("trusted_proxies", f"expected a number of hops or a list of networks, not {texts!r}")
    found = []
    for number, text in enumerate(texts):
        try:
            if not isinstance(text, str):
                raise ValueError(f"expected text, not {text!r}")
            found.append(_as_peers(ip_network(text.strip())))
        except ValueError as error:
            problem = f"{error}; write a network, as in '10.0.0.0/8', or an address"
            raise ConfigError(f"trusted_proxies[{number}]", problem) from error
    return tuple(found)


def _as_peers(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return a network of mapped addresses (`::ffff:10.0.0.0/104`) as that of IPv4, as which peers are compared."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network

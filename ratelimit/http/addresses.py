"""The client's address as a user: `ip:203.0.113.7`. A header is believed only as far as trusted proxies wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from starlette.types import Scope

from ratelimit.errors import ConfigError

PREFIX: Final = "ip:"
UNKNOWN: Final = PREFIX + "unknown"

TrustedProxies: TypeAlias = "int | str | Iterable[str]"
Address: TypeAlias = IPv4Address | IPv6Address

_MAX_HOPS: Final = 32
# The longest address is 45 characters; a zone, brackets and a port may come with it.
_LONGEST: Final = 80
_WITH_PORT = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<bare>[^:\[\]]*))(?::\d{1,5})?")


class Addresses:
    """Finds the address that a request came from.

    `trusted_proxies` is how many proxies of your own stand in front (each appends to `X-Forwarded-For` the address that
    it saw), or their networks. The header is read from the right, one entry for each trusted proxy, and no further than
    the last one that is an address. 0 or an empty list: it is not looked at. A number is safe only where nobody can
    reach the app around the proxies. Raises `ConfigError`.
    """

    __slots__ = ("_hops", "_networks")

    def __init__(self, trusted_proxies: TrustedProxies = 0) -> None:
        self._hops = 0
        self._networks: tuple[IPv4Network | IPv6Network, ...] = ()
        if isinstance(trusted_proxies, int):
            self._hops = _hops(trusted_proxies)
        else:
            self._networks = _networks(trusted_proxies)

    def of(self, scope: Scope) -> str:
        """`ip:203.0.113.7`, `ip:2001:db8::/64`, or `ip:unknown` where there is none (a unix socket) or garbage."""
        client = scope.get("client")
        peer: str = client[0] if client else ""
        if not self._hops and not self._networks:
            return as_user(peer)
        return _as_user(self._through_proxies(_parse(peer), scope))

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
        return address is not None and any(address in network for network in self._networks)


@lru_cache(maxsize=4096)
def as_user(text: str) -> str:
    """An address as a user. IPv6 goes by its /64, which is what one subscriber holds; IPv4 mapped into IPv6 is IPv4."""
    return _as_user(_parse(text))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _as_user(address: Address | None) -> str:
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv4Address):
        return f"{PREFIX}{address}"
    return f"{PREFIX}{IPv6Network((int(address) >> 64 << 64, 64))}"


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
    """One entry of the header: an address, perhaps with a port, in brackets if it is an IPv6 one that has a port."""
    text = text.strip(" \t")
    if len(text) > _LONGEST:
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
            found.append(ip_network(text.strip()))
        except ValueError as error:
            problem = f"{error}; write a network, as in '10.0.0.0/8', or an address"
            raise ConfigError(f"trusted_proxies[{number}]", problem) from error
    return tuple(found)

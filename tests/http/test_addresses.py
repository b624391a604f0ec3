"""The client's address: what it is written as, and who is believed about it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.errors import ConfigError
from ratelimit.http.addresses import Addresses, TrustedProxies, as_user, warn_once
from ratelimit.names import check_user
from tests.http.apps import scope_of

PROXY = "10.0.0.1"


def seen(trusted: TrustedProxies, *forwarded: str, peer: str | None = PROXY) -> str:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return Addresses(trusted).of(scope_of(headers=headers, client=None if peer is None else (peer, 1)))


@pytest.mark.parametrize(
    ("address", "user"),
    [
        ("203.0.113.7", "ip:203.0.113.7"),
        ("2001:db8::1", "ip:2001:db8::/64"),
        ("2001:DB8:0:0:ffff::", "ip:2001:db8::/64"),
        ("2001:db8:0:1::1", "ip:2001:db8:0:1::/64"),
        ("fe80::1%eth0", "ip:fe80::/64"),
        ("fe80::1%eth1", "ip:fe80::/64"),
        ("::ffff:203.0.113.7", "ip:203.0.113.7"),
        ("::FFFF:cb00:7107", "ip:203.0.113.7"),
        ("64:ff9b::203.0.113.7", "ip:203.0.113.7"),
        ("64:ff9b::1:cb00:7107", "ip:64:ff9b::/64"),
        ("64:ff9b:1::cb00:7107", "ip:64:ff9b:1::cb00:7107/128"),
        ("2002:cb00:7107::1", "ip:203.0.113.7"),
        ("2002:cb00:7107:ffff::9", "ip:203.0.113.7"),
        ("2001:0:4136:e378:8000:63bf:34ff:8ef8", "ip:203.0.113.7"),
        ("testclient", "ip:unknown"),
        ("", "ip:unknown"),
    ],
)
def test_an_address_as_a_user(address: str, user: str) -> None:
    assert as_user(address) == user


@pytest.mark.parametrize(
    ("bits", "user"),
    [
        (32, "ip:2001:db8::/32"),
        (48, "ip:2001:db8:1::/48"),
        (56, "ip:2001:db8:1:ff00::/56"),
        (64, "ip:2001:db8:1:ff02::/64"),
        (128, "ip:2001:db8:1:ff02::9/128"),
    ],
)
def test_how_much_of_an_ipv6_address_one_subscriber_has(bits: int, user: str) -> None:
    address = "2001:db8:1:ff02::9"
    assert as_user(address, bits) == user
    assert Addresses(0, bits).of(scope_of(client=(address, 1))) == user
    forwarded = scope_of(headers=[(b"x-forwarded-for", f"[{address}]:443".encode())], client=None)
    assert Addresses(1, bits).of(forwarded) == user
    assert Addresses(0, bits).of(scope_of(client=("203.0.113.7", 1))) == "ip:203.0.113.7"


@pytest.mark.parametrize("bits", [0, 31, 129, True, "64", 56.0, None])
def test_a_prefix_that_is_none(bits: Any) -> None:
    with pytest.raises(ConfigError, match=r"ipv6_prefix: expected 32 to 128 bits, such as 64 or 56") as caught:
        Addresses(0, bits)
    assert caught.value.path == "ipv6_prefix"


def test_an_embedded_address_is_not_believed_as_a_proxy() -> None:
    """Anybody may hold a 6to4 address of 10.0.0.1 in their own network."""
    assert seen(["10.0.0.0/8"], "1.1.1.1", peer="2002:a00:1::1") == "ip:10.0.0.1"
    assert seen(["10.0.0.0/8"], "1.1.1.1", peer="64:ff9b::a00:1") == "ip:10.0.0.1"


def test_networks_at_a_unix_socket_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    for _ in range(2):
        assert seen(["10.0.0.0/8"], "1.1.1.1", peer=None) == "ip:unknown"
    (record,) = caplog.records
    assert "trusted_proxies: at a unix socket nobody has an address" in record.getMessage()
    assert "as in trusted_proxies = 1" in record.getMessage()


def test_no_client_at_all() -> None:
    assert seen(0, peer=None) == "ip:unknown"


def test_nobody_is_believed_unless_trusted() -> None:
    assert seen(0, "1.1.1.1") == "ip:10.0.0.1"
    assert seen([], "1.1.1.1") == "ip:10.0.0.1"
    assert seen(["192.0.2.0/24"], "1.1.1.1") == "ip:10.0.0.1"


def test_hops_are_counted_from_the_right() -> None:
    assert seen(1, "6.6.6.6, 1.1.1.1") == "ip:1.1.1.1"
    assert seen(2, "6.6.6.6, 1.1.1.1, 10.0.0.2") == "ip:1.1.1.1"
    assert seen(5, "1.1.1.1, 10.0.0.2") == "ip:1.1.1.1"
    assert seen(1) == "ip:10.0.0.1"
    assert seen(1, "1.1.1.1", peer=None) == "ip:1.1.1.1"


def test_networks_are_walked_until_somebody_is_not_trusted() -> None:
    trusted = ["10.0.0.0/8", "2001:db8::/32"]
    assert seen(trusted, "6.6.6.6, 1.1.1.1, 10.0.0.2") == "ip:1.1.1.1"
    assert seen(trusted, "6.6.6.6, 1.1.1.1, 2001:db8::9") == "ip:1.1.1.1"
    assert seen(trusted, "10.0.0.3, 10.0.0.2") == "ip:10.0.0.3"
    assert seen(trusted, "1.1.1.1", peer="::ffff:10.0.0.1") == "ip:1.1.1.1"
    assert seen(trusted, "1.1.1.1", peer=None) == "ip:unknown"
    assert seen("10.0.0.1", "1.1.1.1") == "ip:1.1.1.1"
    # As a socket for both kinds of addresses shows them.
    for network in ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "::ffff:0:0/96"):
        assert seen([network], "1.1.1.1") == seen([network], "1.1.1.1", peer="::ffff:10.0.0.1") == "ip:1.1.1.1"
    assert seen(["::ffff:10.0.0.0/104"], "1.1.1.1", peer="11.0.0.1") == "ip:11.0.0.1"


def test_several_headers_are_one_list() -> None:
    assert seen(1, "6.6.6.6", "7.7.7.7, 1.1.1.1") == "ip:1.1.1.1"
    assert seen(2, "6.6.6.6, 1.1.1.1", "10.0.0.2") == "ip:1.1.1.1"


@pytest.mark.parametrize(
    ("entry", "user"),
    [
        ("1.1.1.1:443", "ip:1.1.1.1"),
        ("[2001:db8::1]", "ip:2001:db8::/64"),
        ("[2001:db8::1]:443", "ip:2001:db8::/64"),
        ("2001:db8::1", "ip:2001:db8::/64"),
        ("\t1.1.1.1 ", "ip:1.1.1.1"),
        ("::ffff:1.1.1.1", "ip:1.1.1.1"),
    ],
)
def test_entries_may_have_ports_and_brackets(entry: str, user: str) -> None:
    assert seen(1, entry) == user


@pytest.mark.parametrize(
    "garbage", ["", "unknown", "1.1.1", "1.1.1.1:x", "[::1", "1.1.1.1 2.2.2.2", "'", "a" * 9000, "1e9"]
)
def test_garbage_is_where_belief_ends(garbage: str) -> None:
    assert seen(1, garbage) == "ip:10.0.0.1"
    assert seen(3, f"6.6.6.6, {garbage}, 10.0.0.2") == "ip:10.0.0.2"
    assert seen(["10.0.0.0/8"], f"6.6.6.6, {garbage}, 10.0.0.2") == "ip:10.0.0.2"


@pytest.mark.parametrize(
    ("trusted", "path"),
    [
        (-1, "trusted_proxies"),
        (True, "trusted_proxies"),
        (1000, "trusted_proxies"),
        (1.5, "trusted_proxies"),
        (["10.0.0.0/8", "10.0.0.1/8"], "trusted_proxies[1]"),
        (["proxy.example"], "trusted_proxies[0]"),
        ([7], "trusted_proxies[0]"),
    ],
)
def test_options_are_validated_with_their_path(trusted: TrustedProxies, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Addresses(trusted)
    assert caught.value.path == path


@given(st.lists(st.text(alphabet="0123456789.:[]%, abcdef", max_size=60)), st.text(max_size=20), st.integers(0, 4))
def test_whatever_comes_is_an_address_or_unknown(forwarded: list[str], peer: str, hops: int) -> None:
    user = check_user(seen(hops, *forwarded, peer=peer))
    assert user.startswith("ip:")
    assert check_user(seen(["10.0.0.0/8", "::/0"], *forwarded, peer=peer)).startswith("ip:")

"""The client's address: what it is written as, and who is believed about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.errors import ConfigError
from ratelimit.http.addresses import Addresses, TrustedProxies, as_user
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
        ("::ffff:203.0.113.7", "ip:203.0.113.7"),
        ("testclient", "ip:unknown"),
        ("", "ip:unknown"),
    ],
)
def test_an_address_as_a_user(address: str, user: str) -> None:
    assert as_user(address) == user


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

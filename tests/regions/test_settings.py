"""The setting `regions`: what it takes, from a file, the environment and a store's URL, and what it says is wrong."""

from __future__ import annotations

import json
import tomllib
from typing import Any, get_args

import pytest
from limits.errors import ConfigurationError

from ratelimit.cli.config import _toml
from ratelimit.config import document, load_config
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.errors import ConfigError
from ratelimit.factory import build_store, load_checked
from ratelimit.limits import DynamoDBStorage
from ratelimit.migrate.plan import migration_settings
from ratelimit.opening import store_from_url
from ratelimit.quota import to_quotas
from ratelimit.regions import Regions, RegionsMode
from ratelimit.regions.home import HomeStore
from ratelimit.regions.regions import PROMISES, regions_of_text, shown_regions
from ratelimit.regions.sum import SplitStore, SumStore
from ratelimit.store.delegating import layers
from ratelimit.sync.store import store_from

ALL = ("eu-west-1", "us-east-1")
HOME = {"mode": "home", "all": list(ALL)}
SPLIT = {**HOME, "mode": "split"}
STORE = "dynamodb://limits?region=eu-west-1"


def test_from_a_file_the_environment_and_arguments() -> None:
    assert load_config(env={}).regions is None
    assert load_config(env={}, regions="off").regions is None
    assert load_config(env={}, regions=HOME).regions == Regions("home", ALL)
    env = {"RATELIMIT_REGIONS": "mode=home all=eu-west-1,us-east-1 here=us-east-1"}
    assert load_config(env=env, regions="off").regions == Regions("home", ALL, "us-east-1")
    assert load_config(env={"RATELIMIT_REGIONS": "off"}, regions=HOME).regions is None
    env = {"RATELIMIT_REGIONS": "mode=split all=eu-west-1,us-east-1 shares=3,1"}
    assert load_config(env=env).regions == Regions("split", ALL, shares=(3, 1))
    with pytest.raises(ConfigError, match=r"^regions\.shares\[1\]: must be a whole number.*not 'x'"):
        load_config(env={"RATELIMIT_REGIONS": "mode=split all=eu-west-1,us-east-1 shares=3,x"})


def test_it_is_shown_as_it_is_written() -> None:
    config = load_config(
        env={},
        regions={**SPLIT, "here": "us-east-1", "endpoints": {"us-east-1": "http://[::1]:1"}, "shares": [2, 1]},
    )
    found = json.loads(json.dumps(document(config)))
    assert load_config(env={}, **found) == config
    assert load_config(env={}, **tomllib.loads(_toml(found))) == config


def test_every_mode_says_what_it_promises() -> None:
    assert set(PROMISES) == set(get_args(RegionsMode))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("home", "regions: expected 'off', or a table as in { mode = 'home'"),
        ({"mode": "home"}, "regions.all: is missing; write {"),
        ({"all": ["eu-west-1"]}, "regions.mode: is missing"),
        ({**HOME, "mode": "hom"}, "regions.mode: unknown value 'hom'; did you mean 'home'?"),
        ({**HOME, "mode": 1}, "regions.mode: unknown value 1"),
        ({**HOME, "all": []}, "regions.all: expected 1 to 32 regions"),
        ({**HOME, "all": ["eu-west-1", "EU"]}, "regions.all[1]: 'EU' is not a region"),
        ({**HOME, "all": ["eu-west-1", "eu-west-1"]}, "regions.all[1]: 'eu-west-1' is there twice"),
        ({**HOME, "shares": [1, 1]}, "regions.shares: are for mode = 'split', not 'home'"),
        ({**SPLIT, "shares": [1]}, "regions.shares: expected one for each of the 2 regions, not 1"),
        ({**SPLIT, "shares": [1, -1]}, "regions.shares[1]: must be a whole number from 0 to 1000000, not -1"),
        ({**SPLIT, "shares": [1, 0.5]}, "regions.shares[1]: must be a whole number"),
        ({**SPLIT, "shares": [0, 0]}, "regions.shares: all are 0"),
        ({**SPLIT, "shares": 3}, "regions.shares: expected whole numbers in the order of `all`"),
        ({**HOME, "failover": True}, "regions.failover: is for mode = 'home' over three regions or more"),
        ({**SPLIT, "failover": True}, "regions.failover: is for mode = 'home'"),
        ({**HOME, "failover": "yes"}, "regions.failover: must be true or false, not 'yes'"),
        ({**HOME, "all": 3}, "regions.all: expected text or a list of text, not 3"),
        (
            {**HOME, "here": "ap-south-1"},
            "regions.here: 'ap-south-1' is not in the list (eu-west-1, us-east-1); add it",
        ),
        ({**HOME, "here": 1}, "regions.here: 1 is not in the list"),
        ({**HOME, "her": "eu-west-1"}, "regions.her: unknown setting; did you mean 'here'?"),
        ({**HOME, "endpoints": {"x": "http://a"}}, "regions.endpoints: 'x' is not in the list"),
        ({**HOME, "endpoints": "http://a"}, "regions.endpoints: expected URLs by region"),
    ],
)
def test_what_is_wrong_is_said(value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(env={}, regions=value)
    assert str(caught.value).startswith(problem)


def test_the_environments_way_to_write_it_is_said_too() -> None:
    with pytest.raises(ConfigError, match="or RATELIMIT_REGIONS='mode=home all=eu-west-1,us-east-1', not 'home'"):
        load_config(env={"RATELIMIT_REGIONS": "home"})


def test_a_store_for_each_region() -> None:
    config = load_config(env={}, store=STORE, regions={**HOME, "endpoints": {"us-east-1": "http://127.0.0.1:2"}})
    store = build_store(config)
    assert isinstance(store, HomeStore)
    assert store.here == "eu-west-1"
    settings = {region: each.settings for region, each in store.stores.items() if isinstance(each, DynamoDBStore)}
    assert [settings[region].region for region in ALL] == list(ALL)
    assert [settings[region].endpoint for region in ALL] == [None, "http://127.0.0.1:2"]
    assert list(layers(store)) == [store, store.stores["eu-west-1"]]


def test_a_stores_url_may_say_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "dynamodb://limits?regions=eu-west-1,us-east-1&mode=home"
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for store in (store_from_url(url), store_from(url).inner):
        assert isinstance(store, HomeStore)
        assert (store.here, tuple(store.stores)) == ("us-east-1", ALL)
    assert isinstance(store_from_url(url.replace("home", "sum")), SumStore)
    assert isinstance(store_from_url(url.replace("home", "strong")), DynamoDBStore)
    split = store_from_url(url.replace("home", "split&shares=2,1"))
    assert isinstance(split, SplitStore)
    assert split.share(to_quotas("10/day")) == to_quotas("3/day")


def test_a_store_in_memory_is_in_no_region() -> None:
    assert not isinstance(store_from_url("memory://", Regions("home", ALL)), HomeStore)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("regions=eu-west-1", "mode: unknown value None; use one of"),
        ("mode=home", "regions: expected 1 to 32 regions"),
        ("mode=home&regions=eu-west-1,EU", "regions[1]: 'EU' is not a region"),
        ("mode=home&regions=eu-west-1&region=us-east-1", "region: 'us-east-1' is not in the list (eu-west-1); add it"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(f"dynamodb://limits?{url}")
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"store": "dynamodb://limits", "regions": HOME},
            "store.region: is missing: it says which of the regions this",
        ),
        (
            {"store": "dynamodb://limits?region=ap-south-1", "regions": HOME},
            "store.region: 'ap-south-1' is not in the list",
        ),
        (
            {"store": STORE, "regions": {**HOME, "here": "us-east-1"}},
            "store.region: is 'eu-west-1' here, and 'us-east-1' in the setting regions",
        ),
        (
            {"store": STORE, "regions": {**HOME, "mode": "strong"}, "directory": True},
            "directory: users and plans are changed in transactions, which a table that is strongly consistent",
        ),
    ],
)
def test_what_does_not_go_together_is_said(settings: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        load_checked(env={}, **settings)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("mode", "user_from", "problem"),
    [
        ("home", "address", "policies.hint.together[0]: 'org' has another user_from, so that its user may be counted"),
        ("home", "user", None),
        ("strong", "user", "policies.hint.together[0]: what is decided together is written in a transaction, which"),
    ],
)
def test_what_is_decided_together_needs_one_region(mode: str, user_from: str, problem: str | None) -> None:
    policies = {
        "hint": {"quotas": "5/day", "together": "org", "user_from": "user"},
        "org": {"quotas": "50/day", "user_from": user_from},
    }
    settings: Any = {"store": STORE, "regions": {**HOME, "mode": mode}, "policies": policies}
    if problem is None:
        load_checked(env={}, **settings)
    else:
        with pytest.raises(ConfigError) as caught:
            load_checked(env={}, **settings)
        assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("policy", [{"algorithm": "gcra"}, {"reserve": True}, {"quotas": "5 concurrent"}])
def test_what_is_no_sum_is_said(policy: Any) -> None:
    settings: Any = {"store": STORE, "regions": {**HOME, "mode": "sum"}}
    load_checked(env={}, **settings, policies={"hint": {"quotas": "5/day"}})
    with pytest.raises(ConfigError, match=r"^policies\.hint: buckets, slots and reservations are no sums"):
        load_checked(env={}, **settings, policies={"hint": {"quotas": "5/day", **policy}})


def test_users_that_may_be_moved_need_an_event_loop() -> None:
    url = "dynamodb://limits?region=eu-west-1&regions=eu-west-1,us-east-1,ap-south-1&mode=home&failover=true"
    store = store_from_url(url)
    assert isinstance(store, HomeStore)
    assert store.homes is not None
    with pytest.raises(ConfigError, match=r"^store\.failover: needs an event loop"):
        store_from(url)
    text = "mode=home all=eu-west-1,us-east-1,ap-south-1 failover=true"
    regions = load_config(env={"RATELIMIT_REGIONS": text}).regions
    assert regions == Regions("home", (*ALL, "ap-south-1"), failover=True)
    assert regions_of_text(text) == shown_regions(regions)


def test_what_asks_one_region_alone_says_so() -> None:
    url = "dynamodb://limits?region=eu-west-1&regions=eu-west-1,us-east-1&mode=home"
    with pytest.raises(
        ConfigError, match=r"^regions: a migration fills the table before .* by one region, and users are"
    ):
        migration_settings(parse_url(url))
    with pytest.raises(ConfigurationError, match=r"regions: a storage of limits asks one region"):
        DynamoDBStorage(url)
    migration_settings(parse_url("dynamodb://limits?regions=eu-west-1&mode=home"))

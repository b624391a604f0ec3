from __future__ import annotations

from ratelimit.cache import LRUCache


def filled(*keys: str, max_entries: int = 3) -> LRUCache[str, str]:
    cache: LRUCache[str, str] = LRUCache(max_entries)
    for key in keys:
        cache.put(key, key.upper())
    return cache


def test_the_oldest_goes_when_there_are_too_many():
    cache = filled("a", "b", "c")
    assert cache.put("d", "D") == ("a", "A")
    assert list(cache) == ["b", "c", "d"]
    assert len(cache) == 3


def test_while_there_is_room_nothing_goes():
    cache = filled("a", "b")
    assert cache.put("c", "C") is None
    assert cache.put("c", "again") is None


def test_what_is_got_outlives_what_is_not():
    cache = filled("a", "b", "c")
    assert cache.get("a") == "A"
    cache.put("d", "D")
    assert "a" in cache
    assert "b" not in cache


def test_what_is_put_again_outlives_what_is_not():
    cache = filled("a", "b", "c")
    cache.put("a", "new")
    cache.put("d", "D")
    assert cache.peek("a") == "new"
    assert "b" not in cache


def test_to_look_is_no_use():
    cache = filled("a", "b", "c")
    assert cache.peek("a") == "A"
    cache.put("d", "D")
    assert "a" not in cache


def test_what_is_not_there_is_made_once():
    cache: LRUCache[str, list[int]] = LRUCache(2)
    first = cache.get_or_make("a", list)
    first.append(1)
    assert cache.get_or_make("a", list) is first


def test_what_is_made_or_found_is_used():
    cache: LRUCache[str, list[int]] = LRUCache(2)
    for key in ("a", "b", "a", "c"):
        cache.get_or_make(key, list)
    assert list(cache) == ["a", "c"]


def test_what_is_missing_is_none():
    cache = filled("a")
    assert cache.get("z") is None
    assert cache.peek("z") is None
    assert cache.pop("z") is None


def test_entries_can_be_taken_out():
    cache = filled("a", "b", "c")
    assert cache.pop("b") == "B"
    assert list(cache) == ["a", "c"]
    cache.clear()
    assert len(cache) == 0

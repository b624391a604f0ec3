"""Running counters from rows of use: what the limiter would have counted, had it been there.

The fields come from the limiter's own algorithms, so a day's counter, a sliding window or a bucket is what it would be.
A record that was brought over carries a mark: the moment before which all uses are in it. A later run adds only what
came after the mark, on the condition that the mark is still the same: nothing is ever counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from ratelimit.algorithms import Rule, Totals, rule
from ratelimit.algorithms.fields import stale
from ratelimit.clock import DAY
from ratelimit.event import UsageEvent
from ratelimit.migrate.rows import Expired
from ratelimit.migrate.scratch import Scratch
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.quota import Quota, Window
from ratelimit.store import Add, Put

MARK: Final = "umoved"
"""Milliseconds. Named like a total, so that a reset leaves it, and not like a day's, so that no report reads it."""

SCHEMA: Final = """
    CREATE TABLE sums (user TEXT, action TEXT, field TEXT, floor INTEGER, amount INTEGER,
                       PRIMARY KEY (user, action, field)) WITHOUT ROWID;
    CREATE TABLE marks (user TEXT, action TEXT, at INTEGER, PRIMARY KEY (user, action)) WITHOUT ROWID;
    CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_ADD: Final = """
    INSERT INTO sums VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
    SET floor = max(floor, excluded.floor - amount), amount = amount + excluded.amount
"""
_LARGEST: Final = 2**62

Use: TypeAlias = UsageEvent | Expired
SpanName: TypeAlias = Literal["all", "before", "after"]
"""Which uses, seen from the marks."""


class Sum(NamedTuple):
    """What uses do to a field: `max(value, floor) + amount`. For a counter the floor is 0 and does nothing."""

    floor: int
    amount: int

    def then(self, later: Sum) -> Sum:
        """Both, one after the other."""
        return Sum(max(self.floor, later.floor - self.amount), self.amount + later.amount)

    def on(self, value: int | None) -> int:
        """The field afterwards; None is for one that is not there."""
        return min(_LARGEST, max(value or 0, self.floor) + self.amount)


class Rules:
    """Which fields a use of an action counts into: those of the policies' and plans' quotas, and always the day's."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._policies = {policy.name: policy for policy in policies}
        self._windows: dict[str, set[Window]] = {}
        self._rules: dict[str, list[Rule]] = {}

    def learn(self, quotas: Mapping[str, Sequence[Quota]]) -> None:
        """The windows of a plan, or of a user's own quotas."""
        for action, several in quotas.items():
            windows = {quota.window for quota in several}
            if not windows <= self._windows.setdefault(action, set()):
                self._windows[action] |= windows
                self._rules.pop(action, None)

    def of(self, action: str) -> Sequence[Rule]:
        """The rules of an action. A bucket (GCRA) is filled by the policy's own quotas."""
        rules = self._rules.get(action)
        if rules is None:
            rules = self._rules[action] = list(self._make(action))
        return rules

    def _make(self, action: str) -> Iterator[Rule]:
        policy = self._policies.get(action)
        if policy is not None and policy.algorithm == "gcra":
            yield from (rule("gcra", quota) for quota in policy.quotas)
            return
        windows = {Window(1, "day")} | self._windows.get(action, set())
        windows |= {quota.window for quota in policy.quotas} if policy is not None else set()
        yield from (rule("fixed_window", Quota(1, window)) for window in windows)


class Tally:
    """Adds up uses from before `began` (microseconds) in a scratch file with `SCHEMA`.

    `keyed`: no use comes twice; else their ids are remembered. `span`: all uses; or, of those users and actions only
    that have a mark, those from before it, or those from then on.
    """

    def __init__(self, scratch: Scratch, rules: Rules, *, began: int, keyed: bool, span: SpanName = "all") -> None:
        self._scratch = scratch
        self._rules = rules
        self._began = began
        self._keyed = keyed
        self._span = span
        self._totals = Totals()
        self._kept_totals: dict[int, Sequence[str]] = {}

    def mark(self, marks: Iterable[tuple[Key, int]]) -> None:
        """Uses from before these moments (ms) are in the target already."""
        self._scratch.put("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", [(*key, at) for key, at in marks])

    def begin_anew(self, span: SpanName) -> None:
        """Forget the sums, not the marks."""
        self._span = span
        self._scratch.put("DELETE FROM sums", [()])
        self._scratch.put("DELETE FROM seen", [()])

    def add(self, uses: Iterable[Use]) -> None:
        """Uses that were allowed, in whatever order."""
        sums: dict[tuple[str, str, str], Sum] = {}
        for use in uses:
            # In milliseconds, as the mark will be: what is not before it is left to the next run.
            if use.at >= self._began // 1000 or not self._is_wanted(use):
                continue
            if not self._keyed and not self._is_new(use.id):
                continue
            for field, each in self._fields(use.action, use.at * 1000, use.cost):
                place = (use.user, use.action, field)
                before = sums.get(place)
                sums[place] = each if before is None else before.then(each)
        self._scratch.put(_ADD, [(*place, *each) for place, each in sums.items()])

    def count(self) -> int:
        """How many users and actions there are counters for."""
        return int(self._scratch.one("SELECT count(*) FROM (SELECT DISTINCT user, action FROM sums)"))

    def counters(self) -> Iterator[tuple[Key, dict[str, Sum], int | None]]:
        """By user and action: what to do to each field, and the mark that is expected."""
        found: dict[str, Sum] = {}
        last: Key | None = None
        for user, action, field, floor, amount in self._scratch.rows("SELECT * FROM sums ORDER BY user, action"):
            key = Key(user, action)
            if last is not None and key != last:
                yield last, found, self._mark(last)
                found = {}
            last = key
            found[field] = Sum(floor, amount)
        if last is not None:
            yield last, found, self._mark(last)

    def _fields(self, action: str, at: int, cost: int) -> Iterator[tuple[str, Sum]]:
        if not cost:
            return
        for one in self._rules.of(action):
            if at < self._began - 2 * one.quota.window.longest:
                continue
            for op in one.charge(at, cost, {}):
                if type(op) is Add and not stale((op.field,), self._began):
                    yield op.field, Sum(0, op.amount)
                elif type(op) is Put:  # a bucket: from its beginning at this moment, which a fuller one passes over
                    yield op.field, Sum(at * 1000, op.value - at * 1000)
        for field in self._total_fields(at):
            yield field, Sum(0, cost)

    def _total_fields(self, at: int) -> Sequence[str]:
        day = at // DAY
        fields = self._kept_totals.get(day)
        if fields is None:
            made = [op.field for op in self._totals.add(at, 1)]
            gone = stale(made, self._began)
            fields = self._kept_totals[day] = [field for field in made if field not in gone]
        return fields

    def _is_new(self, event_id: str) -> bool:
        raw = bytes.fromhex(event_id.replace("-", ""))
        if self._scratch.one("SELECT 1 FROM seen WHERE id = ?", raw):
            return False
        self._scratch.put("INSERT INTO seen VALUES (?)", [(raw,)])
        return True

    def _is_wanted(self, use: Use) -> bool:
        if self._span == "all":
            return True
        mark = self._mark(Key(use.user, use.action))
        return mark is not None and (use.at < mark) is (self._span == "before")

    def _mark(self, key: Key) -> int | None:
        if self._span == "all":
            return None
        found: int | None = self._scratch.one("SELECT at FROM marks WHERE user = ? AND action = ?", *key)
        return found

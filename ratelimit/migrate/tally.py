"""Running counters from rows of use: what the limiter would have counted, had it been there.

The fields come from the limiter's own algorithms, so a day's counter, a sliding window or a bucket is what it would be.
A record that was brought over carries a mark: the moment just after the newest use that is in it. A later run adds only
what came from then on, on the condition that the mark is still the same: nothing is ever counted twice, and whatever a
source did not hold yet (a dump made before the run, a row committed late) is still to come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from itertools import groupby
from typing import Final, NamedTuple, TypeAlias

from ratelimit.algorithms import Rule, Totals, rule
from ratelimit.algorithms.fields import bucket_field, first_kept, stale, utc_day
from ratelimit.clock import DAY, SECOND
from ratelimit.event import UsageEvent
from ratelimit.migrate.checkpoint import SEEN, Scratch
from ratelimit.migrate.rows import Expired
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.quota import Quota, Window
from ratelimit.store import Add, Put

MARK: Final = "umoved"
"""Milliseconds. Named like a total, so that a reset leaves it, and not like a day's, so that no report reads it."""

_LARGEST: Final = 2**62
_KEPT_DAYS: Final = 400
"""As the limiter has it: thirteen months of totals outlive the last write."""
# Of a bucket there is a row for each moment, since its uses are put together in the order of time, which a source may
# not have.
SCHEMA: Final = f"""
    {SEEN}
    CREATE TABLE sums (user TEXT, action TEXT, field TEXT, floor INTEGER, amount INTEGER,
                       PRIMARY KEY (user, action, field, floor)) WITHOUT ROWID;
    CREATE TABLE newest (user TEXT, action TEXT, at INTEGER, PRIMARY KEY (user, action)) WITHOUT ROWID;
    CREATE TABLE marks (user TEXT, action TEXT, at INTEGER, PRIMARY KEY (user, action)) WITHOUT ROWID;
"""
_ADD: Final = f"""
    INSERT INTO sums VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = min({_LARGEST}, amount + excluded.amount)
"""
_NEWEST: Final = "INSERT INTO newest VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)"

Use: TypeAlias = UsageEvent | Expired


class Sum(NamedTuple):
    """What uses do to a field: `max(value, floor) + amount`. For a counter the floor is 0 and does nothing."""

    floor: int
    amount: int

    def then(self, later: Sum) -> Sum:
        """Return both, one after the other."""
        return Sum(max(self.floor, later.floor - self.amount), self.amount + later.amount)

    def on(self, value: int | None) -> int:
        """Return the field afterwards; None is for one that is not there."""
        return min(_LARGEST, max(value or 0, self.floor) + self.amount)


class Rules:
    """Which fields a use of an action counts into: those of the policies' and plans' quotas, and always the day's."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._policies = {policy.name: policy for policy in policies}
        self._windows: dict[str, set[Window]] = {}
        self._rules: dict[str, list[Rule]] = {}

    def learn(self, quotas: Mapping[str, Sequence[Quota]]) -> None:
        """Learn the windows of a plan, or of a user's own quotas."""
        for action, several in quotas.items():
            windows = {quota.window for quota in several}
            if not windows <= self._windows.setdefault(action, set()):
                self._windows[action] |= windows
                self._rules.pop(action, None)

    def of(self, action: str) -> Sequence[Rule]:
        """Return the rules of an action. A bucket (GCRA) is filled by the policy's own quotas."""
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


class Tallied(NamedTuple):
    """What is to be added to one record, and the moments (ms) between which it was used."""

    key: Key
    sums: Mapping[str, Sum]
    since: int | None
    """The mark that is expected there; None for none."""
    until: int
    """The mark afterwards."""


class Tally:
    """Adds up uses from before `now` (microseconds), in a scratch file with `SCHEMA`. Later ones are for the next run.

    `keyed`: no use comes twice; else their ids are remembered.
    """

    def __init__(self, scratch: Scratch, rules: Rules, *, now: int, keyed: bool) -> None:
        self._scratch = scratch
        self._rules = rules
        self._now = now
        self._keyed = keyed
        self._again = False
        # The field of a total has two digits of the year: what is older must not be taken for a later century's.
        month = first_kept(utc_day(now), "month")
        self._first_total = int(datetime.combine(month, time(), UTC).timestamp()) * SECOND
        self._totals = Totals()
        self._kept_totals: dict[int, Sequence[str]] = {}

    def again(self, marks: Iterable[tuple[Key, int]]) -> None:
        """Begin anew, with these users and actions only, and only what was used from these moments (ms) on."""
        self._again = True
        for table in ("sums", "newest", "seen"):
            self._scratch.put(f"DELETE FROM {table}", [()])
        self._scratch.put("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", [(*key, at) for key, at in marks])

    def add(self, uses: Iterable[Use]) -> None:
        """Add uses that were allowed, in whatever order."""
        amounts: Counter[tuple[str, str, str, int]] = Counter()
        newest: dict[Key, int] = {}
        for use in uses:
            # In milliseconds, as the marks are.
            if use.at_ms >= self._now // 1000 or not self._is_wanted(use):
                continue
            if not self._keyed and not self._scratch.is_new(use.id):
                continue
            key = Key(use.user, use.action)
            for field, floor, amount in self._fields(use.action, use.at_ms * 1000, use.cost):
                amounts[*key, field, floor] += amount
                newest[key] = max(use.at_ms, newest.get(key, use.at_ms))
        self._scratch.put(_ADD, [(*place, min(_LARGEST, amount)) for place, amount in amounts.items()])
        self._scratch.put(_NEWEST, [(*key, at) for key, at in newest.items()])

    def count(self) -> int:
        """Return how many users and actions there are counters for."""
        return int(self._scratch.one("SELECT count(*) FROM (SELECT DISTINCT user, action FROM sums)"))

    def counters(self) -> Iterator[Tallied]:
        """Yield what there is to add, by user and action."""
        rows = self._scratch.rows("SELECT * FROM sums ORDER BY user, action, field, floor")
        for (user, action), several in groupby(rows, lambda row: row[:2]):
            sums: dict[str, Sum] = {}
            for _, _, field, floor, amount in several:
                each = Sum(floor, amount)
                sums[field] = sums[field].then(each) if field in sums else each
            newest = self._scratch.one("SELECT at FROM newest WHERE user = ? AND action = ?", user, action)
            yield Tallied(Key(user, action), sums, self._mark(user, action), newest + 1)

    def _fields(self, action: str, at: int, cost: int) -> Iterator[tuple[str, int, int]]:
        if not cost:
            return
        counts = at >= self._first_total
        for one in self._rules.of(action):
            for op in one.charge(at, cost, {}):
                if type(op) is Add:
                    if at >= self._now - 3 * one.quota.window.longest and not stale((op.field,), self._now):
                        yield op.field, 0, op.amount
                elif type(op) is Put and counts:
                    # A bucket from its beginning at this moment, and the limit it counts by.
                    start = at * 1000 if op.field == bucket_field(one.quota.window) else op.value
                    yield op.field, start, op.value - start
        if counts:
            for field in self._total_fields(at):
                yield field, 0, cost

    def _total_fields(self, at: int) -> Sequence[str]:
        day = at // DAY
        fields = self._kept_totals.get(day)
        if fields is None:
            made = [op.field for op in self._totals.add(at, 1)]
            gone = stale(made, self._now)
            fields = self._kept_totals[day] = [field for field in made if field not in gone]
        return fields

    def _is_wanted(self, use: Use) -> bool:
        if not self._again:
            return True
        mark = self._mark(use.user, use.action)
        return mark is not None and use.at_ms >= mark

    def _mark(self, user: str, action: str) -> int | None:
        found: int | None = self._scratch.one("SELECT at FROM marks WHERE user = ? AND action = ?", user, action)
        return found


def expiry_of(now: int) -> int:
    """Return the second until which a record is kept that is written now (µs)."""
    return (now // DAY + _KEPT_DAYS) * (DAY // SECOND)


def is_bucket(field: str) -> bool:
    """Return whether it is a bucket's: the moment (ns) when it is full, its limit (`gdl`), or what was given back to
    it (`gdr`); and not a number of units."""
    return field[0] == "g"

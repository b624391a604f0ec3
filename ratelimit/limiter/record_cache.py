"""What this process has seen of the records: a small bounded cache that makes most checks one round trip.

A cached record may be out of date. It only shapes the conditions of a write, and a write whose conditions do not hold
is refused with the truth; so a wrong one costs one more round trip and never a wrong answer.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit.algorithms.fields import buckets_end, current_totals, is_total, stale
from ratelimit.cache import LRUCache
from ratelimit.clock import DAY
from ratelimit.names import Key
from ratelimit.store.base import Drop, Record, Write

NEVER: Final = -1


class CachedRecord:
    """The fields of one record that planning needs, and when it was last seen whole and last cleaned."""

    __slots__ = ("cleaned_at", "day", "record", "refused_at", "seen_at", "stale", "until")

    def __init__(self) -> None:
        self.record: dict[str, int] = {}
        self.stale: list[str] = []
        """Fields known to be there that a coming write should drop."""
        self.cleaned_at = NEVER
        """Microseconds: nothing was left to drop at that moment."""
        self.day = NEVER
        """The UTC day (since the epoch) on which the whole record was last seen."""
        self.seen_at = NEVER
        """Microseconds: this was the truth at that moment, but for what was spent here since."""
        self.refused_at = NEVER
        """Microseconds: the store said no, and this was the truth. What is spent only grows: it would say no again."""

        self.until = 0
        """Epoch seconds: a bucket is full again only then, so the record has to be kept as long."""

    def learn(self, record: Record, now: int) -> None:
        """Take over the whole true record, less the totals that neither a refund nor a clean-up will need."""
        self.stale = stale(record, now)
        passed = set(self.stale)
        current = current_totals(now)
        self.record = {
            field: value
            for field, value in record.items()
            if field not in passed and (field in current or not is_total(field))
        }
        self.cleaned_at = NEVER if self.stale else now
        self.day = now // DAY
        self.seen_at = now
        self.until = buckets_end(self.record)

    def learn_refusal(self, record: Record, now: int) -> None:
        self.learn(record, now)
        self.refused_at = now

    def is_clean(self, epoch_start: int, now: int) -> bool:
        """Return whether nothing has to be dropped: looked up once in an epoch, in which no window and no day ends."""
        if self.cleaned_at >= epoch_start:
            return True
        found = stale(self.record, now)
        for field in found:
            del self.record[field]
        self.stale = list(dict.fromkeys((*self.stale, *found)))
        if not self.stale:
            self.cleaned_at = now
        return not self.stale

    def dropped(self, write: Write, now: int) -> None:
        gone = {op.field for op in write.ops if type(op) is Drop}
        self.stale = [field for field in self.stale if field not in gone]
        if not self.stale:
            self.cleaned_at = now


RecordCache: TypeAlias = LRUCache[Key, CachedRecord]

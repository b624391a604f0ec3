"""`Holdings`: which segment holds which event, so that a segment goes when the table has all that is in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor

from ratelimit.event import UsageEvent
from ratelimit.usage.segments import Segment

logger = logging.getLogger("ratelimit")


class Holdings:
    """Belongs to the event loop; deletes in the journal's thread."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self.bytes = 0
        """Of all segments that are not done with."""
        # By identity: the same event may be in two segments, when a replay was cut short.
        self._segment_of: dict[int, Segment] = {}

    def hold(self, event: UsageEvent, segment: Segment, *, counted: bool = False) -> None:
        """The event is in memory now, and in this segment, where it may have been `counted` already."""
        self._segment_of[id(event)] = segment
        if not counted:
            segment.unwritten += 1

    def holds(self, event: UsageEvent) -> bool:
        """Whether the next start would find it."""
        return id(event) in self._segment_of

    def over(self, events: Sequence[UsageEvent]) -> None:
        """The table has them, or will never take them."""
        for event in events:
            segment = self._segment_of.pop(id(event), None)
            if segment is not None:
                segment.unwritten -= 1
                self._delete_if_done(segment)

    def done(self, segment: Segment) -> None:
        """No more will be appended to it, nor read from it."""
        segment.done = True
        self._delete_if_done(segment)

    def _delete_if_done(self, segment: Segment) -> None:
        if segment.done and not segment.unwritten:
            self.bytes -= segment.size
            self._thread.submit(_delete, segment)


def _delete(segment: Segment) -> None:
    try:
        segment.delete()
    except OSError as error:
        logger.warning("cannot delete %s, it will be replayed at the next start: %s", segment.path.name, error)

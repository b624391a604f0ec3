"""A small world of users, plans and uses, the same for every source: what it is, and what must come of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

ACTIONS = ("hint", "execution")
PLANS: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "Free", "max_hints_per_day": 5, "max_executions_per_day": 10, "is_active": 1},
    {"id": 2, "name": "Pro", "max_hints_per_day": 50, "max_executions_per_day": 200, "is_active": 1},
    {"id": 3, "name": "Staff", "max_hints_per_day": -1, "max_executions_per_day": -1, "is_active": 0},
)


@dataclass(frozen=True)
class World:
    """`now` is a moment shortly before the migration. The uses are spread over `days`, many of them today."""

    users: int
    rows: int
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5))
    days: int = 30

    def all_users(self) -> Iterator[dict[str, Any]]:
        for number in range(1, self.users + 1):
            yield {
                "id": number,
                "email": f"user{number}@example.com",
                "name": f"User {number}",
                "subscription_plan_id": 1 + number % 3 if number % 7 else None,
                "is_active": 0 if number % 50 == 0 else 1,
                "is_staff": 1 if number % 100 == 1 else 0,
            }

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """Each second of a user and action once, so that the earlier layout can hold all of them."""
        dice = random.Random(4711)
        taken: set[tuple[int, str, int]] = set()
        number = 0
        while number < self.rows:
            user, action = dice.randint(1, self.users), ACTIONS[dice.random() < 0.3]
            since_midnight = (self.now - self.now.replace(hour=0, minute=0, second=0)).seconds
            today = dice.random() < 0.2
            back = dice.randint(0, max(0, since_midnight - 1) if today else self.days * 86_400)
            if (user, action, back) in taken:
                continue
            taken.add((user, action, back))
            number += 1
            yield {
                "id": number,
                "user_id": user,
                "action": action,
                "problem_id": dice.randint(1, 500) if dice.random() < 0.8 else None,
                "metadata": f'{{"difficulty": {dice.randint(1, 5)}, "text": "né"}}' if dice.random() < 0.5 else None,
                "created_at": self.now - timedelta(seconds=back),
            }

    def today(self) -> Counter[tuple[str, str]]:
        """`rows of this user and action since midnight`, which is what used to be the count."""
        midnight = self.now.replace(hour=0, minute=0, second=0)
        return Counter((str(row["user_id"]), row["action"]) for row in self.all_rows() if row["created_at"] >= midnight)

"""`Serving`: binds the addresses, and serves from one worker in this process, or from several in their own."""

from __future__ import annotations

import logging.config
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeAlias

from ratelimit.serving.address import Address, Listening
from ratelimit.serving.leaving import Leaving
from ratelimit.serving.logs import LOGGING

if TYPE_CHECKING:
    from ratelimit.serving.worker import MakeSidecar

_NEEDED: Final = ("aiohttp", "httptools", "prometheus_client", "uvicorn", "websockets")

Announce: TypeAlias = Callable[[str, str | None], None]
"""Told where it listens, and where the admin listener does, once all workers serve."""


def missing() -> list[str]:
    """What has to be installed first."""
    return [name for name in _NEEDED if find_spec(name) is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How to serve. `admin`: where the admin listener is, None for none."""

    address: Address
    admin: Address | None = None
    workers: int = 1
    leaving: Leaving = field(default_factory=Leaving)

    def run(self, make: MakeSidecar, refresh: Callable[[], object], announce: Announce) -> int:
        """Serve until told to leave; the exit status. Raises `ConfigError`.

        `refresh` reads the configuration in this process before several workers are told to read it in theirs; it
        raises `ConfigError` where that would not do.
        """
        logging.config.dictConfig(LOGGING)
        with ExitStack() as stack:
            public = stack.enter_context(closing(self.address.bind()))
            admin = None if self.admin is None else stack.enter_context(closing(self.admin.bind()))
            say = partial(announce, public.where, None if admin is None else admin.where)
            if self.workers == 1:
                return self._alone(make, public, admin, say)
            siblings = Path(stack.enter_context(TemporaryDirectory(prefix="ratelimit-")))
            return self._several(make, siblings, public, admin, refresh, say)

    def _alone(
        self, make: MakeSidecar, public: Listening, admin: Listening | None, announce: Callable[[], None]
    ) -> int:
        from ratelimit.serving.alone import serve_alone
        from ratelimit.serving.worker import on_a_loop

        return on_a_loop(serve_alone(make, public, admin, self.leaving, announce))

    def _several(
        self, make: MakeSidecar, siblings: Path, public: Listening, admin: Listening | None,
        refresh: Callable[[], object], announce: Callable[[], None],
    ) -> int:  # fmt: skip
        from ratelimit.serving.member import Task
        from ratelimit.serving.supervisor import Supervisor
        from ratelimit.serving.worker import on_a_loop

        task = Task(make, public.socket, None if admin is None else admin.socket, siblings, self.leaving)
        return on_a_loop(Supervisor(task, self.workers, public, refresh).run(announce))

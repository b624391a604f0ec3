"""The start-up line: what is served, for whom, and where it counts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec
import typer

from ratelimit.cli.output import note
from ratelimit.config import Config, masked
from ratelimit.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """Call it with where the app and the admin listener are, once they are."""

    config: Config
    upstream: str | None
    workers: int
    json: bool

    def __call__(self, where: str, admin: str | None) -> None:
        """Say it: readable on stderr, or for a program on stdout."""
        if self.json:
            typer.echo(msgspec.json.encode(self._document(where, admin)).decode())
        else:
            typer.echo(self._line(where, admin), err=True)
        if self.config.store.startswith("memory://"):
            note("memory:// is forgotten when this process ends")

    def _line(self, where: str, admin: str | None) -> str:
        rules = "; ".join(f"{policy.name} ({', '.join(_quotas(policy))})" for policy in self.config.policies)
        what = (
            f"in front of {masked(self.upstream)}" if self.upstream else "decisions at /v1/authz and the API beside it"
        )
        return (
            f"ratelimit serves {where} {what}: {rules}; users from {', '.join(self._users())}, else their address; "
            f"counting in {masked(self.config.store)}; {'admin at ' + admin if admin else 'no admin listener'}; "
            f"{'1 worker' if self.workers == 1 else f'{self.workers} workers'}"
        )

    def _document(self, where: str, admin: str | None) -> dict[str, object]:
        return {
            "listening": where,
            "upstream": None if self.upstream is None else masked(self.upstream),
            "policies": {policy.name: _quotas(policy) for policy in self.config.policies},
            "user_from": self._users(),
            "store": masked(self.config.store),
            "admin": admin,
            "workers": self.workers,
            "pid": os.getpid(),
        }

    def _users(self) -> list[str]:
        return [str(source) for source in self.config.user_from]


def _quotas(policy: Policy) -> list[str]:
    return [str(quota) for quota in policy.quotas] or ["unlimited"]

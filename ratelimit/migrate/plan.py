"""`MigrationPlan`: what is to be brought from where to where, and how; and the source that it names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ratelimit.clock import Clock
from ratelimit.config import Config, masked
from ratelimit.dynamodb import DynamoDBStore, Settings, parse_url, same_table
from ratelimit.dynamodb.settings import check_one_region
from ratelimit.errors import InvalidInput, within
from ratelimit.migrate.checkpoint import Workspace
from ratelimit.migrate.convert import Converter
from ratelimit.migrate.dynamodb import LegacySource, TableSource
from ratelimit.migrate.files import UTF_8, FileSource, is_sqlite
from ratelimit.migrate.ledger import RunInfo, place_of_table
from ratelimit.migrate.mapping import Mapping
from ratelimit.migrate.rows import ENTITIES, Entity, Source, rows_of
from ratelimit.migrate.sql import SqlSource
from ratelimit.migrate.target import RawTable
from ratelimit.store.hashed import UserHash

OnError: TypeAlias = Literal["skip", "stop"]

DEFAULT_BATCH: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """What is to be brought from where to where. Raises `InvalidInput`.

    `source`      a URL or a path, see `source_of`.
    `target`      the table; it has to exist.
    `config`      the policies: their names are the actions that are known, their quotas say which counters there are.
    `entities`    none for all that the source has.
    `any_action`  also those that no policy names.
    `rate`        write units a second at most.
    `restart`     forget how far an earlier run came.
    `foreign`     also into a table that holds other things.
    `mirrored`    a mirror of the source, a table of this project, writes to the target already.
    `leave_rejected`  the counters leave out rows that were rejected; else they wait until none is.
    `encoding`    of text files.
    `replace`     runs that are taken back first.
    `work_dir`    where the checkpoint and the rejected rows go.
    """

    source: str
    target: Settings
    config: Config
    mapping: Mapping
    entities: Sequence[str] = ()
    any_action: bool = False
    batch_size: int = DEFAULT_BATCH
    rate: float | None = None
    on_error: OnError = "skip"
    backup: bool = True
    restart: bool = False
    foreign: bool = False
    mirrored: bool = False
    leave_rejected: bool = False
    encoding: str = UTF_8
    replace: Sequence[str] = ()
    work_dir: Path = Path()

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 10_000:
            raise InvalidInput(f"--batch-size must be from 1 to 10000, not {self.batch_size!r}")

    def chosen(self, there: Sequence[Entity]) -> list[Entity]:
        """Return what is asked for of what is there, in the order in which it has to come. Raises `InvalidInput`."""
        for entity in self.entities:
            if entity not in there:
                has = ", ".join(there) or "nothing"
                raise InvalidInput(f"--entity: {masked(self.source)} has no {entity} (it has: {has})")
        return [entity for entity in there if not self.entities or entity in self.entities]

    @property
    def only(self) -> Entity | None:
        """Return what a file is about whose name does not say it. Counters are counted from events."""
        named = {rows_of(entity) for entity in self.entities}
        return next((entity for entity in ENTITIES if named == {entity}), None)

    @property
    def actions(self) -> Collection[str] | None:
        """Return the actions of the policies and of the plans' columns; None, for any, where there are no policies."""
        if self.any_action or not self.config.policies:
            return None
        policies = (policy.name for policy in self.config.policies)
        return {*policies, *self.mapping.plans.quotas, *self.mapping.users.quotas}

    @property
    def costs(self) -> dict[str, int]:
        """Return the units that a use takes where a row does not say it, by action."""
        return {policy.name: policy.cost for policy in self.config.policies if isinstance(policy.cost, int)}

    def workspace(self) -> Workspace:
        """Return the files of this migration: of this source, target and mapping."""
        target = (self.target.table, self.target.region, self.target.endpoint)
        known = None if self.actions is None else tuple(sorted(self.actions))
        about = (masked(self.source), target, tuple(sorted(self.entities)), self.mapping, known)
        return Workspace(self.work_dir, about)

    def about(self, run: str) -> RunInfo:
        """Return what a run of this is about, for its ledger."""
        events = self.mapping.events
        settings = {
            f"events.{name}": ", ".join(found) if isinstance(found := getattr(events, name), tuple) else found
            for name in ("table", "id", "user", "action", "time", "cost", "allowed", "timezone", "time_format")
        }
        settings["users.uuids"] = self.mapping.users.uuids
        secret = self.config.user_hash_key
        hashed = "" if secret is None else blake2b(secret.encode(), digest_size=8).hexdigest()
        return RunInfo(
            run=run, source=masked(self.source), target=place_of_table(self.target),
            settings={**settings, "user_hash_key": hashed}, actions=dict(self.mapping.actions),
            costs={name: cost for name, cost in self.costs.items() if cost != 1},
        )  # fmt: skip


# From what a command line names to a source: a database, a file, a folder, or a table.

_EARLIER: Final = "earlier://"
_TABLE: Final = "dynamodb://"
# A migration has time: an answer that a check would not wait for is still welcome.
_READ_TIMEOUT: Final = 20.0
_CONNECT_TIMEOUT: Final = 5.0
_ATTEMPTS: Final = 5


def source_of(plan: MigrationPlan, clock: Clock) -> Source:
    """Return the source that a URL or a path names, not yet open. Raises `ConfigError`, `InvalidInput`."""
    source = _named(plan, Converter(plan.mapping, clock=clock, actions=plan.actions, costs=plan.costs), clock)
    if plan.config.user_hash_key is not None:
        source.users = UserHash(plan.config.user_hash_key)
    return source


def _named(plan: MigrationPlan, converter: Converter, clock: Clock) -> Source:
    spec = plan.source
    if spec.startswith((_EARLIER, _TABLE)):
        settings = _other_table(spec, plan.target)
        if spec.startswith(_EARLIER):
            return LegacySource(RawTable(settings), converter)
        return TableSource(DynamoDBStore(settings), RawTable(settings), clock=clock)
    if "://" in spec:
        return SqlSource(spec, converter, wanted=plan.entities)
    path = Path(spec)
    if not path.exists():
        raise InvalidInput(
            f"there is no {masked(spec)}; name a file, a folder, or a URL such as mysql://, sqlite:///, earlier://"
        )
    # By its name only where it is empty, as a new database is.
    is_new = path.suffix.lower() in (".db", ".sqlite", ".sqlite3") and path.is_file() and not path.stat().st_size
    if is_new or is_sqlite(path):
        return SqlSource(path, converter, wanted=plan.entities)
    return FileSource(path, converter, only=plan.only, wanted=plan.entities, encoding=plan.encoding)


def migration_settings(settings: Settings) -> Settings:
    """Return the same table with a migration's timeouts and attempts, and the consumed units counted."""
    check_one_region(settings, "a migration fills the table before it counts in many regions, by")
    return replace(
        settings, consumed=True, read_timeout=_READ_TIMEOUT, connect_timeout=_CONNECT_TIMEOUT, attempts=_ATTEMPTS
    )


def _other_table(spec: str, target: Settings) -> Settings:
    with within("the source"):
        settings = parse_url(_TABLE + spec.partition("://")[2])
    if same_table(settings, target):
        raise InvalidInput("source and target are the same table; the source is never changed, so name another target")
    return migration_settings(settings)

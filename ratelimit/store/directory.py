"""Users and plans, how users are found, and the contract of a store of them."""

from __future__ import annotations

import hmac
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, cast, get_args

from ratelimit.cursor import Page, decode_cursor, encode_cursor
from ratelimit.errors import (
    ConfigError,
    InvalidAction,
    InvalidCursor,
    InvalidInput,
    InvalidQuota,
    InvalidUser,
    StoreMisconfigured,
)
from ratelimit.names import UserId, check_action, check_user
from ratelimit.quota import Quotas, QuotasLike, to_quotas
from ratelimit.settings import Converted, converting_dataclass, keep, one_of, truth

# `Identity`: how a user is known to the outside world, in the form in which it may be stored. An e-mail is stored as
# it is, lower-cased. An API key is stored as HMAC-SHA-256 under a pepper, which is a secret of the application and
# never in the table: who reads the table can neither use a key nor test a guess. Without a pepper the digest still
# cannot be turned back, provided that keys are random, which is why short ones are refused.

IdentityKind: TypeAlias = Literal["email", "api_key"]

MAX_EMAIL_BYTES: Final = 254
MIN_KEY_LENGTH: Final = 16
MAX_KEY_LENGTH: Final = 4_096

_EMAIL = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff@]+@[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff@]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Keeps these digests apart from any other that the same secret may be used for.
_PURPOSE: Final = b"ratelimit api key\0"


@dataclass(frozen=True, slots=True)
class Identity:
    """An e-mail or the digest of an API key. Made by `Identity.email` and `Identity.api_key`. Raises `ConfigError`."""

    kind: IdentityKind
    value: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(IdentityKind):
            raise ConfigError("kind", f"unknown value {self.kind!r}; use one of 'email', 'api_key'")
        if self.kind == "email" and self.value != _normal(self.value):
            raise ConfigError("email", "is not lower-cased; use Identity.email(address)")
        if self.kind == "api_key" and not _DIGEST.fullmatch(self.value):
            # Not quoted: it may well be the key.
            raise ConfigError("api_key", "is not a digest; use Identity.api_key(key)")

    @classmethod
    def email(cls, address: str) -> Identity:
        """Return the identity of an address; case does not count, so that one person is not two users."""
        return cls("email", _normal(address))

    @classmethod
    def api_key(cls, key: str, *, pepper: bytes = b"") -> Identity:
        """Return the digest of a key. The same pepper has to be given wherever a key is set or looked up."""
        if type(key) is not str or not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
            raise ConfigError("api_key", f"must be text of {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} characters")
        try:
            text = key.encode()
        except UnicodeEncodeError:
            raise ConfigError("api_key", "holds characters that are no valid Unicode") from None
        return cls("api_key", hmac.digest(_PURPOSE + pepper, text, "sha256").hex())

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Return the identity that `str` has made the text of."""
        kind, _, value = text.partition(":")
        return cls(cast(IdentityKind, kind), value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


def _normal(address: str) -> str:
    """Return it lower-cased, in Unicode's composed form: the same to compare as it looks."""
    if type(address) is not str:
        raise ConfigError("email", f"must be text, not {type(address).__name__}")
    normal = unicodedata.normalize("NFC", unicodedata.normalize("NFC", address.strip()).lower())
    if not _EMAIL.fullmatch(normal):
        raise ConfigError("email", f"{address!r} is not an e-mail address; write it like 'alice@example.com'")
    if len(normal.encode()) > MAX_EMAIL_BYTES:
        raise ConfigError("email", f"takes more than {MAX_EMAIL_BYTES} bytes")
    return normal


# `Plan` and `User`: who may do how much. Frozen values, checked when made.

Role: TypeAlias = Literal["user", "admin"]

MAX_ACTIONS: Final = 200
"""Actions in one plan, or overridden for one user: an entry is read whole."""
MAX_IDENTITIES: Final = 20
"""Of one user: they are written with the user in one transaction."""


@converting_dataclass
class Plan:
    """Named quotas per action. Raises `ConfigError` with the path to a bad value (`quotas.hint`).

    `quotas`   per action: `"5/day"`, `"100/hour; 1000/day"`, a `Quota`, a list of them, `"unlimited"` or -1. An action
               that it does not name is left to the action's policy.
    """

    name: str
    quotas: Converted[Mapping[str, QuotasLike], Mapping[str, Quotas]]
    _: KW_ONLY
    version: int = field(default=0, compare=False)
    """Changes with every change in the store, which sets it; 0 for one that was not read from there."""

    def __post_init__(self) -> None:
        keep(self, "name", lambda name: check_plan("", name))
        keep(self, "quotas", _quotas)


@converting_dataclass
class User:
    """One user, as far as limits are concerned. Raises `ConfigError` with the path to a bad value.

    `plan`         the name of the plan subscribed to; it need not exist, and then the policies' own quotas hold.
    `quotas`       per action, over those of the plan.
    `role`         `"admin"` is unlimited, but for actions in `quotas`.
    `active`       False refuses every check.
    `identities`   e-mails and digests of API keys that this user, and no other, is found by.
    """

    id: Converted[UserId, str]
    _: KW_ONLY
    plan: str | None = None
    quotas: Converted[Mapping[str, QuotasLike], Mapping[str, Quotas]] = field(default_factory=dict)  # type: ignore[arg-type]
    role: Role = "user"
    active: bool = True
    identities: Converted[Iterable[Identity], tuple[Identity, ...]] = ()  # type: ignore[assignment]
    version: int = field(default=0, compare=False)
    """As `Plan.version`."""

    def __post_init__(self) -> None:
        keep(self, "id", _id)
        keep(self, "plan", lambda plan: None if plan is None else check_plan("", plan))
        keep(self, "quotas", _quotas)
        keep(self, "role", one_of(Role))
        keep(self, "active", truth)
        keep(self, "identities", _identities)


def check_plan(path: str, name: str) -> str:
    """Return a plan's name, which is bounded as an action is. Raises `ConfigError`."""
    try:
        return check_action(name)
    except InvalidAction as error:
        raise ConfigError(path, str(error).replace("the action", "the plan's name", 1)) from error


def _id(user: UserId) -> str:
    try:
        return check_user(user)
    except InvalidUser as error:
        raise ConfigError("", str(error)) from error


def _quotas(value: Mapping[str, QuotasLike]) -> Mapping[str, Quotas]:
    if not isinstance(value, Mapping):
        raise ConfigError("", f"expected quotas by action, as in {{'hint': '5/day'}}, not {value!r}")
    if len(value) > MAX_ACTIONS:
        raise ConfigError("", f"{len(value)} actions are named, and {MAX_ACTIONS} are the most")
    found: dict[str, Quotas] = {}
    for action, quotas in value.items():
        try:
            found[check_action(action)] = to_quotas(quotas)
        except InvalidAction as error:
            raise ConfigError("", str(error)) from error
        except ConfigError as error:
            raise error.under(action) from error
        except InvalidQuota as error:
            raise ConfigError(action, str(error)) from error
    return MappingProxyType(found)


def _identities(value: Iterable[Identity]) -> tuple[Identity, ...]:
    identities = tuple(dict.fromkeys(value))
    for number, identity in enumerate(identities):
        if not isinstance(identity, Identity):
            raise ConfigError(f"[{number}]", "expected Identity.email(address) or Identity.api_key(key)")
    if len(identities) > MAX_IDENTITIES:
        raise ConfigError("", f"{len(identities)} are named, and {MAX_IDENTITIES} are the most")
    return identities


Entry: TypeAlias = User | Plan
T = TypeVar("T", bound=Entry)


class IdentityTaken(InvalidInput):
    """An identity that belongs to another user; nothing was written."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        super().__init__(f"another user has this {identity.kind.replace('_', ' ')} already ({identity.value})")


class UnreadableEntry(StoreMisconfigured):
    """One user or plan whose row makes no sense; the others are not concerned."""


class DirectoryStore(Protocol):
    """Where users and plans live. Every method may raise `StoreUnavailable` when the store gives no usable answer."""

    async def read(self, kind: type[T], name: str) -> T | None:
        """Return the user or plan of this name: `read(User, "alice")`. Sees all that was written before."""

    async def find(self, identity: Identity) -> str | None:
        """Return the id of the user who has this identity. Sees all that was written before."""

    async def page(
        self, kind: type[T], *, plan: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[T]:
        """Return plans, users, or a plan's users, at most `limit` at a time. May lag behind writes by some seconds.

        Raises `InvalidCursor` for one that is damaged or came from another list.
        """

    async def replace(self, old: Entry | None, new: Entry | None, *, now: int) -> bool:
        """Put `new` in the place of `old`, as it was read, with all identities, or do nothing at all.

        `old` is None for one that is not to be there yet, `new` is None to remove it. False where somebody else has
        changed it since. Raises `IdentityTaken`. `now` in microseconds.
        """


def check_pair(old: Entry | None, new: Entry | None) -> Entry:
    """Return the entry that both are about. Raises `ValueError` where there is no such entry, as that is a bug."""
    entry = new if new is not None else old
    if entry is None:
        raise ValueError("nothing to replace by nothing")
    if old is not None and (type(old), name_of(old)) != (type(entry), name_of(entry)):
        raise ValueError("an entry cannot be replaced by one of another name")
    return entry


def next_version(old: Entry | None, now: int) -> int:
    """Return a version that was never there before, also where an entry is removed and comes back."""
    return now if old is None else max(now, old.version + 1)


def name_of(entry: Entry) -> str:
    return entry.id if isinstance(entry, User) else entry.name


def encode_place(listing: str, *place: str) -> str:
    """Return the cursor of a page that ended at `place`: all that the store needs to go on with the list `listing`."""
    return encode_cursor((listing, place))


def decode_place(cursor: str, listing: str, *, parts: int) -> tuple[str, ...]:
    """Return the place, of so many parts. Raises `InvalidCursor`, also for a cursor of another list."""
    made_for, place = decode_cursor(cursor, tuple[str, tuple[str, ...]])
    if made_for != listing or len(place) != parts:
        raise InvalidCursor("the cursor came from another list; begin anew without one")
    return place

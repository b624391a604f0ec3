"""Users and plans, as the API takes and gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from ratelimit.directory import Plan, User
from ratelimit.http.api.bodies import Name, QuotasText
from ratelimit.quota import Quotas
from ratelimit.store.directory import Role

MOST_ON_A_PAGE: Final = 1000

_WORD: Final = r"[^\s\u0000-\u001f\u007f-\u009f@]"

QuotasByAction: TypeAlias = dict[Name, QuotasText]
IdentityText: TypeAlias = Annotated[
    str,
    Meta(
        max_length=300,
        description="`email:ADDRESS`, or `api_key:DIGEST`: of an API key only the digest is told and kept.",
        extra_json_schema={"pattern": rf"^(email:{_WORD}{{1,60}}@{_WORD}{{1,180}}|api_key:[0-9a-f]{{64}})$"},
    ),
]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_ON_A_PAGE, description="At most so many.")]
Cursor: TypeAlias = Annotated[str, Meta(description="Of the page before.", max_length=4096)]


class PlanBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A plan. An action that it does not name is left to the action's policy."""

    quotas: QuotasByAction


class PlanPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """What changes of a plan: null takes back what was said of an action."""

    quotas: dict[Name, QuotasText | None]


class PlanAnswer(Struct, frozen=True):
    """A plan."""

    name: str
    quotas: dict[str, str]

    @classmethod
    def of(cls, plan: Plan) -> PlanAnswer:
        """As JSON says it."""
        return cls(plan.name, texts(plan.quotas))


class PlansAnswer(Struct, frozen=True):
    """Some of the plans; what changed a few seconds ago may not show yet."""

    plans: list[PlanAnswer]
    cursor: str | None
    """Where the next page begins; it may prove empty. Null on the last one."""


class UserBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A user, whole: what is left out is as for a new one."""

    plan: Name | None = None
    quotas: QuotasByAction = {}
    role: Role = "user"
    active: bool = True
    identities: list[IdentityText] = []


class UserPatch(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What changes of a user, as in JSON Merge Patch (RFC 7396): what is left out stays, null takes back."""

    plan: Name | UnsetType | None = UNSET
    quotas: dict[Name, QuotasText | None] | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    identities: list[IdentityText] | UnsetType = UNSET
    """All of them."""


class UserAnswer(Struct, frozen=True, kw_only=True):
    """A user."""

    id: str
    plan: str | None
    quotas: dict[str, str]
    role: Role
    active: bool
    identities: list[str]

    @classmethod
    def of(cls, user: User) -> UserAnswer:
        """As JSON says it."""
        return cls(
            id=user.id,
            plan=user.plan,
            quotas=texts(user.quotas),
            role=user.role,
            active=user.active,
            identities=list(map(str, user.identities)),
        )


class UsersQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which users."""

    plan: Name | UnsetType = UNSET
    identity: IdentityText | UnsetType = UNSET
    limit: Limit = 100
    cursor: Cursor | UnsetType = UNSET


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which page."""

    limit: Limit = 100
    cursor: Cursor | UnsetType = UNSET


class UsersAnswer(Struct, frozen=True):
    """Some of the users; what changed a few seconds ago may not show yet."""

    users: list[UserAnswer]
    cursor: str | None
    """Where the next page begins; it may prove empty. Null on the last one."""


def texts(quotas: Mapping[str, Quotas]) -> dict[str, str]:
    """As they may be written."""
    return {action: "; ".join(map(str, several)) or "unlimited" for action, several in quotas.items()}

"""Users and plans, read and changed in the table. What others read through a cache follows within 30 s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, NoReturn, TypeAlias, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from ratelimit.cursor import MAX_PAGE
from ratelimit.directory import Directory, UnknownPlan, UnknownUser
from ratelimit.errors import ConfigError, InvalidInput
from ratelimit.http.api.operation import Name, Operation, PlanQuotasText, UserName
from ratelimit.names import check_user
from ratelimit.policy import Policy, check_usable
from ratelimit.quota import Quotas, QuotasLike, quotas_texts
from ratelimit.store.directory import Identity, Plan, Role, User, check_plan

T = TypeVar("T")

_USER: Final = "/v1/users/{user}"
_PLAN: Final = "/v1/plans/{plan}"
_WORD: Final = r"[^\s\u0000-\u001f\u007f-\u009f@]"

QuotasByAction: TypeAlias = dict[Name, PlanQuotasText]
IdentityText: TypeAlias = Annotated[
    str,
    Meta(
        max_length=300,
        description="`email:ADDRESS`, or `api_key:DIGEST`: of an API key only the digest is told and kept.",
        extra_json_schema={"pattern": rf"^(email:{_WORD}{{1,60}}@{_WORD}{{1,180}}|api_key:[0-9a-f]{{64}})$"},
    ),
]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="At most so many.")]
Cursor: TypeAlias = Annotated[str, Meta(description="Of the page before.", max_length=4096)]


class PlanBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A plan. An action that it does not name is left to the action's policy."""

    quotas: QuotasByAction


class PlanPatch(Struct, frozen=True, forbid_unknown_fields=True):
    """What changes of a plan: null takes back what was said of an action."""

    quotas: dict[Name, PlanQuotasText | None]


class PlanAnswer(Struct, frozen=True):
    """A plan."""

    name: str
    quotas: dict[str, str]

    @classmethod
    def of(cls, plan: Plan) -> PlanAnswer:
        return cls(plan.name, quotas_texts(plan.quotas))


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
    quotas: dict[Name, PlanQuotasText | None] | UnsetType = UNSET
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
        return cls(
            id=user.id,
            plan=user.plan,
            quotas=quotas_texts(user.quotas),
            role=user.role,
            active=user.active,
            identities=list(map(str, user.identities)),
        )


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which page."""

    limit: Limit = 100
    cursor: Cursor | UnsetType = UNSET


class UsersQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which users."""

    plan: Name | UnsetType = UNSET
    identity: IdentityText | UnsetType = UNSET
    id: UserName | UnsetType = UNSET


class UsersAnswer(Struct, frozen=True):
    """Some of the users; what changed a few seconds ago may not show yet."""

    users: list[UserAnswer]
    cursor: str | None
    """Where the next page begins; it may prove empty. Null on the last one."""


class DirectoryRoutes:
    """Reads go past the directory's cache: who changes something sees that it is so."""

    def __init__(self, directory: Directory, policies: Mapping[str, Policy]) -> None:
        self._directory = directory
        self._store = directory.store
        self._policies = policies

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", "/v1/users", self.users, problems=[503]),
            Operation("GET", _USER, self.user, problems=[404, 503]),
            Operation("PUT", _USER, self.put_user, problems=[404, 409, 503]),
            Operation("PATCH", _USER, self.patch_user, problems=[404, 409, 503]),
            Operation("DELETE", _USER, self.remove_user, problems=[404, 409, 503]),
            Operation("GET", "/v1/plans", self.plans, problems=[503]),
            Operation("GET", _PLAN, self.plan, problems=[404, 503]),
            Operation("PUT", _PLAN, self.put_plan, problems=[409, 503]),
            Operation("PATCH", _PLAN, self.patch_plan, problems=[404, 409, 503]),
            Operation("DELETE", _PLAN, self.remove_plan, problems=[404, 409, 503]),
        ]

    async def users(self, query: UsersQuery) -> UsersAnswer:
        """List the users: all, those of a plan, or the one who has an identity or an id, if there is one."""
        if query.identity is not UNSET or query.id is not UNSET:
            return UsersAnswer(await self._found(query), None)
        plan = None if query.plan is UNSET else check_plan("plan", query.plan)
        page = await self._store.page(User, plan=plan, limit=query.limit, cursor=_or_none(query.cursor))
        return UsersAnswer(list(map(UserAnswer.of, page.entries)), page.cursor)

    async def user(self, user: UserName) -> UserAnswer:
        """Show a user."""
        return UserAnswer.of(await self._store.read(User, check_user(user)) or _missing("user", user))

    async def put_user(self, user: UserName, body: UserBody) -> UserAnswer:
        """Make a user, or put another in the place of the one that is there."""
        new = User(user, **{**structs.asdict(body), "identities": _identities(body.identities)})
        check_usable(self._policies, new.quotas)
        await self._check_plan(new.plan)
        await self._directory.put_user(new)
        return UserAnswer.of(new)

    async def patch_user(self, user: UserName, body: UserPatch) -> UserAnswer:
        """Change a user: what is not mentioned stays."""

        def patched(old: User | None) -> User:
            return _patched(old or _missing("user", user), body)

        # What is wrong is said before anything is asked of the table.
        check_usable(self._policies, _patched(User(user), body).quotas)
        if body.plan is not UNSET:
            await self._check_plan(body.plan)
        return UserAnswer.of(await self._directory.change_user(user, patched))

    async def remove_user(self, user: UserName) -> None:
        """Remove a user's entry and identities; what was counted and logged stays."""
        if not await self._directory.remove_user(user):
            _missing("user", user)

    async def plans(self, query: PageQuery) -> PlansAnswer:
        """List the plans."""
        page = await self._store.page(Plan, limit=query.limit, cursor=_or_none(query.cursor))
        return PlansAnswer(list(map(PlanAnswer.of, page.entries)), page.cursor)

    async def plan(self, plan: Name) -> PlanAnswer:
        """Show a plan."""
        return PlanAnswer.of(await self._known_plan(plan))

    async def put_plan(self, plan: Name, body: PlanBody) -> PlanAnswer:
        """Make a plan, or put another in the place of the one that is there."""
        new = Plan(plan, body.quotas)
        check_usable(self._policies, new.quotas)
        await self._directory.put_plan(new)
        return PlanAnswer.of(new)

    async def patch_plan(self, plan: Name, body: PlanPatch) -> PlanAnswer:
        """Change a plan: what is not mentioned stays."""

        def patched(old: Plan | None) -> Plan:
            return Plan(plan, _merged((old or _missing("plan", plan)).quotas, body.quotas))

        check_usable(self._policies, Plan(plan, _merged({}, body.quotas)).quotas)
        return PlanAnswer.of(await self._directory.change_plan(plan, patched))

    async def remove_plan(self, plan: Name) -> None:
        """Remove a plan; for users who have it, the policies' own quotas hold from then on."""
        if not await self._directory.remove_plan(plan):
            _missing("plan", plan)

    async def _found(self, query: UsersQuery) -> list[UserAnswer]:
        if query.plan is not UNSET or query.cursor is not UNSET or UNSET not in (query.id, query.identity):
            raise InvalidInput("an identity or an id stands alone: without plan and cursor")
        if query.id is not UNSET:
            named = await self._store.read(User, check_user(query.id))
            return [] if named is None else [UserAnswer.of(named)]
        assert query.identity is not UNSET
        identity = _identity("identity", query.identity)
        owner = await self._store.find(identity)
        found = None if owner is None else await self._store.read(User, owner)
        return [UserAnswer.of(found)] if found is not None and identity in found.identities else []

    async def _check_plan(self, plan: str | None) -> None:
        if plan is not None:
            await self._known_plan(plan)

    async def _known_plan(self, plan: str) -> Plan:
        return await self._store.read(Plan, check_plan("plan", plan)) or _missing("plan", plan)


def _patched(old: User, body: UserPatch) -> User:
    return User(
        old.id,
        plan=_given(body.plan, old.plan),
        quotas=old.quotas if body.quotas is UNSET else _merged(old.quotas, body.quotas),
        role=_given(body.role, old.role),
        active=_given(body.active, old.active),
        identities=old.identities if body.identities is UNSET else _identities(body.identities),
    )


def _missing(what: Literal["user", "plan"], name: str) -> NoReturn:
    error = UnknownUser if what == "user" else UnknownPlan
    raise error(f"there is no {what} {name!r}")


def _merged(old: Mapping[str, Quotas], changes: Mapping[str, str | None]) -> dict[str, QuotasLike]:
    both: dict[str, QuotasLike | None] = {**old, **changes}
    return {action: quotas for action, quotas in both.items() if quotas is not None}


def _given(new: T | UnsetType, old: T) -> T:
    return old if new is UNSET else new


def _or_none(text: str | UnsetType) -> str | None:
    return None if text is UNSET else text


def _identities(texts: Iterable[str]) -> tuple[Identity, ...]:
    return tuple(_identity(f"identities[{number}]", text) for number, text in enumerate(texts))


def _identity(path: str, text: str) -> Identity:
    """Never quoted in what is said of it: it may be a key after all."""
    kind, _, value = text.partition(":")
    try:
        if kind == "email" and value == value.strip():
            return Identity.email(value)
        return Identity.parse(text)
    except ConfigError:
        raise ConfigError(path, "expected email:ADDRESS or api_key:DIGEST (64 hexadecimal digits)") from None

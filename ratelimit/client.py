"""The client side: a transport of httpx that keeps to the limits of others, by what their answers say.

    client = httpx.AsyncClient(transport=AsyncRateLimitTransport(httpx.AsyncHTTPTransport()))

`read_limits` is what an answer says, `OriginLimits` what is known by that, and whose turn it is to send something. The
transports lean on httpx's interface of transports alone, and so they serve the clients of httpx2 as well.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from ratelimit.blocking import Deferred, Runner, Signal, refuse_event_loop
from ratelimit.blocking_wait import wait_for
from ratelimit.cache import LRUCache
from ratelimit.clock import SECOND, Clock, SystemClock, seconds, since_epoch
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, LimiterClosed, QuotaExceeded, RateLimitError
from ratelimit.limiter.waiting import DEFAULT_TIMEOUT, WaitQueues, check_timeout
from ratelimit.retry import Backoff
from ratelimit.tasks import Tasks

if TYPE_CHECKING:
    from httpx import AsyncBaseTransport, BaseTransport, Request, Response
else:
    AsyncBaseTransport = BaseTransport = object

__all__ = ["AsyncRateLimitTransport", "RateLimitTransport", "WaitTooLong"]

T = TypeVar("T")
KeyOf: TypeAlias = "Callable[[Request], Hashable]"
Close: TypeAlias = "Callable[[Response], Awaitable[object]]"

DEFAULT_RETRIES: Final = 2
MAX_GROUPS: Final = 1024
"""Origins, or what else requests are told apart by, of which is known what they allow."""
MAX_WAIT_S: Final = 86_400.0
"""Seconds for which an answer is believed that says to wait: then one request finds out. A server that means
milliseconds, or says something absurd, keeps nobody out for ever."""
_UNSAID: Final = Backoff(first_s=0.5, max_s=60.0)
"""How long to wait after a refusal that does not say it."""
MAX_ITEMS: Final = 32
"""Items of a field that are read."""
_PREFIXES: Final = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
# Greater numbers of seconds are times since the epoch: 2001 and later; greater ones yet, in milliseconds.
_EPOCH: Final = 1_000_000_000
_EPOCH_MS: Final = 1_000_000_000_000

_VALUE: Final = r'"(?:[^"\\]|\\.)*"|:[\w+/=]*:|[^\s,;="]+'
_ITEM: Final = re.compile(rf"\s*({_VALUE})((?:\s*;\s*[a-z*][a-z0-9_.*-]*(?:=(?:{_VALUE}))?)*)\s*(?:,|$)", re.ASCII)
_PARAMETER: Final = re.compile(rf";\s*([a-z*][a-z0-9_.*-]*)(?:=({_VALUE}))?", re.ASCII)
_NUMBER: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*(?:$|[,;])", re.ASCII)
_DICTIONARY: Final = re.compile(r"(?:^|,)\s*(remaining|reset)\s*=\s*(\d{1,15})(?=\s*(?:,|$))", re.ASCII)


class ServerQuota(NamedTuple):
    """How one quota stands."""

    name: str
    """The policy's; empty where the dialect has none."""
    partition: str
    """Whose it is, as the server names them (`pk`); empty where it does not."""
    remaining: int
    reset_s: float
    """Seconds from now until there is more: at least one, if nothing remains."""


class ServerLimits(NamedTuple):
    """What an answer says."""

    quotas: tuple[ServerQuota, ...]
    policies: frozenset[tuple[str, str]]
    """Name and partition of all that took part, of which `quotas` may be the tightest alone."""
    retry_after: float | None
    """Seconds from now."""


def read_limits(headers: Mapping[str, str], now: int) -> ServerLimits:
    """Return what the fields of an answer say; `now` is the client's time, for servers that do not tell theirs.

        RateLimit-Policy: "hint";q=20;w=3600          draft-ietf-httpapi-ratelimit-headers-10
        RateLimit: "hint";r=3;t=1800
        RateLimit: limit=20, remaining=3, reset=1800  its drafts up to -07
        RateLimit-Limit, -Remaining, -Reset           its drafts up to -06
        X-RateLimit-…, X-Rate-Limit-…                 the same; Reset in seconds from now, or since the epoch
        Retry-After                                   seconds, from now or since the epoch, or a date

    A field that makes no sense is as good as none: nothing here raises for what a server has sent.
    """
    date = _date(headers.get("date", ""))
    server_now = seconds(now if date is None else date)
    policies = {} if (listed := headers.get("ratelimit-policy")) is None else _items(listed)
    quotas = _draft_quotas(headers.get("ratelimit", ""), policies) or _older_quotas(headers, server_now)
    return ServerLimits(quotas, frozenset(policies), _retry_after(headers.get("retry-after", ""), server_now))


def _items(field: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the parameters of each item of a list (RFC 9651) by its name and partition; none of a malformed one."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    position = 0
    for _ in range(MAX_ITEMS):
        if position == len(field):
            break
        if (item := _ITEM.match(field, position)) is None:
            return {}
        parameters = {name: _bare(value or "") for name, value in _PARAMETER.findall(item[2])}
        found[_bare(item[1]), parameters.get("pk", "")] = parameters
        position = item.end()
    return found


def _bare(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _draft_quotas(field: str, policies: dict[tuple[str, str], dict[str, str]]) -> tuple[ServerQuota, ...]:
    quotas = []
    for (name, partition), parameters in _items(field).items():
        policy = policies.get((name, partition), {})
        remaining = _whole(parameters.get("r"))
        reset_s = _number(parameters.get("t") or policy.get("w"))
        # Of bytes, and of requests at the same time, no number of requests follows.
        if remaining is None or reset_s is None or policy.get("qu", "requests") != "requests":
            continue
        quotas.append(ServerQuota(name, partition, remaining, reset_s))
    return tuple(quotas)


def _older_quotas(headers: Mapping[str, str], server_now: float) -> tuple[ServerQuota, ...]:
    spellings = [{name: headers.get(prefix + name) for name in ("remaining", "reset")} for prefix in _PREFIXES]
    for told in (dict(_DICTIONARY.findall(headers.get("ratelimit", ""))), *spellings):
        remaining = _whole(told.get("remaining"))
        reset_s = _from_now(_number(told.get("reset")), server_now)
        if remaining is not None and reset_s is not None:
            return (ServerQuota("", "", remaining, reset_s),)
    return ()


def _from_now(reset: float | None, server_now: float) -> float | None:
    if reset is None or reset < _EPOCH:
        return reset
    return max((reset / 1000 if reset >= _EPOCH_MS else reset) - server_now, 0.0)


def _retry_after(field: str, server_now: float) -> float | None:
    if (given := _number(field)) is not None:
        return _from_now(given, server_now)
    date = _date(field)
    return None if date is None else max(seconds(date) - server_now, 0.0)


def _date(field: str) -> int | None:
    try:
        date = parsedate_to_datetime(field)
        return since_epoch(date if date.tzinfo is not None else date.replace(tzinfo=UTC))  # all are (RFC 9110, 5.6.7)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _number(text: str | None) -> float | None:
    found = None if text is None else _NUMBER.match(text)
    return None if found is None else float(found[1])


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


class WaitTooLong(RateLimitError, TimeoutError):
    """A request was not sent, as it would have been refused for longer than it may wait. `retry_after` says how long,
    in seconds: at least so long where others are in front of it; None where no answer has told yet."""

    def __init__(self, origin: str, retry_after: float | None) -> None:
        self.retry_after = retry_after
        if retry_after:
            why = f"it would have to wait for at least {retry_after:.6g} seconds, which is longer than it may"
        else:
            why = "its time was over before it had its turn"
        super().__init__(f"not sent to {origin}: {why}")


class _Traffic:
    """How many requests were sent, and are under way."""

    __slots__ = ("in_flight", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.in_flight = 0

    def begin(self) -> int:
        """Take note of one that is sent. Return by what `overlapping` knows it."""
        self.sent += 1
        self.in_flight += 1
        return self.sent - self.in_flight

    def overlapping(self, mark: int) -> int:
        """Return how many others were under way at the same time as one whose answer has come."""
        return self.sent - mark - 1


class _QuotaEstimate(_Traffic):
    """How much can be sent of one quota. Where it is not known, after a reset too, one request finds out."""

    __slots__ = ("__weakref__", "available", "reset_at", "waiting")

    def __init__(self) -> None:
        super().__init__()
        self.available = 1
        self.reset_at: int | None = None
        """When there will be more; None where an answer has to say so."""
        self.waiting: set[_Group] = set()
        """Whom to tell of any change."""

    def room_at(self, now: int) -> int | None:
        """Return when there is room, which may be now; None where the answers under way have to say so."""
        if self.reset_at is not None and self.reset_at <= now:
            self.reset_at = None
        if self.available <= 0 and self.reset_at is None and not self.in_flight:
            self.available = 1
        return now if self.available > 0 else self.reset_at

    def learn(self, told: ServerQuota, overlapping: int | None, now: int) -> None:
        """Take note of an answer. `overlapping` requests may have been counted after its own; None is any number."""
        if overlapping is not None:
            self.available = max(self.available, told.remaining - overlapping)
        self.available = min(self.available, told.remaining)
        self.close_for(told.reset_s, now)

    def close_for(self, wait_s: float, now: int) -> None:
        """Let nothing more be sent for so long than there is room for now."""
        self.reset_at = max(self.reset_at or 0, now + round(min(wait_s, MAX_WAIT_S) * SECOND))


class _Group(_Traffic):
    """Requests that are limited together."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin
        self.finding_out: _QuotaEstimate | None = _QuotaEstimate()
        """Lets one request find out, at first and after a refusal, where others would only be refused with it."""
        self.quotas: LRUCache[Hashable, _QuotaEstimate] = LRUCache(MAX_ITEMS)
        self.refusals = 0
        """One after the other."""
        self.news = Signal()
        """Set when what an answer under way had to say is known."""

    def room_at(self, now: int) -> int | None:
        """Return when all quotas have room; None where the answers under way have to say so."""
        latest, is_known = now, True
        for quota in self.known():
            room_at = quota.room_at(now)
            if room_at != now:
                quota.waiting.add(self)
            is_known = is_known and room_at is not None
            latest = max(latest, room_at or now)
        return latest if is_known or latest > now else None

    def known(self) -> Iterator[_QuotaEstimate]:
        if self.finding_out is not None:
            yield self.finding_out
        for key in list(self.quotas):
            if (quota := self.quotas.peek(key)) is not None:
                yield quota


class Permit:
    """What a request has taken that may be sent."""

    def __init__(self, group: _Group) -> None:
        self.group = group
        self.mark = group.begin()
        self.marks = {quota: quota.begin() for quota in group.known()}
        for quota in self.marks:
            quota.available -= 1

    def end(self) -> None:
        for one in (self.group, *self.marks):
            one.in_flight -= 1

    def cancel(self) -> None:
        for one in (self.group, *self.marks):
            one.sent -= 1
        for quota in self.marks:
            quota.available += 1


class OriginLimits:
    """What is known of all origins that one transport sends to.

    Of each quota it keeps how much can be sent for certain. An answer says what remained when its request was counted;
    what was under way at that time, or was sent since, may have been counted after it, and is taken off. So nothing is
    sent that would be refused, as long as nobody else spends of the same quota, in whatever order answers arrive.

    Who has to wait stands in a queue (`limiter/waiting.py`), whose first asks here.
    """

    def __init__(self, clock: Clock, tasks: Tasks | Deferred) -> None:
        self._clock = clock
        self._queues = WaitQueues(clock, tasks)
        self._groups: LRUCache[Hashable, _Group] = LRUCache(MAX_GROUPS)
        self._shared: WeakValueDictionary[tuple[str, str, str], _QuotaEstimate] = WeakValueDictionary()
        """Those that the server tells whose they are: of one origin, whatever groups its requests are in."""

    async def admit(self, origin: str, key: Hashable, due: int) -> Permit:
        """Return when a request may be sent. Raises `WaitTooLong` as soon as that cannot be until `due`."""
        group = self._groups.get_or_make((origin, key), lambda: _Group(origin))
        now = self._clock.now()
        if group not in self._queues and group.room_at(now) == now:
            return Permit(group)
        turn = _Turn(self, group, due)
        try:
            await self._queues.wait(group, turn.ask, turn.give_back, cost=1, timeout=seconds(max(due - now, 0)))
        except QuotaExceeded as refused:
            raise WaitTooLong(origin, refused.decision.retry_after) from None
        except LimiterClosed:
            raise LimiterClosed("the transport is closed, and sends nothing any more") from None
        return turn.permit

    def answered(self, permit: Permit, status: int, headers: Mapping[str, str]) -> None:
        group, now = permit.group, self._clock.now()
        said = read_limits(headers, now)
        told = {self._learn(permit, quota, now) for quota in said.quotas}
        for key in {_key(group, *policy) for policy in said.policies}:
            if (untold := group.quotas.peek(key)) is not None and untold not in told:
                group.quotas.pop(key)  # it has more room than those that are told
        for quota in permit.marks.keys() - told:
            quota.available += 1  # it was not spent
        if status == 429 or (status == 503 and said.retry_after is not None):
            self._close(group, said, now)
        elif group.finding_out in permit.marks:
            group.finding_out = None
            group.refusals = 0
        self.ended(permit, told)

    def _learn(self, permit: Permit, told: ServerQuota, now: int) -> _QuotaEstimate:
        group, key = permit.group, _key(permit.group, told.name, told.partition)
        quota = group.quotas.get(key) or (self._shared.get(key) if told.partition else None)
        overlapping = None
        if quota is None:
            quota = _QuotaEstimate()
            overlapping = group.overlapping(permit.mark)
        elif quota in permit.marks:
            overlapping = quota.overlapping(permit.marks[quota])
        group.quotas.put(key, quota)
        if told.partition:
            self._shared[key] = quota
        quota.learn(told, overlapping, now)
        return quota

    def _close(self, group: _Group, said: ServerLimits, now: int) -> None:
        """Send nothing until the time that a refusal says, and then one request, to find out."""
        group.refusals += 1
        wait = said.retry_after
        if wait is None:
            unsaid = _UNSAID.bound_s(group.refusals) * random.uniform(0.5, 1)
            wait = max((quota.reset_s for quota in said.quotas), default=unsaid)
        if group.finding_out is None:
            group.finding_out = _QuotaEstimate()
        group.finding_out.available = 0
        group.finding_out.close_for(wait, now)

    def ended(self, permit: Permit, told: Iterable[_QuotaEstimate] = ()) -> None:
        """Tell those who wait that a request is not under way any more, answered or not."""
        permit.end()
        for quota in {*permit.marks, *told}:
            waiting, quota.waiting = quota.waiting, set()
            for group in waiting:
                group.news.set()
                self._queues.ask_now(group)

    def may_be_sent_by(self, permit: Permit, due: int) -> bool:
        """Return whether the same request may have another turn by then, as far as it is known."""
        room_at = permit.group.room_at(self._clock.now())
        return room_at is None or room_at <= due

    async def close(self) -> None:
        await self._queues.close()


class _Turn:
    """A request that waits for its turn."""

    permit: Permit

    def __init__(self, limits: OriginLimits, group: _Group, due: int) -> None:
        self._limits = limits
        self._group = group
        self._due = due

    async def ask(self) -> Decision:
        group, clock = self._group, self._limits._clock
        while (room_at := group.room_at(now := clock.now())) is None and now < self._due:
            group.news = Signal()
            await group.news.wait(seconds(self._due - now))
        if room_at != now:
            retry_after = None if room_at is None else seconds(room_at - now)
            return Decision(False, group.origin, 1, (), retry_after, "quota", at_us=now)
        self.permit = Permit(group)
        return Decision(True, group.origin, 1, (), at_us=now)

    async def give_back(self, _: Decision) -> None:
        self.permit.cancel()
        self._limits.ended(self.permit)


def _key(group: _Group, name: str, partition: str) -> tuple[str, str, str]:
    return (group.origin if partition else "", name, partition)


class _Transport:
    """What both have in common."""

    def __init__(
        self,
        transport: Any,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        key: KeyOf | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_timeout(timeout)
        if type(retries) is not int or retries < 0:
            raise ConfigError("retries", f"must be a whole number of at least 0, not {retries!r}")
        self._transport = transport
        self._clock = clock or SystemClock()
        self._limits = OriginLimits(self._clock, self._tasks())
        self._timeout_us = round(timeout * SECOND)
        self._retries = retries
        self._key = key

    def _tasks(self) -> Tasks | Deferred:
        return Tasks("a turn that was given up")

    async def _send(self, request: Request, ask: Callable[[], Awaitable[Response]], close: Close) -> Response:
        """Return the answer to a request that is sent when it may be, and again where it was refused all the same."""
        origin = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
        key = None if self._key is None else self._key(request)
        due = self._clock.now() + self._timeout_us
        left = self._retries if _is_repeatable(request) else 0
        while True:
            permit = await self._limits.admit(origin, key, due)
            try:
                response = await ask()
            except BaseException:
                self._limits.ended(permit)
                raise
            self._limits.answered(permit, response.status_code, response.headers)
            if response.status_code != 429 or not left or not self._limits.may_be_sent_by(permit, due):
                return response
            left -= 1
            await close(response)


def _is_repeatable(request: Request) -> bool:
    """Return whether the body is in memory, and no stream that can be read once."""
    try:
        _ = request.content
    except RuntimeError:
        return False
    return True


class AsyncRateLimitTransport(_Transport, AsyncBaseTransport):
    """Sends a request when its server's limits let it, by what its answers say; those of one origin in their order.

    `transport` is what sends it: `httpx.AsyncHTTPTransport()`, with what the client would be told of TLS and proxies.
    `timeout`   seconds that a request may wait, its retries together. `WaitTooLong` is raised as soon as it is known
                that it would have to wait longer; it was not sent then.
    `retries`   how often one that is answered with 429 is sent again, where its body is in memory.
    `key`       a function of the request, for servers that limit more than an origin by itself: requests wait for those
                alone that have the same key, such as an account or a part of the path.

    What nothing is known of, one request finds out, and the others wait for its answer.
    """

    async def handle_async_request(self, request: Request) -> Response:
        """Send it. Raises `WaitTooLong`, and what the transport raises."""
        ask = self._transport.handle_async_request
        return await self._send(request, lambda: ask(request), lambda response: response.aclose())

    async def aclose(self) -> None:
        await self._limits.close()
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._limits.close()
        await self._transport.__aexit__(*error)


class RateLimitTransport(_Transport, BaseTransport):
    """The same for `httpx.Client`, from any number of threads: `RateLimitTransport(httpx.HTTPTransport())`."""

    def _tasks(self) -> Deferred:
        self._runner = Runner()
        return Deferred(self._runner)

    def handle_request(self, request: Request) -> Response:
        """Send it. Raises `WaitTooLong`, and what the transport raises."""

        handle: Callable[[Request], Response] = self._transport.handle_request

        async def ask() -> Response:
            return wait_for(lambda left: handle(request))

        async def close(response: Response) -> None:
            wait_for(lambda left: response.close())

        return self._run(self._send(request, ask, close))

    def close(self) -> None:
        self._run(self._limits.close())
        self._transport.close()

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._run(self._limits.close())
        self._transport.__exit__(*error)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        refuse_event_loop("AsyncRateLimitTransport", work, package="ratelimit.client")
        return self._runner.run(work, "RateLimitTransport")

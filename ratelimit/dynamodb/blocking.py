"""`BlockingDynamoDBStore`: a `DynamoDBStore` for threads, without an event loop: see `ratelimit/blocking.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from functools import partial
from math import inf
from typing import Any, Final, TypeVar
from weakref import WeakSet

from botocore import exceptions as aws
from botocore import xform_name
from botocore.config import Config
from botocore.session import Session, get_session

from ratelimit.blocking import Runner, seconds_left, wait_for
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.errors import ISSUER, Place, explained
from ratelimit.dynamodb.session import (
    Client,
    ServerClock,
    certificates_of,
    check_answers,
    check_certificates,
    check_credentials,
    client_options,
    local_credentials,
    locate,
    no_url,
    opened,
    unusable_credentials,
)
from ratelimit.dynamodb.settings import Settings, is_amazon
from ratelimit.dynamodb.store import DynamoDBStore, Opened
from ratelimit.dynamodb.table import prepare
from ratelimit.dynamodb.transport.base import Transport
from ratelimit.dynamodb.transport.connection import Endpoint
from ratelimit.dynamodb.transport.fast import FastTransport
from ratelimit.dynamodb.transport.select import open_transport
from ratelimit.dynamodb.transport.threads import ThreadCredentials, ThreadPool
from ratelimit.dynamodb.writer import ConditionalWriter
from ratelimit.errors import StoreUnavailable
from ratelimit.names import Key
from ratelimit.store.base import Outcome, Write

T = TypeVar("T")


class BlockingDynamoDBStore(DynamoDBStore):
    """All of its methods but `scans` and `erase`, for coroutines that `runner` runs.

    A forked process has connections of its own, and goes on with whatever else was found out before the fork.
    """

    def __init__(self, settings: Settings, runner: Runner) -> None:
        super().__init__(settings)
        self._runner = runner
        self._open: Opened | None = None
        self._job: Future[Opened] | None = None
        self._pool: ThreadPool | None = None
        self._credentials: ThreadCredentials | None = None
        _stores.add(self)

    async def close(self) -> None:
        """Let go of the connections; harmless when closed."""
        if (job := self._job) is not None:
            with suppress(StoreUnavailable):
                await wait_for(partial(result_of, job))
        ready, self._open = self._open, None
        if ready is not None:
            await ready.transport.close()
            await ready.client.close()

    def apply(self, key: Key, write: Write, *, now: int) -> Coroutine[Any, Any, Outcome]:
        """Write in one `UpdateItem`, if the conditions hold."""
        ready = self._open
        return self._apply_first(key, write) if ready is None else ready.writer.apply(key, write)

    def _import_client(self) -> None:
        """Do without aiobotocore."""

    async def _ready(self) -> Opened:
        """Open, in one thread however many ask for it, which goes on where one of them gives up waiting."""
        if self._open is not None:
            return self._open
        if self._job is None:
            self._job = self._runner.start(self._make_ready(), "opening the store")
        return await wait_for(partial(result_of, self._job))

    async def _make_ready(self) -> Opened:
        try:
            self._open = await self._connect_here()
            return self._open
        finally:
            self._job = None

    async def _connect_here(self) -> Opened:
        client: Client = await wait_for(lambda left: connect(self.settings))
        try:
            await prepare(client, self._retries, create=self.settings.create)
            transport = await open_transport(client, self.settings, self.stats, self._new_fast_transport)
        except BaseException:
            await client.close()
            raise
        tells = is_amazon(client.place.endpoint)
        writer = ConditionalWriter(transport, self._retries, self.stats, self.settings.table, self.read, tells=tells)
        return Opened(client, transport, writer)

    def _new_fast_transport(
        self, client: Client, endpoint: Endpoint, slow: Transport, settings: Settings, stats: Stats
    ) -> FastTransport:
        pool = ThreadPool(
            endpoint,
            client.place,
            stats,
            size=settings.pool,
            wait_timeout=settings.connect_timeout,
            answer_timeout=settings.read_timeout,
        )
        self._pool = pool
        self._credentials = credentials = ThreadCredentials(client.credentials, self._refresh)
        fast = FastTransport(client, endpoint, slow, settings, stats, pool=pool, credentials=credentials)
        client.api.fast = fast
        return fast

    def _refresh(self, refresh: Coroutine[Any, Any, None]) -> Future[None]:
        return self._runner.start(refresh, "credentials")

    def _forked(self) -> None:
        """Keep what was found out; leave the connections to the parent. What one of its threads was in the middle of
        is begun anew."""
        is_busy = self._job is not None or (self._credentials is not None and self._credentials.is_refreshing)
        if self._open is None or is_busy:
            self._open = self._job = None
            return
        self._open.client.api.forget()
        if self._pool is not None:
            self._pool.forget()


_stores: Final[WeakSet[BlockingDynamoDBStore]] = WeakSet()


def _in_child() -> None:
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def result_of(job: Future[T], left: float) -> T:
    """Return what the job does; wait for it so many seconds at most."""
    return job.result(None if left == inf else left)


_FAST: Final = {
    xform_name(operation): operation for operation in ("DeleteItem", "GetItem", "PutItem", "TransactWriteItems")
}
"""Those whose answers are small. (What is written all the time has ways of its own.)"""


class BlockingApi:
    """A client that is awaited as aiobotocore's is: whoever awaits a call makes it. Calls about single items go by
    `fast`, once there is one, and all else by botocore's client."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.fast: FastTransport | None = None
        self._make = make
        self._client = make()
        self.meta = self._client.meta

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **request: Any) -> Any:
            operation = _FAST.get(name)
            if self.fast is not None and operation is not None:
                answer = await self.fast.call(operation, request)
                if answer is not None:
                    return answer
            return await wait_for(lambda left: getattr(self._made(), name)(*args, **request))

        return call

    def forget(self) -> None:
        """Leave the connections to the process that this one was forked from."""
        self._client = None

    def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            self._client.close()

    def _made(self) -> Any:
        if self._client is None:
            self._client = self._make()
        return self._client


def connect(settings: Settings) -> Client:
    """Make a client for the settings; send nothing to DynamoDB yet. Raise `StoreUnavailable`'s subclasses."""
    session = get_session()
    clock = ServerClock()
    exits = AsyncExitStack()
    endpoint, place = locate(session, settings, clock)
    with explained(place):
        verify = certificates_of(session)
        check_certificates(verify, place)
        credentials = _find_credentials(session, endpoint, place)

        def make() -> Any:
            config = Config(**client_options(settings, endpoint))
            client = session.create_client(
                "dynamodb", region_name=place.region, endpoint_url=settings.endpoint, verify=verify, config=config
            )
            client.meta.events.register("before-call.dynamodb", partial(_in_time, settings.read_timeout))
            check_answers(client)
            return client

        try:
            api = BlockingApi(make)
        except ValueError:
            raise no_url() from None
    exits.callback(api.close)
    return opened(api, settings, exits, credentials=credentials, verify=verify, clock=clock)


def _in_time(read_timeout: float, context: dict[str, Any], **_: object) -> None:
    """Let no call of botocore's last longer than the check that waits for it."""
    context["read_timeout"] = min(read_timeout, max(0.001, seconds_left()))


def _find_credentials(session: Session, endpoint: str | None, place: Place) -> Any:
    try:
        found = session.get_credentials()
    except ValueError as error:
        raise unusable_credentials(error, place) from None
    except aws.BotoCoreError as error:
        error.kwargs[ISSUER] = error.kwargs.get("endpoint_url", "whoever gives them")
        raise
    if found is None and local_credentials(session, endpoint):
        found = session.get_credentials()
    check_credentials(found, place)
    return found

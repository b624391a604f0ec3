"""Watches the whole suite: a test in which the code asks for something that no role may do, fails.

`test_iam.py` goes through each role exactly. This is the net below it: whatever call somebody adds, in whichever room,
some test makes it, and then it needs its place in a policy. What a test asks for by itself is its own business.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Set
from functools import cache
from types import FrameType
from typing import Any, Final

import pytest

from ratelimit.deploy import policies
from ratelimit.dynamodb.access import Client, LaterApi
from tests.deploy.tap import Call, calls_of

_CLIENTS: Final = ("aiobotocore", "botocore")
_TABLE: Final = "limits"


class Recorder:
    """Calls that no policy has, whichever way they are sent; but what `Transport` names goes without a client."""

    def __init__(self, granted: Set[Call]) -> None:
        self._granted = granted
        self.ungranted: set[str] = set()

    def hear(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        """botocore's event `provide-client-params`: before anything is sent."""
        if _is_ours(inspect.currentframe()):
            self.note(model.name, params)

    def note(self, operation: str, request: Mapping[str, Any]) -> None:
        for call in calls_of(operation, request):
            if call._replace(table=_TABLE) not in self._granted:
                self.ungranted.add(f"{call.action} on {call.resource}")


@cache
def granted() -> frozenset[Call]:
    """What any of the roles may do, each on the table of the policy; a scan narrowed to counting is also one."""
    documents = policies(table=_TABLE, region="eu-west-1", account="123456789012").values()
    return frozenset(
        Call(action, _TABLE, statement["Resource"].partition("/index/")[2], select)
        for document in documents
        for statement in document["Statement"]
        for action in statement["Action"]
        for select in ("", "COUNT")
    )


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the client was called by the package: the first on the stack that is no client tells."""
    frame = frame.f_back if frame else None
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _CLIENTS:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("ratelimit.")


def listen(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """To every client that the package opens from now on."""
    opened = Client.__init__

    def recorded(self: Client, client: Any, *args: Any, **options: Any) -> None:
        opened(self, client, *args, **options)
        # What is made later is made by another one of these.
        made = vars(client).get("_client") if isinstance(client, LaterApi) else client
        if made is not None:
            made.meta.events.register("provide-client-params.dynamodb", recorder.hear)

    call = Client.call

    async def called(self: Client, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        recorder.note(operation, request)
        return await call(self, operation, request)

    monkeypatch.setattr(Client, "__init__", recorded)
    monkeypatch.setattr(Client, "call", called)


@pytest.fixture(autouse=True)
def every_call_is_granted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For every test that runs on an engine."""
    if request.node.get_closest_marker("engine") is None:
        yield
        return
    recorder = Recorder(granted())
    listen(recorder, monkeypatch)
    yield
    assert not recorder.ungranted, f"no policy in ratelimit/deploy/iam grants {', '.join(sorted(recorder.ungranted))}"

"""The server: one behaviour per request."""

from __future__ import annotations

import json
from asyncio import StreamWriter
from collections import Counter, deque
from ssl import SSLContext

from tests.faults.answers import TinyTable
from tests.faults.behaviours import Behaviour, Exchange, ok
from tests.faults.listening import Listening, Received


class FaultServer(Listening):
    """`async with FaultServer() as server:` listens on a free loopback port, and is healthy until told otherwise."""

    def __init__(self, tls: SSLContext | None = None) -> None:
        super().__init__(tls)
        self.table = TinyTable()
        self.received: Counter[str] = Counter()
        """Requests that arrived, by operation."""
        self._always = self._describing = ok()
        self._line: deque[Behaviour] = deque()

    def then(self, *behaviours: Behaviour) -> None:
        """The next data requests are answered so, one each; `DescribeTable` stays healthy."""
        self._line.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """Every data request is answered so, from now on, once the line is empty."""
        self._always = behaviour

    def everything(self, behaviour: Behaviour) -> None:
        """As `always`, and `DescribeTable` too."""
        self._always = self._describing = behaviour

    def recover(self) -> None:
        """Healthy again."""
        self._line.clear()
        self._always = self._describing = ok()

    async def answer(self, request: Received, writer: StreamWriter) -> bool:
        """See `Listening`."""
        operation, body = request.operation, json.loads(request.body or b"{}")
        self.received[operation] += 1
        behaviour = self._next(operation)
        return await behaviour(
            Exchange(operation, request.headers, body, writer, lambda: self.table.answer(operation, body))
        )

    def _next(self, operation: str) -> Behaviour:
        if operation == "DescribeTable":
            return self._describing
        return self._line.popleft() if self._line else self._always

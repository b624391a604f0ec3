"""`make demo`: what a user of a limited app sees, over real HTTP on this machine.

Starts `examples/app.py` on the embedded store and a free loopback port, asks as a client would, shows the answers, and
checks each of them: exit status 0, or 1 where anything is not as promised.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import uvicorn
from rich.console import Console

TIMEOUT = 10.0
SHOWN = ("ratelimit-policy", "ratelimit", "retry-after", "content-type")
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


class Client:
    """One user, known by an API key."""

    def __init__(self, port: int, user: str) -> None:
        self.port = port
        self.user = user

    def ask(self, method: str, path: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, headers={"x-api-key": self.user})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read().decode())
        finally:
            connection.close()


class Promises:
    """What was promised, and which of it did not hold."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.kept = 0

    def check(self, promise: str, *, seen: object, promised: object) -> None:
        if seen == promised:
            self.kept += 1
        else:
            self.broken.append(f"{promise}: promised {promised!r}, seen {seen!r}")


@contextmanager
def serving() -> Iterator[int]:
    """The app behind uvicorn, in a thread of this process; gives its port."""
    # Before the app is made: whatever this shell has configured, the demo counts in memory.
    for name in [name for name in os.environ if name.startswith("RATELIMIT_")]:
        del os.environ[name]
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from examples.app import app

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(TIMEOUT)


def five_allowed(client: Client, promises: Promises) -> None:
    title(f'"hint" has a quota of 5/day. {client.user} asks for five:')
    for left in (4, 3, 2, 1, 0):
        answer = show(client, "POST", "/hints")
        promises.check("five of five are allowed", seen=answer.status, promised=200)
        promises.check("the policy", seen=answer.headers.get("ratelimit-policy"), promised='"hint";q=5;w=86400')
        rest = answer.headers.get("ratelimit", "").rpartition(";t=")[0]
        promises.check("units left", seen=rest, promised=f'"hint";r={left}')


def sixth_refused(client: Client, promises: Promises) -> None:
    title("The sixth is refused, and says when to come back:")
    answer = show(client, "POST", "/hints", body=True)
    promises.check("the sixth is refused", seen=answer.status, promised=429)
    wait = int(answer.headers.get("retry-after", "0"))
    promises.check("it says to come back within the day", seen=0 < wait <= 86_400, promised=True)
    reset = answer.headers.get("ratelimit", "").rpartition(";t=")[2]
    promises.check("Retry-After agrees with RateLimit", seen=wait, promised=int(reset or "-1"))
    promises.check("problem body", seen=answer.headers.get("content-type"), promised="application/problem+json")
    problem = json.loads(answer.body)
    promises.check("problem type", seen=problem.get("type"), promised=QUOTA_EXCEEDED)
    promises.check("violated policies", seen=problem.get("violated-policies"), promised=["hint"])


def others_unaffected(client: Client, promises: Promises) -> None:
    title("Another action has its own quotas, and so has another user:")
    promises.check("another action is allowed", seen=show(client, "POST", "/run").status, promised=200)
    other = Client(client.port, f"{client.user}s-friend")
    promises.check("another user is allowed", seen=show(other, "POST", "/hints").status, promised=200)
    exempt = show(client, "GET", "/health")
    promises.check("an exempt path is not limited", seen="ratelimit" in exempt.headers, promised=False)


def totals_exact(client: Client, promises: Promises) -> None:
    title("And what was used, counted in the same write as each admission (the refusal took nothing):")
    totals = json.loads(show(client, "GET", f"/totals/{client.user}", body=True).body)
    used = {action: sum(days.values()) for action, days in totals.items()}
    promises.check("usage totals", seen=used, promised={"hint": 5, "run": 1, "search": 0, "vote": 0})


def show(client: Client, method: str, path: str, *, body: bool = False) -> Answer:
    answer = client.ask(method, path)
    colour = "green" if answer.status < 400 else "red"
    console.print(f"  {client.user}: {method} {path}  ->  {answer.status}", style=f"bold {colour}")
    for name in SHOWN:
        if name in answer.headers and (name != "content-type" or answer.status >= 400):
            console.print(f"      {name}: {answer.headers[name]}")
    if body:
        pretty = json.dumps(json.loads(answer.body), indent=2)
        console.print("\n".join(f"      {line}" for line in pretty.splitlines()), style="dim")
    return answer


def title(text: str) -> None:
    console.print(f"\n{text}", style="bold")


def run(port: int, user: str) -> Promises:
    client, promises = Client(port, user), Promises()
    for part in (five_allowed, sixth_refused, others_unaffected, totals_exact):
        try:
            part(client, promises)
        except (OSError, HTTPException, ValueError) as error:
            promises.broken.append(f"{part.__name__}: no usable answer ({error!r})")
    return promises


def main() -> int:
    with serving() as port:
        started = datetime.now(UTC).date()
        promises = run(port, "alice")
        if datetime.now(UTC).date() != started:
            title("Midnight (UTC) came in between, and with it a new day's quota. Once more:")
            promises = run(port, "bob")
    for broken in promises.broken:
        console.print(f"NOT AS PROMISED: {broken}", style="bold red")
    if not promises.broken:
        console.print(f"\nAll as promised ({promises.kept} checks).", style="bold green")
    return 1 if promises.broken else 0


if __name__ == "__main__":
    sys.exit(main())

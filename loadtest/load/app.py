"""A user of Locust for any app: one request again and again, by one of a few users, and refusals counted apart."""

from __future__ import annotations

from random import randrange
from typing import Any, Final

from locust import FastHttpUser, constant_throughput, task

from ratelimit.numerals import to_int

from ..plan import MARK

_REFUSED: Final = 429


class AppUser(FastHttpUser):
    """Makes one request a second, or asks again as soon as it has an answer where that takes longer.

    A 429 is an answer as good as any: it has a line of its own in Locust's statistics.
    """

    host = "http://127.0.0.1:8000"
    wait_time = constant_throughput(1)

    @staticmethod
    def add_options(parser: Any) -> None:
        """Those of Locust's command line and of its web page."""
        parser.add_argument("--request", default="GET /", help="Method and path.")
        parser.add_argument(
            "--user-header", default="", help="The header that names the user, such as x-api-key; none by default."
        )
        parser.add_argument("--distinct-users", type=to_int, default=10, help="How many users there are to draw from.")

    def on_start(self) -> None:
        """Read the options, which the web page may have changed."""
        options: Any = self.environment.parsed_options
        self._method, _, self._path = options.request.strip().rpartition(" ")
        self._user_header: str = options.user_header
        self._distinct_users: int = max(1, options.distinct_users)

    @task
    def ask(self) -> None:
        """One request."""
        headers = {self._user_header: f"{MARK}{randrange(self._distinct_users)}"} if self._user_header else {}
        method, path = self._method or "GET", self._path
        with self.client.request(method, path, headers=headers, catch_response=True) as response:
            if response.status_code == _REFUSED:
                response.request_meta["name"] = f"{path} (refused)"
                response.success()

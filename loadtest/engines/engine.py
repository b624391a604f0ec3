"""`Engine`: a running engine, and the one request that its starter itself sends to it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

REGION: Final = "eu-west-1"

# No engine checks a signature, but each wants to see one: DynamoDB Local keeps apart the tables of each key and region.
_AUTHORIZATION = (
    f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260105/{REGION}/dynamodb/aws4_request, "
    "SignedHeaders=host;x-amz-date;x-amz-target, Signature=" + "0" * 64
)
_OPENER = build_opener(ProxyHandler({}))


class EngineError(Exception):
    """The engine that was asked for is not to be had; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine to start, or with `endpoint` one that runs already."""

    name: str
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """What is known of it: `name` (ministack, dynamodb-local, running) and `endpoint` (http://127.0.0.1:PORT)."""

    name: str
    endpoint: str
    log: Path | None = None

    def store_url(self, table: str, **settings: str) -> str:
        """The URL that `open_store` takes for a table here: `store_url("t1", create="true")`."""
        return f"dynamodb://{table}?" + urlencode({"region": REGION, "endpoint": self.endpoint, **settings})

    def call(self, operation: str, body: dict[str, object], *, timeout: float = 5.0) -> dict[str, Any]:
        """One DynamoDB call without any AWS library. Raises `OSError` where there is no good answer."""
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
            "X-Amz-Date": "20260105T120000Z",
            "Authorization": _AUTHORIZATION,
        }
        request = Request(self.endpoint, json.dumps(body).encode(), headers, method="POST")
        try:
            with _OPENER.open(request, timeout=timeout) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except HTTPError as error:
            with error:
                raise OSError(f"{operation}: {error.code} {error.read(500)!r}") from error
        except (HTTPException, ValueError) as error:
            raise OSError(f"{operation}: {error!r}") from error

    def log_size(self) -> int:
        """Where the log ends now, for `log_since`."""
        return 0 if self.log is None else self.log.stat().st_size

    def log_since(self, start: int, *, most: int = 4_000) -> str:
        """The log from `start` on: at most its last `most` bytes."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - most))
            return file.read().decode(errors="replace")

"""`docs/api.md` names every operation there is, and no other; its requests are carried out."""

from __future__ import annotations

import json
import re

from ratelimit.http.api import Api
from ratelimit.store import MemoryStore
from tests.http.apps import client_of, limiter_of
from tests.http.authz.gateways import ROOT

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
PATH = r"/v1/[a-z/{}.]+"


def test_every_operation_is_in_the_page() -> None:
    store = MemoryStore()
    operations = {(one.method, one.path) for one in Api(limiter_of(store=store), store).operations}
    shown = set(re.findall(rf"`(GET|PUT|PATCH|POST|DELETE) ({PATH})`", PAGE))
    shown |= {("POST", path) for path in re.findall(rf"^\| `({PATH})` \|", PAGE, re.MULTILINE)}
    assert shown == operations


async def test_its_requests_are_carried_out() -> None:
    requests = re.findall(r"curl -X (\w+) +…(\S+) +-d '(.*)'", PAGE)
    assert len(requests) == 3
    store = MemoryStore()
    async with client_of(Api(limiter_of(store=store), store)) as client:
        for method, path, body in requests:
            answer = await client.request(method, path, json=json.loads(body))
            assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "id": "a/b", "plan": "pro", "quotas": {"hint": "100/day"}, "role": "user", "active": True,
            "identities": ["email:alice@example.com"],
        }  # fmt: skip
        check = re.search(r"-d '(\{\"user\".*)'\n +(\{.*),…\}", PAGE)
        assert check is not None
        answer = await client.post("/v1/check", json=json.loads(check[1]))
        assert answer.text.startswith(check[2])

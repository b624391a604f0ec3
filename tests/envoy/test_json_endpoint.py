"""The same questions as JSON, as protobuf writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.envoy.json_endpoint import JsonEndpoint, read_json, write_json
from ratelimit.envoy.messages import RateLimitRequest, RateLimitResponse, read_request, write_response
from tests.envoy import rls
from tests.envoy.test_messages import by_protobuf, requests, responses
from tests.envoy.test_service import Service
from tests.http.apps import client_of, hello

ALICE = {"domain": "edge", "descriptors": [{"entries": [{"key": "user", "value": "alice"}]}]}


@pytest.fixture
def client(tmp_path: Path) -> httpx.AsyncClient:
    return client_of(JsonEndpoint(Service(tmp_path).service, hello))


async def test_three_pass_and_the_fourth_is_a_429(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/json", json=ALICE) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429]
    assert answers[0].json() == {
        "overallCode": "OK",
        "statuses": [
            {
                "code": "OK",
                "currentLimit": {"requestsPerUnit": 3, "unit": "HOUR"},
                "limitRemaining": 2,
                "durationUntilReset": "3600s",
            }
        ],
    }
    assert (answers[3].json()["overallCode"], answers[3].headers["content-type"]) == ("OVER_LIMIT", "application/json")


async def test_the_other_paths_are_the_apps(client: httpx.AsyncClient) -> None:
    assert (await client.get("/other")).text == "hello"
    assert (await client.get("/healthcheck")).text == "OK"
    answer = await client.get("/json")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b"[" * 60_000, "not JSON: "),
        (b"[]", "the body: expected an object, not []"),
        (b"{}", "the domain is empty"),
        (b'{"domain": 5}', "domain: expected text, not 5"),
        (b'{"domains": "edge"}', "the body: unknown field 'domains'; there are: domain, descriptors, hitsAddend"),
        (b'{"descriptors": {}}', "descriptors: expected a list, not {}"),
        (b'{"descriptors": [{"entries": [{"key": 1}]}]}', "descriptors[0].entries[0].key: expected text, not 1"),
        (b'{"descriptors": [{"isNegativeHits": 1}]}', "descriptors[0].is_negative_hits: expected true or false"),
        (b'{"descriptors": [{"limit": {"unit": "FORTNIGHT"}}]}', "descriptors[0].limit.unit: expected a whole number"),
        (b'{"hitsAddend": -1}', "hits_addend: expected a whole number from 0 to 4294967295, not -1"),
        (b'{"hitsAddend": true}', "hits_addend: expected a whole number"),
        (b'{"hitsAddend": "1_0"}', "hits_addend: expected a whole number"),
        (b'"' + b"x" * 70_000 + b'"', "the body is larger than 65536 bytes"),
    ],
)
async def test_what_is_no_request_is_a_400_that_says_why(client: httpx.AsyncClient, body: bytes, detail: str) -> None:
    answer = await client.post("/json", content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(detail)


@given(requests, st.booleans())
def test_requests_are_read_as_protobuf_writes_them(request: RateLimitRequest, keep: bool) -> None:
    message = rls.RateLimitRequest.FromString(by_protobuf(request))
    text = json_format.MessageToJson(message, preserving_proto_field_name=keep, ensure_ascii=False)
    assert read_json(text.encode()) == request == read_request(message.SerializeToString())


@given(responses)
def test_responses_are_written_as_protobuf_reads_them(response: RateLimitResponse) -> None:
    text: Any = write_json(response)
    for number, code in enumerate((b"OK", b"OVER_LIMIT"), 1):  # the enums of our descriptors are numbers
        text = text.replace(b'ode":"%b"' % code, b'ode":%d' % number)
    for number, unit in enumerate((b"SECOND", b"MINUTE", b"HOUR", b"DAY", b"MONTH", b"YEAR", b"WEEK"), 1):
        text = text.replace(b'"unit":"%b"' % unit, b'"unit":%d' % number)
    message = json_format.Parse(text, rls.RateLimitResponse())
    assert message.SerializeToString(deterministic=True) == write_response(response)

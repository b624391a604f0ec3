"""A site behind servers of ASGI, on a table: five pass, the sixth is refused, by whichever worker."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit.testing.engines import free_port
from tests.engines import Engine
from tests.wsgi.servers import ask, serving

SITE = """
import os
from django.conf import settings

settings.configure(
    SECRET_KEY="of a test", ALLOWED_HOSTS=["*"], ROOT_URLCONF="site_of_a_test",
    MIDDLEWARE=["ratelimit.django.RateLimitMiddleware"],
    RATELIMIT={
        "store": os.environ["STORE"], "deadline": 20, "user_from": "header:x-api-key",
        "policies": {"hint": {"quotas": "5/day", "match": "POST /hints"}},
    },
)

import django
django.setup()

from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

def hint(request):
    return HttpResponse("hello", headers={"x-worker": str(os.getpid())})

urlpatterns = [path("hints", hint)]
application = get_asgi_application()
"""
UVICORN = ("-m", "uvicorn", "site_of_a_test:application", "--lifespan=off", "--log-level=warning", "--workers=2")


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "workers"),
    [
        pytest.param(["-m", "daphne", "-p", "PORT", "site_of_a_test:application"], 1, id="daphne"),
        pytest.param([*UVICORN, "--port", "PORT"], 2, id="uvicorn", marks=pytest.mark.slow),
    ],
)
def test_five_pass_and_the_sixth_is_refused(command: list[str], workers: int, engine: Engine, tmp_path: Path) -> None:
    port = free_port()
    store = engine.store_url(f"django-{uuid4().hex[:8]}", create="true")
    with serving(tmp_path, store, [part.replace("PORT", str(port)) for part in command], port, site=SITE):
        seen, until = set(), time.monotonic() + 120
        for number in count():
            answers = [ask(port, f"user-{number}") for _ in range(6)]
            assert [status for status, _, _ in answers] == [200] * 5 + [429]
            seen |= {worker for _, worker, _ in answers if worker}
            if (len(seen) == workers and number > 1) or time.monotonic() > until:
                break
        assert len(seen) == workers

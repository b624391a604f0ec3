"""`manage.py ratelimit`: the table of the settings, made and looked at by the `ratelimit` command."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from tests.engines import Engine


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.docs.django_site")
    monkeypatch.setenv("NO_COLOR", "1")
    django.setup()
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "ratelimit.django"]):
        yield


def manage(*args: str, store: Any) -> tuple[int, str, str]:
    """Return exit status, and what was written."""
    out, err = io.StringIO(), io.StringIO()
    with override_settings(RATELIMIT={"store": store, "on_refused": "nobody.needs.it"}):
        try:
            call_command("ratelimit", *args, stdout=out, stderr=err)
        except SystemExit as left:
            return int(str(left.code)), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_the_table_of_the_settings_is_made_and_looked_at(engine: Engine) -> None:
    name = f"django-{uuid4().hex[:8]}"
    url = engine.store_url(name)
    status, out, err = manage("status", store=url)
    assert (status, out) == (3, "")
    assert err.startswith(f"error: there is no table '{name}'")
    status, out, _ = manage("create", "--no-recovery", "--tag", "team=hints", store=url)
    assert (status, out.splitlines()[0]) == (0, f"{name}: created")
    found = json.loads(manage("status", "--json", store=url)[1])
    assert (found["name"], found["status"]) == (name, "ACTIVE")
    assert manage("verify", "--no-recovery", "--tag", "team=hints", store=url)[0] == 0
    status, out, _ = manage("verify", "--gsi2", "--no-recovery", store=url)
    assert status == 1
    assert "differs" in out
    # What the command line says goes over the settings.
    assert manage("status", f"{name}-2", store=url)[2].startswith(f"error: there is no table '{name}-2'")


def test_what_makes_no_sense_is_told() -> None:
    status, _, err = manage("status", "--gsi2", store="dynamodb://limits?region=eu-west-1")
    assert (status, "No such option: --gsi2" in err) == (2, True)
    status, _, err = manage("create", store="memory://")
    assert (status, "memory:// has no table" in err) == (2, True)
    with pytest.raises(CommandError, match="store: ") as failed:
        manage("create", store="dynamodbb://limits")
    assert failed.value.returncode == 2
    with pytest.raises(CommandError, match="invalid choice: 'delete'"):
        manage("delete", store="memory://")

"""One browser, for all that this process looks at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import browser
from tests.dashboard.driver import Tab


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield Tab(page, "")

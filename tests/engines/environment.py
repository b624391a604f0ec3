"""The environment that tests run in: nothing of the developer's AWS account, nor of their settings."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from ratelimit.testing.engines import REGION

AUTHORITY: Final = str(Path(__file__).with_name("authority.pem"))
"""The one authority that tests trust, whose key nobody has: a machine's hundreds take 40 ms at every client."""

_FAKE: Final = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    # A test that forgets its endpoint is refused by its own machine, instead of reaching AWS.
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "SSL_CERT_FILE": AUTHORITY,
}
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")


def isolate(environ: MutableMapping[str, str]) -> None:
    """Drop every `AWS_*`, proxy and `RATELIMIT_*` variable (but `RATELIMIT_TEST_*`), and set fake credentials."""
    for name in list(environ):
        ours = name.startswith("RATELIMIT_") and not name.startswith("RATELIMIT_TEST_")
        if ours or name.startswith("AWS_") or name.lower() in _PROXIES or name in _CERTIFICATES:
            del environ[name]
    environ.update(_FAKE)

"""What must not be shown: credentials in a URL."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"

# `user:password@`, also inside a parameter (`endpoint=http://user:password@host`, percent-encoded or not).
_CREDENTIALS = re.compile(r"(?<=//)[^/?#&]*@")
_ENCODED_CREDENTIALS = re.compile(r"(?<=%2F%2F)(?:(?!%2F|%3F|%23)[^/?#&])*(?:%40|@)", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?<=[?&])([^=&#]*(?:secret|password|passwd|token|credential|key_id|access_key|api_key)[^=&#]*)=[^&#]*",
    re.IGNORECASE,
)


def masked(url: str) -> str:
    """The URL with every credential in it replaced, fit for a terminal or a log."""
    url = _CREDENTIALS.sub(f"{MASK}@", url)
    url = _ENCODED_CREDENTIALS.sub(f"{MASK}@", url)
    return _PARAMETER.sub(rf"\1={MASK}", url)

"""`Identity`: how a user is known to the outside world, in the form in which it may be stored.

An e-mail is stored as it is, lower-cased. An API key is stored as HMAC-SHA-256 under a pepper, which is a secret of the
application and never in the table: who reads the table can neither use a key nor test a guess. Without a pepper the
digest still cannot be turned back, provided that keys are random, which is why short ones are refused.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from ratelimit.errors import ConfigError

IdentityKind: TypeAlias = Literal["email", "api_key"]

MAX_EMAIL_BYTES: Final = 254
MIN_KEY_LENGTH: Final = 16
MAX_KEY_LENGTH: Final = 4_096

_EMAIL = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff@]+@[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff@]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Keeps these digests apart from any other that the same secret may be used for.
_PURPOSE: Final = b"ratelimit api key\0"


@dataclass(frozen=True, slots=True)
class Identity:
    """An e-mail or the digest of an API key. Made by `Identity.email` and `Identity.api_key`. Raises `ConfigError`."""

    kind: IdentityKind
    value: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(IdentityKind):
            raise ConfigError("kind", f"unknown value {self.kind!r}; use one of 'email', 'api_key'")
        if self.kind == "email" and self.value != _normal(self.value):
            raise ConfigError("email", "is not lower-cased; use Identity.email(address)")
        if self.kind == "api_key" and not _DIGEST.fullmatch(self.value):
            # Not quoted: it may well be the key.
            raise ConfigError("api_key", "is not a digest; use Identity.api_key(key)")

    @classmethod
    def email(cls, address: str) -> Identity:
        """Case does not count: one person is not two users."""
        return cls("email", _normal(address))

    @classmethod
    def api_key(cls, key: str, *, pepper: bytes = b"") -> Identity:
        """The digest of a key. The same pepper has to be given wherever a key is set or looked up."""
        if type(key) is not str or not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
            raise ConfigError("api_key", f"must be text of {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} characters")
        try:
            text = key.encode()
        except UnicodeEncodeError:
            raise ConfigError("api_key", "holds characters that are no valid Unicode") from None
        return cls("api_key", hmac.digest(_PURPOSE + pepper, text, "sha256").hex())

    @classmethod
    def parse(cls, text: str) -> Identity:
        """The inverse of `str`."""
        kind, _, value = text.partition(":")
        return cls(cast(IdentityKind, kind), value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


def _normal(address: str) -> str:
    """Lower-cased, in Unicode's composed form: the same to compare as it looks."""
    if type(address) is not str:
        raise ConfigError("email", f"must be text, not {type(address).__name__}")
    normal = unicodedata.normalize("NFC", unicodedata.normalize("NFC", address.strip()).lower())
    if not _EMAIL.fullmatch(normal):
        raise ConfigError("email", f"{address!r} is not an e-mail address; write it like 'alice@example.com'")
    if len(normal.encode()) > MAX_EMAIL_BYTES:
        raise ConfigError("email", f"takes more than {MAX_EMAIL_BYTES} bytes")
    return normal

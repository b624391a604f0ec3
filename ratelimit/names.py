"""Who and what may be counted: the bounds of a user and of an action, checked once where they enter."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeAlias
from unicodedata import normalize

from ratelimit.errors import InvalidAction, InvalidUser, RateLimitError

# As stored, where `#` and `%` take three bytes. DynamoDB allows a partition key of 2,048; ours has to leave the item
# below the 1,024 of one write unit.
MAX_USER_BYTES: Final = 256
MAX_ACTION_BYTES: Final = 64

UserId: TypeAlias = str | int
"""A user as callers may give it: 12345 is the user "12345"."""
# Characters that are within these bounds whatever they are; almost every name is, and is passed at once.
_SHORT_USER: Final = MAX_USER_BYTES // 3
_SHORT_ACTION: Final = MAX_ACTION_BYTES // 3
# Of a number: far more than fit, and not so many that Python refuses to spell it out.
_MAX_USER_BITS: Final = 8192

RESERVED_ACTION: Final = "date_range"
"""What stands among the actions in a usage summary, and is none."""
HASH_PREFIX: Final = "h:"
"""Of what stands for a user whose name is not to be stored: `h:` and the hash in base 32."""
_HASH = re.compile(r"h:[a-z2-7]{26}")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HALF: Final = chr(0xD800)
"""The first of the code points of which two stand for one character in UTF-16, and which have no UTF-8."""


class Key(NamedTuple):
    """The pair that every limit and every usage event is about.

    Built by `Key.of`, unless both were checked before: anything may come in there, of whatever type, and only what can
    be stored gets through.
    """

    user: str
    action: str

    @classmethod
    def of(cls, user: object, action: object) -> Key:
        """Return the pair, checked. Raises `InvalidUser` or `InvalidAction`."""
        # Straight to the tuple: what a `NamedTuple` puts before it takes longer than both checks.
        return tuple.__new__(cls, (check_user(user), check_action(action)))


def check_user(user: object) -> str:
    """Return the one name that a user is stored by. Raises `InvalidUser`.

    That is an integer as text, and text in Unicode's composed form (NFC), so that what is written alike is one user
    wherever it comes from.
    """
    if type(user) is str and 0 < len(user) <= _SHORT_USER and user.isascii() and user.isprintable():
        return user
    if type(user) is int and user.bit_length() <= _MAX_USER_BITS:
        user = str(user)
    elif type(user) is str and len(user) <= 2 * MAX_USER_BYTES:
        user = normalize("NFC", user)
    return _check(user, "user", MAX_USER_BYTES, InvalidUser)


def check_action(action: object) -> str:
    """Return the action itself, if it can be stored. Raises `InvalidAction`."""
    if type(action) is str and 0 < len(action) <= _SHORT_ACTION and action.isascii() and action.isprintable():
        if action == RESERVED_ACTION:
            raise InvalidAction(f"no action can be called {RESERVED_ACTION!r}: a usage summary has its dates there")
        return action
    return _check(action, "action", MAX_ACTION_BYTES, InvalidAction)


def is_hash(user: str) -> bool:
    """Return whether it stands for a user whose name is not stored."""
    return user.startswith(HASH_PREFIX) and _HASH.fullmatch(user) is not None


def _check(text: object, what: str, most: int, error: type[RateLimitError]) -> str:
    if type(text) is not str:
        wanted = "text or a whole number" if what == "user" else "text"
        raise error(f"the {what} must be {wanted}, not {type(text).__name__}")
    if not text:
        raise error(f"the {what} is empty")
    if found := _CONTROL.search(text):
        kind = "half of a character (the text was no UTF-8)" if found[0] >= _HALF else "the control character"
        raise error(f"the {what} holds {kind} {found[0]!r} at position {found.start()}")
    if (size := len(text.encode()) + 2 * (text.count("#") + text.count("%"))) > most:
        raise error(f"the {what} takes {size} bytes, and {most} are the most; pass a digest of it")
    return text

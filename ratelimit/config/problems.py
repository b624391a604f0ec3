"""Everything that is wrong with a configuration, gathered so that one run shows it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from ratelimit.errors import ConfigError


class Problems:
    """Collects errors; `raise_any` throws them as one `ConfigError`, a line for each.

    `origin_of` tells where the value of a path was set, for the reader: `in ratelimit.toml`, `set by RATELIMIT_STORE`.
    """

    def __init__(self, found: Iterable[ConfigError], origin_of: Callable[[str], str]) -> None:
        self._found = list(found)
        self._origin_of = origin_of

    def add(self, error: ConfigError) -> None:
        """One more, its path seen from the top."""
        origin = self._origin_of(error.path)
        self._found.append(ConfigError(error.path, f"{error.problem} ({origin})") if origin else error)

    def raise_any(self) -> None:
        """Raises the one error there is, or one that lists them all."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            lines = "".join(f"\n  {error}" for error in self._found)
            raise ConfigError("", f"{len(self._found)} settings cannot be used:{lines}")


def unknown(path: str, name: str, known: Iterable[str]) -> ConfigError:
    """A name that is not one of ours, with the nearest that is."""
    names = list(known)
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    return ConfigError(path, f"unknown setting; {hint}")

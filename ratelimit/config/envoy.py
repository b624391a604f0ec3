"""The rules of envoyproxy/ratelimit, read from its YAML as it is: which limit a descriptor of a domain has, if any.

    domain: edge
    descriptors:
      - key: remote_address
        rate_limit: {unit: second, requests_per_unit: 10}
      - key: path
        value: /api/*
        descriptors:
          - key: api_key
            rate_limit: {name: per-key, unit: day, requests_per_unit: 1000}

A limit is a policy, called by its domain and keys (`edge.remote_address`, `edge.path_/api/*.api_key`). Its users are
the values that the rule leaves open: `10.0.0.1`; `/api/orders|k1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeAlias

from ratelimit.errors import ConfigError, InvalidAction, InvalidQuota, InvalidUser, nearest
from ratelimit.names import check_action, check_user
from ratelimit.policy import Policy
from ratelimit.quota import Quota, Unit, Window

Entry: TypeAlias = tuple[str, str]
"""A key and its value."""
Node: TypeAlias = Any
"""PyYAML's `Node`, whose published type lacks its `id`."""

UNITS: Final[dict[str, tuple[int, int, Unit]]] = {
    "second": (1, 1, "second"), "minute": (2, 1, "minute"), "hour": (3, 1, "hour"), "day": (4, 1, "day"),
    "month": (5, 30, "day"), "year": (6, 365, "day"), "week": (7, 7, "day"),
}  # fmt: skip
"""Envoy's number of a unit, and how long envoyproxy/ratelimit makes it: from 1970 on, so weeks begin on Thursdays."""
UNIT_NAMES: Final = {number: name for name, (number, _, _) in UNITS.items()}
MAX_UINT32: Final = 2**32 - 1
MAX_DESCRIPTORS: Final = 20_000
MAX_DEPTH: Final = 32
_MAX_ERRORS: Final = 20

_ROOT: Final = ("domain", "descriptors")
_DESCRIPTOR: Final = (
    "key", "value", "rate_limit", "descriptors", "shadow_mode", "quota_mode", "share_threshold", "detailed_metric",
    "value_to_metric",
)  # fmt: skip
_RATE_LIMIT: Final = ("unit", "requests_per_unit", "unit_multiplier", "unlimited", "name", "replaces")
_EXAMPLE: Final = "rate_limit: {unit: minute, requests_per_unit: 100}"


def quota(requests: int, unit: str, multiplier: int = 1) -> Quota:
    """Return the quota of so many requests in so many units. Raises `InvalidQuota` where that is too long."""
    _, count, base = UNITS[unit]
    return Quota(requests, Window(count * multiplier, base))


@dataclass(frozen=True, slots=True)
class EnvoyRule:
    """A limit. `policy` is None where it is unlimited; `open_at` are the places of the values that make its user."""

    policy: Policy | None
    requests_per_unit: int
    unit: str
    multiplier: int
    name: str
    replaces: tuple[str, ...]
    quota_mode: bool
    open_at: tuple[int, ...]

    def user(self, entries: Sequence[Entry]) -> str:
        """Return whom it counts for a descriptor that it has been found for."""
        return user_of([entries[place][1] for place in self.open_at])


class RuleNode:
    """What is below a descriptor of the file: its own limit, and by key the descriptors below it."""

    __slots__ = ("children", "rule")

    def __init__(self) -> None:
        self.rule: EnvoyRule | None = None
        self.children: dict[str, KeyNode] = {}

    def find(self, entries: Sequence[Entry]) -> EnvoyRule | None:
        """Return the limit at exactly this depth: by value where there is one, else by pattern, else by key alone."""
        node = self
        for key, value in entries:
            below = node.children.get(key)
            found = None if below is None else below.find(value)
            if found is None:
                return None
            node = found
        return node.rule


class KeyNode:
    """The descriptors of one key, on one level."""

    __slots__ = ("default", "patterns", "values")

    def __init__(self) -> None:
        self.values: dict[str, RuleNode] = {}
        self.patterns: dict[str, RuleNode] = {}
        """In the order of the file, which is that of their trial."""
        self.default: RuleNode | None = None

    def find(self, value: str) -> RuleNode | None:
        """Return what is below the key with this value."""
        found = self.values.get(value)
        if found is None:
            for pattern, node in self.patterns.items():
                if matches(pattern, value):
                    return node
        return found or self.default

    def put(self, value: str, node: RuleNode) -> bool:
        """Add one; False where there is one of this value."""
        if not value:
            if self.default is not None:
                return False
            self.default = node
            return True
        nodes = self.patterns if "*" in value else self.values
        return nodes.setdefault(value, node) is node


def matches(pattern: str, value: str) -> bool:
    """Return whether a value is of a pattern, in which `*` is any text; in time that grows with both, not more."""
    first, *middle, last = pattern.split("*")
    if len(value) < len(first) + len(last) or not value.startswith(first) or not value.endswith(last):
        return False
    at, end = len(first), len(value) - len(last)
    for part in middle:
        at = value.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def user_of(values: Sequence[str]) -> str:
    """Return the one user that these values are: themselves if they can be; `*` where there are none."""
    if len(values) == 1:
        user = values[0]
    else:
        user = "|".join([value.replace("%", "%25").replace("|", "%7C") for value in values]) or "*"
    try:
        if not user.startswith("~"):
            return check_user(user)
    except InvalidUser:
        pass
    # Empty, too long, or with characters that cannot be stored. Nothing else begins so.
    return f"~{blake2b(user.encode(), digest_size=16).hexdigest()}"


@dataclass(frozen=True, slots=True)
class EnvoyRules:
    """The rules of a directory, by domain. Two are equal that were read from the same files; false where there is none.

    It pickles, as workers are given the last good configuration.
    """

    place: str
    files: tuple[tuple[str, str], ...] = ()
    """Names and what was in them."""
    domains: dict[str, RuleNode] = field(default_factory=dict, compare=False)
    policies: tuple[Policy, ...] = field(default=(), compare=False)
    """One for each limit."""
    fingerprint: object = field(default=None, compare=False)
    """What `fingerprint` returned just before they were read."""

    def __bool__(self) -> bool:
        return bool(self.files)

    def __str__(self) -> str:
        return self.place


NO_RULES: Final = EnvoyRules("off")


def read_envoy_rules(place: object) -> EnvoyRules:
    """Read a directory's `*.yaml`, or one file; nothing for `off`. Raises `ConfigError` with file and line."""
    if isinstance(place, EnvoyRules):
        return place
    if not isinstance(place, str | Path) or not str(place).strip():
        raise ConfigError("", f"expected the directory of envoyproxy/ratelimit's YAML files, or 'off', not {place!r}")
    if str(place) == "off":
        return NO_RULES
    before = fingerprint(place)
    try:
        files = tuple((str(path), path.read_text(encoding="utf-8")) for path in rule_files(place))
    except OSError as error:
        raise ConfigError("", f"{error.filename or place}: {(error.strerror or 'cannot be read').lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("", f"a file in {place} is not UTF-8: {error}") from error
    if not files:
        raise ConfigError("", f"{place}: there is no *.yaml in it; name the directory that holds the files themselves")
    reader = _Reader()
    for name, text in files:
        reader.read(name, text)
    reader.raise_any()
    return EnvoyRules(str(place), files, reader.domains, tuple(reader.policies.values()), before)


def rule_files(place: str | Path) -> list[Path]:
    """Return the files that make the rules, in order. Raises `OSError`."""
    path = Path(place)
    if not path.is_dir():
        return [path]
    found = (each for each in path.iterdir() if each.suffix in (".yaml", ".yml") and not each.name.startswith("."))
    return sorted(each for each in found if each.is_file())


def fingerprint(place: str | Path) -> object:
    """Return what differs as soon as a file does, or is exchanged for another as Kubernetes does it; quick to find."""
    try:
        found = [(str(path), path.stat()) for path in rule_files(place)]
    except OSError:
        return None
    return [(name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found]


class _Reader:
    """Reads files into one tree, and collects what is wrong with them: `FILE:LINE: problem`."""

    def __init__(self) -> None:
        self.domains: dict[str, RuleNode] = {}
        self.policies: dict[str, Policy] = {}
        self._file = ""
        self._errors: list[str] = []
        self._loader: Any = None
        self._descriptors_read = 0

    def read(self, name: str, text: str) -> None:
        # Imported here: it comes with the extra `envoy`, and nobody else needs it.
        try:
            import yaml
        except ModuleNotFoundError:
            raise ConfigError("", "yaml not installed; pip install 'ratelimit-dynamodb[envoy]'") from None
        self._file = name
        try:
            self._loader = yaml.SafeLoader(text)
            root = self._loader.get_single_node()
            if root is None:
                raise _Mistake(1, "is empty; write domain: NAME, and descriptors: below it")
            self._domain(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = f"not YAML: {error.problem or error.context}; is it indented as it should be?"
            self._bad(1 if mark is None else mark.line + 1, problem)
        except yaml.YAMLError as error:
            self._bad(1, f"not YAML: {error}")
        except _Mistake as error:
            self._bad(error.line, error.problem)
        except RecursionError:
            self._bad(1, "is nested too deeply")

    def raise_any(self) -> None:
        """Raise what was found, as one `ConfigError`."""
        if len(self._errors) == 1:
            raise ConfigError("", self._errors[0])
        if self._errors:
            more = len(self._errors) - _MAX_ERRORS
            lines = "".join(f"\n  {error}" for error in self._errors[:_MAX_ERRORS])
            raise ConfigError("", f"{len(self._errors)} mistakes:{lines}" + (f"\n  … and {more} more" * (more > 0)))

    def _bad(self, line: int, problem: str) -> None:
        self._errors.append(f"{self._file}:{line}: {problem}")

    def _domain(self, root: Node) -> None:
        table = self._table(root, _ROOT, "the file")
        domain = self._text(table.get("domain"))
        if not domain:
            raise _Mistake(
                _line(table.get("domain", root)), "the domain is missing; write domain: NAME, as Envoy has it"
            )
        # Files of one domain are one, as with envoyproxy/ratelimit's MERGE_DOMAIN_CONFIG.
        self._descriptors(table.get("descriptors"), self.domains.setdefault(domain, RuleNode()), (domain,), ())

    def _descriptors(
        self, node: Node | None, parent: RuleNode, path: tuple[str, ...], is_open: tuple[bool, ...]
    ) -> None:
        for each in self._list(node, "descriptors"):
            try:
                self._descriptor(each, parent, path, is_open)
            except _Mistake as error:
                self._bad(error.line, error.problem)

    def _descriptor(self, node: Node, parent: RuleNode, path: tuple[str, ...], is_open: tuple[bool, ...]) -> None:
        self._descriptors_read += 1
        if self._descriptors_read > MAX_DESCRIPTORS:  # as aliases can make them of a few lines
            raise ConfigError("", f"{self._file}:{_line(node)}: more than {MAX_DESCRIPTORS} descriptors")
        table = self._table(node, _DESCRIPTOR, "a descriptor")
        key, value = self._text(table.get("key")), self._text(table.get("value"))
        flags = {name: self._flag(table.get(name)) for name in _DESCRIPTOR[4:]}
        if not key:
            raise _Mistake(_line(node), "the descriptor has no key; write key: remote_address")
        if flags["share_threshold"] and "*" not in value:
            raise _Mistake(
                _line(table["share_threshold"]), "share_threshold is for values with a *, as in value: /api/*"
            )
        if len(path) > MAX_DEPTH:
            raise _Mistake(_line(node), f"descriptors are nested {MAX_DEPTH} deep at most")
        path = (*path, f"{key}_{value}" if value else key)
        is_open = (*is_open, not value or ("*" in value and not flags["share_threshold"]))
        here = RuleNode()
        if not parent.children.setdefault(key, KeyNode()).put(value, here):
            raise _Mistake(_line(node), f"a second descriptor {'.'.join(path)!r}; merge it into the first")
        if "rate_limit" in table:
            open_at = tuple(place for place, each in enumerate(is_open) if each)
            here.rule = self._rule(table["rate_limit"], path, open_at, flags)
        self._descriptors(table.get("descriptors"), here, path, is_open)

    def _rule(self, node: Node, path: tuple[str, ...], open_at: tuple[int, ...], flags: dict[str, bool]) -> EnvoyRule:
        table = self._table(node, _RATE_LIMIT, "a rate_limit")
        make = partial(
            EnvoyRule,
            name=self._text(table.get("name")),
            replaces=self._replaces(table),
            quota_mode=flags["quota_mode"],
            open_at=open_at,
        )
        if self._flag(table.get("unlimited")):
            if "unit" in table:
                raise _Mistake(_line(table["unit"]), "a limit that is unlimited has no unit; leave one of the two out")
            return make(policy=None, requests_per_unit=0, unit="", multiplier=1)
        for name in ("unit", "requests_per_unit"):
            if name not in table:
                raise _Mistake(_line(node), f"the {name} is missing; write {_EXAMPLE}")
        unit = self._unit(table["unit"])
        requests = self._number(table["requests_per_unit"], least=0)
        multiplier = self._number(table["unit_multiplier"], least=1) if "unit_multiplier" in table else 1
        try:
            limit = quota(requests, unit, multiplier)
        except InvalidQuota as error:
            raise _Mistake(_line(table["unit_multiplier"]), str(error)) from error
        name = policy_name(path, self.policies)
        policy = Policy(name, limit, mode="shadow" if flags["shadow_mode"] else "enforce")
        self.policies[name] = policy
        return make(policy=policy, requests_per_unit=requests, unit=unit, multiplier=multiplier)

    def _replaces(self, table: dict[str, Node]) -> tuple[str, ...]:
        found = []
        for each in self._list(table.get("replaces"), "replaces"):
            name = self._text(self._table(each, ("name",), "a replaces").get("name"))
            if not name:
                raise _Mistake(_line(each), "whom does it replace? Write replaces: [{name: OTHER}]")
            if name == self._text(table.get("name")):
                raise _Mistake(_line(each), f"{name!r} replaces itself; name another limit")
            found.append(name)
        return tuple(found)

    def _unit(self, node: Node) -> str:
        unit = self._text(node).lower()
        if unit not in UNITS:
            near = nearest(unit, UNITS, f"use one of {', '.join(UNITS)}", form="{}")
            raise _Mistake(_line(node), f"unknown unit {unit!r}; {near}")
        return unit

    # The forms of YAML.

    def _table(self, node: Node, known: Iterable[str], what: str) -> dict[str, Node]:
        if node.id != "mapping":
            raise _Mistake(_line(node), f"expected {what}, such as {{{', '.join(known)}}}")
        self._loader.flatten_mapping(node)
        found: dict[str, Node] = {}
        own: set[str] = set()
        for name_node, value in node.value:
            name = name_node.value if name_node.id == "scalar" else "?"
            if name not in known:
                near = nearest(name, known, f"{what} has {', '.join(known)}", form="{}", cutoff=0.5)
                raise _Mistake(_line(name_node), f"unknown key {name!r}; {near}")
            found[name] = value
            # What comes before it by a merge (`<<`) stands elsewhere in the file.
            if node.start_mark.index <= name_node.start_mark.index < node.end_mark.index:
                if name in own:
                    raise _Mistake(_line(name_node), f"{name} is there twice; keep one of them")
                own.add(name)
        return found

    def _list(self, node: Node | None, what: str) -> list[Node]:
        if node is None or node.tag.endswith(":null"):
            return []
        if node.id != "sequence":
            raise _Mistake(_line(node), f"{what} is a list; begin each item with a dash")
        items: list[Node] = node.value
        return items

    def _text(self, node: Node | None) -> str:
        """Any scalar as it is written: `value: 404` is the text 404, as Envoy sends it."""
        if node is None or node.tag.endswith(":null"):
            return ""
        if node.id != "scalar":
            raise _Mistake(_line(node), "expected text")
        text: str = node.value
        return text

    def _flag(self, node: Node | None) -> bool:
        if node is None or node.tag.endswith(":null"):
            return False
        if not node.tag.endswith(":bool"):
            raise _Mistake(_line(node), f"expected true or false, not {node.value!r}")
        return bool(self._loader.construct_yaml_bool(node))

    def _number(self, node: Node, *, least: int) -> int:
        value = self._loader.construct_yaml_int(node) if node.tag.endswith(":int") else None
        if value is None or not least <= value <= MAX_UINT32:
            raise _Mistake(_line(node), f"expected a whole number from {least} to {MAX_UINT32}, not {node.value!r}")
        return int(value)


class _Mistake(Exception):
    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        self.problem = problem
        super().__init__(problem)


def _line(node: Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def policy_name(path: Sequence[str], taken: Iterable[str] = ()) -> str:
    """Return what a limit's policy is called: its path, shortened and told apart by a digest where it has to be."""
    name = ".".join(path)
    try:
        if name not in taken:
            return check_action(name)
    except InvalidAction:
        pass
    digest = blake2b("\0".join(path).encode(), digest_size=8).hexdigest()
    shown = "".join(letter for letter in name if letter.isascii() and letter.isprintable() and letter not in "#%")
    return f"{shown[:40]}~{digest}"

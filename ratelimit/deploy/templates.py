"""The CloudFormation templates and IAM policies beside this file, with names of one's own.

Templates are changed as text, line by line: so the comments stay, and nothing has to understand YAML and its tags of
CloudFormation. The files keep to it: two spaces for a parameter, four for what is said of it, one line each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, Literal, TypeAlias, get_args

from ratelimit.errors import ConfigError, nearest

Template: TypeAlias = Literal["table", "global-table", "sidecar"]

TEMPLATES: Final[tuple[Template, ...]] = get_args(Template)

_SECTION = re.compile(r"^Parameters:\n(?P<body>(?:\n|[ ].*\n)+)", re.MULTILINE)
_PARAMETER = re.compile(r"^  (?P<name>\w+):\n(?P<lines>(?:    .*\n)+)", re.MULTILINE)
_DEFAULT = re.compile(r"^    Default: .*\n", re.MULTILINE)
_PATTERN = re.compile(r'^    AllowedPattern: (?P<text>".*")$', re.MULTILINE)
_CHOICES = re.compile(r"^    AllowedValues: \[(?P<list>.*)\]$", re.MULTILINE)


def template(name: Template, defaults: Mapping[str, str]) -> str:
    """A template, its parameters' defaults replaced by these. Raises `ConfigError` naming the parameter."""
    text = files("ratelimit.deploy").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    section = _SECTION.search(text)
    if section is None:
        raise AssertionError(f"{name}.yaml has no parameters")
    known = {found["name"]: found["lines"] for found in _PARAMETER.finditer(section["body"])}
    for parameter, value in defaults.items():
        _check(parameter, value, known)

    def with_default(found: re.Match[str]) -> str:
        if (value := defaults.get(found["name"])) is None:
            return found[0]
        # JSON's strings are YAML's, and a function keeps `sub` from reading backslashes.
        return f"  {found['name']}:\n{_DEFAULT.sub('', found['lines'])}    Default: {json.dumps(value)}\n"

    start, end = section.span("body")
    return text[:start] + _PARAMETER.sub(with_default, section["body"]) + text[end:]


def alert_rules() -> str:
    """The alert rules for Prometheus, as YAML."""
    return files("ratelimit.deploy").joinpath("alerts.yaml").read_text(encoding="utf-8")


def _check(parameter: str, value: str, known: Mapping[str, str]) -> None:
    lines = known.get(parameter)
    if lines is None:
        near = nearest(parameter, known, f"there are {', '.join(known)}", form="{}")
        raise ConfigError(parameter, f"the template has no such parameter; {near}")
    if not value.isprintable():
        raise ConfigError(parameter, f"expected one line of text, not {value!r}")
    if (pattern := _PATTERN.search(lines)) and not re.fullmatch(json.loads(pattern["text"]), value):
        raise ConfigError(parameter, f"{value!r} does not match {json.loads(pattern['text'])}")
    if choices := _CHOICES.search(lines):
        allowed = [choice.strip().strip('"') for choice in choices["list"].split(",")]
        if value not in allowed:
            raise ConfigError(parameter, f"unknown value {value!r}; use one of {', '.join(allowed)}")


# The IAM policies in `iam/`, one for each role, with only what the code asks of DynamoDB in it:
# `serve`    the middleware and the sidecar, and the commands that change what is in the table
# `read`     reports, exports, and how the table stands
# `migrate`  `ratelimit migrate`, on the table that is read and on the one that is filled
# `operate`  the table's own life: created, verified, upgraded, deleted; reads no item
# There is no action for `TransactWriteItems`: AWS asks for those of its parts (`PutItem`, `UpdateItem`, `DeleteItem`).

Role: TypeAlias = Literal["serve", "read", "migrate", "operate"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)

_FORMS: Final = {
    "table": (r"[A-Za-z0-9_.-]{3,255}", "3 to 255 of letters, digits, '_', '-', '.'"),
    "region": (r"[a-z0-9]+(-[a-z0-9]+)+|\*", "as in eu-west-1"),
    "account": (r"[0-9]{12}|\*", "the twelve digits of an AWS account"),
    "partition": (r"aws(-[a-z]+)*", "aws, aws-cn or aws-us-gov"),
}


def policies(
    *, table: str, region: str = "*", account: str = "*", partition: str = "aws"
) -> dict[Role, dict[str, Any]]:
    """Each role's policy document, for one table; by default for those of this name in whichever region and account the
    policy is attached. Raises `ConfigError` naming what is no name."""
    names = {"table": table, "region": region, "account": account, "partition": partition}
    for name, value in names.items():
        form, words = _FORMS[name]
        if not re.fullmatch(form, value):
            raise ConfigError(f"--{name if name != 'table' else 'name'}", f"expected {words}, not {value!r}")
    return {role: _filled(role, names) for role in ROLES}


def _filled(role: Role, names: dict[str, str]) -> dict[str, Any]:
    text = files("ratelimit.deploy").joinpath("iam", f"{role}.json").read_text(encoding="utf-8")
    places = {"Partition": "partition", "Region": "region", "AccountId": "account", "TableName": "table"}
    for place, name in places.items():
        text = text.replace(f"${{{place}}}", names[name])
    document: dict[str, Any] = json.loads(text)
    return document

"""Templates as CloudFormation sees them: read with its tags, and filled in for given parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any, Final

import yaml

NO_VALUE: Final = {"Ref": "AWS::NoValue"}
_TAGS: Final = ("Ref", "Condition", "Sub", "GetAtt", "If", "Not", "Equals", "Split", "ImportValue", "Join")


class _Loader(yaml.CSafeLoader):
    """`!Ref X` becomes `{"Ref": "X"}`, `!Sub x` `{"Fn::Sub": "x"}`, as CloudFormation's JSON has it."""


def _tagged(name: str, loader: yaml.CSafeLoader, node: yaml.Node) -> dict[str, Any]:
    match node:
        case yaml.SequenceNode():
            value: Any = loader.construct_sequence(node, deep=True)
        case yaml.MappingNode():
            value = loader.construct_mapping(node, deep=True)
        case yaml.ScalarNode():
            value = loader.construct_scalar(node)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


for _name in _TAGS:
    _Loader.add_constructor(f"!{_name}", partial(_tagged, _name))


def text_of(name: str) -> str:
    """A template as it is kept."""
    return files("ratelimit.deploy").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def parse(text: str) -> dict[str, Any]:
    """The template's document."""
    document: dict[str, Any] = yaml.load(text, _Loader)
    return document


def filled(template: Mapping[str, Any], **parameters: str) -> dict[str, Any]:
    """The resources, with parameters and conditions worked out; references to other resources stay as they are."""
    values = {name: str(given.get("Default", "")) for name, given in template["Parameters"].items()} | parameters
    conditions = {name: _holds(rule, values) for name, rule in template["Conditions"].items()}
    resources = {
        name: resource
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or conditions[resource["Condition"]]
    }
    result: dict[str, Any] = _fill(resources, values, conditions)
    return result


def _holds(rule: Any, values: Mapping[str, str]) -> bool:
    match rule:
        case {"Fn::Not": [inner]}:
            return not _holds(inner, values)
        case {"Fn::Equals": [left, right]}:
            return bool(_fill(left, values, {}) == _fill(right, values, {}))
    raise AssertionError(f"a condition that this reader does not know: {rule}")


def _fill(part: Any, values: Mapping[str, str], conditions: Mapping[str, bool]) -> Any:
    fill = partial(_fill, values=values, conditions=conditions)
    match part:
        case {"Ref": name} if name in values:
            return values[name]
        case {"Fn::If": [condition, yes, no]}:
            return fill(yes if conditions[condition] else no)
        case {"Fn::Sub": str(text)}:
            for name, value in values.items():
                text = text.replace(f"${{{name}}}", value)
            return text
        case {"Fn::Sub": [str(text), dict(names)]}:
            return fill({"Fn::Sub": text}, values={**values, **fill(names)})
        case {"Fn::Split": [separator, whole]}:
            return fill(whole).split(separator)
        case dict():
            return {name: value for name, value in ((n, fill(v)) for n, v in part.items()) if value != NO_VALUE}
        case list():
            return [value for value in map(fill, part) if value != NO_VALUE]
    return part

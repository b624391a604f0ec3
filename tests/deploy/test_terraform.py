"""The Terraform module says what the CloudFormation template says.

It is read by a parser of HCL: no package index has Terraform. Resources are compared whole, so that a misspelt argument
does not pass for a missing one.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from ratelimit.deploy import ROLES, policies
from tests.deploy.cloudformation import filled, parse, text_of
from tests.deploy.tools import ROOT, run, tool

pytestmark = pytest.mark.slow

MODULE: Final = ROOT / "deploy" / "terraform"
READ: Final = """
import hcl2, json, pathlib, sys
plain = hcl2.SerializationOptions(with_comments=False, explicit_blocks=False, strip_string_quotes=True)
print(json.dumps([hcl2.loads(pathlib.Path(path).read_text(), serialization_options=plain) for path in sys.argv[1:]]))
"""
NAMES: Final = {"table_name": "limits", "slow_check_milliseconds": 50, "deletion_protection": True, "tags": {}}
TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:pager"
ARGUMENTS: Final = {
    "AlarmDescription": "alarm_description", "Namespace": "namespace", "MetricName": "metric_name",
    "Statistic": "statistic", "ExtendedStatistic": "extended_statistic",
    "Period": "period", "EvaluationPeriods": "evaluation_periods",
    "DatapointsToAlarm": "datapoints_to_alarm", "Threshold": "threshold", "ComparisonOperator": "comparison_operator",
    "TreatMissingData": "treat_missing_data",
    "EvaluateLowSampleCountPercentile": "evaluate_low_sample_count_percentiles",
    "AlarmActions": "alarm_actions", "OKActions": "ok_actions",
}  # fmt: skip
"""What CloudFormation and the provider call the same thing of an alarm, but for its dimensions."""


@cache
def module() -> dict[str, Any]:
    """The blocks of all files: `resource`, `variable` and `output` by their names, `locals` in one."""
    files = sorted(str(path) for path in MODULE.glob("*.tf"))
    found: dict[str, Any] = {"resource": {}, "variable": {}, "output": {}, "locals": {}}
    for document in json.loads(run(Path(tool("hcl2tojson")).with_name("python"), "-c", READ, *files)):
        for kind in ("resource", "variable", "output", "locals"):
            for block in document.get(kind, []):
                for name, body in block.items():
                    if kind == "resource":
                        found[kind] |= {f"{name}.{inner}": value for inner, value in body.items()}
                    else:
                        found[kind][name] = body
    return found


def valued(part: Any, **scope: Any) -> Any:
    """With `${var.…}`, `${local.…}` and whatever is in `scope` in place of the references to it."""
    known = {f"var.{name}": value for name, value in NAMES.items()} | scope
    match part:
        case dict():
            return {name: valued(value, **scope) for name, value in part.items()}
        case list():
            return [valued(value, **scope) for value in part]
        case str() if (whole := re.fullmatch(r"\$\{([\w.]+)\}", part)) and whole[1] in known:
            return known[whole[1]]
        case str() if whole := re.fullmatch(r"\$\{local\.(\w+)\}", part):
            return valued(module()["locals"][whole[1]], **scope)
        case str():
            return re.sub(r"\$\{([\w.]+)\}", lambda found: str(known.get(found[1], found[0])), part)
        case _:
            return part


def dynamic(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Those blocks of the table that are there by what is asked for, by their names."""
    return dict(each for block in blocks for each in block.items())


def resources(**parameters: str) -> dict[str, Any]:
    return filled(parse(text_of("table")), TableName="limits", **parameters)


def test_the_table_is_the_one_of_the_template() -> None:
    wanted = resources()["Table"]["Properties"]
    found = valued(module()["resource"]["aws_dynamodb_table.this"])
    expiry = dynamic(found.pop("dynamic"))["ttl"]
    lag = (found.pop("stream_enabled"), found.pop("stream_view_type"))
    assert lag == (module()["locals"]["has_lag"], '${local.has_lag ? "NEW_AND_OLD_IMAGES" : null}')
    (lifecycle,) = found.pop("lifecycle")
    assert lifecycle["prevent_destroy"] is True
    assert found == {
        "name": wanted["TableName"],
        "billing_mode": wanted["BillingMode"],
        "hash_key": "PK",
        "range_key": "SK",
        "deletion_protection_enabled": wanted["DeletionProtectionEnabled"] == "true",
        "point_in_time_recovery": [{"enabled": True}],
        "tags": {},
    }
    assert [key["AttributeName"] for key in wanted["KeySchema"]] == ["PK", "SK"]
    assert expiry["for_each"] == '${local.is_strong ? [] : ["ttl"]}'
    assert expiry["content"] == [{"attribute_name": "${ttl.value}", "enabled": True}]
    assert wanted["TimeToLiveSpecification"]["AttributeName"] == "ttl"


@pytest.mark.parametrize("timeline", [False, True])
def test_its_indexes_and_its_key_are_those_of_the_template(timeline: bool) -> None:
    wanted = resources(TimelineIndex=str(timeline).lower())["Table"]["Properties"]
    blocks = dynamic(valued(module()["resource"]["aws_dynamodb_table.this"])["dynamic"])
    index, encryption, attributes = (
        blocks[name] for name in ("global_secondary_index", "server_side_encryption", "attribute")
    )
    assert module()["locals"]["indexes"] == '${var.timeline_index ? ["GSI1", "GSI2"] : ["GSI1"]}'
    names = [each["IndexName"] for each in wanted["GlobalSecondaryIndexes"]]
    assert names == ["GSI1", "GSI2"][: 1 + timeline]
    assert index["for_each"] == module()["locals"]["indexes"]
    for name, each in zip(names, wanted["GlobalSecondaryIndexes"], strict=True):
        (content,) = valued(index["content"], **{"global_secondary_index.value": name})
        keys = [key["AttributeName"] for key in each["KeySchema"]]
        projection = each["Projection"]["ProjectionType"]
        assert content == {"name": name, "hash_key": keys[0], "range_key": keys[1], "projection_type": projection}

    assert attributes["content"] == [{"name": "${attribute.value}", "type": "S"}]
    of_indexes = 'flatten([for index in local.indexes : ["${index}PK", "${index}SK"]])'
    assert attributes["for_each"] == f'${{concat(["PK", "SK"], {of_indexes})}}'
    assert [each["AttributeName"] for each in wanted["AttributeDefinitions"]] == [
        name for prefix in ("", *names) for name in (f"{prefix}PK", f"{prefix}SK")
    ]

    key = resources(KmsKeyArn="arn:aws:kms:x")["Table"]["Properties"]["SSESpecification"]
    (content,) = valued(encryption["content"], **{"server_side_encryption.value": "arn:aws:kms:x"})
    assert content == {"enabled": key["SSEEnabled"], "kms_key_arn": key["KMSMasterKeyId"]}
    assert encryption["for_each"] == '${var.kms_key_arn == "" ? [] : [var.kms_key_arn]}'


@pytest.mark.parametrize("consistency", ["EVENTUAL", "STRONG"])
def test_the_replicas_are_those_of_the_template(consistency: str) -> None:
    """Beside what is the table's own, which both templates have alike."""
    places = {"SecondRegion": "us-east-1", "Consistency": consistency, "WitnessRegion": "us-west-2"}
    wanted = filled(parse(text_of("global-table")), TableName="limits", **places)["Table"]["Properties"]
    blocks = dynamic(module()["resource"]["aws_dynamodb_table.this"]["dynamic"])

    names = module()["locals"]
    assert names["is_strong"] == '${var.consistency == "STRONG"}'
    assert names["has_lag"] == "${length(var.replica_regions) > 0 && !local.is_strong}"
    assert wanted.get("StreamSpecification") == (
        None if consistency == "STRONG" else {"StreamViewType": "NEW_AND_OLD_IMAGES"}
    )
    assert ("TimeToLiveSpecification" in wanted) == (consistency != "STRONG")

    scope = {"replica.value": "us-east-1", "var.consistency": consistency, "global_table_witness.value": "us-west-2"}
    assert blocks["replica"]["for_each"] == "${toset(var.replica_regions)}"
    (replica,) = valued(blocks["replica"]["content"], **scope)
    assert replica.pop("propagate_tags") is True
    assert replica.pop("consistency_mode") == wanted["MultiRegionConsistency"] == consistency
    there = wanted["Replicas"][1]
    assert replica == {
        "region_name": there["Region"],
        "deletion_protection_enabled": there["DeletionProtectionEnabled"] == "true",
        "point_in_time_recovery": there["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"],
    }
    assert blocks["global_table_witness"]["for_each"] == '${var.witness_region == "" ? [] : [var.witness_region]}'
    assert valued(blocks["global_table_witness"]["content"], **scope) == [{"region_name": "us-west-2"}]
    assert wanted["GlobalTableWitnesses"] == [{"Region": "us-west-2"}]
    of_table = resources()["Table"]["Properties"]
    for part in ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode", "TableName"):
        assert wanted[part] == of_table[part], part


@pytest.mark.parametrize("topic", ["", TOPIC])
def test_the_alarms_are_those_of_the_template(topic: str) -> None:
    wanted = {
        name: {ARGUMENTS[key]: value for key, value in each["Properties"].items() if key in ARGUMENTS}
        | {"dimensions": {one["Name"]: one["Value"] for one in each["Properties"].get("Dimensions", ())}}
        for name, each in resources(AlarmTopicArn=topic).items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    }
    assert module()["locals"]["alarm_actions"] == '${var.alarm_topic_arn == "" ? [] : [var.alarm_topic_arn]}'
    actions = {module()["locals"]["alarm_actions"]: [topic] if topic else []}
    found = {}
    for name, alarm in valued(module()["locals"]["alarms"]).items():
        scope = {"each.key": name} | {f"each.value.{part}": value for part, value in alarm.items()}
        found[name] = valued(module()["resource"]["aws_cloudwatch_metric_alarm.this"], **scope)
        assert found[name].pop("for_each") == valued(module()["locals"]["alarms"])
    found["SlowChecks"] = valued(module()["resource"]["aws_cloudwatch_metric_alarm.slow_checks"])
    for name, alarm in found.items():
        assert (alarm.pop("alarm_name"), alarm.pop("tags")) == (f"limits-{name}", {})
        for key in ("alarm_actions", "ok_actions"):
            alarm[key] = actions[alarm[key]]
    for name, alarm in wanted.items():
        if not topic:
            alarm |= {"alarm_actions": [], "ok_actions": []}
        alarm["threshold"] = int(alarm["threshold"])
        assert found.pop(name) == alarm, name
    assert not found


@pytest.mark.parametrize("region", ["eu-west-1", "*"])
@pytest.mark.parametrize("role", ROLES)
def test_the_policies_are_the_files(role: str, region: str) -> None:
    """The module has no statement of its own: it fills the files that `ratelimit deploy render iam` fills."""
    policy = module()["resource"]["aws_iam_policy.this"]
    call = re.fullmatch(
        r'\$\{templatefile\("\$\{path\.module\}/(?P<path>.+)", \{(?P<places>.+)\}\)\}', policy["policy"], re.S
    )
    assert call is not None
    file = MODULE / call["path"].replace("${each.key}", role)
    text = file.read_text(encoding="utf-8")
    arn = ["arn", "aws", "dynamodb", "eu-west-1", "123456789012", "table/limits"]
    for place, value in re.findall(r"(\w+)\s*=\s*([\w.\[\]]+)", call["places"]):
        at = re.fullmatch(r"local\.arn\[(\d)\]", value)
        scope = {"local.region": region}
        text = text.replace(f"${{{place}}}", arn[int(at[1])] if at else str(valued(f"${{{value}}}", **scope)))
    assert module()["locals"]["region"] == '${length(var.replica_regions) == 0 ? local.arn[3] : "*"}'
    assert json.loads(text) == policies(table="limits", region=region, account="123456789012")[role]  # type: ignore[index]
    assert module()["locals"]["arn"] == '${split(":", aws_dynamodb_table.this.arn)}'
    told = resources()[f"{role.title()}Policy"]["Properties"]["Description"]
    assert told == f"ratelimit on limits: {module()['locals']['roles'][role]}"
    assert set(module()["locals"]["roles"]) == set(ROLES)


def test_the_dashboard_is_that_of_the_template() -> None:
    text = (MODULE / "dashboard.json.tftpl").read_text(encoding="utf-8")
    for place, value in {"Region": "${AWS::Region}", "TableName": "limits"}.items():
        text = text.replace(f"${{{place}}}", value)
    text = re.sub(r"\$\{Alarms\.(\w+)\}", r"${\1.Arn}", text)
    assert json.loads(text) == json.loads(resources()["Dashboard"]["Properties"]["DashboardBody"])
    places = re.findall(r"^    (\w+) *=", (MODULE / "alarms.tf").read_text().partition(".json.tftpl")[2], re.MULTILINE)
    assert places == ["Region", "TableName", "Alarms"]


def test_the_variables_are_the_parameters() -> None:
    parameters = parse(text_of("table"))["Parameters"]
    found = module()["variable"]
    snake = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): given for name, given in parameters.items()}
    many = parse(text_of("global-table"))["Parameters"]
    snake |= {"consistency": many["Consistency"], "witness_region": many["WitnessRegion"]}
    assert set(found) == {*snake, "tags", "replica_regions"}
    assert many["SecondRegion"]["AllowedPattern"] in found["replica_regions"]["validation"][0]["condition"]
    assert many["Consistency"]["AllowedValues"] == ["EVENTUAL", "STRONG"]
    for name, given in snake.items():
        default = {"true": True, "false": False}.get(given["Default"], given["Default"])
        assert found[name]["default"] == default, name
        assert found[name]["description"] == given["Description"], name
    (valid,) = found["table_name"]["validation"]
    assert parameters["TableName"]["AllowedPattern"] in valid["condition"]


def test_whatever_is_referred_to_is_there() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in MODULE.glob("*.tf"))
    assert {*re.findall(r"\bvar\.(\w+)", text)} == set(module()["variable"])
    assert {*re.findall(r"\blocal\.(\w+)", text)} == set(module()["locals"])
    assert {*re.findall(r"\b(aws_\w+\.\w+)", text)} <= set(module()["resource"])
    assert len(module()["resource"]) == 5

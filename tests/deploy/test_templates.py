"""The templates: the table is the schema's, the policies are the files', and the sidecar runs as it says."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import msgspec
import pytest

from ratelimit.config import SETTINGS
from ratelimit.deploy import ROLES, TEMPLATES, Role, template
from ratelimit.dynamodb import schema
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.deploy.cloudformation import filled, parse, text_of

SIDECAR = {"Image": "registry/ratelimit:1", "ServiceName": "shop"}


def table(**parameters: str) -> dict[str, Any]:
    properties: dict[str, Any] = filled(parse(text_of("table")), **parameters)["Table"]["Properties"]
    return properties


def sidecar(**parameters: str) -> dict[str, Any]:
    return filled(parse(text_of("sidecar")), **SIDECAR, **parameters)


def containers(**parameters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sidecar(**parameters)["TaskDefinition"]["Properties"]["ContainerDefinitions"]
    return found


@pytest.mark.parametrize("indexes", [(schema.GSI1,), (schema.GSI1, schema.GSI2)])
def test_the_table_is_the_one_that_create_makes(indexes: tuple[str, ...]) -> None:
    wanted = schema.table_definition("limits", indexes)
    timeline = str(schema.GSI2 in indexes).lower()
    found = table(TableName="limits", TimelineIndex=timeline)
    assert {name: found[name] for name in wanted} == wanted
    assert found["TimeToLiveSpecification"] == {"AttributeName": schema.TTL, "Enabled": True}
    assert found["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert found["DeletionProtectionEnabled"] == "true"
    assert "SSESpecification" not in found


@pytest.mark.parametrize("third", ["", "ap-south-1"])
def test_the_table_in_many_regions_is_the_one_that_create_makes(third: str) -> None:
    names = {"TableName": "limits", "SecondRegion": "us-east-1", "ThirdRegion": third}
    found = filled(parse(text_of("global-table")), **names)["Table"]["Properties"]
    wanted = schema.table_definition("limits")
    assert {name: found[name] for name in wanted} == wanted
    assert found["TimeToLiveSpecification"] == {"AttributeName": schema.TTL, "Enabled": True}
    regions = [replica["Region"] for replica in found["Replicas"]]
    assert regions == [{"Ref": "AWS::Region"}, "us-east-1", *([third] if third else [])]
    for replica in found["Replicas"]:
        assert replica["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert replica["DeletionProtectionEnabled"] == "true"
    strong = filled(parse(text_of("global-table")), **names, Consistency="STRONG", WitnessRegion="eu-west-2")
    assert strong["Table"]["Properties"]["GlobalTableWitnesses"] == [{"Region": "eu-west-2"}]
    assert not {"TimeToLiveSpecification", "StreamSpecification"} & strong["Table"]["Properties"].keys()


def test_a_key_of_ones_own() -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/1"
    assert table(KmsKeyArn=key)["SSESpecification"] == {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": key}


def test_the_table_outlives_its_stack() -> None:
    for name in ("table", "global-table"):
        resource = parse(text_of(name))["Resources"]["Table"]
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain")


@pytest.mark.parametrize("role", ROLES)
def test_the_templates_policies_are_the_files(role: Role) -> None:
    text = files("ratelimit.deploy").joinpath("iam", f"{role}.json").read_text(encoding="utf-8")
    for place in ("Partition", "Region", "AccountId"):
        text = text.replace(f"${{{place}}}", f"${{AWS::{place}}}")
    wanted = msgspec.json.decode(text.replace("${TableName}", "limits"))
    resources = filled(parse(text_of("table")), TableName="limits")
    assert resources[f"{role.title()}Policy"]["Properties"]["PolicyDocument"] == wanted


def test_alarms_reach_the_topic_when_there_is_one() -> None:
    for name in TEMPLATES:
        for topic in ("", "arn:aws:sns:eu-west-1:123456789012:pager"):
            alarms = [
                resource["Properties"]
                for resource in filled(parse(text_of(name)), AlarmTopicArn=topic).values()
                if resource["Type"] == "AWS::CloudWatch::Alarm"
            ]
            assert len(alarms) == {"table": 6, "global-table": 0, "sidecar": 2}[name]
            for alarm in alarms:
                assert alarm.get("AlarmActions", []) == alarm.get("OKActions", []) == ([topic] if topic else [])


def test_the_alarms_watch_what_the_issue_asks_for() -> None:
    resources = filled(parse(text_of("table")), TableName="limits")
    alarms = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = {alarm["MetricName"] for alarm in alarms}
    assert watched == {
        "WriteThrottleEvents", "ReadThrottleEvents", "SystemErrors", "UserErrors", "SuccessfulRequestLatency",
    }  # fmt: skip
    for alarm in alarms:
        dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
        assert dimensions.get("TableName") == ("limits" if alarm["MetricName"] != "UserErrors" else None)


def test_the_dashboard_is_json() -> None:
    text = filled(parse(text_of("table")), TableName="limits")["Dashboard"]["Properties"]["DashboardBody"]
    body = msgspec.json.decode(text)
    assert len(body["widgets"]) == 5
    assert "limits" in text


def test_every_output_of_the_table_that_the_sidecar_imports_is_exported() -> None:
    exported = {
        output["Export"]["Name"]["Fn::Sub"].removeprefix("${AWS::StackName}-")
        for output in parse(text_of("table"))["Outputs"].values()
        if "Export" in output
    }
    imported = set(re.findall(r"\$\{TableStack\}-(\w+)", text_of("sidecar")))
    assert imported == {"Store", "ServePolicyArn"}
    assert imported <= exported


def test_the_sidecar_takes_no_more_than_it_needs() -> None:
    (container,) = containers()
    assert container["User"] == "10001:10001"
    assert container["ReadonlyRootFilesystem"] is True
    assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    task = sidecar()["TaskDefinition"]["Properties"]
    assert (task["Cpu"], task["Memory"]) == ("512", "1024")


def test_its_variables_are_settings() -> None:
    (container,) = containers()
    names = [each["Name"] for each in (*container["Environment"], *container["Secrets"])]
    assert names
    for name in names:
        setting = name.removeprefix("RATELIMIT_").lower()
        assert setting in SETTINGS or name == "RATELIMIT_CONFIG"
    assert [each["Name"] for each in container["Secrets"]] == ["RATELIMIT_API_TOKEN", "RATELIMIT_ADMIN_TOKEN"]


def test_health_is_asked_where_the_admin_listener_is() -> None:
    resources = sidecar()
    group = resources["TargetGroup"]["Properties"]
    (container,) = containers()
    variables = {each["Name"]: each.get("Value") for each in container["Environment"]}
    assert variables["RATELIMIT_ADMIN"] == f"0.0.0.0:{group['HealthCheckPort']}"
    assert group["HealthCheckPath"] == "/health/ready"
    assert f":{group['HealthCheckPort']}/health/live" in container["HealthCheck"]["Command"][-1]


def test_only_the_load_balancer_reaches_the_tasks() -> None:
    ingress = sidecar()["TaskGroup"]["Properties"]["SecurityGroupIngress"]
    assert [rule["FromPort"] for rule in ingress] == [8080, 9090]
    assert all(rule["SourceSecurityGroupId"] == {"Ref": "LoadBalancerGroup"} for rule in ingress)
    assert not any("CidrIp" in rule for rule in ingress)


def test_scaling_and_rolling() -> None:
    resources = sidecar()
    target = resources["ScalableTarget"]["Properties"]
    policy = resources["ScaleOnCpu"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    assert (target["MinCapacity"], target["MaxCapacity"], policy["TargetValue"]) == (2, 10, 70)
    deployment = resources["Service"]["Properties"]["DeploymentConfiguration"]
    assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
    assert (deployment["MinimumHealthyPercent"], deployment["MaximumPercent"]) == (100, 200)
    assert resources["Cluster"]["Properties"]["ClusterSettings"] == [{"Name": "containerInsights", "Value": "enabled"}]


def test_with_a_service_behind_it() -> None:
    ours, theirs = containers(AppImage="registry/shop:7", AppPort="3000")
    assert ours["Command"][-6:] == ["--upstream", "http://127.0.0.1:3000", "--action", "api", "--quota", "100/minute"]
    assert theirs["Image"] == "registry/shop:7"


def test_with_a_file_of_policies() -> None:
    (container,) = containers(ConfigFile="/etc/ratelimit.toml")
    assert {"--upstream", "--action", "--quota"}.isdisjoint(container["Command"])
    assert {"Name": "RATELIMIT_CONFIG", "Value": "/etc/ratelimit.toml"} in container["Environment"]


@pytest.mark.parametrize("parameters", [{}, {"AppImage": "registry/shop:7"}, {"ConfigFile": "/etc/ratelimit.toml"}])
def test_its_command_is_understood(ratelimit: Command, parameters: dict[str, str]) -> None:
    """An option too much is all that is wrong with it."""
    status, _, err = ratelimit(*containers(**parameters)[0]["Command"], "--access-log", "xml")
    assert status == 2
    assert err.startswith("error: Invalid value for '--access-log'")


def test_https_when_there_is_a_certificate() -> None:
    plain, secure = sidecar(), sidecar(CertificateArn="arn:aws:acm:eu-west-1:123456789012:certificate/1")
    assert (plain["Listener"]["Properties"]["Port"], secure["Listener"]["Properties"]["Port"]) == (80, 443)
    assert "ToHttps" in secure
    assert "ToHttps" not in plain


def test_nothing_is_granted_on_everything_but_what_aws_forces() -> None:
    for name in TEMPLATES:
        found = [
            (statement["Action"], statement["Resource"])
            for resource in filled(parse(template(name, {}))).values()
            for document in documents(resource)
            for statement in document["Statement"]
            if statement["Resource"] == "*"
        ]
        assert found == ([("ecr:GetAuthorizationToken", "*")] if name == "sidecar" else [])


def documents(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The permissions of a role or a managed policy."""
    properties = resource["Properties"]
    inline = [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
    return inline + ([properties["PolicyDocument"]] if "PolicyDocument" in properties else [])

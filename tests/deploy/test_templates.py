"""The templates: the table is the schema's, the policies are the files', and the sidecar runs as it says."""

from __future__ import annotations

import json
import re
from difflib import unified_diff
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
from tests.docs.pages import text_of as page

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


@pytest.mark.parametrize("name", ["table", "sidecar"])
def test_the_page_has_each_parameter_with_its_default(name: str) -> None:
    section = (
        page("docs/deployment.md").partition(f"## The {name}\n")[2].partition("\n## ")[0].partition("| alarm |")[0]
    )
    shown = {
        parameter: defaults.replace("`", "")
        for names, defaults in re.findall(r"(?m)^\| (`.*?) \| (.*?) \|", section)
        for parameter in re.findall(r"`(\w+)`", names)
    }
    parameters = parse(text_of(name))["Parameters"]
    assert shown.keys() == parameters.keys()
    assert [key for key, its in parameters.items() if str(its.get("Default", "")) not in shown[key]] == []


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


# `ratelimit deploy render`: one's own names in, everything else as it was; a name that cannot be is said.


ACCOUNT = ("--account", "123456789012", "--region", "eu-west-1")


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_names_it_is_the_file(ratelimit: Command, name: str) -> None:
    assert ratelimit("deploy", "render", name) == (0, text_of(name), "")


def test_names_become_defaults_and_nothing_else_changes(ratelimit: Command) -> None:
    status, out, _ = ratelimit("deploy", "render", "table", "--name", "limits", "--set", "KmsKeyArn=arn:aws:kms:x")
    assert status == 0
    was, now = parse(text_of("table")), parse(out)
    assert now["Parameters"]["TableName"] == {**was["Parameters"]["TableName"], "Default": "limits"}
    assert now["Parameters"]["KmsKeyArn"]["Default"] == "arn:aws:kms:x"
    assert {name: part for name, part in now.items() if name != "Parameters"} == {
        name: part for name, part in was.items() if name != "Parameters"
    }
    changed = list(unified_diff(text_of("table").splitlines(), out.splitlines(), n=0, lineterm=""))
    assert len([line for line in changed if line.startswith("+ ")]) == 2


def test_a_parameter_that_had_no_default_gets_one(ratelimit: Command) -> None:
    _, out, _ = ratelimit("deploy", "render", "sidecar", "--image", "registry/it:1", "--app-image", "registry/shop:7")
    parameters = parse(out)["Parameters"]
    assert "Default" not in parse(text_of("sidecar"))["Parameters"]["Image"]
    assert parameters["Image"]["Default"] == "registry/it:1"
    assert parameters["AppImage"]["Default"] == "registry/shop:7"


def test_text_that_means_something_in_yaml_stays_text(ratelimit: Command) -> None:
    quota = r'5/day # "all" \1: {x}'
    _, out, _ = ratelimit("deploy", "render", "sidecar", "--set", f"Quota={quota}")
    assert parse(out)["Parameters"]["Quota"]["Default"] == quota


def test_policies(ratelimit: Command) -> None:
    status, out, _ = ratelimit("deploy", "render", "iam", "--name", "limits", *ACCOUNT)
    assert status == 0
    documents = json.loads(out)
    assert list(documents) == ["serve", "read", "migrate", "operate"]
    assert "${" not in out
    arns = {statement["Resource"] for document in documents.values() for statement in document["Statement"]}
    table = "arn:aws:dynamodb:eu-west-1:123456789012:table/limits"
    assert arns == {table, f"{table}/index/GSI1", f"{table}/index/GSI2"}
    one = ratelimit("deploy", "render", "iam", "--name", "limits", *ACCOUNT, "--role", "serve")
    assert one.json == documents["serve"]


def test_policies_as_the_readme_has_them(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attached in one account, a policy grants nothing in another: there the table's own policy would have to."""
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    status, out, err = ratelimit("deploy", "render", "iam")
    assert (status, err) == (0, "")
    arns = {one["Resource"] for document in json.loads(out).values() for one in document["Statement"]}
    table = "arn:aws:dynamodb:*:*:table/ratelimit"
    assert arns == {table, f"{table}/index/GSI1", f"{table}/index/GSI2"}
    one = ratelimit("deploy", "render", "iam", "--region", "eu-west-1", "--role", "serve")
    assert "arn:aws:dynamodb:eu-west-1:*:table/ratelimit" in one.out


def test_the_region_is_that_of_the_environment(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    _, out, _ = ratelimit("deploy", "render", "iam", "--account", "123456789012", "--partition", "aws-cn")
    assert '"arn:aws-cn:dynamodb:cn-north-1:123456789012:table/ratelimit"' in out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("table", "--name", "a"), "TableName: 'a' does not match"),
        (
            ("table", "--set", "Tablename=limits"),
            "Tablename: the template has no such parameter; did you mean Table",
        ),
        (("table", "--set", "Zebra=1"), "Zebra: the template has no such parameter; there are TableName,"),
        (("table", "--set", "DeletionProtection=no"), "DeletionProtection: unknown value 'no'; use one of true, false"),
        (("table", "--set", "TableName"), "--set: expected PARAMETER=VALUE, not 'TableName'"),
        (("sidecar", "--name", "Shop"), "ServiceName: 'Shop' does not match"),
        (("sidecar", "--set", "UserFrom=a\nb"), "UserFrom: expected one line of text"),
        (("iam", "--region", "eu*"), "--region: expected"),
        (("iam", "--account", "\u0661" * 12), "--account: expected the twelve digits of an AWS account"),
        (("iam", "--account", "12"), "--account: expected the twelve digits of an AWS account, not '12'"),
        (("iam", *ACCOUNT, "--role", "root"), "--role: unknown role 'root'; there are serve, read, migrate, operate"),
        (("iam", *ACCOUNT, "--name", "a*"), "--name: expected 3 to 255"),
    ],
)
def test_bad_input(ratelimit: Command, options: tuple[str, ...], told: str) -> None:
    status, out, err = ratelimit("deploy", "render", *options)
    assert (status, out) == (2, "")
    assert told in err

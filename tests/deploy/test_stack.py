"""The table's template, deployed: a stack that is complete, and a table that `ratelimit table verify` accepts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from botocore.session import Session

from ratelimit import Limiter, Policy
from ratelimit.deploy import template
from ratelimit.dynamodb import DynamoDBStore, Settings, TableSpec, upgrade_table, verify_table
from ratelimit.testing.engines import REGION, Engine, start
from tests.deploy.cloudformation import parse, text_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # seconds here, minutes on a busy machine

# What ministack's CloudFormation leaves out when it makes a table. The template says both: `test_templates.py`.
NOT_IN_MINISTACK = {"expiry", "point-in-time recovery"}
# And the types that it does not know at all.
UNKNOWN_TO_MINISTACK = {
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::EC2::SecurityGroupEgress",
}


@pytest.fixture(scope="module")
def engine_with_stacks() -> Iterator[Engine]:
    with start(environment={"SERVICES": SERVICES}) as engine:
        yield engine


@pytest.mark.parametrize("timeline", [False, True])
async def test_it_makes_the_table(engine_with_stacks: Engine, timeline: bool) -> None:
    name = f"limits-{timeline}".lower()
    text = template("table", {"TableName": name})
    stack = deploy(engine_with_stacks, f"stack-of-{name}", text, TimelineIndex=str(timeline).lower())
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert stack["Resources"] == dict.fromkeys(parse(text_of("table"))["Resources"], "CREATE_COMPLETE")

    settings = Settings(table=name, region=REGION, endpoint=engine_with_stacks.endpoint)
    spec = TableSpec(gsi2=timeline, protected=True)
    differing = {line.name for line in await verify_table(settings, spec) if line.verdict == "differs"}
    assert differing <= NOT_IN_MINISTACK
    await upgrade_table(settings, spec)
    assert {line.verdict for line in await verify_table(settings, spec)} <= {"ok", "not asked for"}


async def test_its_outputs_are_what_the_others_need(engine_with_stacks: Engine) -> None:
    stack = deploy(engine_with_stacks, "shop-table", template("table", {}), TableName="shop-limits")
    exports = {each["ExportName"]: each["OutputValue"] for each in stack["Outputs"] if "ExportName" in each}
    assert exports["shop-table-Store"] == f"dynamodb://shop-limits?region={REGION}"
    assert exports["shop-table-TableArn"].endswith("table/shop-limits")
    assert exports["shop-table-ServePolicyArn"].startswith("arn:aws:iam::")
    settings = Settings(table=exports["shop-table-TableName"], region=REGION, endpoint=engine_with_stacks.endpoint)
    async with Limiter(DynamoDBStore(settings), [Policy("hint", "1/day")]) as limiter:
        assert [(await limiter.check("alice", "hint")).allowed for _ in range(2)] == [True, False]


async def test_the_sidecars_stack_finds_the_tables(engine_with_stacks: Engine) -> None:
    deploy(engine_with_stacks, "ratelimit-table", template("table", {"TableName": "for-the-sidecar"}))
    ec2 = client_of("ec2", engine_with_stacks)
    (vpc, *_), (first, second, *_) = ec2.describe_vpcs()["Vpcs"], ec2.describe_subnets()["Subnets"]
    subnets = f"{first['SubnetId']},{second['SubnetId']}"
    text, resources = without(UNKNOWN_TO_MINISTACK, template("sidecar", {"Image": "ratelimit:1", "AppImage": "shop:7"}))
    stack = deploy(
        engine_with_stacks, "shop", text, VpcId=vpc["VpcId"], LoadBalancerSubnets=subnets, TaskSubnets=subnets
    )
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert stack["Resources"] == dict.fromkeys(resources, "CREATE_COMPLETE")
    ecs = client_of("ecs", engine_with_stacks)
    task = ecs.describe_task_definition(taskDefinition="ratelimit-sidecar")["taskDefinition"]
    ours, theirs = task["containerDefinitions"]
    assert {"name": "RATELIMIT_STORE", "value": f"dynamodb://for-the-sidecar?region={REGION}"} in ours["environment"]
    assert (ours["readonlyRootFilesystem"], ours["user"], theirs["image"]) == (True, "10001:10001", "shop:7")


def without(types: set[str], text: str) -> tuple[str, set[str]]:
    """A template less some types, as JSON; and which of its resources are to come, those with a condition left out."""
    document: dict[str, Any] = parse(text)
    kept = {name: each for name, each in document["Resources"].items() if each["Type"] not in types}
    assert len(kept) < len(document["Resources"])
    for each in kept.values():
        if "DependsOn" in each:
            each["DependsOn"] = [name for name in each["DependsOn"] if name in kept]
    expected = {name for name, each in kept.items() if "Condition" not in each}
    return json.dumps({**document, "Resources": kept}), expected


# CloudFormation on this machine: ministack again, this time with all the services that a stack is made of.


SERVICES: Final = (
    "cloudformation,dynamodb,cloudwatch,monitoring,iam,sts,s3,ec2,ecs,elasticloadbalancing,elasticloadbalancingv2,alb,logs,"
    "secretsmanager"
)
READY_WITHIN: Final = 120.0
_ASKS: Final = 0.1


def deploy(engine: Engine, name: str, template: str, **parameters: str) -> dict[str, Any]:
    """Create a stack, and wait for what becomes of it: what CloudFormation says of it then."""
    client = client_of("cloudformation", engine)
    client.create_stack(
        StackName=name,
        TemplateBody=template,
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    until = time.monotonic() + READY_WITHIN
    while time.monotonic() < until:
        (stack,) = client.describe_stacks(StackName=name)["Stacks"]
        if not stack["StackStatus"].endswith("_IN_PROGRESS"):
            resources = client.describe_stack_resources(StackName=name)["StackResources"]
            return {**stack, "Resources": {each["LogicalResourceId"]: each["ResourceStatus"] for each in resources}}
        time.sleep(_ASKS)
    raise AssertionError(f"the stack was not there within {READY_WITHIN:.0f} s\n{engine.log_since(0)}")


def client_of(service: str, engine: Engine) -> Any:
    """botocore's own, which is enough for a test."""
    return Session().create_client(service, region_name=REGION, endpoint_url=engine.endpoint)

"""CloudFormation on this machine: ministack again, this time with all the services that a stack is made of."""

from __future__ import annotations

import time
from typing import Any, Final

from botocore.session import Session

from ratelimit.testing.engines import REGION, Engine

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

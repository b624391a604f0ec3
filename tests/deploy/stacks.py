"""CloudFormation on this machine: ministack again, this time with all the services that a stack is made of."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from botocore.session import Session

from loadtest.engines import REGION, Engine, ministack
from tests.http.authz.gateways import free_port

SERVICES: Final = (
    "cloudformation,dynamodb,cloudwatch,monitoring,iam,sts,s3,ec2,ecs,elasticloadbalancing,elasticloadbalancingv2,alb,logs,"
    "secretsmanager"
)
READY_WITHIN: Final = 120.0
_LEASH: Final = Path(ministack.__file__).with_name("leash.py")
_ASKS: Final = 0.1


@contextmanager
def cloud(scratch: Path) -> Iterator[Engine]:
    """Running, and gone afterwards, as an engine of the suite is."""
    port = free_port()
    engine = Engine("ministack", f"http://127.0.0.1:{port}", scratch / "cloud.log")
    environment = ministack.environment(port, scratch) | {"SERVICES": SERVICES}
    assert engine.log is not None
    with engine.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(_LEASH), *ministack.command(port)],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=scratch, env=environment,
        )  # fmt: skip
    try:
        _until_it_answers(engine)
        yield engine
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(READY_WITHIN)


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


def _until_it_answers(engine: Engine) -> None:
    until = time.monotonic() + READY_WITHIN
    while True:
        try:
            engine.call("ListTables", {})
        except OSError as error:
            if time.monotonic() > until:
                raise AssertionError(f"ministack did not start: {error}\n{engine.log_since(0)}") from error
            time.sleep(_ASKS)
        else:
            return

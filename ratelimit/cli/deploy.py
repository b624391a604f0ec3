"""`ratelimit deploy render …`: what goes to AWS, printed with one's own names; what goes to Grafana and Prometheus."""

from __future__ import annotations

import os
from typing import Annotated, TypeAlias

import typer

from ratelimit.cli.output import say_json
from ratelimit.deploy import ROLES, Template, alert_rules, dashboard, policies, template
from ratelimit.errors import ConfigError

app = typer.Typer(help="What goes to AWS, Grafana and Prometheus.")
render = typer.Typer(help="Print a template or a policy, with your own names in it.")
app.add_typer(render, name="render")

SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PARAMETER=VALUE", help="The default of any of its parameters; may be repeated."),
]


@render.command()
def table(
    name: Annotated[str | None, typer.Option(metavar="TABLE", help="The table's name; by default ratelimit.")] = None,
    settings: SetOption = None,
) -> None:
    """The table as a CloudFormation template: with its roles' policies, alarms and a dashboard.

    Examples:

        ratelimit deploy render table --name limits > table.yaml

        aws cloudformation deploy --stack-name limits --template-file table.yaml --capabilities CAPABILITY_IAM
    """
    _print("table", {"TableName": name}, settings)


@render.command()
def global_table(
    name: Annotated[str | None, typer.Option(metavar="TABLE", help="The table's name; by default ratelimit.")] = None,
    settings: SetOption = None,
) -> None:
    """The table with replicas in other regions as a CloudFormation template, to be deployed in one of them.

    Example:

        ratelimit deploy render global-table --name limits --set SecondRegion=us-east-1 > global-table.yaml
    """
    _print("global-table", {"TableName": name}, settings)


@render.command()
def sidecar(
    name: Annotated[str | None, typer.Option(metavar="SERVICE", help="Of the service and its cluster.")] = None,
    image: Annotated[str | None, typer.Option(help="The sidecar's image, built from deploy/Dockerfile.")] = None,
    app_image: Annotated[str | None, typer.Option(help="Of the service behind it; none for the API alone.")] = None,
    table_stack: Annotated[str | None, typer.Option(metavar="STACK", help="The stack that has the table.")] = None,
    settings: SetOption = None,
) -> None:
    """The sidecar on ECS Fargate as a CloudFormation template: load balancer, tasks, roles, scaling, logs, secrets.

    Example:

        ratelimit deploy render sidecar --name shop --image my-registry/ratelimit:1 --app-image my-registry/shop:7
    """
    names = {"ServiceName": name, "Image": image, "AppImage": app_image, "TableStack": table_stack}
    _print("sidecar", names, settings)


@render.command()
def iam(
    name: Annotated[str, typer.Option(metavar="TABLE", help="The table's name.")] = "ratelimit",
    account: Annotated[
        str, typer.Option(metavar="DIGITS", help="The AWS account that has it; by default the one that has the policy.")
    ] = "*",
    region: Annotated[str | None, typer.Option(help="By default AWS_REGION, or else any.")] = None,
    partition: Annotated[str, typer.Option(help="aws, aws-cn or aws-us-gov.")] = "aws",
    role: Annotated[str | None, typer.Option(help=f"Only one: {', '.join(ROLES)}.")] = None,
) -> None:
    """The IAM policies, one JSON document: of one role, or of all by their names.

    Examples:

        ratelimit deploy render iam

        ratelimit deploy render iam --name limits --account 123456789012 --region eu-west-1

        ratelimit deploy render iam --name limits --account 123456789012 --role serve > serve.json
    """
    where = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "*"
    found = policies(table=name, region=where, account=account, partition=partition)
    if role is None:
        say_json(found)
        return
    for known, document in found.items():
        if role == known:
            say_json(document)
            return
    raise ConfigError("--role", f"unknown role {role!r}; there are {', '.join(ROLES)}")


@render.command()
def grafana() -> None:
    """The Grafana dashboard of the metrics, as JSON to import; it asks which Prometheus has them.

    Example:

        ratelimit deploy render grafana > ratelimit-dashboard.json
    """
    say_json(dashboard())


@render.command()
def alerts() -> None:
    """Alert rules for Prometheus, on the same metrics.

    Example:

        ratelimit deploy render alerts > ratelimit-alerts.yaml
    """
    typer.echo(alert_rules(), nl=False)


def _print(which: Template, names: dict[str, str | None], settings: list[str] | None) -> None:
    """`--set` goes over the options with a name of their own."""
    defaults = {parameter: value for parameter, value in names.items() if value is not None}
    for setting in settings or ():
        parameter, equals, value = setting.partition("=")
        if not equals or not parameter:
            raise ConfigError("--set", f"expected PARAMETER=VALUE, not {setting!r}")
        defaults[parameter] = value
    typer.echo(template(which, defaults), nl=False)

"""`ratelimit deploy render`: one's own names in, everything else as it was; a name that cannot be is said."""

from __future__ import annotations

import json
from difflib import unified_diff

import pytest

from ratelimit.deploy import TEMPLATES
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.deploy.cloudformation import parse, text_of

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

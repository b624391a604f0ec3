"""The IAM policies in `iam/`: one for each role, with only what the code asks of DynamoDB in it.

`serve`    the middleware and the sidecar, and the commands that change what is in the table.
`read`     reports, exports, and how the table stands.
`migrate`  `ratelimit migrate`, on the table that is read and on the one that is filled.
`operate`  the table's own life: created, verified, upgraded, deleted. Reads no item.

There is no action for `TransactWriteItems`: AWS asks for those of its parts (`PutItem`, `UpdateItem`, `DeleteItem`).
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any, Final, Literal, TypeAlias, get_args

from ratelimit.errors import ConfigError

Role: TypeAlias = Literal["serve", "read", "migrate", "operate"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)

_FORMS: Final = {
    "table": (r"[A-Za-z0-9_.-]{3,255}", "3 to 255 of letters, digits, '_', '-', '.'"),
    "region": (r"[a-z0-9]+(-[a-z0-9]+)+|\*", "as in eu-west-1"),
    "account": (r"\d{12}|\*", "the twelve digits of an AWS account"),
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

"""What is asked of DynamoDB where the engines are more lenient than it is."""

from __future__ import annotations

from typing import Any

from ratelimit.dynamodb import Settings, TableSpec, upgrade_table, verify_table
from tests.dynamodb.tables import index, keys, strings
from tests.faults import FaultServer, TinyTable

UNITS = {"ReadCapacityUnits": 8, "WriteCapacityUnits": 9}


class Told(TinyTable):
    """A table as described, which remembers what it is asked to change and never changes."""

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.description = {
            "TableStatus": "ACTIVE",
            "TableArn": "arn:aws:dynamodb:eu-west-1:000000000000:table/limits",
            "AttributeDefinitions": strings("PK", "SK", "GSI1PK", "GSI1SK"),
            "KeySchema": keys("PK", "SK"),
            **description,
        }
        self.changes: list[dict[str, Any]] = []
        self.tags = [{"Key": f"tag-{n}", "Value": str(n)} for n in range(25)]

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "DescribeTable":
                return {"Table": self.description}
            case "DescribeTimeToLive":
                return {"TimeToLiveDescription": {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}}
            case "ListTagsOfResource":
                start = int(body.get("NextToken", "0"))
                more = {"NextToken": str(start + 10)} if start + 10 < len(self.tags) else {}
                return {"Tags": self.tags[start : start + 10], **more}
            case "UpdateTable":
                self.changes.append(body)
        return {}


async def upgraded(table: Told, spec: TableSpec) -> list[dict[str, Any]]:
    async with FaultServer() as server:
        server.table = table
        await upgrade_table(Settings(table="limits", endpoint=server.endpoint), spec)
    return [{name: value for name, value in change.items() if name != "TableName"} for change in table.changes]


async def test_a_table_that_turns_to_units_needs_them_for_its_indexes_too() -> None:
    table = Told(
        BillingModeSummary={"BillingMode": "PAY_PER_REQUEST"},
        GlobalSecondaryIndexes=[index("GSI1", "GSI1PK", "GSI1SK")],
    )
    spec = TableSpec(recovery=False, billing="provisioned", read=8, write=9)
    assert await upgraded(table, spec) == [
        {
            "BillingMode": "PROVISIONED",
            "ProvisionedThroughput": UNITS,
            "GlobalSecondaryIndexUpdates": [
                {
                    "Update": {
                        "IndexName": "GSI1",
                        "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
                    }
                }
            ],
        }
    ]


async def test_other_units_leave_the_indexes_alone() -> None:
    table = Told(
        BillingModeSummary={"BillingMode": "PROVISIONED"},
        ProvisionedThroughput={"ReadCapacityUnits": 1, "WriteCapacityUnits": 1},
        GlobalSecondaryIndexes=[index("GSI1", "GSI1PK", "GSI1SK")],
    )
    spec = TableSpec(recovery=False, billing="provisioned", read=8, write=9)
    assert await upgraded(table, spec) == [{"BillingMode": "PROVISIONED", "ProvisionedThroughput": UNITS}]


async def test_a_new_index_has_units_on_a_provisioned_table_only() -> None:
    created = {
        "IndexName": "GSI1",
        "KeySchema": keys("GSI1PK", "GSI1SK"),
        "Projection": {"ProjectionType": "ALL"},
    }
    definitions = strings("PK", "SK", "GSI1PK", "GSI1SK")
    on_demand = Told(BillingModeSummary={"BillingMode": "PAY_PER_REQUEST"})
    assert await upgraded(on_demand, TableSpec(recovery=False)) == [
        {"AttributeDefinitions": definitions, "GlobalSecondaryIndexUpdates": [{"Create": created}]}
    ]
    # One that never was on demand does not say how it is billed.
    provisioned = Told(ProvisionedThroughput={**UNITS, "NumberOfDecreasesToday": 0})
    assert await upgraded(provisioned, TableSpec(recovery=False, billing="provisioned")) == [
        {
            "AttributeDefinitions": definitions,
            "GlobalSecondaryIndexUpdates": [{"Create": created | {"ProvisionedThroughput": UNITS}}],
        }
    ]


async def test_tags_come_in_pages() -> None:
    async with FaultServer() as server:
        server.table = Told()
        spec = TableSpec(tags={f"tag-{n}": str(n) for n in range(25)})
        lines = await verify_table(Settings(table="limits", endpoint=server.endpoint), spec)
    assert {line.verdict for line in lines if line.part == "tag"} == {"ok"}
    assert server.received["ListTagsOfResource"] == 3

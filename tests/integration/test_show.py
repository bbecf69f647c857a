"""`show` and `parked`: the story of one thing, in the contract's shapes, and in tables that a person can read."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.show import restored
from tests.integration.desk import (
    CUSTOMER,
    CUSTOMERS,
    DAY,
    ISSUES,
    NOW,
    ORG,
    REDEMPTIONS,
    RETURNS,
    Data,
    Desk,
    Published,
)

PHONE = {"type": "PHONE", "value": "+65 9123 4567"}
REFUSAL = {"topic", "partition", "offset", "idempotencyKey", "code", "name", "message", "failedAt"}


class Story:
    """A customer whose order was returned in parts, with what was published of it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.outcomes: list[Published] = []

    async def fill(self) -> None:
        desk = self.desk
        await desk.take_in(
            CUSTOMERS, {"customerId": CUSTOMER, "identifiers": [PHONE], "lockedUntil": "2026-01-01T00:00:00Z"}
        )
        await desk.lot("A", 100, 0, expires_at=NOW - DAY)
        await desk.lot("B", 60, 20)
        await desk.put("program", org_id=ORG, program_id="vip")
        await desk.lot("V", 7.5, program_id="vip", expires_at=NOW + DAY)
        await desk.redemption("R-1", 140, ("A", 100), ("B", 40), order_id="SO-1")
        await desk.redemption("R-2", 30, order_id="SO-1", type="UNIT_BASED", quantity=3, reward_id="W")
        await desk.put("reward", org_id=ORG, reward_id="W", max_total=10, redeemed_count=5, status="ACTIVE")
        self.outcomes = await desk.take_in(
            RETURNS,
            {"orderId": "SO-1", "idempotencyKey": "ambiguous"},
            {"redemptionId": "R-1", "pointsToBeReversed": "50", "idempotencyKey": "K-1", "identifier": PHONE},
            {"redemptionId": "R-1", "pointsToBeReversed": "91", "idempotencyKey": "K-2"},
            {"redemptionId": "R-1", "orderId": "SO-1", "pointsToBeReversed": "10.5", "idempotencyKey": "K-3"},
            {"redemptionId": "R-2", "quantity": 1, "idempotencyKey": "K/4"},
            {"redemptionId": "R-9", "orderId": "SO-1", "idempotencyKey": "K-5"},
        )

    def published(self, index: int) -> Data:
        return self.outcomes[index].document

    async def call(self, *words: str) -> Result:
        """What the command line answers; it has an event loop of its own, and the test's frozen clock."""
        environment = {"REVERSAL_DATABASE_URL": self.desk.database_url, "REVERSAL_TEST_CLOCK": NOW.isoformat()}
        return await asyncio.to_thread(
            CliRunner(env={**environment, "COLUMNS": "200"}).invoke, app, list(words), catch_exceptions=False
        )

    async def show(self, *words: str) -> Data:
        result = await self.call("show", *words, "--org", str(ORG), "--json")
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert isinstance(document, dict)
        return document


@pytest.fixture
async def story(desk: Desk) -> Story:
    story = Story(desk)
    await story.fill()
    return story


def names(refusals: list[Data]) -> list[str]:
    return [one["name"] for one in refusals]


async def test_a_reversal_is_shown_as_published(story: Story) -> None:
    published = story.published(1)
    for name in (published["reversalId"], "K-1"):
        result = await story.call("show", "reversal", name, "--org", str(ORG), "--json")
        assert result.stdout.encode() == (story.outcomes[1].value or b"") + b"\n"
    assert (await story.show("reversal", "K/4"))["quantity"] == 1


async def test_a_redemption(story: Story) -> None:
    document = await story.show("redemption", "R-1")
    assert {name: value for name, value in document.items() if name not in ("reversals", "refusals")} == {
        "redemptionId": "R-1", "orderId": "SO-1", "customerId": CUSTOMER, "programId": "main", "type": "RAW",
        "points": "140", "reversed": "60.5", "remaining": "79.5", "quantity": None,
        "lots": [{"lotId": "A", "points": "100", "restored": "20.5"}, {"lotId": "B", "points": "40", "restored": "40"}],
    }  # fmt: skip
    assert document["reversals"] == [story.published(1), story.published(3)]
    [refusal] = document["refusals"]
    assert refusal == {
        "topic": RETURNS, "partition": 0, "offset": 2, "idempotencyKey": "K-2", "code": 817, "name": "insufficient_points",
        "message": story.published(2)["errors"][0]["message"], "failedAt": story.published(2)["failedAt"],
    }  # fmt: skip


async def test_a_redemption_by_units(story: Story) -> None:
    document = await story.show("redemption", "R-2")
    assert (document["type"], document["quantity"], document["reversed"], document["lots"]) == (
        "UNIT_BASED",
        3,
        "10",
        [],
    )


async def test_an_order(story: Story) -> None:
    document = await story.show("order", "SO-1")
    assert list(document) == ["orderId", "redemptions", "refusals"]
    assert document["redemptions"] == [await story.show("redemption", "R-1"), await story.show("redemption", "R-2")]
    assert all(one.keys() == REFUSAL for one in document["refusals"])
    assert names(document["refusals"]) == ["ambiguous_order", "insufficient_points", "redemption_not_found"]


async def test_an_order_that_only_was_refused_has_a_story_too(story: Story) -> None:
    await story.desk.take_in(RETURNS, {"orderId": "SO-7"})
    document = await story.show("order", "SO-7")
    assert (document["redemptions"], names(document["refusals"])) == ([], ["redemption_not_found"])


async def test_a_customer(story: Story) -> None:
    document = await story.show("customer", str(CUSTOMER))
    assert {name: value for name, value in document.items() if name not in ("reversals", "refusals", "lots")} == {
        "customerId": CUSTOMER, "status": "active", "lockedUntil": "2026-01-01T00:00:00Z", "identifiers": [PHONE],
        "sequence": await story.desk.sequence(), "balances": {"main": "70", "vip": "7.5"},
    }  # fmt: skip
    [restored_lot] = [lot for lot in document["lots"] if lot["lotId"] not in "ABV"]  # R-2 kept no lots
    assert {lot["lotId"]: lot for lot in document["lots"]} == {
        "A": {"lotId": "A", "programId": "main", "points": "100", "remaining": "20.5", "expiresAt": "2026-11-19T01:30:02.123456Z",
              "expired": True},
        "B": {"lotId": "B", "programId": "main", "points": "60", "remaining": "60", "expiresAt": None, "expired": False},
        "V": {"lotId": "V", "programId": "vip", "points": "7.5", "remaining": "7.5", "expiresAt": "2026-11-21T01:30:02.123456Z",
              "expired": False},
        restored_lot["lotId"]: {**restored_lot, "points": "10", "remaining": "10", "expired": False},
    }  # fmt: skip
    assert document["reversals"] == [story.published(index) for index in (1, 3, 4)]
    assert {"insufficient_points"} <= set(names(document["refusals"]))


async def test_of_a_customer_the_latest_decisions_are_shown(story: Story) -> None:
    document = await story.show("customer", str(CUSTOMER), "--latest", "1")
    assert document["reversals"] == [story.published(4)]
    assert len(document["refusals"]) == 1


@pytest.mark.parametrize("name", ["PHONE:(65) 9123-4567", f"ID:{CUSTOMER}"])
async def test_a_customer_can_be_named_by_an_identifier(story: Story, name: str) -> None:
    assert (await story.show("customer", name))["customerId"] == CUSTOMER


async def test_a_reward(story: Story) -> None:
    assert await story.show("reward", "W") == {"rewardId": "W", "maxTotal": 10, "redeemedCount": 4, "status": "ACTIVE"}


async def test_the_tables_tell_the_same(story: Story) -> None:
    told: dict[str, tuple[str, ...]] = {
        "reversal K-1": (
            "R-1",
            "50 (40 available, 10 expired)",
            "+65 9123 4567",
            "order returned",
            "B ",
            "never",
            "expired",
        ),
        "redemption R-1": ("60.5", "79.5", "consumed", "K-3", "insufficient_points", "order.returned/0@2", "91"),
        "redemption R-2": ("30, 3 units", "none were kept"),
        "order SO-1": ("2 redemptions", "R-1", "R-2", "ambiguous_order", "K-1", "K/4"),
        f"customer {CUSTOMER}": (
            "active",
            "PHONE +65 9123 4567",
            "main",
            "70",
            "vip",
            "7.5",
            "2026-11-21T01:30:02.123456Z",
        ),
        "reward W": ("ACTIVE", "4", "10"),
    }
    for command, texts in told.items():
        result = await story.call("show", *command.split(), "--org", str(ORG))
        assert result.exit_code == 0, result.output
        assert [text for text in texts if text not in result.stdout] == [], result.stdout


async def test_what_is_not_there_is_1_and_told(story: Story) -> None:
    told = {
        "reversal K-0": f"org {ORG} has no reversal K-0, nor a reversal with that idempotency key",
        f"reversal {uuid4()}": "has no reversal",
        "redemption R-0": f"org {ORG} has no redemption R-0",
        "order SO-0": f"org {ORG} has no order SO-0",
        "customer 7": f"org {ORG} has no customer 7",
        "customer 99999999999999999999": "has no customer 99999999999999999999",
        "customer PHONE:1": "has no customer PHONE:1",
        "reward W-0": f"org {ORG} has no reward W-0",
    }
    for command, words in told.items():
        result = await story.call("show", *command.split(), "--org", str(ORG))
        assert (result.exit_code, result.stdout) == (1, ""), command
        assert words in result.stderr
    result = await story.call("show", "order", "SO-1", "--org", "7")
    assert result.exit_code == 1
    assert "org 7 is not known" in result.stderr


async def test_a_customer_named_in_no_known_way_is_2(story: Story) -> None:
    result = await story.call("show", "customer", "ann", "--org", str(ORG))
    assert result.exit_code == 2
    assert "an identifier such as PHONE:+6591234567" in result.stderr


def test_what_was_restored_follows_from_what_was_given_back() -> None:
    assert [restored([100, 60, 40], back) for back in (0, 50, 125, 200)] == [
        [0, 0, 0], [0, 10, 40], [25, 60, 40], [100, 60, 40],
    ]  # fmt: skip
    assert restored([], 70) == []


async def test_what_waits_is_listed_oldest_first(story: Story) -> None:
    desk = story.desk
    await desk.rules(park_unknown_seconds=90)
    await desk.take_in(RETURNS, {"redemptionId": "R-X", "pointsToBeReversed": "1"})
    await desk.take_in(REDEMPTIONS, {"customerId": 7, "redemptionId": "R-7", "points": "5"})
    await desk.take_in(ISSUES, {"customerId": 8, "lotId": "L-8", "points": "5", "programId": "none"})
    result = await story.call("parked", "list", "--json")
    document = json.loads(result.stdout)
    assert document["waiting"] == 3
    listed: dict[str, Any] = {one["kind"]: one for one in document["parked"]}
    assert listed[RETURNS] == {
        "topic": RETURNS, "partition": 0, "offset": 6, "kind": RETURNS, "orgId": ORG, "customerId": None,
        "redemptionId": "R-X", "orderId": None, "waitsFor": listed[RETURNS]["waitsFor"],
        "parkedAt": "2026-11-20T01:30:02.123456Z", "deadline": "2026-11-20T01:31:32.123456Z",
    }  # fmt: skip
    assert listed[REDEMPTIONS]["customerId"] == 7
    assert "none" in listed[ISSUES]["waitsFor"]
    table = (await story.call("parked", "list", "--rows", "2")).stdout
    assert "and 1 more" in table
    assert "redemption R-X" in table
    assert (await story.call("parked", "list", "--org", "7")).stdout.strip() == "nothing waits"


async def test_the_audit_of_a_sound_ledger_is_0(story: Story) -> None:
    result = await story.call("audit", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["ok"] is True
    assert [one["broken"] for one in document["checks"]] == [[]] * 8
    assert "all 8 invariants hold" in (await story.call("audit")).stdout


async def test_the_audit_of_a_broken_one_is_1_and_names_the_row(story: Story) -> None:
    await story.desk.pool.execute("update lot set remaining = remaining - 1000 where lot_id = 'B'")
    try:
        result = await story.call("audit", "--org", str(ORG))
        assert result.exit_code == 1
        assert f"orgId {ORG}, lotId B: holds 59 points, but its postings sum to 60" in result.stdout
        assert "1 of 8 invariants are broken" in result.stdout
        document = json.loads((await story.call("audit", "--json")).stdout)
        assert document["ok"] is False
        assert [one["name"] for one in document["checks"] if one["broken"]] == ["balances"]
    finally:
        await story.desk.pool.execute("update lot set remaining = remaining + 1000 where lot_id = 'B'")


async def test_a_database_that_is_not_migrated_is_1_and_told(story: Story) -> None:
    await story.desk.pool.execute("alter table schema_migration rename to hidden")
    try:
        result = await story.call("audit")
        assert result.exit_code == 1
        assert "run: points-reversal migrate" in result.stderr
    finally:
        await story.desk.pool.execute("alter table hidden rename to schema_migration")

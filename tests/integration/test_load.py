"""Bulk load (contract, "Command line"): good lines become the ledger, faulty ones are named, and nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from service import load as bulk
from service.failures import Misused
from service.load import LineFault, Summary, load
from tests.integration.desk import CUSTOMER, CUSTOMERS, NOW, ORG, REDEMPTIONS, RETURNS, Data, Desk
from tests.stack import eventually

Line = Data | str
SPRING = "2026-03-01T00:00:00Z"
SUMMER = "2026-07-01T00:00:00Z"
DROP = object()


def org(**fields: Any) -> Data:
    return {"kind": "org", "orgId": ORG, **fields}


def program(program_id: str = "main", **fields: Any) -> Data:
    return {"kind": "program", "orgId": ORG, "programId": program_id, **fields}


def customer(customer_id: int = CUSTOMER, **fields: Any) -> Data:
    return {"kind": "customer", "orgId": ORG, "customerId": customer_id, **fields}


def lot(lot_id: str, points: str, **fields: Any) -> Data:
    return {"kind": "lot", "orgId": ORG, "customerId": CUSTOMER, "lotId": lot_id, "points": points, **fields}


def redemption(redemption_id: str, points: str, *lots: tuple[str, str], **fields: Any) -> Data:
    line = {"kind": "redemption", "orgId": ORG, "customerId": CUSTOMER, "redemptionId": redemption_id, "points": points}
    if lots:
        line["lots"] = [{"lotId": lot_id, "points": taken} for lot_id, taken in lots]
    return {**line, **fields}


def reward(reward_id: str, **fields: Any) -> Data:
    return {"kind": "reward", "orgId": ORG, "rewardId": reward_id, **fields}


def phone(value: str) -> Data:
    return {"type": "PHONE", "value": value}


class Loader:
    """Loads lines into the test's database."""

    def __init__(self, connection: asyncpg.Connection, directory: Path) -> None:
        self.connection = connection
        self.path = directory / "lines.jsonl"
        self.rejected = directory / "rejected.jsonl"

    def write(self, *lines: Line) -> None:
        self.path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))

    async def load(self, *lines: Line, **options: Any) -> Summary:
        """What becomes of the lines; they must leave a sound staging for the next load on another session."""
        await asyncio.to_thread(self.write, *lines)
        await self.connection.execute("discard temp")
        return await load(self.connection, self.path, **options)

    async def good(self, *lines: Line, **options: Any) -> Summary:
        summary = await self.load(*lines, **options)
        assert summary.booked, summary.faults
        assert summary.faulty_lines == 0, summary.faults
        return summary

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.fetch(statement)]


@pytest.fixture
async def loader(desk: Desk, tmp_path: Path) -> AsyncIterator[Loader]:
    """On the desk's database, which has ORG and its program main, and which is audited at the end."""
    connection = await asyncpg.connect(desk.database_url)
    yield Loader(connection, tmp_path)
    await connection.close()


async def test_what_a_line_leaves_out_takes_the_mildest_default(loader: Loader) -> None:
    await loader.good(
        {"kind": "org", "orgId": 5}, {"kind": "program", "orgId": 5, "programId": "p"},
        {"kind": "customer", "orgId": 5, "customerId": 1}, {"kind": "reward", "orgId": 5, "rewardId": "w"},
        {"kind": "lot", "orgId": 5, "customerId": 2, "lotId": "l", "points": "10"},
        {"kind": "redemption", "orgId": 5, "customerId": 3, "redemptionId": "r", "points": 4.5},
        moment=NOW,
    )  # fmt: skip
    assert await loader.rows("select reversal_enabled from org where org_id = 5") == [(True,)]
    [rules] = await loader.connection.fetch("select * from program where org_id = 5")
    assert dict(rules) == {
        "org_id": 5, "program_id": "p", "is_default": False, "live": True, "decimals": 3, "reversal_allowed": True,
        "allow_partial": True, "reversal_window_days": None, "minimum_points": 0, "max_reversals_count": None,
        "max_reversals_days": None, "expired_lots_policy": "keep", "grace_days": None, "park_unknown_seconds": 0,
    }  # fmt: skip
    # A customer is created by its first mention; the org's only program is its default.
    assert await loader.rows("select customer_id, status from customer where org_id = 5 order by 1") == [
        (1, "active"), (2, "active"), (3, "active"),
    ]  # fmt: skip
    assert await loader.rows("select max_total, redeemed_count, status from reward") == [(None, 0, "ACTIVE")]
    assert await loader.rows("select program_id, points, remaining, expires_at, issued_at from lot") == [
        ("p", 10_000, 10_000, None, NOW)
    ]
    assert await loader.rows("select program_id, type, points, reversed, redeemed_at, lot_ids from redemption") == [
        ("p", "RAW", 4_500, 0, NOW, [])
    ]


async def test_every_field_of_a_line_is_kept(loader: Loader) -> None:
    await loader.good(
        org(reversalEnabled=False),
        program("vip", default=False, live=False, decimals=1, reversalAllowed=False, allowPartial=False,
                reversalWindowDays=30, minimumPoints="2.5", maxReversals={"count": 3, "days": 7},
                expiredLots={"policy": "extend", "graceDays": 14}, parkUnknownSeconds=60),
        customer(status="fraud", lockedUntil=SUMMER, identifiers=[phone("+65 9123-4567")], updatedAt=SPRING),
        reward("W", maxTotal=10, redeemedCount=4, status="INACTIVE"),
        lot("L", "100", remaining="40.125", programId="vip", expiresAt=SUMMER, issuedAt=SPRING),
        redemption("R", "60", ("L", "59.875"), ("M", "0.125"), orderId="SO", programId="vip", type="UNIT_BASED",
                   rewardId="W", quantity=3, reversed="20.5", reversedQuantity=1, redeemedAt=SPRING),
        {"kind": "lot", "org_id": ORG, "customer_id": str(CUSTOMER) and CUSTOMER, "lot_id": "M", "points": "1",
         "remaining": "0.875", "program_id": "vip"},
    )  # fmt: skip
    spring, summer = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
    assert await loader.rows("select reversal_enabled from org") == [(False,)]
    [rules] = await loader.rows("select * from program where program_id = 'vip'")
    assert rules == (ORG, "vip", False, False, 1, False, False, 30, 2_500, 3, 7, "extend", 14, 60)
    assert await loader.rows("select status, locked_until, updated_at from customer") == [("fraud", summer, spring)]
    assert await loader.rows("select type, lookup, value, customer_id from identifier") == [
        ("PHONE", "6591234567", "+65 9123-4567", CUSTOMER)
    ]
    assert await loader.rows("select max_total, redeemed_count, status from reward") == [(10, 4, "INACTIVE")]
    assert await loader.rows("select lot_id, points, remaining, expires_at from lot order by 1") == [
        ("L", 100_000, 40_125, summer), ("M", 1_000, 875, None),
    ]  # fmt: skip
    [row] = await loader.connection.fetch("select * from redemption")
    assert dict(row) == {
        "org_id": ORG, "redemption_id": "R", "customer_id": CUSTOMER, "program_id": "vip", "order_id": "SO",
        "type": "UNIT_BASED", "points": 60_000, "reversed": 20_500, "imported_reversed": 20_500, "quantity": 3,
        "reversed_quantity": 1, "imported_reversed_quantity": 1, "reward_id": "W", "redeemed_at": spring,
        "lot_ids": ["L", "M"], "lot_points": [59_875, 125],
    }  # fmt: skip


async def test_imports_are_journalled_against_opening(loader: Loader) -> None:
    await loader.good(
        lot("L", "100", remaining="40"), lot("EMPTY", "10", remaining="0"), redemption("R", "60", reversed="20"),
        redemption("DONE", "5", reversed="5"),
    )  # fmt: skip
    assert await loader.rows("select kind, redemption_id, accounts, subjects, points from journal order by points") == [
        ("import", None, ["opening", "held"], ["main", "L"], [-40_000, 40_000]),
        ("import", "R", ["redeemed", "opening"], ["R", "main"], [40_000, -40_000]),
    ]
    [(ids, versions)] = await loader.rows(
        "select count(distinct entry_id), array_agg(distinct substr(entry_id::text, 15, 1)) from journal"
    )
    assert (ids, versions) == (2, ["7"])


async def test_the_order_of_the_lines_does_not_matter(loader: Loader) -> None:
    lines: list[Line] = [
        {"kind": "org", "orgId": 6}, {"kind": "program", "orgId": 6, "programId": "a"},
        {"kind": "program", "orgId": 6, "programId": "b", "default": True},
        {"kind": "lot", "orgId": 6, "customerId": 1, "lotId": "L", "points": "5", "remaining": "0"},
        {"kind": "redemption", "orgId": 6, "customerId": 1, "redemptionId": "R", "points": "5",
         "lots": [{"lotId": "L", "points": "5"}]},
    ]  # fmt: skip
    await loader.good(*reversed(lines))
    assert await loader.rows("select program_id from lot union all select program_id from redemption") == [("b",), ("b",)]


async def test_a_loaded_redemption_is_given_back_as_the_contract_s_example_says(desk: Desk, loader: Loader) -> None:
    desk.set_clock(NOW)
    await loader.good(
        lot("A", "100", remaining="0", expiresAt=SPRING), lot("B", "60", remaining="0"),
        lot("C", "40", remaining="0"), redemption("R", "200", ("A", "100"), ("B", "60"), ("C", "40")),
    )  # fmt: skip
    splits = []
    for points in ("50", "75", "80", None):
        asked = {"pointsToBeReversed": points} if points else {}
        outcome = await desk.ask(redemptionId="R", idempotencyKey=str(points), **asked)
        splits.append(outcome.document.get("pointsReversedDetails") or outcome.refusal)
    assert splits == [
        {"available": "50", "expired": "0"}, {"available": "50", "expired": "25"}, "insufficient_points",
        {"available": "0", "expired": "75"},
    ]  # fmt: skip
    assert await desk.held() == {"A": 100, "B": 60, "C": 40}


async def test_what_was_given_back_before_the_import_is_not_given_back_again(desk: Desk, loader: Loader) -> None:
    await loader.good(
        lot("A", "100", remaining="0"), lot("B", "60", remaining="50"),
        redemption("R", "160", ("A", "100"), ("B", "60"), reversed="50"),
    )  # fmt: skip
    outcome = await desk.ask(redemptionId="R", pointsToBeReversed="20")
    assert [(one["lotId"], one["points"]) for one in outcome.document["lots"]] == [("B", "10"), ("A", "10")]
    assert outcome.document["redemption"] == {"points": "160", "reversed": "70", "remaining": "90"}


WHOLE = (
    org(), program(decimals=2), program("vip", expiredLots={"policy": "extend", "graceDays": 5}),
    customer(identifiers=[phone("91234567")], status="active"), reward("W", maxTotal=3, redeemedCount=3, status="OUT_OF_STOCK"),
    lot("A", "100", remaining="0", expiresAt=SPRING), lot("B", "60", remaining="20"),
    redemption("R", "140", ("A", "100"), ("B", "40"), orderId="SO"),
    redemption("U", "30", type="UNIT_BASED", quantity=3, rewardId="W"),
)  # fmt: skip


async def test_a_second_run_changes_nothing(desk: Desk, loader: Loader) -> None:
    first = await loader.good(*WHOLE, moment=NOW)
    assert first.changed == {
        "org": 0, "program": 2, "customer": 1, "identifier": 1, "reward": 1, "lot": 2, "redemption": 2,
    }  # fmt: skip
    before = await desk.ledger()
    second = await loader.good(*WHOLE)
    assert set(second.changed.values()) == {0}
    assert await desk.ledger() == before


async def test_nor_does_it_after_returns(desk: Desk, loader: Loader) -> None:
    await loader.good(*WHOLE)
    await desk.ask(redemptionId="R", pointsToBeReversed="50.5")
    await desk.ask(redemptionId="U", quantity=2)  # the reward is in stock again
    await desk.ask(redemptionId="R", pointsToBeReversed="1000")
    before = await desk.ledger()
    assert before["reward"] == [(ORG, "W", 3, 1, "ACTIVE")]
    second = await loader.good(*WHOLE)
    assert set(second.changed.values()) == {0}
    assert await desk.ledger() == before


async def test_lines_that_stand_twice_count_once(desk: Desk, loader: Loader) -> None:
    await loader.good(*WHOLE, *WHOLE, redemption("R", "140"), lot("A", "100", remaining="3", issuedAt=SUMMER))
    assert await loader.rows("select count(*) from lot") == [(2,)]
    assert await loader.rows("select remaining from lot where lot_id = 'A'") == [(0,)]
    assert await loader.rows("select count(*) from redemption") == [(2,)]


async def test_of_orgs_and_programs_the_last_line_counts_as_a_whole(loader: Loader) -> None:
    await loader.good(
        org(reversalEnabled=False), program(minimumPoints="5", live=False), org(), program(reversalWindowDays=9)
    )
    assert await loader.rows("select reversal_enabled from org") == [(True,)]
    assert await loader.rows("select minimum_points, live, reversal_window_days from program") == [(0, True, 9)]


async def test_the_default_can_move_from_one_program_to_another(loader: Loader) -> None:
    await loader.good(program("next", default=True), program("main", default=False))
    assert await loader.rows("select program_id from program where is_default") == [("next",)]
    await loader.good(program("main", default=True), program("next"))
    assert await loader.rows("select program_id from program where is_default") == [("main",)]


@pytest.mark.parametrize(
    ("stored", "line", "then"),
    [
        ("ACTIVE", "OUT_OF_STOCK", "ACTIVE"),  # returns have brought some back since the file was made
        ("OUT_OF_STOCK", "ACTIVE", "ACTIVE"),
        ("ACTIVE", "INACTIVE", "INACTIVE"),
        ("INACTIVE", "ACTIVE", "ACTIVE"),
        ("INACTIVE", "OUT_OF_STOCK", "OUT_OF_STOCK"),
    ],
)
async def test_of_a_known_reward_only_max_total_and_status_change(
    loader: Loader, stored: str, line: str, then: str
) -> None:
    await loader.good(reward("W", maxTotal=5, redeemedCount=3, status=stored))
    await loader.good(reward("W", maxTotal=4, redeemedCount=99, status=line))
    assert await loader.rows("select max_total, redeemed_count, status from reward") == [(4, 3, then)]


async def test_a_reward_that_redemptions_have_used_up_stays_out_of_stock(loader: Loader) -> None:
    await loader.good(reward("W", maxTotal=3, redeemedCount=3, status="OUT_OF_STOCK"))
    await loader.good(reward("W", maxTotal=3, redeemedCount=1, status="ACTIVE"))
    assert await loader.rows("select redeemed_count, status from reward") == [(3, "OUT_OF_STOCK")]
    await loader.good(reward("W", maxTotal=9, redeemedCount=1, status="ACTIVE"))
    assert await loader.rows("select max_total, status from reward") == [(9, "ACTIVE")]


class Faulty(NamedTuple):
    """Lines of which the last is faulty: in which field, and what is said of it."""

    lines: tuple[Line, ...]
    field: str
    words: str


FAULTY = {
    "no JSON": Faulty(("{",), "line", "the line is not JSON (column 2)"),
    "not UTF-8 escapes": Faulty(('{"kind": "\\ud800"}',), "line", "surrogate"),
    "no object": Faulty(("[1]",), "line", "the line must be an object"),
    "nested": Faulty(('{"kind": "org", "x": ' + "[" * 2000 + "]" * 2000 + "}",), "line", "nested deeper than 64"),
    "no kind": Faulty(({"orgId": 1},), "kind", "must be one of org, program, customer, reward, lot, redemption"),
    "a kind that is none": Faulty(({"kind": ["lot"]},), "kind", "must be one of"),
    "no org": Faulty(({"kind": "org"},), "orgId", "orgId is required"),
    "org zero": Faulty(({"kind": "org", "orgId": 0},), "orgId", "whole number from 1"),
    "a flag in words": Faulty((org(reversalEnabled="yes"),), "reversalEnabled", "must be true or false"),
    "decimals beyond three": Faulty((program(decimals=4),), "decimals", "whole number from 0 to 3"),
    "half a limit": Faulty((program(maxReversals={"count": 1}),), "maxReversals", "needs both count and days"),
    "a limit of none": Faulty((program(maxReversals={"count": 0, "days": 1}),), "maxReversals.count", "at least 1"),
    "a policy that is none": Faulty((program(expiredLots={"policy": "burn"}),), "expiredLots.policy", "keep, extend"),
    "extend without days": Faulty((program(expiredLots={"policy": "extend"}),), "expiredLots.policy", "graceDays"),
    "a minimum too fine": Faulty((program(decimals=0, minimumPoints="0.5"),), "minimumPoints", "finer than"),
    "a second default": Faulty(
        (program("second", default=True),), "default", f"the default program of org {ORG} is main already (in the ledger)"
    ),
    "two defaults in the file": Faulty(
        ({"kind": "org", "orgId": 3}, {"kind": "program", "orgId": 3, "programId": "a", "default": True},
         {"kind": "program", "orgId": 3, "programId": "b", "default": True}),
        "default", "the default program of org 3 is a already (line 2)",
    ),
    "a program of an unknown org": Faulty(({**program(), "orgId": 9},), "orgId", "orgId 9 is not known"),
    "a customer of an unknown org": Faulty(({**customer(), "orgId": 9},), "orgId", "orgId 9 is not known"),
    "a reward of an unknown org": Faulty(({**reward("W"), "orgId": 9},), "orgId", "orgId 9 is not known"),
    "a lot of an unknown org": Faulty(({**lot("L", "1"), "orgId": 9},), "orgId", "orgId 9 is not known"),
    "a redemption of an unknown org": Faulty(({**redemption("R", "1"), "orgId": 9},), "orgId", "orgId 9 is not known"),
    "a status that is none": Faulty((customer(status="gone"),), "status", "active, inactive, fraud"),
    "a phone without digits": Faulty((customer(identifiers=[phone("x")]),), "identifiers[0].value", "digits"),
    "a reward's status": Faulty((reward("W", status="NEW"),), "status", "ACTIVE, OUT_OF_STOCK, INACTIVE"),
    "a negative count": Faulty((reward("W", redeemedCount=-1),), "redeemedCount", "whole number from 0"),
    "a lot without points": Faulty(({**lot("L", "1"), "points": None},), "points", "is required"),
    "no points": Faulty((lot("L", "0"),), "points", "must be more than zero"),
    "points too fine": Faulty((lot("L", "0.0001"),), "points", "4 decimal places"),
    "a number too long": Faulty(('{"kind": "lot", "orgId": 1, "customerId": 1, "lotId": "L", "points": 1.000000000000000}',),
                                "points", "16 digits"),
    "a time without offset": Faulty((lot("L", "1", expiresAt="2026-01-01T00:00:00"),), "expiresAt", "RFC 3339"),
    "more than the lot": Faulty((lot("L", "10", remaining="10.001"),), "remaining", "is 10.001, but the lot was issued with 10"),
    "a lot of an unknown program": Faulty((lot("L", "1", programId="x"),), "programId", f"x is no program of org {ORG}"),
    "no default program": Faulty(
        ({"kind": "org", "orgId": 3}, {"kind": "lot", "orgId": 3, "customerId": 1, "lotId": "L", "points": "1"}),
        "programId", "programId is required: org 3 has no default program",
    ),
    "a lot with other points": Faulty((lot("L", "10"), lot("L", "11")), "points", "line 1 with another points (10, here 11)"),
    "a lot of another customer before": Faulty(
        (lot("L", "10"), lot("L", "10", customerId=7)), "customerId", "another customerId (42, here 7)"
    ),
    "a lot with another expiry": Faulty((lot("L", "10"), lot("L", "10", expiresAt=SPRING)), "expiresAt", "(never, here 2026"),
    "reversed beyond points": Faulty((redemption("R", "5", reversed="6"),), "reversed", "is 6, but 5 were redeemed"),
    "units without a number": Faulty((redemption("R", "5", type="UNIT_BASED"),), "quantity", "is required"),
    "a number without units": Faulty((redemption("R", "5", type="RAW", quantity=2),), "quantity", "UNIT_BASED"),
    "too many units back": Faulty(
        (redemption("R", "5", type="UNIT_BASED", quantity=2, reversedQuantity=3),), "reversedQuantity", "2 units were"
    ),
    "units of none": Faulty((redemption("R", "5", reversedQuantity=1),), "reversedQuantity", "UNIT_BASED redemptions only"),
    "all units, not all points": Faulty(
        (redemption("R", "5", type="UNIT_BASED", quantity=2, reversedQuantity=2, reversed="4"),), "reversed",
        "is 4, but all 2 units are given back and made 5",
    ),
    "lots that do not add up": Faulty((lot("L", "9"), redemption("R", "5", ("L", "4"))), "lots", "add up to 4, but points is 5"),
    "a lot twice": Faulty((lot("L", "9"), redemption("R", "5", ("L", "4"), ("L", "1"))), "lots[1].lotId", "second time"),
    "an unknown lot": Faulty(
        (lot("L", "9", remaining="0"), redemption("R", "5", ("L", "4"), ("X", "1"))), "lots[1].lotId", "lotId X is not known"
    ),
    "another customer's lot": Faulty(
        (lot("L", "9", customerId=7, remaining="0"), redemption("R", "5", ("L", "5"))), "lots[0].lotId",
        "L is a lot of customer 7, not of 42",
    ),
    "another program's lot": Faulty(
        (program("vip"), lot("L", "9", programId="vip", remaining="0"), redemption("R", "5", ("L", "5"))), "lots[0].lotId",
        "L is a lot of the program vip, not of main",
    ),
    "more than the lot can have lost": Faulty(
        (lot("L", "9", remaining="5"), redemption("Q", "3", ("L", "3")), redemption("R", "5", ("L", "5"))),
        "lots[0].points", "lot L was issued with 9 points and holds 5, so that 4 can have been taken from it, not 8",
    ),
    "a redemption with other points": Faulty((redemption("R", "5"), redemption("R", "6")), "points", "another points (5, here 6)"),
    "a redemption of another order": Faulty((redemption("R", "5"), redemption("R", "5", orderId="SO")), "orderId", "(none, here SO)"),
    "a redemption of other lots": Faulty(
        (lot("L", "9", remaining="0"), redemption("R", "5", ("L", "5")), lot("M", "9", remaining="0"),
         redemption("R", "5", ("M", "5"))), "lots", "stands on line 2 with another lots",
    ),
    "a redemption of another type": Faulty((redemption("R", "5"), redemption("R", "5", type="AMOUNT_BASED")), "type", "(RAW, here"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
async def test_a_faulty_line_is_named_with_its_field(desk: Desk, loader: Loader, name: str) -> None:
    case = FAULTY[name]
    before = await desk.ledger()
    summary = await loader.load(org(), *case.lines) if case.lines[0] != org() else await loader.load(*case.lines)
    shift = len(case.lines) + 1
    assert [(fault.line, fault.field) for fault in summary.faults] == [(shift, case.field)], summary.faults
    words = case.words.replace("line 1 ", "line 2 ").replace("line 2)", "line 3)").replace("line 2 with another lots",
                                                                                         "line 3 with another lots")
    assert words in summary.faults[0].message
    assert (summary.faulty_lines, summary.booked, summary.changed) == (1, False, {})
    assert await desk.ledger() == before

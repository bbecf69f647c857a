"""Bulk load (contract, "Command line"): good lines become the ledger, faulty ones are named, and nothing comes twice."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from service import load_lines
from service.cli import app
from service.failures import Misused
from service.load import LineFault, Summary, load
from tests.integration.desk import CUSTOMER, CUSTOMERS, ISSUES, NOW, ORG, REDEMPTIONS, Data, Desk
from tests.stack import eventually

bulk = importlib.import_module("service.load")

Line = Data | str
SPRING = "2026-03-01T00:00:00Z"
SUMMER = "2026-07-01T00:00:00Z"


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
        """What becomes of the lines."""
        await asyncio.to_thread(self.write, *lines)
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
    connection = await asyncpg.connect(desk.owner_url)
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
        {"kind": "lot", "org_id": ORG, "customer_id": CUSTOMER, "lot_id": "M", "points": "1",
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
    assert await loader.rows("select program_id from lot union all select program_id from redemption") == [
        ("b",),
        ("b",),
    ]


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
    org(), program(decimals=2, default=True), program("vip", expiredLots={"policy": "extend", "graceDays": 5}),
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
    "a redemption with other points": Faulty(
        (redemption("R", "5"), redemption("R", "6")), "points", "another points (5, here 6)"
    ),
    "a redemption of another order": Faulty(
        (redemption("R", "5"), redemption("R", "5", orderId="SO")), "orderId", "(none, here SO)"
    ),
    "a redemption of other lots": Faulty(
        (lot("L", "9", remaining="0"), redemption("R", "5", ("L", "5")), lot("M", "9", remaining="0"),
         redemption("R", "5", ("M", "5"))), "lots", "stands on line 2 with another lots",
    ),
    "a redemption of another type": Faulty(
        (redemption("R", "5"), redemption("R", "5", type="AMOUNT_BASED")), "type", "(RAW, here"
    ),
}  # fmt: skip


async def test_a_faulty_line_is_named_with_its_field_and_nothing_is_booked(desk: Desk, loader: Loader) -> None:
    before = await desk.ledger()
    amiss = {}
    for name, case in FAULTY.items():  # nothing is booked, so that all of them can have one database
        summary = await loader.load(*case.lines)
        told = [(fault.line, fault.field) for fault in summary.faults]
        if told != [(len(case.lines), case.field)] or case.words not in summary.faults[0].message or summary.booked:
            amiss[name] = summary
    assert amiss == {}
    assert await desk.ledger() == before


@pytest.mark.parametrize(
    ("known", "line", "words"),
    [
        (lot("L", "10"), lot("L", "11"), "lot L is in the ledger with another points (10, here 11)"),
        (lot("L", "10"), lot("L", "10", customerId=7), "another customerId (42, here 7)"),
        (lot("L", "10", expiresAt=SPRING), lot("L", "10", expiresAt=SUMMER), "another expiresAt (2026-03-01"),
        (redemption("R", "5", orderId="A"), redemption("R", "5", orderId="B"), "another orderId (A, here B)"),
        (
            redemption("R", "5"),
            redemption("R", "5", type="AMOUNT_BASED", rewardId="W"),
            "type (RAW, here AMOUNT_BASED), ",
        ),
        (redemption("R", "5"), redemption("R", "5", customerId=7), "another customerId (42, here 7)"),
    ],
)
async def test_what_the_ledger_has_with_another_content_is_a_fault(
    desk: Desk, loader: Loader, known: Data, line: Data, words: str
) -> None:
    await loader.good(known)
    before = await desk.ledger()
    summary = await loader.load(line, customer(status="fraud"))
    assert words in summary.faults[0].message
    assert await desk.ledger() == before


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "lot", "orgId": ORG, "customerId": CUSTOMER, "lotId": "L", "points": 10.0, "remaining": "1"},
        lot("L", "10", issuedAt=SUMMER, programId="main", expiresAt="2026-03-01T08:00:00+08:00"),
        redemption("R", "5", reversed="1", redeemedAt=SUMMER),
        redemption("R", "5", ("L", "5"), orderId="SO", type="RAW", programId="main"),
    ],
)
async def test_what_a_line_does_not_give_is_not_compared(desk: Desk, loader: Loader, line: Data) -> None:
    taken = redemption("R", "5", ("L", "5"), orderId="SO", redeemedAt=SPRING)
    await loader.good(lot("L", "10", remaining="0", expiresAt=SPRING), taken)
    before = await desk.ledger()
    assert set((await loader.good(line)).changed.values()) == {0}
    assert await desk.ledger() == before


async def test_what_an_existing_redemption_took_counts_against_the_lot(loader: Loader) -> None:
    await loader.good(lot("L", "9", remaining="5"), redemption("Q", "3", ("L", "3")))
    summary = await loader.load(redemption("R", "2", ("L", "2")))
    assert summary.faults[0][:2] == (1, "lots[0].points")
    await loader.good(redemption("R", "2", ("L", "2"), reversed="1"))


async def test_all_faults_of_all_lines_are_told_at_once(loader: Loader) -> None:
    summary = await loader.load(
        "nonsense",
        lot("A", "x", expiresAt="y"),
        "",
        "   ",
        lot("B", "1", programId="none"),
        redemption("R", "1", ("B", "1")),
    )
    assert [fault[:2] for fault in summary.faults] == [
        (1, "line"),
        (2, "expiresAt"),
        (2, "points"),
        (5, "programId"),
        (6, "lots[0].lotId"),
    ]
    assert (summary.lines, summary.faulty_lines) == (4, 4)
    first = {"line": 1, "field": "line", "message": "the line is not JSON (column 1)"}
    assert summary.document()["faults"][0] == first


async def test_of_many_faults_some_are_named_and_all_counted(loader: Loader) -> None:
    summary = await loader.load(*[lot(f"L-{number}", "0") for number in range(50)], faults=3)
    assert [fault.line for fault in summary.faults] == [1, 2, 3]
    assert summary.faulty_lines == 50


async def test_keep_going_books_the_good_lines_and_writes_the_others(desk: Desk, loader: Loader) -> None:
    lines = (
        lot("A", "10"),
        lot("B", "10", programId="new"),
        '{"kind": "lot",  "points" : 1.50 }',
        "nonsense",
        "{}",
        redemption("R", "4", ("B", "4")),
        redemption("S", "5", reversed="2"),
    )
    summary = await loader.load(*lines, keep_going=loader.rejected)
    assert (summary.booked, summary.faulty_lines, summary.rejected) == (True, 5, loader.rejected)
    ids = await loader.rows("select lot_id from lot union all select redemption_id from redemption")
    assert ids == [("A",), ("S",)]
    texts = loader.rejected.read_text().splitlines()
    documents = [json.loads(text) for text in texts]
    assert [one["faults"][0]["line"] for one in documents] == [2, 3, 4, 5, 6]
    assert texts[1].startswith('{"kind": "lot",  "points" : 1.50 ,"faults":[{')  # as it was written, to the sign
    assert [one["field"] for one in documents[1]["faults"]] == ["customerId", "lotId", "orgId"]
    assert documents[0]["lotId"] == "B"
    assert [one.get("text") for one in documents] == [None, None, "nonsense", None, None]
    assert await desk.broken() == {}
    # Mended (here: the program is made), the rejected lines can be loaded.
    again = await loader.good(program("new"), texts[0])
    assert again.changed["lot"] == 1


async def test_a_line_that_is_not_utf_8_is_written_as_far_as_it_can_be(loader: Loader) -> None:
    loader.path.write_bytes(b'{"kind": "org\xff"}\n')
    summary = await load(loader.connection, loader.path, keep_going=loader.rejected)
    assert summary.faults == [LineFault(1, "line", "the line is not UTF-8 (byte 13)")]
    assert json.loads(loader.rejected.read_text())["text"] == '{"kind": "org\ufffd"}'


async def test_keep_going_without_faulty_lines_leaves_an_empty_file(loader: Loader) -> None:
    loader.rejected.write_text("from last time")
    await loader.good(lot("A", "10"), keep_going=loader.rejected)
    assert loader.rejected.read_text() == ""


async def test_keep_going_does_not_overwrite_the_file_itself(loader: Loader) -> None:
    loader.write(lot("A", "10"))
    with pytest.raises(Misused, match="is the file to load itself"):
        await load(loader.connection, loader.path, keep_going=loader.path)


async def test_a_faulty_line_gives_way_to_an_earlier_one(loader: Loader) -> None:
    lines = (program("b", minimumPoints="1"), program("b", default=True))
    summary = await loader.load(*lines, keep_going=loader.rejected)
    assert [fault[:2] for fault in summary.faults] == [(2, "default")]
    assert await loader.rows("select is_default, minimum_points from program where program_id = 'b'") == [
        (False, 1_000)
    ]


async def test_a_line_that_is_too_long_is_a_fault_and_a_byte_order_mark_none(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "LINE_BYTES", 300)
    monkeypatch.setattr(load_lines, "LINE_BYTES", 300)
    lines = ("\ufeff" + json.dumps(lot("A", "1")), lot("B", "1", note="x" * 999), lot("C", "1"))
    summary = await loader.load(*lines, keep_going=loader.rejected)
    assert [fault[:2] for fault in summary.faults] == [(2, "line")]
    assert await loader.rows("select lot_id from lot order by 1") == [("A",), ("C",)]


async def test_a_large_file_is_read_ahead_by_other_processes(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ALONE_BYTES", 0)
    monkeypatch.setattr(bulk, "CHUNK_LINES", 7)
    said: list[tuple[str, int, int]] = []
    lots = [lot(f"L-{number}", "1") for number in range(100)]
    summary = await loader.good(*lots, "", progress=lambda *step: said.append(step))
    assert summary.changed["lot"] == 100
    size = loader.path.stat().st_size
    read = [step for step in said if step[0] == "read"]
    assert len(read) == 15
    assert {step[2] for step in read} == {size}
    assert read[-1][1] == size


async def test_odd_texts_arrive_as_they_are(loader: Loader) -> None:
    ids = ["\\N", "\\.", 'a"b', "{a,b}", "NULL", "ü€😀", " ", "a\\tb", "%s$1", "-", "\\\\", "'"]
    taken = [(lot_id, "1") for lot_id in ids]
    lots = [lot(lot_id, "1", remaining="0") for lot_id in ids]
    await loader.good(*lots, redemption("R", str(len(ids)), *taken, orderId="\\\\"))
    assert {row[0] for row in await loader.rows("select lot_id from lot")} == set(ids)
    assert await loader.rows("select lot_ids, order_id from redemption") == [(ids, "\\\\")]


# Customers


async def customers_of(desk: Desk) -> dict[str, list[tuple[Any, ...]]]:
    ledger = await desk.ledger()
    return {name: ledger[name] for name in ("customer", "identifier")}


def random_update(rng: random.Random) -> Data:
    fields: Data = {}
    if rng.random() < 0.5:
        fields["status"] = rng.choice(["active", "inactive", "fraud"])
    if rng.random() < 0.4:
        fields["lockedUntil"] = rng.choice([SPRING, SUMMER, None])
    if rng.random() < 0.6:
        fields["identifiers"] = [phone(rng.choice("12345")) for _ in range(rng.randrange(3))]
    if rng.random() < 0.6:
        fields["updatedAt"] = f"2026-01-0{rng.randrange(1, 6)}T00:00:00Z"
    return customer(rng.randrange(1, 4), **fields)


@pytest.mark.parametrize("seed", range(8))
async def test_customer_lines_are_successive_updates(desk: Desk, loader: Loader, seed: int) -> None:
    rng = random.Random(seed)
    lines = [random_update(rng) for _ in range(14)]
    await loader.good(*lines[:4])
    await loader.good(*lines[4:])
    loaded = await customers_of(desk)
    await desk.pool.execute("delete from identifier; delete from customer")
    for one in lines:
        await desk.take_in(CUSTOMERS, {name: value for name, value in one.items() if name != "kind"})
    assert loaded == await customers_of(desk)


# Beside a running service


async def blocked(desk: Desk) -> bool:
    statement = (
        "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())"
    )
    return bool(await desk.value(statement))


async def test_it_waits_for_the_customers_that_a_batch_has_locked(desk: Desk, loader: Loader) -> None:
    await loader.good(*WHOLE)
    async with desk.pool.acquire() as connection, connection.transaction():
        await connection.execute("select from customer where customer_id = $1 for no key update", CUSTOMER)
        loading = asyncio.create_task(loader.load(lot("NEW", "5")))
        await eventually(lambda: blocked(desk))
        assert not loading.done()
    assert (await loading).booked


async def test_a_batch_waits_for_the_customers_that_it_has_locked(
    desk: Desk, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loader.good(*WHOLE)
    write = bulk._write
    returning: asyncio.Task[Any] | None = None

    async def slowly(*arguments: Any) -> Any:
        nonlocal returning
        returning = asyncio.create_task(desk.ask(redemptionId="R", pointsToBeReversed="1"))
        await eventually(lambda: blocked(desk))
        return await write(*arguments)

    monkeypatch.setattr(bulk, "_write", slowly)
    await loader.good(lot("NEW", "5"))
    assert returning is not None
    outcome = await returning
    # B held 20 and gets 1; the batch also saw the 5 that were loaded while it waited.
    assert outcome.document["balance"]["available"] == "26"


async def test_what_another_writes_meanwhile_is_seen_by_the_next_attempt(
    desk: Desk, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loader.good(*WHOLE)
    check, attempts = bulk._check, 0

    async def crossed(connection: asyncpg.Connection) -> None:
        nonlocal attempts
        attempts += 1
        await check(connection)
        if attempts == 1:
            await desk.take_in(ISSUES, {"customerId": CUSTOMER, "lotId": "NEW", "points": "5"})
        elif attempts == 2:
            await desk.take_in(REDEMPTIONS, {"customerId": CUSTOMER, "redemptionId": "NEW", "points": "5"})
        elif attempts == 3:
            await desk.take_in(CUSTOMERS, {"customerId": 7, "status": "fraud"})

    monkeypatch.setattr(bulk, "_check", crossed)
    summary = await loader.good(lot("NEW", "5"), redemption("NEW", "5"), customer(7, lockedUntil=SUMMER))
    assert attempts == 3  # the customer came in before the customers were looked up
    assert {name: count for name, count in summary.changed.items() if count} == {"customer": 1}
    rows = await desk.rows("select status, locked_until from customer where customer_id = 7")
    assert rows == [("fraud", datetime(2026, 7, 1, tzinfo=UTC))]


async def test_two_loads_at_once_are_one_after_the_other(desk: Desk, loader: Loader, tmp_path: Path) -> None:
    lines = [*WHOLE, *(customer(number, identifiers=[phone(str(number))]) for number in range(100, 300))]
    loader.write(*lines)
    others = [await asyncpg.connect(desk.owner_url) for _ in range(3)]
    try:
        summaries = await asyncio.gather(*(load(one, loader.path) for one in others))
    finally:
        for one in others:
            await one.close()
    assert all(summary.booked for summary in summaries)
    assert sorted(summary.changed["lot"] for summary in summaries) == [0, 0, 2]
    assert sorted(summary.changed["customer"] for summary in summaries) == [0, 0, 201]


# The command


async def command(desk: Desk, *words: str) -> Result:
    """The command line; it has an event loop of its own."""
    runner = CliRunner(env={"REVERSAL_DATABASE_URL": desk.owner_url, "COLUMNS": "200"})
    return await asyncio.to_thread(runner.invoke, app, ["load", *words], catch_exceptions=False)


async def test_the_command_tells_what_became_of_the_file(desk: Desk, loader: Loader) -> None:
    loader.write(*WHOLE)
    first = await command(desk, str(loader.path))
    assert first.exit_code == 0
    assert "added or changed: 2 programs, 1 customer, 1 identifier, 1 reward, 2 lots, 2 redemptions" in first.stdout
    again = await command(desk, str(loader.path), "--json")
    assert (again.exit_code, again.stdout.count("\n")) == (0, 1)
    document = json.loads(again.stdout)
    assert document["booked"] is True
    assert set(document["changed"].values()) == {0}
    assert (document["lines"], document["faultyLines"], document["faults"]) == (len(WHOLE), 0, [])


async def test_the_command_names_faults_and_exits_1(desk: Desk, loader: Loader) -> None:
    loader.write(lot("A", "1"), *(lot(f"B-{number}", "0") for number in range(30)))
    refused = await command(desk, str(loader.path), "--faults", "2")
    assert refused.exit_code == 1
    assert refused.stdout.splitlines() == [
        "line 2: points must be more than zero",
        "line 3: points must be more than zero",
        "… and 28 more faulty lines",
        "nothing was booked: 30 of 31 lines are faulty; mend them, or book the others with --keep-going FILE",
    ]
    kept = await command(desk, str(loader.path), "--faults", "0", "--keep-going", str(loader.rejected))
    assert kept.exit_code == 1
    assert f"30 faulty lines are in {loader.rejected}" in kept.stdout
    assert len(loader.rejected.read_text().splitlines()) == 30
    assert await loader.rows("select lot_id from lot") == [("A",)]

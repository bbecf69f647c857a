"""The model against the contract's own examples and tables: what is measured with it must itself be true."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from tests.compare import Names, by_customer, normalise, normalise_all
from tests.model import REFUSALS, Model
from tests.reading import Number
from tests.streams import CLOCK, FORMS, encode, sample

Data = dict[str, Any]

ORG = 100458
NOW = datetime(2026, 11, 20, 1, 30, 2, 123456, tzinfo=UTC)
PHONE = {"type": "PHONE", "value": "+6591234567"}


class Ledger(Model):
    """A model that numbers its records itself, with the customer and the three lots of the contract's example."""

    def __init__(self, *lines: Data, **program: Any) -> None:
        super().__init__()
        self.offsets = count()
        self.now = NOW
        self.load([{"kind": "org", "orgId": ORG}, line("program", programId="main", **program)], NOW)
        self.load([line("customer", customerId=42, identifiers=[PHONE])], NOW)
        self.load(list(lines), NOW)

    def send(self, kind: str, /, **data: Any) -> list[Data]:
        place = f"{kind}/0/{next(self.offsets)}@1795138202123"
        return self.take(kind, {"orgId": ORG, **data}, place=place, now=self.now)

    def give(self, **data: Any) -> Data:
        """The one outcome of a return."""
        (outcome,) = self.send("order.returned", **data)
        return outcome

    def remaining(self) -> dict[str, int]:
        return {lot["lot_id"]: lot["remaining"] // 1000 for lot in self.lots()}


def line(kind: str, **fields: Any) -> Data:
    return {"kind": kind, "orgId": ORG, **fields}


def lot(lot_id: str, points: int, remaining: int = 0, days: int | None = 30, **fields: Any) -> Data:
    """A load line; `days` until it expires, None: never."""
    expires_at = {} if days is None else {"expiresAt": (NOW + timedelta(days=days)).isoformat()}
    issued_at = (NOW - timedelta(days=99)).isoformat()
    amounts = {"points": str(points), "remaining": str(remaining)}
    return line("lot", customerId=42, lotId=lot_id, issuedAt=issued_at, **amounts, **expires_at) | fields


def redemption(redemption_id: str = "R-1", points: int = 200, **fields: Any) -> Data:
    times = {"redeemedAt": (NOW - timedelta(days=10)).isoformat()}
    return line("redemption", customerId=42, redemptionId=redemption_id, points=str(points), **times) | fields


def units(quantity: int, points: int = 100, **fields: Any) -> Data:
    return redemption(points=points, type="UNIT_BASED", quantity=quantity, **fields)


LOTS = [lot("A", 100, days=-1), lot("B", 60), lot("C", 40)]
TAKEN = [{"lotId": "A", "points": "100"}, {"lotId": "B", "points": "60"}, {"lotId": "C", "points": "40"}]


def example(**program: Any) -> Ledger:
    return Ledger(*LOTS, redemption(lots=TAKEN, orderId="SO-1"), **program)


def name(outcome: Data) -> str:
    return str(outcome["errors"][0]["name"]) if "errors" in outcome else "completed"


def parts(outcome: Data) -> list[tuple[str, str]]:
    return [(part["lotId"], part["points"]) for part in outcome["lots"]]


# Giving points back


def test_the_contracts_example() -> None:
    ledger = example()
    first = ledger.give(redemptionId="R-1", pointsToBeReversed="50")
    assert parts(first) == [("C", "40"), ("B", "10")]
    assert first["pointsReversedDetails"] == {"available": "50", "expired": "0"}
    second = ledger.give(redemptionId="R-1", pointsToBeReversed="75")
    assert parts(second) == [("B", "50"), ("A", "25")]
    assert second["pointsReversedDetails"] == {"available": "50", "expired": "25"}
    assert name(ledger.give(redemptionId="R-1", pointsToBeReversed="80")) == "insufficient_points"
    third = ledger.give(redemptionId="R-1")
    assert parts(third) == [("A", "75")]
    assert third["pointsReversedDetails"] == {"available": "0", "expired": "75"}
    assert third["redemption"] == {"points": "200", "reversed": "200", "remaining": "0"}
    assert third["balance"] == {"available": "100"}
    fourth = ledger.give(redemptionId="R-1")
    assert fourth["errors"] == [{"code": 817, "name": "insufficient_points", "retryable": False}]
    assert [outcome["sequence"] for outcome in (first, second, third, fourth)] == [1, 2, 4, 5]
    assert ledger.remaining() == {"A": 100, "B": 60, "C": 40}


def test_a_completed_outcome_has_every_field_of_the_contracts() -> None:
    ledger = Ledger(lot("L", 200, 7), redemption(lots=[{"lotId": "L", "points": "200"}], orderId="SO-1881"))
    asked: Data = {"orderId": "SO-1881", "returnId": "RMA-77", "pointsToBeReversed": Number("150.50")}
    outcome = ledger.give(**asked, identifier=PHONE, idempotencyKey="RMA-77/1", reason="size does not fit")
    assert outcome == {
        "orgId": ORG,
        "programId": "main",
        "customerId": 42,
        "identifier": PHONE,
        "orderId": "SO-1881",
        "returnId": "RMA-77",
        "redemptionId": "R-1",
        "reversalId": f"reversal:{ORG}/RMA-77/1",
        "journalEntryId": f"journal:{ORG}/RMA-77/1",
        "idempotencyKey": "RMA-77/1",
        "reason": "size does not fit",
        "pointsToBeReversed": "150.5",
        "pointsReversed": "150.5",
        "quantity": None,
        "pointsReversedDetails": {"available": "150.5", "expired": "0"},
        "lots": [{"lotId": "L", "points": "150.5", "expiresAt": "2026-12-20T01:30:02.123456Z", "expired": False}],
        "redemption": {"points": "200", "reversed": "150.5", "remaining": "49.5"},
        "balance": {"available": "157.5"},
        "sequence": 1,
        "warnings": [],
        "createdAt": "2026-11-20T01:30:02.123456Z",
    }


def test_partials_continue_where_an_import_stopped() -> None:
    ledger = Ledger(lot("A", 100, 0), lot("B", 60, 10), lot("C", 40, 40), redemption(lots=TAKEN, reversed="50"))
    assert parts(ledger.give(redemptionId="R-1", pointsToBeReversed="75")) == [("B", "50"), ("A", "25")]
    assert parts(ledger.give(redemptionId="R-1")) == [("A", "75")]


def test_a_lot_that_expires_at_the_decision_moment_is_expired() -> None:
    ledger = Ledger(lot("L", 9, days=0), redemption(points=9, lots=[{"lotId": "L", "points": "9"}]))
    outcome = ledger.give(redemptionId="R-1")
    assert outcome["pointsReversedDetails"] == {"available": "0", "expired": "9"}
    assert outcome["balance"] == {"available": "0"}


def test_extend_returns_each_expired_part_as_a_new_lot() -> None:
    ledger = example(expiredLots={"policy": "extend", "graceDays": 7})
    outcome = ledger.give(redemptionId="R-1", idempotencyKey="k")
    assert outcome["pointsReversedDetails"] == {"available": "200", "expired": "0"}
    assert outcome["balance"] == {"available": "200"}
    assert outcome["lots"][2] == {
        "lotId": f"lot:{ORG}/k/2",
        "points": "100",
        "expiresAt": "2026-11-27T01:30:02.123456Z",
        "expired": False,
        "restoredFrom": "A",
    }
    assert len(outcome["warnings"]) == 1
    assert ledger.remaining() == {"A": 0, "B": 60, "C": 40, f"lot:{ORG}/k/2": 100}


@pytest.mark.parametrize(
    ("policy", "expires_at"),
    [({"policy": "keep"}, None), ({"policy": "extend", "graceDays": 7}, "2026-11-27T01:30:02.123456Z")],
)
def test_a_redemption_without_lots_restores_one_new_lot(policy: Data, expires_at: str | None) -> None:
    ledger = Ledger(redemption(), expiredLots=policy)
    outcome = ledger.give(redemptionId="R-1", idempotencyKey="k", pointsToBeReversed=30)
    entry = {"lotId": f"lot:{ORG}/k/0", "points": "30", "expiresAt": expires_at, "expired": False}
    assert outcome["lots"] == [entry]
    assert (len(outcome["warnings"]), outcome["balance"]) == (1, {"available": "30"})


@pytest.mark.parametrize(
    ("quantity", "points", "decimals", "given"),
    [
        (3, 100, 0, ["33", "33", "34"]),
        (3, 100, 2, ["33.33", "33.33", "33.34"]),
        (3, 1, 0, ["0", "0", "1"]),
        (7, 10, 0, ["1", "1", "2", "1", "2", "1", "2"]),
    ],
)
def test_units_are_floored_and_the_last_takes_what_remains(
    quantity: int, points: int, decimals: int, given: list[str]
) -> None:
    ledger = Ledger(units(quantity, points), decimals=decimals)
    outcomes = [ledger.give(redemptionId="R-1", quantity=1) for _ in range(quantity)]
    assert [outcome["pointsReversed"] for outcome in outcomes] == given
    assert sum(Decimal(text) for text in given) == points
    assert name(ledger.give(redemptionId="R-1", quantity=1)) == "insufficient_points"


def test_units_given_back_before_count_and_never_below_zero() -> None:
    ledger = Ledger(units(4, reversed="60", reversedQuantity=1))
    assert ledger.give(redemptionId="R-1", quantity=1)["pointsReversed"] == "0"
    assert ledger.give(redemptionId="R-1", quantity=1)["pointsReversed"] == "15"
    rest = ledger.give(redemptionId="R-1")
    assert (rest["quantity"], rest["pointsToBeReversed"]) == (1, "25")


# Deciding a return

PART: Data = {"redemptionId": "R-1", "pointsToBeReversed": "10"}
LATER = "2026-11-20T01:30:03Z"
RULES: list[tuple[str, Data, list[Data], Data]] = [
    # name, program, further load lines, return
    ("validation_error", {}, [], {"redemptionId": "R-1", "pointsToBeReversed": "0"}),
    ("precision_not_supported", {}, [], {"redemptionId": "R-1", "pointsToBeReversed": "1.2345"}),
    ("invalid_configuration", {}, [], {**PART, "orgId": 7}),
    ("invalid_program", {}, [], {**PART, "programId": "none"}),
    ("invalid_program", {"default": True}, [line("program", programId="x")], {**PART, "programId": "x"}),
    ("misconfigured_program", {"live": False}, [], PART),
    ("reversal_not_allowed", {"reversalAllowed": False}, [], PART),
    ("reversal_not_allowed", {}, [line("org", reversalEnabled=False)], PART),
    ("redemption_not_found", {}, [], {"redemptionId": "R-2"}),
    ("redemption_not_found", {}, [], {"orderId": "SO-2"}),
    ("redemption_not_found", {"parkUnknownSeconds": 60}, [], {"redemptionId": "R-1", "orderId": "SO-2"}),
    ("ambiguous_order", {}, [redemption("R-2", orderId="SO-1")], {"orderId": "SO-1"}),
    ("wrong_measure", {}, [], {"redemptionId": "R-1", "quantity": 1}),
    ("wrong_measure", {}, [units(2) | {"redemptionId": "R-2"}], {**PART, "redemptionId": "R-2"}),
    ("customer_not_eligible", {}, [], {**PART, "identifier": {"type": "ID", "value": "43"}}),
    ("customer_not_eligible", {}, [line("customer", customerId=42, status="fraud")], PART),
    ("customer_not_eligible", {}, [line("customer", customerId=42, status="inactive")], PART),
    ("customer_locked", {}, [line("customer", customerId=42, lockedUntil=LATER)], PART),
    ("precision_not_supported", {"decimals": 1}, [], {"redemptionId": "R-1", "pointsToBeReversed": "1.25"}),
    ("conditions_not_met", {"reversalWindowDays": 9}, [], PART),
    ("conditions_not_met", {"reversalWindowDays": 9}, [], {**PART, "returnedAt": LATER}),
    ("conditions_not_met", {"minimumPoints": "10.001"}, [], PART),
    ("conditions_not_met", {"allowPartial": False}, [], PART),
    ("insufficient_points", {}, [], {"redemptionId": "R-1", "pointsToBeReversed": "200.001"}),
    ("completed", {"reversalWindowDays": 10}, [], PART),
    ("completed", {"reversalWindowDays": 9}, [], {**PART, "returnedAt": "2026-11-11T01:30:02Z"}),
    ("completed", {"minimumPoints": "200.001", "allowPartial": False}, [], {"orderId": "SO-1"}),
    ("completed", {}, [line("customer", customerId=42, lockedUntil=NOW.isoformat())], PART),
    ("completed", {"decimals": 1}, [], {"redemptionId": "R-1", "pointsToBeReversed": "1.500"}),
]


@pytest.mark.parametrize(("expected", "program", "lines", "data"), RULES)
def test_each_rule_has_a_condition(expected: str, program: Data, lines: list[Data], data: Data) -> None:
    ledger = example(**program)
    ledger.load(lines, NOW)
    outcome = ledger.give(**data)
    assert name(outcome) == expected
    if expected != "completed":
        code, retryable = REFUSALS[expected]
        assert outcome["errors"] == [{"code": code, "name": expected, "retryable": retryable}]


CONTRADICTIONS: list[Data] = [
    {"expired_lots_policy": "extend"},
    {"max_reversals_count": 1},
    {"max_reversals_days": 1},
    {"decimals": 4},
]


@pytest.mark.parametrize("rogue", CONTRADICTIONS)
def test_contradicting_rules_are_misconfigured(rogue: Data) -> None:
    ledger = example()
    ledger.store_program({**ledger.program_rows[ORG, "main"], **rogue})
    assert name(ledger.give(**PART)) == "misconfigured_program"


def test_the_limit_counts_reversals_younger_than_its_days() -> None:
    ledger = example(maxReversals={"count": 2, "days": 3})
    assert name(ledger.give(**PART)) == name(ledger.give(**PART)) == "completed"
    ledger.now += timedelta(days=3) - timedelta(microseconds=1)
    assert name(ledger.give(**PART)) == "reversal_limit_exceeded"
    ledger.now += timedelta(microseconds=1)
    assert name(ledger.give(**PART)) == "completed"


def test_one_entry_for_every_fault() -> None:
    faults: Data = {"reason": "", "returnedAt": "today", "identifier": {"type": "FAX", "value": ""}}
    outcome = example().give(**PART, quantity=1, **faults)
    assert [entry["name"] for entry in outcome["errors"]] == ["validation_error"] * 5
    assert (outcome["identifier"], outcome["reason"], outcome["customerId"]) == (None, None, 42)


def test_without_any_program_an_unknown_redemption_is_not_found() -> None:
    ledger = Ledger(redemption(programId="main"), default=False, live=False)
    assert name(ledger.give(redemptionId="R-1")) == "misconfigured_program"
    assert name(ledger.give(redemptionId="R-2")) == "redemption_not_found"


ATTRIBUTED: list[tuple[Data, int | None]] = [
    ({"redemptionId": "R-2"}, None),
    ({"redemptionId": "R-2", "identifier": PHONE}, 42),
    ({"redemptionId": "R-1", "orderId": "SO-2"}, None),
    ({"redemptionId": "R-1", "orderId": "SO-2", "identifier": {"type": "ID", "value": 42}}, 42),
    ({"redemptionId": "R-1", "pointsToBeReversed": "-1"}, 42),
    ({"redemptionId": "R-1", "identifier": {"type": "EMAIL", "value": "a@b"}}, 42),
]


@pytest.mark.parametrize(("data", "customer_id"), ATTRIBUTED)
def test_refusals_belong_to_the_customer_where_known(data: Data, customer_id: int | None) -> None:
    outcome = example().give(**data)
    assert (outcome["customerId"], outcome["sequence"]) == (customer_id, 1 if customer_id else None)


# Values

POINTS: list[tuple[Any, str]] = [
    ("150.5", "150.5"),
    ("150.5000", "150.5"),
    (Number("1.50"), "1.5"),
    (Decimal("1.50"), "1.5"),
    (150, "150"),
    ("0.001", "0.001"),
    ("999999999999999", "999999999999999"),
]


@pytest.mark.parametrize(("spelled", "read"), POINTS)
def test_points_are_read_by_their_text(spelled: Any, read: str) -> None:
    ledger = Ledger(redemption() | {"points": "999999999999999"})
    assert ledger.give(redemptionId="R-1", pointsToBeReversed=spelled)["pointsReversed"] == read


HOSTILE: list[Any] = [
    *["", "0", "0.000", "-1", "+1", "01", "1.", ".5", "1e3", " 1", "1\n", "١", "1,5", "1_0", "1234567890123456"],
    *[0, -1, True, [], {}, Number("1e3"), Number("-0.5"), Number("1234567890.123456"), 1234567890123456],
]


@pytest.mark.parametrize("spelled", HOSTILE)
def test_points_of_another_shape_are_refused(spelled: Any) -> None:
    assert name(example().give(redemptionId="R-1", pointsToBeReversed=spelled)) == "validation_error"


def test_snake_case_is_read_and_camel_case_wins() -> None:
    ledger = example()
    both = {"points_to_be_reversed": "7", "pointsToBeReversed": "8", "redemption_id": "R-1", "returnId": None}
    outcome = ledger.give(**both, identifier={"type": "PHONE", "value": "(65) 9123-45.67"})
    assert (outcome["pointsReversed"], outcome["returnId"]) == ("8", None)


def test_derived_keys() -> None:
    ledger = example()
    assert ledger.give(redemptionId="R/2", orderId="SO", returnId="a b")["idempotencyKey"] == "return:a%20b/R%2F2"
    assert ledger.give(orderId="SO", returnId="ä")["idempotencyKey"] == "return:%C3%A4/SO"
    assert ledger.give(orderId="SO")["idempotencyKey"] == "record:order.returned/0/2@1795138202123"
    long = ledger.give(orderId="SO", returnId="ä" * 100)["idempotencyKey"]
    assert long == "sha256:" + hashlib.sha256(f"return:{'%C3%A4' * 100}/SO".encode()).hexdigest()
    data = {"orgId": ORG, "orderId": "SO"}
    places: Data = {"place": "order.returned/3/9@5", "replay_of": "order.returned/1/2@3", "now": NOW}
    (replayed,) = ledger.take("order.returned", data, **places)
    assert replayed["idempotencyKey"] == "record:order.returned/1/2@3"
    event: Data = {"place": "order.returned/3/10@5", "ce": {"source": "/shop", "id": "#1"}, "now": NOW}
    (outcome,) = ledger.take("order.returned", data, **event)
    assert outcome["idempotencyKey"] == "event:%2Fshop#%231"


# Duplicates


def test_same_key_same_request() -> None:
    ledger = example()
    first = ledger.give(**PART, identifier=PHONE, idempotencyKey="k")
    spelled = {"type": "PHONE", "value": "65 9123 4567"}
    again = ledger.give(redemption_id="R-1", pointsToBeReversed=10, identifier=spelled, idempotencyKey="k", reason="x")
    assert (name(again), again["existing"], again["sequence"]) == ("duplicate_reversal", first, 2)
    assert ledger.redemptions()[0]["reversed"] == 10_000


@pytest.mark.parametrize("change", [{"pointsToBeReversed": "11"}, {"orderId": "SO-1"}, {"programId": "main"}])
def test_same_key_another_request(change: Data) -> None:
    ledger = example()
    first = ledger.give(**PART, idempotencyKey="k")
    again = ledger.give(**{**PART, **change}, idempotencyKey="k")
    assert (name(again), again["existing"]) == ("idempotency_key_reused", first)


def test_a_failure_does_not_claim_its_key() -> None:
    ledger = example()
    assert name(ledger.give(redemptionId="R-1", pointsToBeReversed="201", idempotencyKey="k")) != "completed"
    assert name(ledger.give(redemptionId="R-1", pointsToBeReversed="200", idempotencyKey="k")) == "completed"


def test_the_same_kafka_record_has_no_second_effect() -> None:
    ledger = example()
    same: Data = {"place": "order.returned/0/7@1", "now": NOW}
    assert len(ledger.take("order.returned", {"orgId": ORG, **PART}, **same)) == 1
    assert ledger.take("order.returned", {"orgId": ORG, **PART}, **same) == []


# Parking and waiting


def test_a_return_waits_for_its_redemption() -> None:
    ledger = Ledger(lot("L", 50, 50), parkUnknownSeconds=60)
    assert ledger.send("order.returned", orderId="SO-1", idempotencyKey="1") == []
    assert ledger.send("order.returned", redemptionId="R-1", idempotencyKey="2") == []
    redeemed = {"customerId": 42, "redemptionId": "R-1", "orderId": "SO-1", "points": "50"}
    released = ledger.send("points.redeemed", **redeemed)
    assert [(outcome["idempotencyKey"], name(outcome)) for outcome in released] == [
        ("1", "completed"),
        ("2", "insufficient_points"),
    ]
    assert ledger.remaining() == {"L": 50}


def test_a_return_is_decided_at_its_deadline() -> None:
    ledger = Ledger(parkUnknownSeconds=60)
    assert ledger.send("order.returned", redemptionId="R-1") == []
    assert ledger.tick(NOW + timedelta(seconds=59)) == []
    assert [name(outcome) for outcome in ledger.tick(NOW + timedelta(seconds=60))] == ["redemption_not_found"]
    assert ledger.parked == []


def test_feed_records_wait_for_points_and_others_overtake() -> None:
    ledger = Ledger()
    assert ledger.send("points.redeemed", customerId=42, redemptionId="R-1", points="100") == []
    assert ledger.send("points.redeemed", customerId=42, redemptionId="R-2", points="30") == []
    ledger.send("points.issued", customerId=42, lotId="L", points="40")
    assert [row["redemption_id"] for row in ledger.redemptions()] == ["R-2"]
    ledger.send("points.issued", customerId=42, lotId="M", points="60")
    assert [row["redemption_id"] for row in ledger.redemptions()] == ["R-2"]
    ledger.send("order.returned", redemptionId="R-2")
    assert [row["redemption_id"] for row in ledger.redemptions()] == ["R-1", "R-2"]
    assert ledger.remaining() == {"L": 0, "M": 0}


def test_what_waited_in_vain_goes_to_the_dead_letters() -> None:
    ledger = Ledger()
    ledger.send("points.redeemed", customerId=99, redemptionId="R-1", points="100")
    ledger.tick(NOW + timedelta(seconds=300))
    assert ledger.dead == [("points.redeemed/0/0@1795138202123", "not_bookable")]
    assert (ORG, 99) not in ledger.customer_rows


# Feeds


def test_lots_are_consumed_by_expiry_then_issue_then_id() -> None:
    never, soon = lot("never", 10, 10, days=None), lot("soon", 10, 10, days=1)
    older = lot("z-older", 10, 10) | {"issuedAt": "2026-01-01T00:00:00Z"}
    ledger = Ledger(never, lot("b", 10, 10), lot("a", 10, 10), older, soon, lot("past", 10, 10, days=-1))
    ledger.send("points.redeemed", customerId=42, redemptionId="R-1", points="45")
    (row,) = ledger.redemptions()
    assert row["lot_ids"] == ["soon", "z-older", "a", "b", "never"]
    assert row["lot_points"] == [10_000, 10_000, 10_000, 10_000, 5_000]


def test_a_lot_expired_since_may_have_paid() -> None:
    ledger = Ledger(lot("past", 10, 10, days=-1))
    redeemed_at = (NOW - timedelta(days=2)).isoformat()
    ledger.send("points.redeemed", customerId=42, redemptionId="R-1", points="10", redeemedAt=redeemed_at)
    assert ledger.remaining() == {"past": 0}


def test_seen_before_changes_nothing_and_another_content_is_not_bookable() -> None:
    ledger = Ledger()
    issued = {"customerId": 42, "lotId": "L", "points": "40"}
    for points in ("40", "40.0", "41"):
        ledger.send("points.issued", **{**issued, "points": points, "issuedAt": "2026-01-01T00:00:00Z"})
    redeemed = {"customerId": 42, "redemptionId": "R", "points": "40", "type": "RAW"}
    ledger.send("points.redeemed", **redeemed)
    ledger.send("points.redeemed", **redeemed, lots=[{"lotId": "L", "points": "40"}])
    ledger.send("points.redeemed", **{**redeemed, "type": "AMOUNT_BASED"})
    assert ledger.counts == {"booked": 2, "unchanged": 2, "dead": 2}
    assert {reason for _, reason in ledger.dead} == {"not_bookable"}


def test_a_later_update_takes_an_identifier_over() -> None:
    ledger = example()
    ledger.send("customer.updated", customerId=43, identifiers=[{"type": "PHONE", "value": "65-9123-4567"}])
    assert name(ledger.give(**PART, identifier=PHONE)) == "customer_not_eligible"
    ledger.send("customer.updated", customerId=43, identifiers=[])
    assert ledger.identifiers() == []


def test_an_older_update_changes_nothing_and_null_unlocks() -> None:
    ledger = example()
    update: Data = {"customerId": 42, "lockedUntil": LATER, "updatedAt": "2026-11-02T00:00:00Z"}
    ledger.send("customer.updated", **update)
    ledger.send("customer.updated", customerId=42, lockedUntil=None, updatedAt="2026-11-01T00:00:00Z")
    assert name(ledger.give(**PART)) == "customer_locked"
    ledger.send("customer.updated", customerId=42, status="fraud", updatedAt="2026-11-02T00:00:00Z")
    assert name(ledger.give(**PART)) == "customer_not_eligible"
    ledger.send("customer.updated", customerId=42, status="active", updatedAt="2026-11-02T08:00:00+08:00")
    assert name(ledger.give(**PART)) == "customer_locked"
    ledger.send("customer.updated", customerId=42, lockedUntil=None, updatedAt="2026-11-03T00:00:00Z")
    assert name(ledger.give(**PART)) == "completed"


def test_rewards_are_counted() -> None:
    reward = line("reward", rewardId="mug", maxTotal=5, redeemedCount=3)
    ledger = Ledger(reward, lot("L", 100, 100))
    seen = []
    redeemed: Data = {"customerId": 42, "redemptionId": "R", "type": "UNIT_BASED", "points": "100", "quantity": 2}
    ledger.send("points.redeemed", **redeemed, rewardId="mug")
    for _ in range(2):
        (row,) = ledger.rewards()
        seen.append((row["redeemed_count"], row["status"]))
        ledger.give(redemptionId="R", quantity=1)
    assert seen == [(5, "OUT_OF_STOCK"), (4, "ACTIVE")]
    assert ledger.rewards()[0]["redeemed_count"] == 3


# Comparing


def as_published(outcome: Data) -> Data:
    """What a service might have published: ids of its own, words and details."""
    text = json.dumps(outcome).replace(f"reversal:{ORG}/k", "0199-aa").replace(f"journal:{ORG}/k", "0199-bb")
    published: Data = json.loads(text.replace(f"lot:{ORG}/k/2", "0199-cc"))
    for entry in published.get("errors", []):
        entry |= {"message": "asked twice", "details": {"asked": "200"}}
    warned = published.get("existing", published)
    warned["warnings"] = [{"name": "lot_extended", "message": "lot A had expired"}]
    return published


def test_random_ids_compare_equal_where_they_are_the_same() -> None:
    ledger = example(expiredLots={"policy": "extend", "graceDays": 7})
    decided = [ledger.give(orderId="SO-1", idempotencyKey="k") for _ in range(2)]
    published = [as_published(outcome) for outcome in decided]
    assert published != decided
    names = Names()
    assert normalise_all(published, names) == normalise_all(decided)
    assert names.row({"lot_id": "0199-cc"}) == {"lot_id": f"lot:{ORG}/k/2"}
    assert [normalise(outcome) for outcome in published] == [normalise(outcome) for outcome in decided]
    published[1]["existing"]["reversalId"] = "0199-dd"
    assert normalise_all(published) != normalise_all(decided)


def test_everything_else_is_compared() -> None:
    decided = example().give(**PART)
    for field in decided.keys() - {"reversalId", "journalEntryId"}:
        other: Data = {**decided, field: ["other"] if field == "warnings" else {}}
        assert normalise(other) != normalise(decided), field
    later = {**decided, "createdAt": "2026-11-20T09:30:02.123456+08:00"}
    assert normalise(later) == normalise(decided)


def test_groups_by_customer_stand_in_order_of_sequence() -> None:
    ledger = example()
    outcomes = [ledger.give(**PART), ledger.give(**PART), ledger.give(redemptionId="R-9")]
    assert by_customer(reversed(outcomes)) == {(ORG, 42): outcomes[:2], (ORG, None): outcomes[2:]}


# Streams


def test_a_seed_names_a_stream() -> None:
    assert sample(7) == sample(7)
    assert sample(7) != sample(8)
    assert len(sample(7, records=90).records) == 90


def test_records_are_encoded_in_their_form() -> None:
    forms = set()
    for record in sample(3).records:
        key, value, headers = encode(record)
        body, names = json.loads(value), dict(headers)
        if record.form == "structured":
            assert (body["specversion"], body["id"], body["type"]) == ("1.0", record.event_id, record.kind)
            body = body["data"]
        assert ("ce_specversion" in names) == (record.form == "binary")
        plain = json.dumps(record.data, default=str)
        assert body.keys() == json.loads(plain).keys()
        assert key == record.key.encode()
        forms.add(record.form)
    assert forms == set(FORMS)


def test_a_json_number_keeps_its_spelling() -> None:
    record = next(record for record in sample(3).records if record.form == "bare")
    data = {"a": Number("1.50"), "b": ["ü", None, True]}
    assert (
        encode(type(record)("order.returned", "k", data, "bare", "e"))[1]
        == '{"a": 1.50, "b": ["ü", null, true]}'.encode()
    )


def run_stream(seed: int) -> tuple[Model, list[Data], int]:
    """The model after a stream, its outcomes, and how many of them came of feeds."""
    stream = sample(seed)
    model = Model()
    model.load(stream.load_lines, CLOCK)
    for row in stream.rogue_programs:
        model.store_program(row)
    outcomes, released = [], 0
    for offset, record in enumerate(stream.records):
        place = f"{record.kind}/0/{offset}@1795138202123"
        published = model.take(record.kind, record.data, place=place, now=CLOCK, ce=record.ce)
        outcomes += published
        released += len(published) if record.kind != "order.returned" else 0
    outcomes += model.tick(CLOCK + timedelta(hours=1))
    return model, outcomes, released


def test_streams_reach_every_rule_and_the_model_keeps_the_invariants() -> None:
    reached: Counter[str] = Counter()
    for seed in range(20):
        model, outcomes, released = run_stream(seed)
        reached.update(name(outcome) for outcome in outcomes)
        reached.update(reason for _, reason in model.dead)
        reached["released"] += released
        assert (model.parked, model.waiting) == ([], [])
        assert sum(model.counts.values()) == 300
        assert_invariants(model, outcomes)
    wanted = [*REFUSALS, "completed", "released", "no_org", "malformed_feed", "not_bookable"]
    assert [rule for rule in wanted if reached[rule] < 5] == []


def assert_invariants(model: Model, outcomes: list[Data]) -> None:
    assert all(0 <= row["remaining"] <= row["points"] for row in model.lots())
    completed = [outcome for outcome in outcomes if "errors" not in outcome]
    keys = [(outcome["orgId"], outcome["idempotencyKey"]) for outcome in completed]
    assert len(keys) == len(set(keys))
    given: Counter[tuple[int, str]] = Counter()
    for outcome in completed:
        points = int(Decimal(outcome["pointsReversed"]) * 1000)
        assert points == sum(int(Decimal(part["points"]) * 1000) for part in outcome["lots"])
        given[outcome["orgId"], outcome["redemptionId"]] += points
    for row in model.redemptions():
        back = given[row["org_id"], row["redemption_id"]]
        assert row["reversed"] == row["imported_reversed"] + back <= row["points"]
    for (_, customer_id), group in by_customer(outcomes).items():
        if customer_id is not None:
            assert [outcome["sequence"] for outcome in group] == list(range(1, len(group) + 1))

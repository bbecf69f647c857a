"""Booking what the feeds tell, in the words of the contract."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ledger import Customer, Lot, Program, Redemption
from service.outcomes import Issued, NotBookable, Redeemed, Unchanged, Updated, Waits
from service.records import CustomerUpdated, Identifier, PointsIssued, PointsRedeemed
from tests.unit.builders import (
    CUSTOMER,
    DAY,
    NOW,
    ORG,
    OTHER_CUSTOMER,
    Shop,
    ledger,
    lot,
    points,
    redemption,
    spendable,
)

MAIN = Program(ORG, "main", is_default=True)
SIDE = Program(ORG, "side")
PHONE = Identifier("PHONE", "+65 9123 4567", "6591234567")
EMAIL = Identifier("EMAIL", "Ann@example.org", "ann@example.org")


def store(*entries: Program | Customer | Lot | Redemption) -> Shop:
    return Shop(
        ledger(replace(MAIN), replace(SIDE), Customer(ORG, CUSTOMER), Customer(ORG, OTHER_CUSTOMER), *entries), {}
    )


def issued(lot_id: str = "L-1", amount: float = 100, **given: Any) -> PointsIssued:
    fields: dict[str, Any] = {"org_id": ORG, "customer_id": CUSTOMER, "lot_id": lot_id, "points": points(amount)}
    return PointsIssued(**(fields | given))


def redeemed(amount: float, *lots: tuple[str, float], **given: Any) -> PointsRedeemed:
    fields: dict[str, Any] = {"org_id": ORG, "customer_id": CUSTOMER, "redemption_id": "R-1", "points": points(amount)}
    if lots:
        fields["lots"] = tuple((lot_id, points(taken)) for lot_id, taken in lots)
    return PointsRedeemed(**(fields | given))


def updated(**given: Any) -> CustomerUpdated:
    return CustomerUpdated(**({"org_id": ORG, "customer_id": CUSTOMER} | given))


def consumed(it: Shop, feed: PointsRedeemed) -> dict[str, float]:
    """What a redemption takes from each lot, in that order."""
    result = it.book(feed)
    assert isinstance(result, Redeemed), result
    return {lot_id: taken / 1000 for lot_id, taken in result.redemption.lots}


class TestPointsIssued:
    def test_become_a_lot_in_the_program_named_else_in_the_default(self) -> None:
        for program_id, expected in ((None, "main"), ("side", "side")):
            it = store()
            result = it.book(issued(program_id=program_id, expires_at=NOW + DAY, issued_at=NOW - DAY))
            assert isinstance(result, Issued)
            made = it.ledger.lots[ORG, "L-1"]
            assert made == lot("L-1", 100, program_id=expected, expires_at=NOW + DAY, issued_at=NOW - DAY)
            assert made is not result.lot  # the booking does not change with the ledger
            assert [(one.account, one.subject, one.points) for one in result.entry.postings] == [
                ("issued", expected, points(-100)),
                ("held", "L-1", points(100)),
            ]
            assert (result.entry.kind, result.entry.customer_id, result.entry.redemption_id) == (
                "issue",
                CUSTOMER,
                None,
            )

    def test_are_issued_at_the_decision_moment_unless_told(self) -> None:
        it = store()
        it.book(issued())
        assert it.ledger.lots[ORG, "L-1"].issued_at == NOW

    def test_raise_the_balance_if_they_are_spendable(self) -> None:
        it = store()
        it.ledger.balances[ORG, CUSTOMER, "main"] = points(7)
        it.book(issued(expires_at=NOW))
        assert it.ledger.balances == {(ORG, CUSTOMER, "main"): points(7)}
        it.book(issued("L-2"))
        it.book(issued("L-3", program_id="side"))  # its balance was not loaded
        assert it.ledger.balances == {(ORG, CUSTOMER, "main"): points(107)}

    @pytest.mark.parametrize(
        "again",
        [{}, {"program_id": "main"}, {"expires_at": None}, {"issued_at": NOW - 50 * DAY}],
        ids=str,
    )
    def test_seen_before_with_the_same_content_change_nothing(self, again: dict[str, Any]) -> None:
        it = store(lot("L-1", 100, 25, expires_at=NOW + DAY))
        before = deepcopy(it.ledger)
        assert it.book(issued(**again)) == Unchanged()
        assert it.ledger == before

    @pytest.mark.parametrize(
        ("again", "field"),
        [
            ({"points": points(25)}, "points"),
            ({"customer_id": OTHER_CUSTOMER}, "customerId"),
            ({"program_id": "side"}, "programId"),
            ({"program_id": "gone"}, "programId"),
            ({"expires_at": NOW + 2 * DAY}, "expiresAt"),
        ],
        ids=str,
    )
    def test_seen_before_with_another_content_are_not_bookable(self, again: dict[str, Any], field: str) -> None:
        it = store(lot("L-1", 100, 25, expires_at=NOW + DAY))
        assert it.book(issued(**again)) == NotBookable(f"lot L-1 is known with another {field}")

    def test_of_a_customer_not_seen_before_make_the_customer(self) -> None:
        it = store()
        assert isinstance(it.book(issued(customer_id=4711)), Issued)
        assert it.ledger.customers[ORG, 4711] == Customer(ORG, 4711)


class TestWaiting:
    def test_for_an_org(self) -> None:
        it = store()
        for feed in (issued(org_id=8), redeemed(1, org_id=8), updated(org_id=8)):
            assert it.book(feed) == Waits("org 8 to be configured")
        assert (8, CUSTOMER) not in it.ledger.customers

    def test_for_a_program(self) -> None:
        it = store()
        for feed in (issued(program_id="gold"), redeemed(1, program_id="gold")):
            assert it.book(feed) == Waits("program gold of org 7 to be configured")

    def test_for_a_default_program(self) -> None:
        it = store()
        it.ledger.orgs[ORG].programs["main"].is_default = False
        for feed in (issued(), redeemed(1)):
            assert it.book(feed) == Waits("org 7 to have a default program")
        del it.ledger.orgs[ORG].programs["side"]
        assert isinstance(it.book(issued()), Issued)  # the only one is the default

    def test_for_a_lot(self) -> None:
        it = store(lot("A", 5))
        assert it.book(redeemed(10, ("A", 5), ("B", 5))) == Waits("lot B to be issued")

    def test_for_points_in_a_lot(self) -> None:
        it = store(lot("A", 5, 4))
        assert it.book(redeemed(5, ("A", 5))) == Waits("lot A to hold 5 points, it holds 4")

    def test_for_points_of_the_customer(self) -> None:
        it = store(lot("A", 5, 4), lot("B", 5, 0.5))
        before = deepcopy(it.ledger)
        assert it.book(redeemed(5)) == Waits("customer 42 to hold 5 points in the program main, 4.5 are there")
        assert it.ledger == before

    def test_ends_when_the_points_come_with_another_lot(self) -> None:
        it = store(lot("A", 5, 4))
        assert isinstance(it.book(redeemed(5)), Waits)
        it.book(issued("B", 1))
        assert consumed(it, redeemed(5)) == {"A": 4, "B": 1}


class TestPointsRedeemed:
    def test_consume_by_expiry_then_issue_then_id_never_expiring_last(self) -> None:
        it = store(
            lot("never, late", 1, issued_at=NOW - DAY),
            lot("never, early", 1, issued_at=NOW - 2 * DAY),
            lot("b", 1, expires_at=NOW + 2 * DAY),
            lot("a", 1, expires_at=NOW + 2 * DAY),
            lot("Z", 1, expires_at=NOW + 2 * DAY),
            lot("ä", 1, expires_at=NOW + 2 * DAY),
            lot("early", 1, expires_at=NOW + 2 * DAY, issued_at=NOW - 200 * DAY),
            lot("soon", 1, expires_at=NOW + DAY, issued_at=NOW),
        )
        assert list(consumed(it, redeemed(8))) == [
            "soon", "early", "Z", "a", "b", "ä", "never, early", "never, late",
        ]  # fmt: skip

    def test_consume_only_what_they_need_of_that_customer_and_program(self) -> None:
        it = store(
            lot("others", 100, customer_id=OTHER_CUSTOMER, expires_at=NOW + DAY),
            lot("side", 100, program_id="side", expires_at=NOW + DAY),
            lot("empty", 100, 0, expires_at=NOW + DAY),
            lot("A", 100, 30, expires_at=NOW + DAY),
            lot("B", 100),
            lot("C", 100),
        )
        assert consumed(it, redeemed(75)) == {"A": 30, "B": 45}
        assert it.held() == {"others": 100, "side": 100, "empty": 0, "A": 0, "B": 55, "C": 100}
        assert consumed(it, redeemed(100, redemption_id="R-2", program_id="side")) == {"side": 100}

    def test_consume_lots_that_were_not_expired_when_redeemed(self) -> None:
        lots = [lot("gone", 5, expires_at=NOW - 2 * DAY), lot("over", 5, expires_at=NOW - DAY), lot("good", 5)]
        assert consumed(store(*deepcopy(lots)), redeemed(5)) == {"good": 5}
        assert consumed(store(*deepcopy(lots)), redeemed(10, redeemed_at=NOW - 2 * DAY)) == {"over": 5, "good": 5}
        assert isinstance(store(*lots).book(redeemed(10, redeemed_at=NOW - DAY)), Waits)

    def test_take_given_lots_as_named_in_their_order_even_if_expired(self) -> None:
        it = store(lot("A", 5), lot("B", 5, expires_at=NOW - DAY), lot("C", 5))
        assert list(consumed(it, redeemed(9, ("C", 4), ("B", 5)))) == ["C", "B"]
        assert it.held() == {"A": 5, "B": 0, "C": 1}

    def test_become_a_redemption_with_its_entry(self) -> None:
        it = store(lot("A", 5), lot("B", 5))
        feed = redeemed(6, order_id="SO-1", type="UNIT_BASED", quantity=3, reward_id="mug", redeemed_at=NOW - DAY)
        result = it.book(feed)
        assert isinstance(result, Redeemed)
        made = it.ledger.redemptions[ORG, "R-1"]
        assert made == redemption(
            "R-1", 6, ("A", 5), ("B", 1), order_id="SO-1", type="UNIT_BASED", quantity=3, reversed_quantity=0,
            reward_id="mug", redeemed_at=NOW - DAY,
        )  # fmt: skip
        assert made is not result.redemption  # the booking does not change with the ledger
        assert [(one.account, one.subject, one.points) for one in result.entry.postings] == [
            ("redeemed", "R-1", points(6)),
            ("held", "A", points(-5)),
            ("held", "B", points(-1)),
        ]
        assert (result.entry.kind, result.entry.redemption_id) == ("redemption", "R-1")

    def test_are_raw_and_of_the_decision_moment_unless_told(self) -> None:
        it = store(lot("A", 5))
        it.book(redeemed(5))
        made = it.ledger.redemptions[ORG, "R-1"]
        assert (made.type, made.redeemed_at, made.reversed_quantity) == ("RAW", NOW, None)

    def test_stand_on_their_order_sorted_by_id(self) -> None:
        it = store(lot("A", 5))
        for redemption_id in ("b", "ä", "B"):
            it.book(redeemed(1, redemption_id=redemption_id, order_id="SO-1"))
        it.book(redeemed(1, redemption_id="no order"))
        assert it.ledger.orders == {(ORG, "SO-1"): ["B", "b", "ä"]}

    def test_lower_the_balance_by_what_was_spendable(self) -> None:
        it = store(lot("A", 5, expires_at=NOW), lot("B", 5))
        assert it.ledger.balances[ORG, CUSTOMER, "main"] == points(5)
        it.book(redeemed(7, ("A", 5), ("B", 2)))
        assert it.ledger.balances[ORG, CUSTOMER, "main"] == points(3)

    @pytest.mark.parametrize(
        ("feed", "message"),
        [
            (redeemed(9, ("A", 5), ("B", 5)), "redemption R-1 is of 9 points, its lots add up to 10"),
            (redeemed(5, lots=()), "redemption R-1 is of 5 points, its lots add up to 0"),
            (redeemed(2, ("A", 1), ("A", 1)), "redemption R-1 names a lot more than once"),
            (redeemed(2, ("unknown", 1), ("others", 1)), "lot others is not of customer 42"),
            (redeemed(2, ("unknown", 1), ("side", 1)), "lot side is of the program side, not of main"),
            (
                redeemed(5, type="UNIT_BASED"),
                "redemption R-1 is UNIT_BASED: a quantity belongs to a UNIT_BASED redemption and to no other",
            ),
            (
                redeemed(5, quantity=1),
                "redemption R-1 is RAW: a quantity belongs to a UNIT_BASED redemption and to no other",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_that_never_can_be_are_not_bookable(self, feed: PointsRedeemed, message: str) -> None:
        it = store(lot("A", 5), lot("others", 5, customer_id=OTHER_CUSTOMER), lot("side", 5, program_id="side"))
        before = deepcopy(it.ledger)
        assert it.book(feed) == NotBookable(message)
        assert it.ledger == before

    @pytest.mark.parametrize(
        "again",
        [
            {},
            {"type": "UNIT_BASED", "quantity": 3},
            {"order_id": "SO-1", "program_id": "main", "reward_id": "mug"},
            {"lots": (("A", points(5)), ("B", points(1)))},
            {"redeemed_at": NOW},
        ],
        ids=str,
    )
    def test_seen_before_with_the_same_content_change_nothing(self, again: dict[str, Any]) -> None:
        it = self.with_a_redemption()
        before = deepcopy(it.ledger)
        assert it.book(redeemed(6, **again)) == Unchanged()
        assert it.ledger == before

    @pytest.mark.parametrize(
        ("again", "fields"),
        [
            ({"points": points(5)}, "points"),
            ({"customer_id": OTHER_CUSTOMER}, "customerId"),
            ({"order_id": "SO-2"}, "orderId"),
            ({"program_id": "side"}, "programId"),
            ({"type": "RAW"}, "type"),
            ({"type": "UNIT_BASED", "quantity": 4}, "quantity"),
            ({"reward_id": "cup"}, "rewardId"),
            ({"lots": (("B", points(1)), ("A", points(5)))}, "lots"),
        ],
        ids=str,
    )
    def test_seen_before_with_another_content_are_not_bookable(self, again: dict[str, Any], fields: str) -> None:
        it = self.with_a_redemption()
        assert it.book(redeemed(6, **again)) == NotBookable(f"redemption R-1 is known with another {fields}")

    def with_a_redemption(self) -> Shop:
        """R-1, given back in part since."""
        return store(
            redemption(
                "R-1", 6, ("A", 5), ("B", 1), order_id="SO-1", type="UNIT_BASED", quantity=3, reversed_quantity=1,
                reversed=points(2), reward_id="mug",
            )
        )  # fmt: skip


class TestCustomerUpdated:
    def test_what_is_given_replaces_what_was_and_nothing_else(self) -> None:
        it = store()
        customer = it.ledger.customers[ORG, CUSTOMER]
        it.book(updated(status="fraud", locked_until=NOW + DAY, locked_until_given=True, updated_at=NOW - DAY))
        it.book(updated())
        assert customer == Customer(ORG, CUSTOMER, "fraud", NOW + DAY, updated_at=NOW - DAY)
        it.book(updated(status="active"))
        assert customer == Customer(ORG, CUSTOMER, "active", NOW + DAY, updated_at=NOW - DAY)

    def test_a_lock_given_as_null_unlocks(self) -> None:
        it = store()
        it.ledger.customers[ORG, CUSTOMER].locked_until = NOW + DAY
        it.book(updated(locked_until=None, locked_until_given=True))
        assert it.ledger.customers[ORG, CUSTOMER].locked_until is None

    @pytest.mark.parametrize(
        ("stored", "told", "changes"),
        [
            (NOW, NOW - DAY, False),
            (NOW, NOW, True),
            (NOW, NOW + DAY, True),
            (NOW, None, True),
            (None, NOW - DAY, True),
        ],
    )
    def test_older_than_what_is_stored_changes_nothing(
        self, stored: datetime | None, told: datetime | None, changes: bool
    ) -> None:
        it = store()
        it.ledger.customers[ORG, CUSTOMER].updated_at = stored
        result = it.book(updated(status="inactive", identifiers=(PHONE,), updated_at=told))
        assert isinstance(result, Updated if changes else Unchanged)
        assert (it.ledger.customers[ORG, CUSTOMER].status == "inactive") is changes
        assert bool(it.ledger.identifiers) is changes
        assert it.ledger.customers[ORG, CUSTOMER].updated_at == ((told or stored) if changes else stored)

    def test_identifiers_replace_the_set(self) -> None:
        it = store()
        it.book(updated(identifiers=(PHONE, EMAIL)))
        it.book(updated(customer_id=OTHER_CUSTOMER, identifiers=(replace(PHONE, lookup="1"),)))
        it.book(updated(identifiers=(EMAIL,)))
        assert it.ledger.identifiers == {
            (ORG, "EMAIL", EMAIL.lookup): CUSTOMER,
            (ORG, "PHONE", "1"): OTHER_CUSTOMER,
        }
        it.book(updated(identifiers=()))
        assert it.ledger.identifiers == {(ORG, "PHONE", "1"): OTHER_CUSTOMER}

    def test_a_later_update_takes_an_identifier_over(self) -> None:
        it = store()
        it.book(updated(identifiers=(PHONE, EMAIL)))
        it.book(updated(customer_id=OTHER_CUSTOMER, identifiers=(PHONE,)))
        assert it.ledger.identifiers == {
            (ORG, "PHONE", PHONE.lookup): OTHER_CUSTOMER,
            (ORG, "EMAIL", EMAIL.lookup): CUSTOMER,
        }

    def test_identifiers_of_the_same_customer_id_in_another_org_stay(self) -> None:
        it = store()
        it.ledger.identifiers[8, "PHONE", "1"] = CUSTOMER
        it.book(updated(identifiers=()))
        assert it.ledger.identifiers == {(8, "PHONE", "1"): CUSTOMER}

    def test_an_id_is_the_customer_itself(self) -> None:
        it = store()
        it.book(updated(identifiers=(Identifier("ID", "42", "42"),)))
        assert it.ledger.identifiers == {}
        result = it.book(updated(identifiers=(Identifier("ID", "43", "43"),)))
        assert result == NotBookable("customer 42 cannot have another customer's ID as its identifier")


LOTS = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 20), st.none() | st.integers(-3, 3), st.integers(0, 2)),
    min_size=1,
    max_size=8,
)


class TestOverAnyLots:
    @given(LOTS, st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=5))
    def test_no_lot_gives_more_than_it_holds_and_all_adds_up(
        self, kinds: list[tuple[int, int, int | None, int]], amounts: list[tuple[int, int]]
    ) -> None:
        it = store(*(
            lot(f"L{place}", issued, min(held, issued), expires_at=None if days is None else NOW + days * DAY,
                issued_at=NOW - age * DAY)
            for place, (issued, held, days, age) in enumerate(kinds)
        ))  # fmt: skip
        for number, (amount, days_ago) in enumerate(amounts):
            moment = NOW - days_ago * DAY
            open_lots = [one for one in it.ledger.lots.values() if one.remaining and not one.expired(moment)]
            there = sum(one.remaining for one in open_lots)
            result = it.book(redeemed(amount, redemption_id=f"R-{number}", redeemed_at=moment))
            assert isinstance(result, Redeemed) is (there >= points(amount))
            if isinstance(result, Redeemed):
                assert sum(posting.points for posting in result.entry.postings) == 0
                assert sum(taken for _, taken in result.redemption.lots) == points(amount)
                assert all(taken > 0 for _, taken in result.redemption.lots)
                taken_from = {lot_id for lot_id, _ in result.redemption.lots}
                emptied = [it.ledger.lots[ORG, lot_id].remaining == 0 for lot_id, _ in result.redemption.lots]
                assert all(emptied[:-1])  # each is used up before the next
                assert taken_from <= {one.lot_id for one in open_lots}
            assert all(0 <= one.remaining <= one.points for one in it.ledger.lots.values())
            some_lot = it.ledger.lots[ORG, "L0"]
            assert it.ledger.balances[ORG, CUSTOMER, "main"] == spendable(it.ledger, some_lot)

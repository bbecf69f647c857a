"""Giving points back, in the words of the contract; what holds over any sequence of partials are properties."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.case import ContradictionError
from service.errors import Code
from service.ledger import Program
from service.outcomes import Completed
from service.reversal import restore
from tests.unit.builders import (
    CUSTOMER,
    DAY,
    NOW,
    ORG,
    Shop,
    completed,
    ledger,
    lot,
    points,
    redemption,
    refused,
    shop,
    spendable,
)

MICROSECOND = timedelta(microseconds=1)


def by_lot(decision: Completed) -> dict[str, float]:
    return {part.lot_id: part.points / 1000 for part in decision.parts}


def split(decision: Completed) -> tuple[float, float]:
    return decision.available / 1000, decision.expired / 1000


class TestTheContractsExample:
    """Lots A 100 (expired), B 60, C 40 consumed in that order by a redemption of 200."""

    def test_step_by_step(self) -> None:
        it = shop()
        first = completed(it.give_back(50))
        assert list(by_lot(first).items()) == [("C", 40), ("B", 10)]
        assert split(first) == (50, 0)
        second = completed(it.give_back(75))
        assert list(by_lot(second).items()) == [("B", 50), ("A", 25)]
        assert split(second) == (50, 25)
        too_much = refused(it.give_back(80)).errors[0]
        assert too_much.code is Code.INSUFFICIENT_POINTS
        assert too_much.message == "asked for 80, 75 of 200 remain"
        third = completed(it.give_back())
        assert by_lot(third) == {"A": 75}
        assert split(third) == (0, 75)
        assert refused(it.give_back()).errors[0].code is Code.INSUFFICIENT_POINTS
        assert it.held() == {"A": 100, "B": 60, "C": 40}
        assert it.ledger.balances[ORG, CUSTOMER, "main"] == points(100)
        assert it.customer.sequence == 21


class TestExpiredLots:
    def test_a_lot_that_expires_at_the_decision_moment_is_expired(self) -> None:
        it = shop()
        it.ledger.lots[ORG, "C"].expires_at = NOW
        it.ledger.lots[ORG, "B"].expires_at = NOW + MICROSECOND
        assert split(completed(it.decide())) == (10.5, 40)

    def test_keep_their_expiry_by_default(self) -> None:
        part = completed(shop().give_back()).parts[-1]
        assert (part.lot_id, part.expires_at, part.expired, part.restored_from) == ("A", NOW - DAY, True, None)

    def test_are_carried_on_by_new_lots_of_their_own_where_the_program_extends(self) -> None:
        it = shop(expired_lots_policy="extend", grace_days=14)
        it.ledger.lots[ORG, "B"].expires_at = NOW - 2 * DAY
        decision = completed(it.give_back())
        in_c, of_b, of_a = decision.parts
        assert (in_c.lot_id, in_c.restored_from) == ("C", None)
        assert [(part.restored_from, part.points) for part in (of_b, of_a)] == [("B", points(60)), ("A", points(100))]
        assert {(part.expires_at, part.expired) for part in (of_b, of_a)} == {(NOW + 14 * DAY, False)}
        assert split(decision) == (200, 0)
        assert decision.balance_after == points(200)
        assert [new.lot_id for new in decision.new_lots] == [of_b.lot_id, of_a.lot_id]
        for new in decision.new_lots:
            assert (new.issued_at, new.remaining) == (NOW, new.points)
            assert (new.program_id, new.customer_id) == ("main", CUSTOMER)
            assert it.ledger.lots[ORG, new.lot_id] == new
            assert it.ledger.lots[ORG, new.lot_id] is not new  # the decision does not change with the ledger
        assert it.held() == {"A": 0, "B": 0, "C": 40, of_b.lot_id: 60, of_a.lot_id: 100}
        held = {posting.subject for posting in decision.entry.postings if posting.account == "held"}
        assert held == {"C", of_b.lot_id, of_a.lot_id}

    def test_extended_come_with_a_warning_each(self) -> None:
        it = shop(expired_lots_policy="extend", grace_days=14)
        it.ledger.lots[ORG, "B"].expires_at = NOW
        assert completed(it.give_back(40)).warnings == ()
        assert [(one.name, one.message) for one in completed(it.give_back(75)).warnings] == [
            ("expired_lot_extended",
             "60 points of the expired lot B came back as a new lot that expires 2026-12-04 01:30 UTC"),
            ("expired_lot_extended",
             "15 points of the expired lot A came back as a new lot that expires 2026-12-04 01:30 UTC"),
        ]  # fmt: skip

    def test_a_lot_that_carries_another_on_names_it_only_when_it_is_made(self) -> None:
        it = shop(expired_lots_policy="extend", grace_days=14)
        it.ledger.lots[ORG, "C"].restored_from = "Z"
        assert completed(it.give_back(40)).parts[0].restored_from is None

    def test_an_extension_beyond_the_calendar_lasts_till_its_end(self) -> None:
        it = shop(expired_lots_policy="extend", grace_days=2**31 - 1)
        (new,) = completed(it.give_back()).new_lots
        assert new.expires_at is not None
        assert new.expires_at.year == 9999


class TestARedemptionWithoutLots:
    def without_lots(self, **rules: Any) -> Shop:
        it = shop(**rules)
        it.redemption.lots = ()
        return it

    def test_restores_one_new_lot_that_never_expires_with_a_warning(self) -> None:
        it = self.without_lots()
        decision = completed(it.give_back(50))
        (new,), (part,), (warning,) = decision.new_lots, decision.parts, decision.warnings
        assert (new.points, new.expires_at, new.restored_from) == (points(50), None, None)
        assert (part.lot_id, part.points, part.expired) == (new.lot_id, points(50), False)
        assert new.lot_id == str(UUID(new.lot_id))
        assert it.ledger.lots[ORG, new.lot_id].remaining == points(50)
        assert warning.name == "no_lots_kept"
        assert warning.message == "redemption R-1 kept no lots: 50 points came back as a new lot that never expires"

    def test_with_grace_days_it_expires(self) -> None:
        decision = completed(self.without_lots(expired_lots_policy="extend", grace_days=14).give_back())
        assert decision.new_lots[0].expires_at == NOW + 14 * DAY
        assert decision.warnings[0].message.endswith(" as a new lot that expires 2026-12-04 01:30 UTC")


def units(redeemed: float, quantity: int, **rules: Any) -> Shop:
    """R-1 as units of a reward."""
    it = shop(**({"decimals": 0} | rules))
    it.ledger.lots[ORG, "A"] = lot("A", redeemed, 0)
    it.ledger.redemptions[ORG, "R-1"] = redemption(
        "R-1", redeemed, ("A", redeemed), type="UNIT_BASED", quantity=quantity, reversed_quantity=0, order_id="SO-1"
    )
    return it


class TestUnits:
    def test_partials_floor_in_total_and_the_last_gives_all_that_remains(self) -> None:
        it = units(100, 3)
        each = [completed(it.give_back(quantity=1)) for _ in range(3)]
        assert [one.points for one in each] == [points(33), points(33), points(34)]
        assert [one.units for one in each] == [1, 1, 1]
        assert (it.redemption.reversed_quantity, it.redemption.remaining) == (3, 0)

    def test_a_partial_of_nothing_is_a_completed_reversal_too(self) -> None:
        it = units(1, 2)
        first = completed(it.give_back(quantity=1))
        assert (first.points, first.parts, first.units) == (0, (), 1)
        assert completed(it.give_back(quantity=1)).points == points(1)

    def test_a_partial_of_nothing_of_a_redemption_without_lots_makes_none(self) -> None:
        it = units(1, 2)
        it.redemption.lots = ()
        first = completed(it.give_back(quantity=1))
        assert (first.points, first.new_lots, first.warnings) == (0, (), ())

    def test_without_a_quantity_all_that_remains(self) -> None:
        it = units(100, 3)
        it.give_back(quantity=1)
        decision = completed(it.give_back())
        assert (decision.units, decision.points, decision.asked) == (2, points(67), points(67))

    def test_given_back_beyond_their_worth_give_nothing_until_it_is_reached(self) -> None:
        it = units(100, 4)
        it.redemption.reversed, it.redemption.reversed_quantity = points(60), 1  # as imported
        assert [completed(it.give_back(quantity=1)).points for _ in range(3)] == [0, points(15), points(25)]

    def test_more_than_remain_are_refused_with_the_numbers(self) -> None:
        it = units(100, 3)
        it.give_back(quantity=1)
        error = refused(it.give_back(quantity=3)).errors[0]
        assert error.code is Code.INSUFFICIENT_POINTS
        assert error.message == "asked for 3 units, 2 of 3 remain"
        assert error.details == {
            "points": "100", "reversed": "33", "remaining": "67",
            "askedQuantity": "3", "quantity": "3", "reversedQuantity": "1", "remainingQuantity": "2",
        }  # fmt: skip

    def test_without_points_left_are_refused(self) -> None:
        it = units(100, 3)
        it.redemption.reversed, it.redemption.reversed_quantity = points(100), 1  # as imported
        error = refused(it.give_back(quantity=1)).errors[0]
        assert error.code is Code.INSUFFICIENT_POINTS
        assert error.message == "nothing remains: all 100 points were given back already"

    def test_all_that_remains_is_judged_by_units(self) -> None:
        it = units(100, 3, allow_partial=False, minimum_points=points(500))
        assert refused(it.give_back(quantity=2)).errors[0].code is Code.CONDITIONS_NOT_MET
        assert completed(it.give_back(quantity=3)).points == points(100)

    def test_a_part_is_told_in_units(self) -> None:
        error = refused(units(100, 3, allow_partial=False).give_back(quantity=2)).errors[0]
        assert error.message == "asked for 2 units, 3 of 3 remain; the program gives back only all that remains"

    def test_the_minimum_looks_at_their_points(self) -> None:
        it = units(100, 3, minimum_points=points(34))
        assert refused(it.give_back(quantity=1)).errors[0].details["asked"] == "33"
        assert completed(it.give_back(quantity=2)).points == points(66)

    def test_more_than_remain_are_judged_by_the_minimum_as_points_would_be(self) -> None:
        it = units(100, 4, minimum_points=points(60))
        it.redemption.reversed, it.redemption.reversed_quantity = points(75), 3
        assert refused(it.give_back(quantity=2)).errors[0].code is Code.CONDITIONS_NOT_MET  # worth 50
        assert refused(it.give_back(quantity=3)).errors[0].code is Code.INSUFFICIENT_POINTS  # worth 75

    @given(
        worth=st.integers(1, 10**6),
        decimals=st.integers(0, 3),
        partials=st.lists(st.integers(1, 9), min_size=1, max_size=12),
        whole=st.booleans(),
    )
    def test_any_partials_make_the_points_exactly(
        self, worth: int, decimals: int, partials: list[int], whole: bool
    ) -> None:
        step = 10 ** (3 - decimals)
        worth = worth * step if whole else worth  # a redemption may be finer than the program's decimals
        total, returned, back = sum(partials), 0, 0
        it = units(worth / 1000, total, decimals=decimals)
        for quantity in partials:
            decision = completed(it.give_back(quantity=quantity))
            returned, back = returned + quantity, back + decision.points
            assert back == (worth if returned == total else worth * returned // total // step * step)
        assert back == worth
        assert refused(it.give_back(quantity=1)).errors[0].code is Code.INSUFFICIENT_POINTS


# Lots as a redemption consumed them: (taken, days to expiry or None, held besides); then what each return asks for.
CONSUMED = st.lists(
    st.tuples(st.integers(1, 30), st.none() | st.integers(-3, 3), st.integers(0, 5)), min_size=1, max_size=6
)
PARTIALS = st.lists(st.integers(1, 60) | st.none(), min_size=1, max_size=12)


def redeemed_shop(consumed: list[tuple[int, int | None, int]], program: Program) -> Shop:
    lots = [
        lot(f"L{place}", taken + held, held, expires_at=None if days is None else NOW + days * DAY)
        for place, (taken, days, held) in enumerate(consumed)
    ]
    taken_of = [(f"L{place}", taken) for place, (taken, _, _) in enumerate(consumed)]
    burned = redemption("R-1", sum(taken for _, taken in taken_of), *taken_of)
    return Shop(ledger(program, *lots, burned), {})


class TestOverAnySequenceOfPartials:
    @given(CONSUMED, PARTIALS)
    def test_what_was_taken_is_what_comes_back_last_consumed_first_never_more(
        self, consumed: list[tuple[int, int | None, int]], partials: list[int | None]
    ) -> None:
        it = redeemed_shop(consumed, Program(ORG, "main", is_default=True))
        taken = Counter({f"L{place}": points(amount) for place, (amount, _, _) in enumerate(consumed)})
        held = {key: one.remaining for key, one in it.ledger.lots.items()}
        stack = [f"L{place}" for place, (amount, _, _) in enumerate(consumed) for _ in range(amount)]  # a point each
        restored: Counter[str] = Counter()
        for amount in partials:
            decision = it.give_back(amount)
            if not isinstance(decision, Completed):
                assert not stack or (amount is not None and amount > len(stack))
                continue
            popped = [stack.pop() for _ in range(amount if amount is not None else len(stack))]
            assert [(part.lot_id, part.points) for part in decision.parts] == [
                (lot_id, points(count)) for lot_id, count in Counter(popped).items()
            ]
            assert decision.remaining_after == points(len(stack))
            restored.update({part.lot_id: part.points for part in decision.parts})
            assert restored <= taken
            assert it.redemption.reversed == restored.total()
        for (_, lot_id), one in it.ledger.lots.items():
            assert one.remaining == held[ORG, lot_id] + restored[lot_id]
            assert one.remaining <= one.points
        if not stack:
            assert restored == taken

    @given(CONSUMED, PARTIALS, st.none() | st.integers(1, 3), st.booleans())
    def test_postings_sum_to_zero_and_tell_what_the_ledger_holds(
        self, consumed: list[tuple[int, int | None, int]], partials: list[int | None], grace: int | None, kept: bool
    ) -> None:
        it = redeemed_shop(consumed, self.program(grace))
        if not kept:
            it.redemption.lots = ()
        accounts = Counter({("redeemed", "R-1"): it.redemption.points})
        accounts.update({("held", one.lot_id): one.remaining for one in it.ledger.lots.values()})
        for amount in partials:
            decision = it.give_back(amount)
            if isinstance(decision, Completed):
                assert sum(posting.points for posting in decision.entry.postings) == 0
                for posting in decision.entry.postings:
                    accounts[posting.account, posting.subject] += posting.points
        assert accounts["redeemed", "R-1"] == it.redemption.remaining
        for one in it.ledger.lots.values():
            assert accounts["held", one.lot_id] == one.remaining

    @given(CONSUMED, PARTIALS, st.none() | st.integers(1, 3), st.booleans())
    def test_the_balance_is_what_the_lots_hold_unexpired_and_the_split_adds_up(
        self, consumed: list[tuple[int, int | None, int]], partials: list[int | None], grace: int | None, kept: bool
    ) -> None:
        it = redeemed_shop(consumed, self.program(grace))
        if not kept:
            it.redemption.lots = ()
        for amount in partials:
            before = spendable(it.ledger, it.redemption)
            decision = it.give_back(amount)
            if isinstance(decision, Completed):
                assert decision.balance_after == spendable(it.ledger, it.redemption) == before + decision.available
                assert decision.available + decision.expired == decision.points == sum(p.points for p in decision.parts)
                assert grace is None or decision.expired == 0
            assert it.ledger.balances[ORG, CUSTOMER, "main"] == spendable(it.ledger, it.redemption)

    def program(self, grace: int | None) -> Program:
        policy = "keep" if grace is None else "extend"
        return Program(ORG, "main", is_default=True, expired_lots_policy=policy, grace_days=grace)


class TestRestore:
    def test_names_a_lot_once_even_if_it_was_consumed_twice(self) -> None:
        assert restore((("A", 5), ("B", 5), ("A", 5)), 2, 12) == {"A": 7, "B": 5}

    def test_of_more_than_was_taken_is_a_contradiction(self) -> None:
        with pytest.raises(ContradictionError, match=r"0\.001 points to give back were taken from no lot"):
            restore((("A", 5),), 3, 3)

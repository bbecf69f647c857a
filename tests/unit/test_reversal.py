"""Deciding a return, in the words and the order of the contract."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest

from service import reversal
from service.case import ContradictionError
from service.errors import Code
from service.ledger import Program
from service.outcomes import Completed, Parked, Refused, Repeated
from service.records import Identifier, Return
from service.rules import RULES, contradictions
from tests.unit.breaches import (
    IMPOSSIBLE,
    MICROSECOND,
    TABLE,
    TAKEN_AWAY,
    Breach,
    Row,
    customer_locked,
    identifier_of_another,
    identifier_of_nobody,
    order_unknown,
    org_unknown,
    other_request_completed,
    redemption_of_another_order,
    redemption_unknown,
    same_request_completed,
    several_on_the_order,
    shape_broken,
    why_impossible,
)
from tests.unit.builders import (
    CUSTOMER,
    DAY,
    NOW,
    ORG,
    OTHER_CUSTOMER,
    OTHER_RECORD_ID,
    PHONE,
    RECORD_ID,
    asking,
    completed,
    points,
    refused,
    shop,
)

PAIRS = [(one, other) for one, other in combinations(TABLE, 2) if one.place != other.place]
POSSIBLE = [
    pytest.param(one, other, id=f"{one.breach.__name__} before {other.breach.__name__}")
    for one, other in PAIRS
    if why_impossible(one, other) is None
]


class TestTheRules:
    def test_the_shop_as_it_stands_gives_back(self) -> None:
        assert completed(shop().decide()).points == points(50.5)

    @pytest.mark.parametrize("row", TABLE, ids=str)
    def test_each_refuses_with_its_code_in_plain_words_with_the_numbers(self, row: Row) -> None:
        it = shop()
        row.breach(it)
        error = refused(it.decide()).errors[0]
        assert (error.code.number, error.code.label) == (row.code, row.name)
        assert error.message == row.message
        assert error.details == row.details

    def test_each_has_a_row_in_the_table(self) -> None:
        assert {row.place for row in TABLE} == set(range(len(RULES)))
        assert [row.place for row in TABLE] == sorted(row.place for row in TABLE)

    def test_stand_in_the_order_of_the_codes(self) -> None:
        first_mentions = list(dict.fromkeys(rule.code for rule in RULES))
        assert first_mentions == list(Code)[: len(first_mentions)]
        assert [rule.number for rule in RULES] == sorted(rule.number for rule in RULES)
        assert {rule.number for rule in RULES} == set(range(1, 16))

    def test_pairs_left_out_are_those_with_a_reason(self) -> None:
        left_out = [why_impossible(*pair) for pair in PAIRS if why_impossible(*pair) is not None]
        reasons = [reason for facts in TAKEN_AWAY.values() for reason in facts.values()]
        assert set(left_out) == {*reasons, *IMPOSSIBLE.values()}
        assert len(POSSIBLE) > 300

    @pytest.mark.parametrize(("earlier", "later"), POSSIBLE)
    def test_the_first_that_applies_names_the_outcome(self, earlier: Row, later: Row) -> None:
        for first, second in ((earlier, later), (later, earlier)):
            it = shop()
            first.breach(it)
            second.breach(it)
            error = refused(it.decide()).errors[0]
            assert (error.code.number, error.code.label) == (earlier.code, earlier.name)


class TestDuplicates:
    def test_another_record_with_the_same_request_is_902_with_the_existing_record(self) -> None:
        it = shop()
        same_request_completed(it)
        decision = refused(it.decide())
        assert decision.errors[0].code is Code.DUPLICATE_REVERSAL
        assert decision.existing == b'{"published": "before"}'

    def test_another_record_with_another_request_reuses_the_key(self) -> None:
        it = shop()
        other_request_completed(it)
        decision = refused(it.decide())
        assert decision.errors[0].code is Code.IDEMPOTENCY_KEY_REUSED
        assert decision.existing == b'{"published": "before"}'

    def test_no_other_refusal_carries_an_existing_record(self) -> None:
        it = shop()
        same_request_completed(it)
        shape_broken(it)
        assert refused(it.decide()).existing is None

    def test_the_same_record_again_has_no_second_effect(self) -> None:
        it = shop()
        first = completed(it.decide())
        reversal.apply(it.ledger, first)
        reversal.claim(it.ledger, first, RECORD_ID, b"{}")
        before = deepcopy(it.ledger)
        again = it.decide()
        assert again == Repeated(first.request)
        reversal.apply(it.ledger, again)
        assert it.ledger == before

    def test_a_claimed_key_refuses_the_next_record_of_the_same_batch(self) -> None:
        it = shop()
        first = completed(it.decide())
        reversal.apply(it.ledger, first)
        reversal.claim(it.ledger, first, OTHER_RECORD_ID, b'{"published": "now"}')
        it.request |= {"reason": "changed my mind", "returned_at": NOW - DAY, "return_id": "RMA-78"}  # do not count
        second = refused(it.decide())
        assert second.errors[0].code is Code.DUPLICATE_REVERSAL
        assert second.existing == b'{"published": "now"}'

    def test_a_failure_claims_no_key(self) -> None:
        it = shop()
        customer_locked(it)
        reversal.apply(it.ledger, refused(it.decide()))
        it.customer.locked_until = None
        assert completed(it.decide()).points == points(50.5)


class TestRefusals:
    def test_every_fault_of_the_shape_has_an_entry_with_its_field(self) -> None:
        it = shop()
        shape_broken(it)
        errors = refused(it.decide()).errors
        assert [error.code for error in errors] == [Code.VALIDATION_ERROR] * 2
        assert [error.details["field"] for error in errors] == ["reason", "quantity"]

    @pytest.mark.parametrize("row", TABLE, ids=str)
    def test_carry_the_known_customers_next_sequence_and_change_nothing_else(self, row: Row) -> None:
        it = shop()
        row.breach(it)
        it.decide()  # takes the key where the row wants it taken
        expected = deepcopy(it.ledger)
        decision = refused(it.decide())
        assert it.ledger == expected
        assert decision.failed_at == NOW
        known = row.breach is not org_unknown and (CUSTOMER, 17)
        assert (decision.customer_id, decision.sequence) == (known or (None, None))
        if known:
            expected.customers[ORG, CUSTOMER].sequence = 17
        reversal.apply(it.ledger, decision)
        assert it.ledger == expected

    @pytest.mark.parametrize(
        "breach", [redemption_unknown, order_unknown, redemption_of_another_order, several_on_the_order]
    )
    @pytest.mark.parametrize(
        ("identifier", "customer"),
        [
            (PHONE, (CUSTOMER, 17)),
            (Identifier("EMAIL", "Other@example.org", "other@example.org"), (OTHER_CUSTOMER, 1)),
            (Identifier("ID", "43", "43"), (OTHER_CUSTOMER, 1)),
            (Identifier("ID", "043", "043"), (None, None)),
            (Identifier("ID", "٤٣", "٤٣"), (None, None)),
            (Identifier("ID", "4711", "4711"), (None, None)),
            (Identifier("ID", "9" * 255, "9" * 255), (None, None)),
            (Identifier("EXTERNAL_ID", "43", "43"), (None, None)),
            (None, (None, None)),
        ],
        ids=str,
    )
    def test_where_the_redemption_is_unclear_the_identifier_names_the_customer(
        self,
        breach: Breach,
        identifier: Identifier | None,
        customer: tuple[int | None, int | None],
    ) -> None:
        it = shop()
        breach(it)
        it.request["identifier"] = identifier
        decision = refused(it.decide())
        assert (decision.customer_id, decision.sequence) == customer

    def test_name_redemption_and_order_as_found(self) -> None:
        it = shop()
        customer_locked(it)
        by_redemption = refused(it.decide())
        it.request |= {"redemption_id": None, "order_id": "SO-1"}
        by_order = refused(it.decide())
        for decision in (by_redemption, by_order):
            assert (decision.redemption_id, decision.order_id) == ("R-1", "SO-1")

    def test_name_redemption_and_order_as_asked_where_not_found(self) -> None:
        it = shop()
        redemption_of_another_order(it)
        decision = refused(it.decide())
        assert (decision.redemption_id, decision.order_id) == ("R-1", "SO-404")

    @pytest.mark.parametrize("breach", [identifier_of_nobody, identifier_of_another])
    def test_never_tell_an_identifier(self, breach: Breach) -> None:
        it = shop()
        breach(it)
        it.request["identifier"] = replace(it.request["identifier"], value="secret")
        error = refused(it.decide()).errors[0]
        told = error.message + str(error.details)
        assert "secret" not in told
        assert it.request["identifier"].lookup not in told

    def test_a_fault_of_ours_is_804_and_carries_the_customer(self) -> None:
        it = shop()
        decision = reversal.failed(Return(**it.request), it.ledger)
        assert [error.code for error in decision.errors] == [Code.REVERSAL_FAILED]
        assert (decision.customer_id, decision.sequence) == (CUSTOMER, 17)
        assert (decision.redemption_id, decision.order_id) == ("R-1", "SO-1")

    def test_a_ledger_that_contradicts_itself_raises_and_the_return_can_still_fail(self) -> None:
        it = shop()
        it.ledger.lots[ORG, "C"].remaining = points(40)  # full: it cannot take back what it never gave
        with pytest.raises(ContradictionError, match="lot C would hold more than the 40 it was issued with"):
            it.decide()
        it.request |= {"redemption_id": None, "order_id": "SO-1"}
        del it.ledger.redemptions[ORG, "R-1"]
        with pytest.raises(ContradictionError, match="order SO-1 lists redemption R-1"):
            it.decide()
        assert reversal.failed(Return(**it.request), it.ledger).customer_id == CUSTOMER


class TestTheProgram:
    """The program given, else the redemption's, else the org's default; rules 6 to 8 pass where there is none."""

    def test_of_the_redemption_counts_before_the_default(self) -> None:
        it = shop()
        it.redemption.program_id = "side"
        it.program.live = False
        assert isinstance(it.decide(), Completed)

    def test_given_may_be_the_redemptions_own(self) -> None:
        it = shop()
        it.request["program_id"] = "main"
        assert isinstance(it.decide(), Completed)

    def test_default_counts_where_the_redemption_is_unknown(self) -> None:
        it = shop()
        redemption_unknown(it)
        it.program.live = False
        assert refused(it.decide()).errors[0].code is Code.MISCONFIGURED_PROGRAM

    def test_where_there_is_none_the_redemption_is_not_found(self) -> None:
        it = shop()
        redemption_unknown(it)
        it.program.is_default = it.program.live = it.ledger.orgs[ORG].reversal_enabled = False
        assert refused(it.decide()).errors[0].code is Code.REDEMPTION_NOT_FOUND

    def test_of_a_redemption_that_the_org_has_no_more_is_invalid(self) -> None:
        it = shop()
        it.redemption.program_id = "gone"
        assert refused(it.decide()).errors[0].code is Code.INVALID_PROGRAM

    def test_of_a_redemption_of_another_order_still_is_that_redemptions(self) -> None:
        it = shop()
        redemption_of_another_order(it)
        it.redemption.program_id = "side"
        it.program.live = False
        assert refused(it.decide()).errors[0].code is Code.REDEMPTION_NOT_FOUND

    @pytest.mark.parametrize(
        ("rules", "fault"),
        [
            ({"decimals": 4}, "decimals is 4, it must be 0 to 3"),
            ({"decimals": -1}, "decimals is -1, it must be 0 to 3"),
            ({"reversal_window_days": -1}, "reversalWindowDays is -1, it must not be negative"),
            ({"minimum_points": -500}, "minimumPoints is -0.5, it must not be negative"),
            ({"minimum_points": 50}, "minimumPoints is 0.05, finer than the program's decimals (1)"),
            ({"max_reversals_count": 1}, "maxReversals needs both count and days"),
            ({"max_reversals_days": 1}, "maxReversals needs both count and days"),
            ({"max_reversals_count": 0, "max_reversals_days": 1}, "maxReversals.count is 0, it must be at least 1"),
            ({"max_reversals_count": 1, "max_reversals_days": 0}, "maxReversals.days is 0, it must be at least 1"),
            ({"expired_lots_policy": "drop"}, "expiredLots.policy is drop, it must be keep or extend"),
            ({"expired_lots_policy": "extend"}, "expiredLots.policy extend needs graceDays"),
            (
                {"expired_lots_policy": "extend", "grace_days": 0},
                "expiredLots.graceDays is 0, it must be at least 1",
            ),
            ({"grace_days": 0}, "expiredLots.graceDays is 0, it must be at least 1"),
            ({"park_unknown_seconds": -1}, "parkUnknownSeconds is -1, it must not be negative"),
        ],
    )
    def test_that_contradicts_itself_is_misconfigured(self, rules: dict[str, Any], fault: str) -> None:
        it = shop(**rules)
        assert contradictions(it.program) == [fault]
        error = refused(it.decide()).errors[0]
        assert error.code is Code.MISCONFIGURED_PROGRAM
        assert error.details["faults"] == [fault]

    def test_that_is_sound_contradicts_nothing(self) -> None:
        strictest = Program(
            ORG, "strict", decimals=0, reversal_window_days=0, minimum_points=points(5), max_reversals_count=1,
            max_reversals_days=1, expired_lots_policy="extend", grace_days=1, park_unknown_seconds=1,
        )  # fmt: skip
        for program in (Program(ORG, "mildest"), Program(ORG, "not live yet", live=False), strictest):
            assert contradictions(program) == []


class TestLimitsAtTheirBoundaries:
    def test_a_lock_until_the_decision_moment_holds_no_more(self) -> None:
        it = shop()
        it.customer.locked_until = NOW
        assert isinstance(it.decide(), Completed)

    def test_the_window_includes_its_last_moment(self) -> None:
        it = shop(reversal_window_days=10)
        it.redemption.redeemed_at = NOW - 10 * DAY
        assert isinstance(it.decide(), Completed)
        it.redemption.redeemed_at -= MICROSECOND
        assert refused(it.decide()).errors[0].code is Code.CONDITIONS_NOT_MET

    def test_the_window_is_judged_by_when_it_was_returned_if_not_ahead(self) -> None:
        it = shop(reversal_window_days=10)
        it.redemption.redeemed_at = NOW - 30 * DAY
        it.request["returned_at"] = NOW - 20 * DAY
        assert isinstance(it.decide(), Completed)
        it.request["returned_at"] = NOW + DAY  # ahead: a clock that is wrong must not count against the customer
        assert refused(it.decide()).errors[0].details["returnedAt"] == "2026-11-20T01:30:00Z"

    def test_just_the_minimum_is_enough_and_so_is_all_that_remains(self) -> None:
        it = shop(minimum_points=points(50.5))
        assert isinstance(it.decide(), Completed)
        it.redemption.reversed = points(190)
        it.request |= asking(10)
        assert isinstance(it.decide(), Completed)
        it.request |= asking(9)
        assert refused(it.decide()).errors[0].code is Code.CONDITIONS_NOT_MET

    def test_more_than_remains_but_less_than_the_minimum_is_below_the_minimum(self) -> None:
        it = shop(minimum_points=points(100))
        it.redemption.reversed = points(190)
        assert refused(it.decide()).errors[0].code is Code.CONDITIONS_NOT_MET

    def test_all_or_nothing_gives_back_all(self) -> None:
        it = shop(allow_partial=False)
        it.request |= asking(200)
        assert isinstance(it.decide(), Completed)
        it.request |= asking(199.9)
        assert refused(it.decide()).errors[0].code is Code.CONDITIONS_NOT_MET
        it.request |= asking(200.1)
        assert refused(it.decide()).errors[0].code is Code.INSUFFICIENT_POINTS

    def test_a_reversal_exactly_as_old_as_the_period_counts_no_more(self) -> None:
        it = shop(max_reversals_count=2, max_reversals_days=30)
        times = it.ledger.reversal_times[ORG, CUSTOMER, "main"] = [NOW - DAY, NOW - 30 * DAY]
        assert isinstance(it.decide(), Completed)
        times[1] += MICROSECOND
        assert refused(it.decide()).errors[0].code is Code.REVERSAL_LIMIT_EXCEEDED

    def test_reversals_of_the_same_batch_count(self) -> None:
        it = shop(max_reversals_count=2, max_reversals_days=30)
        assert isinstance(it.give_back(1), Completed)
        assert isinstance(it.give_back(1), Completed)
        assert refused(it.give_back(1)).errors[0].code is Code.REVERSAL_LIMIT_EXCEEDED

    def test_a_limit_counts_its_own_program_only(self) -> None:
        it = shop(max_reversals_count=1, max_reversals_days=30)
        it.ledger.reversal_times[ORG, CUSTOMER, "side"] = [NOW]
        assert isinstance(it.decide(), Completed)

    def test_all_that_remains_can_be_asked_for_and_no_more(self) -> None:
        it = shop()
        it.redemption.reversed = points(149.5)
        assert isinstance(it.decide(), Completed)
        it.redemption.reversed += 1
        assert refused(it.decide()).errors[0].code is Code.INSUFFICIENT_POINTS

    def test_as_many_decimals_as_the_program_has(self) -> None:
        it = shop(decimals=3)
        it.request |= asking(0.125)
        assert completed(it.decide()).points == 125


class TestParking:
    @pytest.mark.parametrize("breach", [redemption_unknown, order_unknown])
    def test_waits_for_an_unknown_redemption_or_order(self, breach: Breach) -> None:
        it = shop(park_unknown_seconds=60)
        breach(it)
        before = deepcopy(it.ledger)
        decision = it.decide()
        assert decision == Parked(Return(**it.request), NOW + timedelta(seconds=60))
        reversal.apply(it.ledger, decision)
        assert it.ledger == before

    def test_goes_by_the_program_given(self) -> None:
        it = shop()
        redemption_unknown(it)
        it.ledger.orgs[ORG].programs["side"].park_unknown_seconds = 5
        assert isinstance(it.decide(), Refused)
        it.request["program_id"] = "side"
        assert isinstance(it.decide(), Parked)

    @pytest.mark.parametrize(
        "breach", [row.breach for row in TABLE if row.breach not in (redemption_unknown, order_unknown)]
    )
    def test_is_for_nothing_else(self, breach: Breach) -> None:
        it = shop(park_unknown_seconds=60)
        breach(it)
        assert isinstance(it.decide(), Refused)

    def test_goes_on_to_the_same_deadline_whatever_the_program_says_now(self) -> None:
        it = shop()
        redemption_unknown(it)
        deadline = NOW + MICROSECOND
        assert it.decide(deadline) == Parked(Return(**it.request), deadline)

    def test_ends_at_the_deadline(self) -> None:
        it = shop(park_unknown_seconds=60)
        redemption_unknown(it)
        assert refused(it.decide(NOW)).errors[0].code is Code.REDEMPTION_NOT_FOUND

    def test_ends_by_all_the_rules_once_the_redemption_is_there(self) -> None:
        it = shop(park_unknown_seconds=60)
        assert isinstance(it.decide(NOW + DAY), Completed)
        customer_locked(it)
        assert refused(it.decide(NOW + DAY)).errors[0].code is Code.CUSTOMER_LOCKED

    def test_beyond_the_calendar_waits_till_its_end(self) -> None:
        it = shop(park_unknown_seconds=10**18)
        redemption_unknown(it)
        decision = it.decide()
        assert isinstance(decision, Parked)
        assert decision.deadline == reversal.LATEST


class TestACompletedReversal:
    def test_is_as_asked_and_next_in_sequence(self) -> None:
        it = shop()
        before = deepcopy(it.ledger)
        decision = completed(it.decide())
        assert it.ledger == before  # deciding changes nothing
        assert (decision.asked, decision.points, decision.units) == (points(50.5), points(50.5), None)
        assert (decision.available, decision.expired) == (points(50.5), 0)
        assert (decision.reversed_after, decision.remaining_after) == (points(50.5), points(149.5))
        assert (decision.sequence, decision.created_at, decision.warnings) == (17, NOW, ())

    def test_applied_changes_redemption_lots_balance_sequence_and_limit(self) -> None:
        it = shop()
        reversal.apply(it.ledger, it.decide())
        assert it.redemption.reversed == points(50.5)
        assert it.held() == {"A": 0, "B": 10.5, "C": 40}
        assert it.ledger.balances[ORG, CUSTOMER, "main"] == points(50.5)
        assert it.customer.sequence == 17
        assert it.ledger.reversal_times[ORG, CUSTOMER, "main"] == [NOW]

    def test_writes_one_entry_whose_postings_sum_to_zero(self) -> None:
        entry = completed(shop().decide()).entry
        assert (entry.kind, entry.redemption_id, entry.customer_id) == ("reversal", "R-1", CUSTOMER)
        assert [(one.account, one.subject, one.points) for one in entry.postings] == [
            ("redeemed", "R-1", points(-50.5)),
            ("held", "C", points(40)),
            ("held", "B", points(10.5)),
        ]

    def test_without_an_amount_gives_back_all_that_remains(self) -> None:
        it = shop()
        it.give_back(50)
        decision = completed(it.give_back())
        assert (decision.asked, decision.points, decision.remaining_after) == (points(150), points(150), 0)

    @pytest.mark.parametrize("identifier", [PHONE, Identifier("ID", "42", "42"), None], ids=str)
    def test_may_be_asked_for_by_order_by_redemption_or_both(self, identifier: Identifier | None) -> None:
        for named in ({"redemption_id": "R-1"}, {"order_id": "SO-1"}, {"redemption_id": "R-1", "order_id": "SO-1"}):
            it = shop()
            it.request |= {"redemption_id": None, "identifier": identifier} | named
            assert isinstance(it.decide(), Completed)

"""What breaks each rule: one condition in the request or in the ledger, the rest of the shop left as it is.

TABLE has the contract's rows in its order, each by every way to break it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from service.ledger import Ledger
from service.records import Fault, Identifier
from service.rules import RULES
from tests.unit.builders import CUSTOMER, DAY, NOW, ORG, OTHER_CUSTOMER, Shop, points, put_redemption, redemption

Breach = Callable[[Shop], None]
MICROSECOND = timedelta(microseconds=1)


def shape_broken(it: Shop) -> None:
    it.request["faults"] = (Fault("reason", "reason must not be empty"), Fault("quantity", "quantity must be 1"))


def four_decimals(it: Shop) -> None:
    it.request |= {"points": None, "points_text": "50.5001", "points_decimals": 4}


def same_request_completed(it: Shop) -> None:
    it.key_names = "same"


def other_request_completed(it: Shop) -> None:
    it.key_names = "another"


def org_unknown(it: Shop) -> None:
    it.ledger = Ledger(now=NOW)


def program_unknown(it: Shop) -> None:
    it.request["program_id"] = "gold"


def program_of_others(it: Shop) -> None:
    it.request["program_id"] = "side"


def programs(it: Shop, **rules: Any) -> None:
    for program in it.ledger.orgs[ORG].programs.values():
        for name, value in rules.items():
            setattr(program, name, value)


def program_not_live(it: Shop) -> None:
    programs(it, live=False)


def program_contradicts_itself(it: Shop) -> None:
    programs(it, expired_lots_policy="extend", grace_days=None)


def org_forbids(it: Shop) -> None:
    it.ledger.orgs[ORG].reversal_enabled = False


def program_forbids(it: Shop) -> None:
    programs(it, reversal_allowed=False)


def redemption_unknown(it: Shop) -> None:
    it.request["redemption_id"] = "R-404"


def order_unknown(it: Shop) -> None:
    it.request |= {"redemption_id": None, "order_id": "SO-404"}


def redemption_of_another_order(it: Shop) -> None:
    it.request["order_id"] = "SO-404"


def several_on_the_order(it: Shop) -> None:
    it.request |= {"redemption_id": None, "order_id": "SO-1"}
    put_redemption(it.ledger, redemption("R-2", 5, ("C", 5), order_id="SO-1"))


def points_of_units(it: Shop) -> None:
    it.redemption.type, it.redemption.quantity, it.redemption.reversed_quantity = "UNIT_BASED", 4, 0


def units_of_points(it: Shop) -> None:
    it.request |= {"points": None, "points_text": None, "points_decimals": 0, "quantity": 1}


def identifier_of_nobody(it: Shop) -> None:
    it.request["identifier"] = Identifier("PHONE", "+65 0", "650")


def identifier_of_another(it: Shop) -> None:
    it.request["identifier"] = Identifier("ID", str(OTHER_CUSTOMER), str(OTHER_CUSTOMER))


def customer_inactive(it: Shop) -> None:
    it.customer.status = "inactive"


def customer_fraud(it: Shop) -> None:
    it.customer.status = "fraud"


def customer_locked(it: Shop) -> None:
    it.customer.locked_until = NOW + MICROSECOND


def finer_than_the_program(it: Shop) -> None:
    programs(it, decimals=0)


def window_over(it: Shop) -> None:
    programs(it, reversal_window_days=10)
    it.redemption.redeemed_at = NOW - 10 * DAY - MICROSECOND


def below_the_minimum(it: Shop) -> None:
    programs(it, minimum_points=points(100))


def part_forbidden(it: Shop) -> None:
    programs(it, allow_partial=False)


def limit_reached(it: Shop) -> None:
    programs(it, max_reversals_count=1, max_reversals_days=30)
    it.ledger.reversal_times[ORG, CUSTOMER, "main"] = [NOW - DAY]


def more_than_remains(it: Shop) -> None:
    it.redemption.reversed = points(150)


def nothing_remains(it: Shop) -> None:
    it.redemption.reversed = points(200)


@dataclass(frozen=True)
class Row:
    """A row of the contract's table, by one way to break it. `needs`: what must be there for the rule to be judged."""

    number: int
    code: int
    name: str
    breach: Breach
    message: str
    details: dict[str, Any]
    needs: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.number} {self.breach.__name__}"

    @property
    def place(self) -> int:
        """Its place in RULES."""
        return next(
            place for place, rule in enumerate(RULES) if (rule.number, rule.code.label) == (self.number, self.name)
        )


REDEMPTION = frozenset({"redemption"})
PROGRAM = frozenset({"program"})
AMOUNT = frozenset({"points asked"})
SOMETHING = REDEMPTION | {"something remains"}
HEADROOM = {"points": "200", "reversed": "0", "remaining": "200", "asked": "50.5"}

TABLE = (
    Row(1, 887, "validation_error", shape_broken, "reason must not be empty", {"field": "reason"}),
    Row(2, 878, "precision_not_supported", four_decimals,
        "asked for 50.5001, 4 decimal places: points have at most 3",
        {"field": "pointsToBeReversed", "asked": "50.5001", "decimals": "4", "allowed": "3"}, AMOUNT),
    Row(3, 902, "duplicate_reversal", same_request_completed,
        "the points of this return were given back already, under the key RMA-77/1", {"idempotencyKey": "RMA-77/1"}),
    Row(4, 887, "idempotency_key_reused", other_request_completed,
        "the key RMA-77/1 names a reversal of another request; a new return needs a new key",
        {"idempotencyKey": "RMA-77/1"}),
    Row(5, 888, "invalid_configuration", org_unknown, "org 7 is not configured", {"orgId": "7"}),
    Row(6, 885, "invalid_program", program_unknown, "org 7 has no program gold", {"programId": "gold"}),
    Row(6, 885, "invalid_program", program_of_others, "redemption R-1 is of the program main, not of side",
        {"programId": "side", "redemptionProgramId": "main"}, REDEMPTION),
    Row(7, 899, "misconfigured_program", program_not_live, "the program main cannot be used: it is not live",
        {"programId": "main", "faults": ["it is not live"]}, PROGRAM),
    Row(7, 899, "misconfigured_program", program_contradicts_itself,
        "the program main cannot be used: expiredLots.policy extend needs graceDays",
        {"programId": "main", "faults": ["expiredLots.policy extend needs graceDays"]}, PROGRAM),
    Row(8, 818, "reversal_not_allowed", org_forbids, "org 7 does not allow reversals", {"orgId": "7"}, PROGRAM),
    Row(8, 818, "reversal_not_allowed", program_forbids, "the program main does not allow reversals",
        {"programId": "main"}, PROGRAM),
    Row(9, 887, "redemption_not_found", redemption_unknown, "no redemption R-404 is known", {"redemptionId": "R-404"}),
    Row(9, 887, "redemption_not_found", order_unknown, "no redemption of order SO-404 is known", {"orderId": "SO-404"}),
    Row(9, 887, "redemption_not_found", redemption_of_another_order, "redemption R-1 is not of order SO-404",
        {"redemptionId": "R-1", "orderId": "SO-404"}),
    Row(9, 887, "ambiguous_order", several_on_the_order,
        "order SO-1 has 2 redemptions; the return must name one of them",
        {"orderId": "SO-1", "redemptionIds": ["R-1", "R-2"]}, REDEMPTION),
    Row(9, 887, "wrong_measure", points_of_units, "redemption R-1 is given back in units, but points were asked for",
        {"field": "pointsToBeReversed", "redemptionId": "R-1", "type": "UNIT_BASED"}, REDEMPTION | AMOUNT),
    Row(9, 887, "wrong_measure", units_of_points, "redemption R-1 is given back in points, but units were asked for",
        {"field": "quantity", "redemptionId": "R-1", "type": "RAW"}, REDEMPTION),
    Row(10, 901, "customer_not_eligible", identifier_of_nobody, "no customer has the given PHONE identifier",
        {"field": "identifier", "type": "PHONE"}, REDEMPTION),
    Row(10, 901, "customer_not_eligible", identifier_of_another,
        "the given ID identifier is of another customer than the one who redeemed",
        {"field": "identifier", "type": "ID"}, REDEMPTION),
    Row(10, 901, "customer_not_eligible", customer_inactive, "the customer's status is inactive, not active",
        {"status": "inactive"}, REDEMPTION),
    Row(10, 901, "customer_not_eligible", customer_fraud, "the customer's status is fraud, not active",
        {"status": "fraud"}, REDEMPTION),
    Row(11, 904, "customer_locked", customer_locked, "the customer is locked until 2026-11-20 01:30 UTC",
        {"lockedUntil": "2026-11-20T01:30:00.000001Z"}, REDEMPTION),
    Row(12, 878, "precision_not_supported", finer_than_the_program,
        "asked for 50.5, 1 decimal place: the program main has at most 0",
        {"field": "pointsToBeReversed", "asked": "50.5", "decimals": "1", "allowed": "0"}, REDEMPTION | AMOUNT),
    Row(13, 827, "conditions_not_met", window_over,
        "redeemed 2026-11-10 01:29 UTC and returned 2026-11-20 01:30 UTC, "
        "later than the 10 days within which points come back",
        {"redeemedAt": "2026-11-10T01:29:59.999999Z", "returnedAt": "2026-11-20T01:30:00Z",
         "reversalWindowDays": "10"}, REDEMPTION),
    Row(13, 827, "conditions_not_met", below_the_minimum,
        "asked for 50.5, the program gives back at least 100 or all that remains",
        HEADROOM | {"minimumPoints": "100"}, SOMETHING),
    Row(13, 827, "conditions_not_met", part_forbidden,
        "asked for 50.5, 200 of 200 remain; the program gives back only all that remains", HEADROOM, SOMETHING),
    Row(14, 903, "reversal_limit_exceeded", limit_reached,
        "the customer had 1 reversal in the last 30 days, the program allows 1",
        {"reversals": "1", "count": "1", "days": "30"}, REDEMPTION),
    Row(15, 817, "insufficient_points", more_than_remains, "asked for 50.5, 50 of 200 remain",
        {"points": "200", "reversed": "150", "remaining": "50", "asked": "50.5"}, REDEMPTION | AMOUNT),
    Row(15, 817, "insufficient_points", nothing_remains, "nothing remains: all 200 points were given back already",
        {"points": "200", "reversed": "200", "remaining": "0", "asked": "50.5"}, REDEMPTION),
)  # fmt: skip

# What a breach takes away, so that no rule which needs it can be broken at the same time.
TAKEN_AWAY: dict[Breach, dict[str, str]] = {
    org_unknown: {
        "program": "an org that is not configured has no programs",
        "redemption": "an org that is not configured has no redemptions",
    },
    program_unknown: {"program": "a program that is not there cannot forbid anything"},
    redemption_unknown: {"redemption": "nothing can be said of a redemption that is not known"},
    order_unknown: {"redemption": "nothing can be said of a redemption that is not known"},
    several_on_the_order: {"redemption": "nothing can be said of a redemption before it is clear which"},
    units_of_points: {"points asked": "a return asks for points or for units"},
    nothing_remains: {"something remains": "the minimum and partial rules apply where something remains"},
}
IMPOSSIBLE: dict[frozenset[Breach], str] = {
    frozenset({same_request_completed, other_request_completed}): "a key names one reversal, of one request",
    frozenset({redemption_of_another_order, several_on_the_order}): "the one names its redemption, the other none",
    frozenset({part_forbidden, more_than_remains}): "more than all that remains is not a part of it",
}


def why_impossible(one: Row, other: Row) -> str | None:
    """Why two rules cannot both be broken, None where they can."""
    for a, b in ((one, other), (other, one)):
        for fact, reason in TAKEN_AWAY.get(a.breach, {}).items():
            if fact in b.needs:
                return reason
    return IMPOSSIBLE.get(frozenset({one.breach, other.breach}))

"""PURE. A return beside what the ledger knows about it: look-ups and sums, no judgement.

Laws: `examine` never raises and changes nothing. The redemption counts as found only where it is of the order
that the request names. An org that is not configured has no customers. Points are integers of thousandths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from service.points import unit_share

if TYPE_CHECKING:
    from datetime import datetime

    from service.ledger import Customer, Existing, Ledger, Org, Program, Redemption
    from service.records import Identifier, Return

UNIT_BASED = "UNIT_BASED"


class ContradictionError(Exception):
    """The ledger contradicts itself, so that no decision about this record would be right (804)."""


@dataclass(slots=True)
class Case:
    """A return beside what the ledger knows about it; None where it knows nothing.

    `named` is the redemption that the request names, `resolved` the same where it is also of the order
    named; `listed` holds the ids of the order's redemptions where none is named. `governing` is the program
    whose rules hold; `known` the customer to whom the outcome is attributed.
    """

    request: Return
    ledger: Ledger
    existing: Existing | None
    org: Org | None
    named: Redemption | None
    resolved: Redemption | None
    listed: list[str]
    governing: Program | None
    known: Customer | None
    _ask: Ask | None = None

    @property
    def ask(self) -> Ask:
        """What the return asks for, from rule 10 on."""
        if self._ask is None:
            self._ask = asked(self)
        return self._ask

    @property
    def ambiguous(self) -> bool:
        """Whether none is named and the order has several."""
        return len(self.listed) > 1

    @property
    def now(self) -> datetime:
        """The decision moment."""
        return self.ledger.now

    @property
    def redemption(self) -> Redemption:
        """The redemption, from rule 10 on."""
        if self.resolved is None:
            raise ContradictionError("no redemption was found, yet no rule refused")
        return self.resolved

    @property
    def program(self) -> Program:
        """The redemption's program, from rule 10 on."""
        if self.governing is None:
            raise ContradictionError(f"redemption {self.redemption.redemption_id} has no program")
        return self.governing

    @property
    def customer(self) -> Customer:
        """The customer who redeemed, from rule 10 on."""
        if self.known is None:
            raise ContradictionError(f"redemption {self.redemption.redemption_id} has no customer")
        return self.known


class Ask(NamedTuple):
    """What is asked: in points, in units of a UNIT_BASED redemption, and whether it is all that remains."""

    points: int
    units: int | None
    everything: bool


def examine(request: Return, ledger: Ledger) -> Case:
    """What the ledger knows about a return: only look-ups, no judgement."""
    org_id = request.org_id
    org = ledger.orgs.get(org_id)
    named: Redemption | None = None
    listed: list[str] = []
    if request.redemption_id is not None:
        named = ledger.redemptions.get((org_id, request.redemption_id))
    elif request.order_id is not None:
        listed = ledger.orders.get((org_id, request.order_id), [])
        if len(listed) == 1:
            named = ledger.redemptions.get((org_id, listed[0]))
    agrees = named is not None and request.order_id in (None, named.order_id)
    resolved = named if agrees else None
    return Case(
        request=request,
        ledger=ledger,
        existing=ledger.keys.get((org_id, request.key)),
        org=org,
        named=named,
        resolved=resolved,
        listed=listed,
        governing=_governing_program(org, request.program_id, named),
        known=_known_customer(request, ledger, resolved) if org is not None else None,
    )


def _governing_program(org: Org | None, program_id: str | None, named: Redemption | None) -> Program | None:
    """The program given, else the redemption's, else the org's default."""
    if org is None:
        return None
    if program_id is not None:
        return org.programs.get(program_id)
    return org.programs.get(named.program_id) if named is not None else org.default_program


def _known_customer(request: Return, ledger: Ledger, resolved: Redemption | None) -> Customer | None:
    """The redemption's customer, else the one whom the identifier names."""
    customer_id: int | None = None
    if resolved is not None:
        customer_id = resolved.customer_id
    elif request.identifier is not None:
        customer_id = customer_named(request.identifier, request.org_id, ledger)
    return ledger.customers.get((request.org_id, customer_id)) if customer_id is not None else None


def customer_named(identifier: Identifier, org_id: int, ledger: Ledger) -> int | None:
    """The id of the customer whom an identifier names; an `ID` is the customer's id itself."""
    if identifier.type != "ID":
        return ledger.identifiers.get((org_id, identifier.type, identifier.lookup))
    customer_id = identifier.customer_id
    return customer_id if customer_id is not None and (org_id, customer_id) in ledger.customers else None


def asked(case: Case) -> Ask:
    """What a return asks for; where it names no amount, all that remains.

    Whether it is all is judged by units where there are units: the last one is worth all that remains.
    """
    redemption, request = case.redemption, case.request
    if redemption.type != UNIT_BASED:
        points = redemption.remaining if request.points is None else request.points
        return Ask(points, None, points == redemption.remaining)
    left = units_left(redemption)
    units = left if request.quantity is None else request.quantity
    if units == left:
        return Ask(redemption.remaining, units, True)
    total, given = units_of(redemption)
    if units > left:  # to be refused; counted on, so that a minimum judges it as it judges points
        return Ask(redemption.remaining + redemption.points * (units - left) // total, units, False)
    worth = unit_share(redemption.points, total, given + units, case.program.decimals)
    return Ask(max(worth - redemption.reversed, 0), units, False)


def units_of(redemption: Redemption) -> tuple[int, int]:
    """The units of a UNIT_BASED redemption: in total, and given back so far."""
    if redemption.quantity is None:
        raise ContradictionError(f"redemption {redemption.redemption_id} is UNIT_BASED and has no quantity")
    return redemption.quantity, redemption.reversed_quantity or 0


def units_left(redemption: Redemption) -> int:
    """The units of a UNIT_BASED redemption that were not given back."""
    total, given = units_of(redemption)
    return total - given

"""PURE. Deciding a return and giving its points back (contract, "Deciding a return", "Giving points back").

Laws: the first of `rules.RULES` that applies names the outcome. `decide` reads the ledger and never
changes it; `apply` changes it and cannot fail. Over any sequence of partials each lot gets back what the
redemption took from it, last consumed first, never more. The postings of an entry sum to zero. Each outcome
of a known customer carries the next sequence. A decision that raises met a contradiction in the ledger.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from service.case import Ask, Case, ContradictionError, examine
from service.errors import Code, Error
from service.ledger import Entry, Existing, Ledger, Lot, Posting, Redemption
from service.outcomes import Completed, Decision, Notice, Parked, Part, Refused, Repeated
from service.points import format_points
from service.rules import RULES, spoken

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.records import Return

LATEST = datetime.max.replace(tzinfo=UTC)  # a moment that lies beyond the calendar is its end


def decide(
    request: Return,
    outcome_id: str,
    ledger: Ledger,
    new_id: Callable[[], str],
    deadline: datetime | None = None,
) -> Decision:
    """What becomes of a return at `ledger.now`; `deadline`: until when it waits, if it was parked before.

    Raises where the ledger contradicts itself.
    """
    case = examine(request, ledger)
    if case.existing is not None and case.existing.outcome_id == outcome_id:
        return Repeated(request)
    for rule in RULES:
        whys = rule.guard(case)
        if whys is None:
            continue
        if rule.code is Code.REDEMPTION_NOT_FOUND:
            until = _waits_until(case, deadline)
            if until is not None:
                return Parked(request, until)
        return _refuse(case, tuple(Error(rule.code, message, details) for message, details in whys))
    return _complete(case, case.ask, new_id)


def failed(request: Return, ledger: Ledger) -> Refused:
    """The 804 of a return whose decision raised."""
    message = "the points could not be given back because of a fault on our side, which has been recorded"
    return _refuse(examine(request, ledger), (Error(Code.REVERSAL_FAILED, message),))


def apply(ledger: Ledger, decision: Decision) -> None:
    """Bring the ledger to where the decision leaves it; the key is claimed once the outcome is in bytes."""
    if isinstance(decision, Completed):
        _apply_completed(ledger, decision)
    elif isinstance(decision, Refused) and decision.customer_id is not None and decision.sequence is not None:
        ledger.customers[decision.request.org_id, decision.customer_id].sequence = decision.sequence


def claim(ledger: Ledger, decision: Completed, outcome_id: str, outcome: bytes) -> None:
    """Let the key of a completed reversal name it, with its outcome as published."""
    request = decision.request
    ledger.keys[request.org_id, request.key] = Existing(outcome, request.fingerprint(), outcome_id)


def restore(lots: tuple[tuple[str, int], ...], restored: int, points: int) -> dict[str, int]:
    """What each lot gets back of `points`, last consumed first, after `restored` points went back so.

    `lots` in the order of consumption. Raises ContradictionError where they took less than restored + points.
    """
    parts: dict[str, int] = {}
    for lot_id, taken in reversed(lots):
        if points == 0:
            break
        if restored >= taken:
            restored -= taken
            continue
        part = min(taken - restored, points)
        parts[lot_id] = parts.get(lot_id, 0) + part
        points -= part
        restored = 0
    if points:
        raise ContradictionError(f"{format_points(points)} points to give back were taken from no lot")
    return parts


def _waits_until(case: Case, deadline: datetime | None) -> datetime | None:
    """The moment until which a return waits for its redemption; None where it does not (any more)."""
    if case.named is not None:  # a redemption of another order is known: nothing to wait for
        return None
    if deadline is not None:
        return deadline if case.now < deadline else None
    program = case.governing
    if program is None or program.park_unknown_seconds == 0:
        return None
    return _later(case.now, program.park_unknown_seconds)


def _refuse(case: Case, errors: tuple[Error, ...]) -> Refused:
    request, found, known = case.request, case.resolved, case.known
    repeats = errors[0].code in (Code.DUPLICATE_REVERSAL, Code.IDEMPOTENCY_KEY_REUSED)
    return Refused(
        request=request,
        errors=errors,
        customer_id=known.customer_id if known else None,
        sequence=known.sequence + 1 if known else None,
        redemption_id=found.redemption_id if found else request.redemption_id,
        order_id=found.order_id if found else request.order_id,
        existing=case.existing.outcome if repeats and case.existing else None,
        failed_at=case.now,
    )


def _complete(case: Case, ask: Ask, new_id: Callable[[], str]) -> Completed:
    redemption, customer = case.redemption, case.customer
    reversal_id, entry_id = new_id(), new_id()
    parts, new_lots, warnings = _give_back(case, ask.points, new_id)
    held = [Posting("held", part.lot_id, part.points) for part in parts]
    reversed_after = redemption.reversed + ask.points
    available = sum([part.points for part in parts if not part.expired])
    balance = case.ledger.balances.get((redemption.org_id, redemption.customer_id, redemption.program_id), 0)
    return Completed(
        request=case.request,
        reversal_id=reversal_id,
        redemption=redemption,
        asked=ask.points,
        points=ask.points,
        available=available,
        units=ask.units,
        parts=parts,
        new_lots=new_lots,
        reversed_after=reversed_after,
        remaining_after=redemption.points - reversed_after,
        balance_after=balance + available,
        sequence=customer.sequence + 1,
        warnings=warnings,
        entry=Entry(
            org_id=redemption.org_id,
            entry_id=entry_id,
            kind="reversal",
            created_at=case.now,
            customer_id=redemption.customer_id,
            redemption_id=redemption.redemption_id,
            postings=(Posting("redeemed", redemption.redemption_id, -ask.points), *held),
        ),
        created_at=case.now,
    )


def _give_back(
    case: Case, points: int, new_id: Callable[[], str]
) -> tuple[tuple[Part, ...], tuple[Lot, ...], tuple[Notice, ...]]:
    """The parts in which points return, the lots made for them, and what a reader should know about it."""
    redemption, program, now = case.redemption, case.program, case.now
    if points == 0:
        return (), (), ()
    if not redemption.lots:
        lot = _new_lot(case, points, None, new_id)
        return (_part(lot, points, now),), (lot,), (_kept_no_lots(redemption, lot),)
    parts: list[Part] = []
    new_lots: list[Lot] = []
    for lot_id, part in restore(redemption.lots, redemption.reversed, points).items():
        lot = case.ledger.lots[redemption.org_id, lot_id]
        if lot.expired(now) and program.expired_lots_policy == "extend":
            new_lot = _new_lot(case, part, lot_id, new_id)
            new_lots.append(new_lot)
            parts.append(_part(new_lot, part, now, restored_from=lot_id))
            continue
        if lot.remaining + part > lot.points:
            raise ContradictionError(
                f"lot {lot_id} would hold more than the {format_points(lot.points)} it was issued with"
            )
        parts.append(_part(lot, part, now))
    return tuple(parts), tuple(new_lots), tuple(_extended(lot) for lot in new_lots)


def _kept_no_lots(redemption: Redemption, lot: Lot) -> Notice:
    what = f"redemption {redemption.redemption_id} kept no lots: {format_points(lot.points)} points came back"
    ends = f"expires {spoken(lot.expires_at)}" if lot.expires_at is not None else "never expires"
    return Notice("no_lots_kept", f"{what} as a new lot that {ends}")


def _extended(lot: Lot) -> Notice:
    assert lot.expires_at is not None  # rule 7 sees to the graceDays
    what = f"{format_points(lot.points)} points of the expired lot {lot.restored_from} came back as a new lot"
    return Notice("expired_lot_extended", f"{what} that expires {spoken(lot.expires_at)}")


def _new_lot(case: Case, points: int, restored_from: str | None, new_id: Callable[[], str]) -> Lot:
    redemption, grace_days = case.redemption, case.program.grace_days
    return Lot(
        org_id=redemption.org_id,
        lot_id=new_id(),
        customer_id=redemption.customer_id,
        program_id=redemption.program_id,
        points=points,
        remaining=points,
        expires_at=_later(case.now, grace_days * 86_400) if grace_days is not None else None,
        issued_at=case.now,
        restored_from=restored_from,
    )


def _part(lot: Lot, points: int, now: datetime, restored_from: str | None = None) -> Part:
    return Part(lot.lot_id, points, lot.expires_at, lot.expired(now), restored_from)


def _later(moment: datetime, seconds: int) -> datetime:
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return LATEST


def _apply_completed(ledger: Ledger, decision: Completed) -> None:
    redemption = decision.redemption
    org_id, customer_id, program_id = redemption.org_id, redemption.customer_id, redemption.program_id
    redemption.reversed = decision.reversed_after
    if decision.units is not None:
        redemption.reversed_quantity = (redemption.reversed_quantity or 0) + decision.units
    new_lots = {lot.lot_id for lot in decision.new_lots}
    for part in decision.parts:
        if part.lot_id not in new_lots:
            ledger.lots[org_id, part.lot_id].remaining += part.points
    for lot in decision.new_lots:
        ledger.lots[org_id, lot.lot_id] = replace(lot)  # the decision keeps what it decided
    ledger.balances[org_id, customer_id, program_id] = decision.balance_after
    ledger.customers[org_id, customer_id].sequence = decision.sequence
    times = ledger.reversal_times.setdefault((org_id, customer_id, program_id), [])
    times.insert(0, decision.created_at)

"""PURE. The rules of a return, one line each, in the contract's order ("Deciding a return").

Laws: the first of RULES that applies names the outcome. A guard reads its case and changes nothing; it
may rely on the guards before it having passed, on nothing else. Messages are plain words with the numbers,
which `details` repeats as strings; neither ever holds an identifier's value. Points are thousandths.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from service.case import (
    UNIT_BASED,
    Ask,
    Case,
    ContradictionError,
    customer_named,
    units_left,
    units_of,
)
from service.errors import Code
from service.points import format_points
from service.published import plain_time

if TYPE_CHECKING:
    from service.ledger import Program, Redemption
    from service.records import Return

MAX_DECIMALS = 3  # points are stored as thousandths

Why = tuple[str, dict[str, Any]]  # an error's message and details
Guard = Callable[[Case], list[Why] | None]


class Rule(NamedTuple):
    """One row of the contract's table: its number, the code it refuses with, and when it applies."""

    number: int
    code: Code
    guard: Guard


def _because(message: str, **details: str | list[str] | None) -> list[Why]:
    return [(message, {name: value for name, value in details.items() if value is not None})]


def _breaks_the_shape(case: Case) -> list[Why] | None:
    return [(fault.message, {"field": fault.field}) for fault in case.request.faults] or None


def _finer_than_points_are(case: Case) -> list[Why] | None:
    return _finer_than(case.request, MAX_DECIMALS, "points have")


def _completed_before(case: Case) -> list[Why] | None:
    if case.existing is None or case.existing.fingerprint != case.request.fingerprint():
        return None
    key = case.request.key
    return _because(f"the points of this return were given back already, under the key {key}", idempotencyKey=key)


def _key_names_another(case: Case) -> list[Why] | None:
    if case.existing is None:
        return None
    key = case.request.key
    return _because(
        f"the key {key} names a reversal of another request; a new return needs a new key", idempotencyKey=key
    )


def _org_unknown(case: Case) -> list[Why] | None:
    if case.org is not None:
        return None
    return _because(f"org {case.request.org_id} is not configured", orgId=str(case.request.org_id))


def _program_unknown_or_another(case: Case) -> list[Why] | None:
    org, asked, named = case.org, case.request.program_id, case.named
    program_id = asked if asked is not None else named.program_id if named is not None else None
    if org is not None and program_id is not None and program_id not in org.programs:
        return _because(f"org {org.org_id} has no program {program_id}", programId=program_id)
    if asked is not None and named is not None and named.program_id != asked:
        return _because(
            f"redemption {named.redemption_id} is of the program {named.program_id}, not of {asked}",
            programId=asked,
            redemptionProgramId=named.program_id,
        )
    return None


def _program_unusable(case: Case) -> list[Why] | None:
    program = case.governing
    if program is None:
        return None
    faults = ["it is not live"] if not program.live else []
    faults += contradictions(program)
    if not faults:
        return None
    message = f"the program {program.program_id} cannot be used: {'; '.join(faults)}"
    return _because(message, programId=program.program_id, faults=faults)


def _reversals_off(case: Case) -> list[Why] | None:
    program = case.governing
    if program is None or case.org is None:
        return None
    if not case.org.reversal_enabled:
        return _because(f"org {program.org_id} does not allow reversals", orgId=str(program.org_id))
    if not program.reversal_allowed:
        return _because(f"the program {program.program_id} does not allow reversals", programId=program.program_id)
    return None


def _redemption_unknown(case: Case) -> list[Why] | None:
    if case.resolved is not None or case.ambiguous:
        return None
    redemption_id, order_id = case.request.redemption_id, case.request.order_id
    if case.listed and case.named is None:
        raise ContradictionError(f"order {order_id} lists redemption {case.listed[0]}, which is not there")
    if case.named is not None:
        message = f"redemption {redemption_id} is not of order {order_id}"
    elif redemption_id is not None:
        message = f"no redemption {redemption_id} is known"
    else:
        message = f"no redemption of order {order_id} is known"
    return _because(message, redemptionId=redemption_id, orderId=order_id)


def _several_on_the_order(case: Case) -> list[Why] | None:
    if not case.ambiguous:
        return None
    order_id, ids = case.request.order_id, case.listed
    message = f"order {order_id} has {len(ids)} redemptions; the return must name one of them"
    return _because(message, orderId=order_id, redemptionIds=list(ids))


def _other_measure(case: Case) -> list[Why] | None:
    redemption, request = case.redemption, case.request
    by_units = redemption.type == UNIT_BASED
    if by_units and request.points_text is not None:
        message = f"redemption {redemption.redemption_id} is given back in units, but points were asked for"
        field = "pointsToBeReversed"
    elif not by_units and request.quantity is not None:
        message = f"redemption {redemption.redemption_id} is given back in points, but units were asked for"
        field = "quantity"
    else:
        return None
    return _because(message, field=field, redemptionId=redemption.redemption_id, type=redemption.type)


def _not_the_customer(case: Case) -> list[Why] | None:
    customer, identifier = case.customer, case.request.identifier
    if identifier is not None:
        customer_id = customer_named(identifier, case.request.org_id, case.ledger)
        if customer_id is None:
            message = f"no customer has the given {identifier.type} identifier"
            return _because(message, field="identifier", type=identifier.type)
        if customer_id != customer.customer_id:
            message = f"the given {identifier.type} identifier is of another customer than the one who redeemed"
            return _because(message, field="identifier", type=identifier.type)
    if customer.status != "active":
        return _because(f"the customer's status is {customer.status}, not active", status=customer.status)
    return None


def _customer_locked(case: Case) -> list[Why] | None:
    until = case.customer.locked_until
    if until is None or until <= case.now:
        return None
    return _because(f"the customer is locked until {spoken(until)}", lockedUntil=plain_time(until))


def _finer_than_the_program(case: Case) -> list[Why] | None:
    program = case.program
    return _finer_than(case.request, program.decimals, f"the program {program.program_id} has")


def _outside_the_conditions(case: Case) -> list[Why] | None:
    program, redemption = case.program, case.redemption
    days = program.reversal_window_days
    if days is not None:
        given = case.request.returned_at
        returned_at = given if given is not None and given <= case.now else case.now
        if _age_beyond(redemption.redeemed_at, returned_at, days) > 0:
            return _because(
                f"redeemed {spoken(redemption.redeemed_at)} and returned {spoken(returned_at)}, "
                f"later than the {_count(days, 'day')} within which points come back",
                redeemedAt=plain_time(redemption.redeemed_at),
                returnedAt=plain_time(returned_at),
                reversalWindowDays=str(days),
            )
    ask = case.ask
    if redemption.remaining == 0 or ask.everything:
        return None
    if ask.points < program.minimum_points:
        least = format_points(program.minimum_points)
        asked_for = format_points(ask.points)
        message = f"asked for {asked_for}, the program gives back at least {least} or all that remains"
        return _because(message, minimumPoints=least, **_numbers(case, ask))
    if not program.allow_partial and _short_of_all(redemption, ask):
        message = f"{_asked_of_remaining(redemption, ask)}; the program gives back only all that remains"
        return _because(message, **_numbers(case, ask))
    return None


def _too_many_lately(case: Case) -> list[Why] | None:
    program = case.program
    count, days = program.max_reversals_count, program.max_reversals_days
    if count is None or days is None:
        return None
    key = (program.org_id, case.customer.customer_id, program.program_id)
    lately = sum(_age_beyond(moment, case.now, days) < 0 for moment in case.ledger.reversal_times.get(key, ()))
    if lately < count:
        return None
    lately_counted, period = _count(lately, "reversal"), _count(days, "day")
    message = f"the customer had {lately_counted} in the last {period}, the program allows {count}"
    return _because(message, reversals=str(lately), count=str(count), days=str(days))


def _more_than_remains(case: Case) -> list[Why] | None:
    redemption, ask = case.redemption, case.ask
    short = ask.points > redemption.remaining if ask.units is None else ask.units > units_left(redemption)
    if not short and redemption.remaining > 0:
        return None
    return _because(_asked_of_remaining(redemption, ask), **_numbers(case, ask))


RULES: tuple[Rule, ...] = (
    Rule(1, Code.VALIDATION_ERROR, _breaks_the_shape),
    Rule(2, Code.PRECISION_NOT_SUPPORTED, _finer_than_points_are),
    Rule(3, Code.DUPLICATE_REVERSAL, _completed_before),
    Rule(4, Code.IDEMPOTENCY_KEY_REUSED, _key_names_another),
    Rule(5, Code.INVALID_CONFIGURATION, _org_unknown),
    Rule(6, Code.INVALID_PROGRAM, _program_unknown_or_another),
    Rule(7, Code.MISCONFIGURED_PROGRAM, _program_unusable),
    Rule(8, Code.REVERSAL_NOT_ALLOWED, _reversals_off),
    Rule(9, Code.REDEMPTION_NOT_FOUND, _redemption_unknown),
    Rule(9, Code.AMBIGUOUS_ORDER, _several_on_the_order),
    Rule(9, Code.WRONG_MEASURE, _other_measure),
    Rule(10, Code.CUSTOMER_NOT_ELIGIBLE, _not_the_customer),
    Rule(11, Code.CUSTOMER_LOCKED, _customer_locked),
    Rule(12, Code.PRECISION_NOT_SUPPORTED, _finer_than_the_program),
    Rule(13, Code.CONDITIONS_NOT_MET, _outside_the_conditions),
    Rule(14, Code.REVERSAL_LIMIT_EXCEEDED, _too_many_lately),
    Rule(15, Code.INSUFFICIENT_POINTS, _more_than_remains),
)


def contradictions(program: Program) -> list[str]:
    """What in a program's rules contradicts itself or cannot be, in plain words; empty for a sound program.

    Whether the program is live is not among it: `load` takes a program that is not live yet.
    """
    found: list[str] = []
    decimals_sound = 0 <= program.decimals <= MAX_DECIMALS
    if not decimals_sound:
        found.append(f"decimals is {program.decimals}, it must be 0 to {MAX_DECIMALS}")
    if program.reversal_window_days is not None and program.reversal_window_days < 0:
        found.append(f"reversalWindowDays is {program.reversal_window_days}, it must not be negative")
    if program.minimum_points < 0:
        found.append(f"minimumPoints is {format_points(program.minimum_points)}, it must not be negative")
    elif decimals_sound and program.minimum_points % 10 ** (MAX_DECIMALS - program.decimals):
        least = format_points(program.minimum_points)
        found.append(f"minimumPoints is {least}, finer than the program's decimals ({program.decimals})")
    count, days = program.max_reversals_count, program.max_reversals_days
    if (count is None) != (days is None):
        found.append("maxReversals needs both count and days")
    if count is not None and count < 1:
        found.append(f"maxReversals.count is {count}, it must be at least 1")
    if days is not None and days < 1:
        found.append(f"maxReversals.days is {days}, it must be at least 1")
    if program.expired_lots_policy not in ("keep", "extend"):
        found.append(f"expiredLots.policy is {program.expired_lots_policy}, it must be keep or extend")
    elif program.expired_lots_policy == "extend" and program.grace_days is None:
        found.append("expiredLots.policy extend needs graceDays")
    if program.grace_days is not None and program.grace_days < 1:
        found.append(f"expiredLots.graceDays is {program.grace_days}, it must be at least 1")
    if program.park_unknown_seconds < 0:
        found.append(f"parkUnknownSeconds is {program.park_unknown_seconds}, it must not be negative")
    return found


def _finer_than(request: Return, allowed: int, whose: str) -> list[Why] | None:
    decimals = request.points_decimals
    if decimals <= allowed:
        return None
    return _because(
        f"asked for {request.points_text}, {_count(decimals, 'decimal place')}: {whose} at most {allowed}",
        field="pointsToBeReversed",
        asked=request.points_text,
        decimals=str(decimals),
        allowed=str(allowed),
    )


def _short_of_all(redemption: Redemption, ask: Ask) -> bool:
    if ask.units is None:
        return ask.points < redemption.remaining
    return ask.units < units_left(redemption)


def _asked_of_remaining(redemption: Redemption, ask: Ask) -> str:
    """`asked for 150, 50 of 200 remain`."""
    if ask.units is None or redemption.remaining == 0:
        points, remaining = format_points(redemption.points), format_points(redemption.remaining)
        if redemption.remaining == 0:
            return f"nothing remains: all {points} points were given back already"
        return f"asked for {format_points(ask.points)}, {remaining} of {points} remain"
    total, given = units_of(redemption)
    return f"asked for {_count(ask.units, 'unit')}, {total - given} of {total} remain"


def _numbers(case: Case, ask: Ask) -> dict[str, str]:
    """The numbers of an ask beside the redemption's, as strings."""
    redemption = case.redemption
    numbers = {
        "points": format_points(redemption.points),
        "reversed": format_points(redemption.reversed),
        "remaining": format_points(redemption.remaining),
    }
    if ask.units is None or ask.units <= units_left(redemption):
        numbers["asked"] = format_points(ask.points)
    if ask.units is None:
        return numbers
    total, given = units_of(redemption)
    numbers["askedQuantity"] = str(ask.units)
    numbers["quantity"] = str(total)
    numbers["reversedQuantity"] = str(given)
    numbers["remainingQuantity"] = str(total - given)
    return numbers


def _age_beyond(start: datetime, end: datetime, days: int) -> int:
    """By how many microseconds the time from start to end exceeds days x 24 h; negative where it does not."""
    return (end - start) // timedelta(microseconds=1) - days * 86_400_000_000


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spoken(moment: datetime) -> str:
    """A time as a person reads it, to the minute."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

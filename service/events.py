"""PURE. What arrives: wire models, and the reading of a record as a return, a feed or a dead letter.

Laws: `decode` is total; a return that can be attributed to an org is a Return, with every fault of its shape
and every field that could be read; a feed is whole or unreadable. The envelope's own faults come first, then
the org, then the rest. A CloudEvent's type is not judged: the topic tells what a record is. Each rule on one
field stands in `fields`, each on several fields here.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Required
from urllib.parse import quote

from pydantic import Field, PlainValidator, WithJsonSchema, with_config
from typing_extensions import TypedDict

from service import fields
from service.envelope import Event, origin, read_envelope
from service.fields import WIRE, Shape, Unfit, WithoutNulls, fault
from service.points import Amount, format_points
from service.records import (
    CustomerUpdated,
    DeadLetterReason,
    Fault,
    Feed,
    Identifier,
    Kind,
    Message,
    PointsIssued,
    PointsRedeemed,
    Record,
    Return,
    Unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LOTS = 1_000  # of one redemption
MAX_IDENTIFIERS = 100  # of one customer
MAX_KEY = 255
STATUSES = ("active", "inactive", "fraud")
REDEMPTION_TYPES = ("RAW", "AMOUNT_BASED", "UNIT_BASED")
_MAX_MESSAGE = 1_000  # characters of a dead letter's message

Status = Annotated[str, PlainValidator(fields.one_of(*STATUSES)), WithJsonSchema({"enum": list(STATUSES)})]
RedemptionType = Annotated[
    str, PlainValidator(fields.one_of(*REDEMPTION_TYPES)), WithJsonSchema({"enum": list(REDEMPTION_TYPES)})
]


@with_config(WIRE)
class IdentifierFields(TypedDict):
    """How a customer is named; `value` is compared by its digits (PHONE) or trimmed in lower case (EMAIL)."""

    type: fields.IdentifierType
    value: fields.Text


@with_config(WIRE)
class LotFields(TypedDict):
    """Points that a redemption consumed of a lot."""

    lot_id: fields.Text
    points: fields.Points


@with_config(WIRE)
class ReturnFields(TypedDict, total=False):
    """`order.returned`: asks for points of a redemption back, for all that remain if it names no amount."""

    org_id: Required[fields.OrgId]
    redemption_id: fields.Text
    order_id: fields.Text
    return_id: fields.Text
    points_to_be_reversed: fields.AskedPoints
    quantity: fields.Quantity
    identifier: Annotated[IdentifierFields, WithoutNulls]
    idempotency_key: fields.Text
    reason: fields.Reason
    program_id: fields.Text
    returned_at: fields.Time


@with_config(WIRE)
class CustomerFields(TypedDict, total=False):
    """`customer.updated`: what is given replaces what was. `lockedUntil: null` unlocks."""

    org_id: Required[fields.OrgId]
    customer_id: Required[fields.CustomerId]
    status: Status
    locked_until: fields.Time
    identifiers: Annotated[list[Annotated[IdentifierFields, WithoutNulls]], Field(max_length=MAX_IDENTIFIERS)]
    updated_at: fields.Time


@with_config(WIRE)
class IssueFields(TypedDict, total=False):
    """`points.issued`: one lot."""

    org_id: Required[fields.OrgId]
    customer_id: Required[fields.CustomerId]
    lot_id: Required[fields.Text]
    points: Required[fields.Points]
    program_id: fields.Text
    expires_at: fields.Time
    issued_at: fields.Time


@with_config(WIRE)
class RedemptionFields(TypedDict, total=False):
    """`points.redeemed`: one redemption. `lots`, where given, in order of consumption, add up to `points`."""

    org_id: Required[fields.OrgId]
    customer_id: Required[fields.CustomerId]
    redemption_id: Required[fields.Text]
    points: Required[fields.Points]
    order_id: fields.Text
    program_id: fields.Text
    type: RedemptionType
    reward_id: fields.Text
    quantity: fields.Quantity
    redeemed_at: fields.Time
    lots: Annotated[list[Annotated[LotFields, WithoutNulls]], Field(max_length=MAX_LOTS)]


@with_config(WIRE)
class LotLineFields(IssueFields, total=False):
    """A `lot` line of a load file: a lot as it stands, with what `remaining` of it (all, where left out)."""

    remaining: fields.PointsOrNone


@with_config(WIRE)
class RedemptionLineFields(RedemptionFields, total=False):
    """A `redemption` line of a load file: a redemption as it stands, with what was `reversed` of it."""

    reversed: fields.PointsOrNone
    reversed_quantity: fields.QuantityOrNone


RETURN = Shape(ReturnFields)
CUSTOMER = Shape(CustomerFields)
ISSUE = Shape(IssueFields)
REDEMPTION = Shape(RedemptionFields)
LOT_LINE = Shape(LotLineFields)
REDEMPTION_LINE = Shape(RedemptionLineFields)


class LotLine(NamedTuple):
    """A lot to import; `remaining` in thousandths."""

    feed: PointsIssued
    remaining: int


class RedemptionLine(NamedTuple):
    """A redemption to import; `reversed` in thousandths, `reversed_quantity` for UNIT_BASED only."""

    feed: PointsRedeemed
    reversed: int
    reversed_quantity: int | None


def decode(kind: Kind, record: Record, max_bytes: int) -> Message:
    """What the record says, or why it cannot be read. Never raises. `max_bytes` bounds its value."""
    event = read_envelope(record, max_bytes)
    if isinstance(event, Unreadable):
        return event
    if kind is Kind.ORDER_RETURNED:
        return _read_return(record, event)
    feed = read_feed(kind, event.data)
    return _unreadable(feed) if isinstance(feed, tuple) else feed


def read_feed(kind: Kind, data: dict[str, Any]) -> Feed | tuple[Fault, ...]:
    """A feed's data (as `parse_json` yields it), or every fault of its shape."""
    return _FEEDS[kind](data)


def read_lot_line(data: dict[str, Any]) -> LotLine | tuple[Fault, ...]:
    """A `lot` line of a load file, or its faults."""
    given = LOT_LINE.read(data)
    if isinstance(given, tuple):
        return given
    remaining = given.get("remaining", given["points"])
    if remaining > given["points"]:
        issued, rest = format_points(given["points"]), format_points(remaining)
        return (fault("remaining", f"is {rest}, but the lot was issued with {issued}"),)
    return LotLine(_issued(given), remaining)


def read_redemption_line(data: dict[str, Any]) -> RedemptionLine | tuple[Fault, ...]:
    """A `redemption` line of a load file, or its faults."""
    given = REDEMPTION_LINE.read(data)
    if isinstance(given, tuple):
        return given
    faults = _redemption_faults(given)
    given_back = given.get("reversed", 0)
    if given_back > given["points"]:
        redeemed, back = format_points(given["points"]), format_points(given_back)
        faults.append(fault("reversed", f"is {back}, but {redeemed} were redeemed"))
    units_back = given.get("reversed_quantity")
    if given.get("type") == "UNIT_BASED":
        units_back = units_back or 0
        if units_back > given.get("quantity", units_back):
            faults.append(fault("reversedQuantity", f"is {units_back}, but {given['quantity']} units were redeemed"))
    elif units_back is not None:
        faults.append(fault("reversedQuantity", "is for UNIT_BASED redemptions only"))
    if faults:
        return tuple(faults)
    return RedemptionLine(_redeemed(given), given_back, units_back)


def _read_return(record: Record, event: Event) -> Return | Unreadable:
    given = RETURN.read(event.data)
    faults: tuple[Fault, ...] = ()
    if isinstance(given, tuple):
        faults = given
        org_faults = [found for found in faults if found.field == "orgId"]
        if org_faults:
            return Unreadable(DeadLetterReason.NO_ORG, org_faults[0].message)
        given = RETURN.readable(event.data, faults)
    identifier = None
    named = given.get("identifier")
    if named is not None:
        try:
            identifier = fields.identifier_of(named["type"], named["value"])
        except Unfit as unfit:
            faults += (fault("identifier.value", str(unfit)),)
    faults += _return_faults(given, {found.field for found in faults})
    asked = given.get("points_to_be_reversed", _NO_POINTS)
    return Return(
        org_id=given["org_id"],
        key=given.get("idempotency_key") or _derived_key(record, event, given),
        order_id=given.get("order_id"),
        return_id=given.get("return_id"),
        redemption_id=given.get("redemption_id"),
        points=asked.thousandths,
        points_text=asked.text or None,
        points_decimals=asked.decimals,
        quantity=given.get("quantity"),
        identifier=identifier,
        reason=given.get("reason", "order returned"),
        program_id=given.get("program_id"),
        returned_at=given.get("returned_at"),
        faults=faults,
    )


_NO_POINTS = Amount(None, "", 0)


def _return_faults(given: ReturnFields, faulty: set[str]) -> tuple[Fault, ...]:
    found: tuple[Fault, ...] = ()
    if "redemption_id" not in given and "order_id" not in given and not faulty & {"redemptionId", "orderId"}:
        found += (Fault("redemptionId", "redemptionId or orderId is required"),)
    if ("quantity" in given or "quantity" in faulty) and (
        "points_to_be_reversed" in given or "pointsToBeReversed" in faulty
    ):
        found += (Fault("quantity", "give pointsToBeReversed or quantity, not both"),)
    return found


def _derived_key(record: Record, event: Event, given: ReturnFields) -> str:
    """The key of a return that gives none: of the return, else of the CloudEvent, else of the record."""
    subject = given.get("redemption_id") or given.get("order_id")
    if "return_id" in given and subject is not None:
        key = f"return:{quote(given['return_id'], safe='')}/{quote(subject, safe='')}"
    elif event.source is not None and event.id is not None:
        key = f"event:{quote(event.source, safe='')}#{quote(event.id, safe='')}"
    else:
        key = "record:" + origin(record)
    return key if len(key) <= MAX_KEY else "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def _unreadable(faults: tuple[Fault, ...]) -> Unreadable:
    for found in faults:
        if found.field == "orgId":
            return Unreadable(DeadLetterReason.NO_ORG, found.message)
    return Unreadable(DeadLetterReason.MALFORMED_FEED, "; ".join(found.message for found in faults)[:_MAX_MESSAGE])


def _read_customer(data: dict[str, Any]) -> CustomerUpdated | tuple[Fault, ...]:
    given = CUSTOMER.read(data)
    if isinstance(given, tuple):
        return given
    identifiers, faults = _identifier_set(given.get("identifiers", []), given["customer_id"])
    if faults:
        return tuple(faults)
    # Here alone a null says something; the camelCase name wins where both stand, also when it holds the null.
    unlocks = data.get("lockedUntil", data.get("locked_until", "")) is None
    return CustomerUpdated(
        org_id=given["org_id"],
        customer_id=given["customer_id"],
        status=given.get("status"),
        locked_until=None if unlocks else given.get("locked_until"),
        locked_until_given=unlocks or "locked_until" in given,
        identifiers=identifiers if "identifiers" in given else None,
        updated_at=given.get("updated_at"),
    )


def _identifier_set(given: list[IdentifierFields], customer_id: int) -> tuple[tuple[Identifier, ...], list[Fault]]:
    """The identifiers to keep, each once, as first spelled. An ID is the customerId: nothing to keep."""
    kept: dict[tuple[str, str], Identifier] = {}
    faults = []
    for index, named in enumerate(given):
        if named["type"] == "ID":
            if named["value"] != str(customer_id):
                faults.append(fault(f"identifiers[{index}].value", "is an ID other than the customerId"))
            continue
        try:
            identifier = fields.identifier_of(named["type"], named["value"])
        except Unfit as unfit:
            faults.append(fault(f"identifiers[{index}].value", str(unfit)))
            continue
        kept.setdefault((identifier.type, identifier.lookup), identifier)
    return tuple(kept.values()), faults


def _read_issue(data: dict[str, Any]) -> PointsIssued | tuple[Fault, ...]:
    given = ISSUE.read(data)
    return given if isinstance(given, tuple) else _issued(given)


def _issued(given: IssueFields) -> PointsIssued:
    return PointsIssued(
        org_id=given["org_id"],
        customer_id=given["customer_id"],
        lot_id=given["lot_id"],
        points=given["points"],
        program_id=given.get("program_id"),
        expires_at=given.get("expires_at"),
        issued_at=given.get("issued_at"),
    )


def _read_redemption(data: dict[str, Any]) -> PointsRedeemed | tuple[Fault, ...]:
    given = REDEMPTION.read(data)
    if isinstance(given, tuple):
        return given
    faults = _redemption_faults(given)
    return tuple(faults) if faults else _redeemed(given)


def _redemption_faults(given: RedemptionFields) -> list[Fault]:
    faults = []
    if given.get("type") == "UNIT_BASED":
        if "quantity" not in given:
            faults.append(fault("quantity", "is required of a UNIT_BASED redemption"))
    elif "quantity" in given:
        faults.append(fault("quantity", "is for UNIT_BASED redemptions only"))
    if "lots" in given:
        lots = given["lots"]
        seen: set[str] = set()
        for index, lot in enumerate(lots):
            if lot["lot_id"] in seen:
                faults.append(fault(f"lots[{index}].lotId", "names a lot for the second time"))
            seen.add(lot["lot_id"])
        total = sum(lot["points"] for lot in lots)
        if total != given["points"]:
            added, points = format_points(total), format_points(given["points"])
            faults.append(fault("lots", f"add up to {added}, but points is {points}"))
    return faults


def _redeemed(given: RedemptionFields) -> PointsRedeemed:
    lots = given.get("lots")
    return PointsRedeemed(
        org_id=given["org_id"],
        customer_id=given["customer_id"],
        redemption_id=given["redemption_id"],
        points=given["points"],
        order_id=given.get("order_id"),
        program_id=given.get("program_id"),
        type=given.get("type"),
        reward_id=given.get("reward_id"),
        quantity=given.get("quantity"),
        redeemed_at=given.get("redeemed_at"),
        lots=None if lots is None else tuple((lot["lot_id"], lot["points"]) for lot in lots),
    )


_FEEDS: dict[Kind, Callable[[dict[str, Any]], Feed | tuple[Fault, ...]]] = {
    Kind.CUSTOMER_UPDATED: _read_customer,
    Kind.POINTS_ISSUED: _read_issue,
    Kind.POINTS_REDEEMED: _read_redemption,
}

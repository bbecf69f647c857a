"""PURE. What goes out: outcomes as bytes and headers, and the headers of dead letters.

Laws (contract, "Outcomes" and "Topics"): the same decision gives the same bytes; points are decimal strings,
times UTC with a `Z`; an `existing` outcome goes in as the bytes that were published.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import orjson
from pydantic import WithJsonSchema
from typing_extensions import TypedDict

from service.errors import Code
from service.headers import Kept, kept, plain
from service.points import format_points

if TYPE_CHECKING:
    from service.outcomes import Completed, Part, Refused
    from service.records import Identifier, Record, Return

CONTENT_TYPE = ("content-type", "application/json")
SPECVERSION = ("ce_specversion", "1.0")
SOURCE = ("ce_source", "/points-reversal")
DEAD_LETTER_HEADERS = (
    "dlq.reason",
    "dlq.message",
    "dlq.topic",
    "dlq.partition",
    "dlq.offset",
    "dlq.timestamp",
    "dlq.group",
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


PointsText = Annotated[
    str,
    WithJsonSchema({"type": "string", "pattern": "^(?:0|[1-9][0-9]*)(?:\\.[0-9]*[1-9])?$"}),
]
Moment = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time", "pattern": "Z$"})]
ExactTime = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "pattern": "\\.[0-9]{6}Z$"})]
UuidText = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
ErrorCode = Annotated[int, WithJsonSchema({"enum": sorted({code.number for code in Code})})]
ErrorName = Annotated[str, WithJsonSchema({"enum": [code.label for code in Code]})]
ErrorDetails = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        }
    ),
]


class IdentifierBody(TypedDict):
    """The customer as the return named them."""

    type: str
    value: str


class SplitBody(TypedDict):
    """What came back spendable, and what came back to expired lots."""

    available: PointsText
    expired: PointsText


class LotBody(TypedDict):
    """Points that came back to one lot; `restoredFrom`: the expired lot that a new one carries on."""

    lotId: str
    points: PointsText
    expiresAt: Moment | None
    expired: bool
    restoredFrom: NotRequired[str]


class RedemptionBody(TypedDict):
    """The redemption after this reversal."""

    points: PointsText
    reversed: PointsText
    remaining: PointsText


class BalanceBody(TypedDict):
    """The customer's spendable points in the program, after this reversal."""

    available: PointsText


class WarningBody(TypedDict):
    """Something to know of a reversal that stands."""

    name: str
    message: str


class ErrorBody(TypedDict):
    """Why the return was refused; `retryable`: the same request can succeed later."""

    code: ErrorCode
    name: ErrorName
    message: str
    retryable: bool
    details: ErrorDetails


class CompletedBody(TypedDict):
    """`reversal-completed`: the reversal record."""

    orgId: int
    programId: str
    customerId: int
    identifier: IdentifierBody | None
    orderId: str | None
    returnId: str | None
    redemptionId: str
    reversalId: UuidText
    journalEntryId: UuidText
    idempotencyKey: str
    reason: str
    pointsToBeReversed: PointsText
    pointsReversed: PointsText
    quantity: int | None
    pointsReversedDetails: SplitBody
    lots: list[LotBody]
    redemption: RedemptionBody
    balance: BalanceBody
    sequence: int
    warnings: list[WarningBody]
    createdAt: ExactTime


class RefusedBody(TypedDict):
    """`reversal-failed`: what was asked, as far as it could be read, and why it was refused."""

    orgId: int
    programId: str | None
    customerId: int | None
    identifier: IdentifierBody | None
    orderId: str | None
    returnId: str | None
    redemptionId: str | None
    idempotencyKey: str
    reason: str | None
    pointsToBeReversed: PointsText | None
    quantity: int | None
    returnedAt: Moment | None
    sequence: int | None
    errors: list[ErrorBody]
    existing: CompletedBody | None
    failedAt: ExactTime


def encode_completed(decision: Completed) -> bytes:
    """The value of a `reversal-completed`."""
    request, redemption = decision.request, decision.redemption
    available = decision.available
    body: CompletedBody = {
        "orgId": request.org_id,
        "programId": redemption.program_id,
        "customerId": redemption.customer_id,
        "identifier": _identifier(request.identifier),
        "orderId": redemption.order_id,
        "returnId": request.return_id,
        "redemptionId": redemption.redemption_id,
        "reversalId": decision.reversal_id,
        "journalEntryId": decision.entry.entry_id,
        "idempotencyKey": request.key,
        "reason": request.reason,
        "pointsToBeReversed": format_points(decision.asked),
        "pointsReversed": format_points(decision.points),
        "quantity": decision.units,
        "pointsReversedDetails": {
            "available": format_points(available),
            "expired": format_points(decision.points - available),
        },
        "lots": [_lot(part) for part in decision.parts],
        "redemption": {
            "points": format_points(redemption.points),
            "reversed": format_points(decision.reversed_after),
            "remaining": format_points(decision.remaining_after),
        },
        "balance": {"available": format_points(decision.balance_after)},
        "sequence": decision.sequence,
        "warnings": [{"name": warning.name, "message": warning.message} for warning in decision.warnings],
        "createdAt": exact_time(decision.created_at),
    }
    return orjson.dumps(body, option=orjson.OPT_UTC_Z)


def encode_refused(decision: Refused, *, with_existing: bool = True) -> bytes:
    """The value of a `reversal-failed`. `with_existing=False` leaves null there, for what is stored of it."""
    request = decision.request
    body: RefusedBody = {
        "orgId": request.org_id,
        "programId": request.program_id,
        "customerId": decision.customer_id,
        "identifier": _identifier(request.identifier),
        "orderId": request.order_id,
        "returnId": request.return_id,
        "redemptionId": request.redemption_id,
        "idempotencyKey": request.key,
        "reason": _reason(request),
        "pointsToBeReversed": request.points_text,
        "quantity": request.quantity,
        "returnedAt": None if request.returned_at is None else request.returned_at.astimezone(UTC),
        "sequence": decision.sequence,
        "errors": [error.document() for error in decision.errors],  # type: ignore[misc]
        "existing": None,
        "failedAt": exact_time(decision.failed_at),
    }
    if with_existing and decision.existing is not None:
        body["existing"] = orjson.Fragment(decision.existing)  # type: ignore[typeddict-item]
    return orjson.dumps(body, option=orjson.OPT_UTC_Z)


def _identifier(identifier: Identifier | None) -> IdentifierBody | None:
    return None if identifier is None else {"type": identifier.type, "value": identifier.value}


def _lot(part: Part) -> LotBody:
    lot: LotBody = {
        "lotId": part.lot_id,
        "points": format_points(part.points),
        "expiresAt": None if part.expires_at is None else part.expires_at.astimezone(UTC),
        "expired": part.expired,
    }
    if part.restored_from is not None:
        lot["restoredFrom"] = part.restored_from
    return lot


def _reason(request: Return) -> str | None:
    """None where a given reason could not be read: the default must not pass for the asker's words."""
    unread = any(fault.field == "reason" for fault in request.faults)
    return None if unread else request.reason


@lru_cache(maxsize=256)  # a batch has one moment
def exact_time(moment: datetime) -> str:
    """UTC to the microsecond: `2026-11-20T01:30:02.123456Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def plain_time(moment: datetime) -> str:
    """UTC, with a fraction only where there is one: `2027-01-31T00:00:00Z`."""
    return moment.astimezone(UTC).isoformat()[:-6] + "Z"


def outcome_headers(
    record: Record,
    *,
    type_name: str,
    subject: str | None,
    org_id: int,
    decision_moment: datetime,
    error_code: int | None,
    traceparent: str | None,
) -> list[tuple[str, str]]:
    """The headers of the outcome of `record`, a CloudEvent in binary form, as the outbox keeps them.

    `type_name`: the topic's default name; `subject`: the redemption's id where known; `error_code`: of the
    first error of a failure.
    """
    headers = [
        CONTENT_TYPE,
        SPECVERSION,
        ("ce_id", record.outcome_id),
        SOURCE,
        ("ce_type", type_name),
        ("ce_time", exact_time(decision_moment)),
    ]
    if subject is not None:
        headers.append(("ce_subject", plain(subject)))
    headers.append(("ce_orgid", str(org_id)))
    if error_code is not None:
        headers.append(("ce_errorcode", str(error_code)))
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    return headers


def dead_letter_headers(record: Record, reason: str, message: str, group: str) -> Kept:
    """The record's own headers, untouched, and the `dlq.*` headers, in place of earlier ones; as the outbox keeps them."""
    values = (
        reason,
        message,
        record.topic,
        str(record.partition),
        str(record.offset),
        _record_time(record.timestamp_ms),
        group,
    )
    own = kept(header for header in record.headers if header[0] not in DEAD_LETTER_HEADERS)
    told = (value.encode(errors="backslashreplace").decode("latin-1") for value in values)
    return [*own, *zip(DEAD_LETTER_HEADERS, told, strict=True)]


def _record_time(timestamp_ms: int) -> str:
    """A broker's timestamp as a time; one that no calendar of ours holds becomes the nearest that it does."""
    try:
        moment = _EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        moment = _LAST_MOMENT if timestamp_ms > 0 else _EPOCH
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"

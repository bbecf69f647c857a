"""What leaves the service: the Kafka records of a batch's outcomes and dead letters, with their place in the outbox."""

from __future__ import annotations

from collections.abc import Iterable

from service.batch import Settled
from service.envelope import traceparent
from service.headers import Kept
from service.outcomes import Completed, Refused
from service.published import dead_letter_headers, outcome_headers
from service.records import DeadLetterReason, Record, Unreadable, value
from service.settings import Settings

COMPLETED, FAILED = (
    "reversal-completed",
    "reversal-failed",
)  # the types of the events, whatever the topics' names
WITHOUT_VALUE = (DeadLetterReason.TOO_LARGE, DeadLetterReason.CORRUPT)  # their value cannot be published


@value
class Outgoing:
    """A record to be published. The first four are the columns of Debezium's outbox event router."""

    id: str
    aggregatetype: str
    aggregateid: str
    type: str
    topic: str
    key: bytes | None
    payload: bytes | None
    headers: Kept


def outgoing(ends: Iterable[Settled], settings: Settings) -> list[Outgoing]:
    """The records that the ends publish: each an outcome, a dead letter, for 804 both, for a booking none."""
    completed, failed = settings.topics.reversal_completed, settings.topics.reversal_failed
    out = []
    for end in ends:
        result = end.result
        if isinstance(result, Completed):
            out.append(_completed(end, result, completed))
        elif isinstance(result, Refused):
            out.append(_failed(end, result, failed))
        elif isinstance(result, Unreadable):
            out.append(_dead_letter(end.record, result, settings))
        if end.also is not None:
            out.append(_dead_letter(end.record, end.also, settings))
    return out


def _completed(end: Settled, result: Completed, topic: str) -> Outgoing:
    record, redemption = end.record, result.redemption
    customer = str(redemption.customer_id)
    headers = outcome_headers(
        record,
        type_name=COMPLETED,
        subject=redemption.redemption_id,
        org_id=redemption.org_id,
        decision_moment=result.created_at,
        error_code=None,
        traceparent=traceparent(record),
    )
    return Outgoing(record.outcome_id, "customer", customer, COMPLETED, topic, customer.encode(), end.outcome, headers)


def _failed(end: Settled, result: Refused, topic: str) -> Outgoing:
    record = end.record
    customer = "" if result.customer_id is None else str(result.customer_id)
    headers = outcome_headers(
        record,
        type_name=FAILED,
        subject=result.redemption_id,
        org_id=result.request.org_id,
        decision_moment=result.failed_at,
        error_code=result.errors[0].code.number,
        traceparent=traceparent(record),
    )
    key = customer.encode() if customer else record.key
    return Outgoing(record.outcome_id, "customer", customer, FAILED, topic, key, end.outcome, headers)


def _dead_letter(record: Record, unreadable: Unreadable, settings: Settings) -> Outgoing:
    reason, message = unreadable.reason, unreadable.message
    headers = dead_letter_headers(record, reason, message, settings.kafka.group_id)
    topic = settings.topics.dead_letters(record.topic)
    value = None if reason in WITHOUT_VALUE else record.value
    return Outgoing(record.outcome_id, "dead-letter", "", str(reason), topic, record.key, value, headers)

"""What leaves the service: the Kafka records of a batch's outcomes and dead letters, with their place in the outbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from service.batch import Settled
from service.envelope import traceparent
from service.outcomes import Completed, Refused
from service.published import dead_letter_headers, outcome_headers
from service.records import DeadLetterReason, Record, Unreadable
from service.settings import Settings

COMPLETED, FAILED = (
    "reversal-completed",
    "reversal-failed",
)  # the types of the events, whatever the topics' names
WITHOUT_VALUE = (DeadLetterReason.TOO_LARGE, DeadLetterReason.CORRUPT)  # their value cannot be published


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to be published. The first four are the columns of Debezium's outbox event router."""

    id: UUID
    aggregatetype: str
    aggregateid: str
    type: str
    topic: str
    key: bytes | None
    payload: bytes | None
    headers: list[tuple[str, bytes | None]]


def outgoing(settled: Settled, settings: Settings) -> Iterator[Outgoing]:
    """The records that one end publishes: an outcome, a dead letter, for 804 both, for a booking none."""
    result = settled.result
    if isinstance(result, Completed | Refused):
        yield _outcome(settled.record, result, settled.outcome, settings)
    if isinstance(result, Unreadable):
        yield _dead_letter(settled.record, result, settings)
    if settled.also is not None:
        yield _dead_letter(settled.record, settled.also, settings)


def _outcome(record: Record, result: Completed | Refused, outcome: bytes, settings: Settings) -> Outgoing:
    if isinstance(result, Completed):
        type_name, topic = COMPLETED, settings.topics.reversal_completed
        customer_id: int | None = result.redemption.customer_id
        subject: str | None = result.redemption.redemption_id
        moment, code = result.created_at, None
    else:
        type_name, topic = FAILED, settings.topics.reversal_failed
        customer_id, moment = result.customer_id, result.failed_at
        subject, code = result.redemption_id, result.errors[0].code.number
    headers = outcome_headers(
        record,
        type_name=type_name,
        subject=subject,
        org_id=result.request.org_id,
        decision_moment=moment,
        error_code=code,
        traceparent=traceparent(record),
    )
    customer = "" if customer_id is None else str(customer_id)
    key = customer.encode() if customer else record.key
    return Outgoing(record.outcome_id, "customer", customer, type_name, topic, key, outcome, list(headers))


def _dead_letter(record: Record, unreadable: Unreadable, settings: Settings) -> Outgoing:
    reason, message = unreadable.reason, unreadable.message
    headers = dead_letter_headers(record, reason, message, settings.kafka.group_id)
    topic = settings.topics.dead_letters(record.topic)
    value = None if reason in WITHOUT_VALUE else record.value
    return Outgoing(record.outcome_id, "dead-letter", "", str(reason), topic, record.key, value, list(headers))

"""PURE. A batch's records decided one after the other, each with what it sets free, as if they had come alone.

Laws: every record ends in exactly one place (an outcome, a booking, the dead letters, or waiting; 804 is both outcome
and dead letter). After a redemption is booked, the returns that wait for it are decided, oldest first; after a
customer's points changed, the customer's waiting feed records are tried again, oldest first; then the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from service import booking, reversal
from service.ledger import CustomerId, Ledger, Waiting
from service.outcomes import (
    Booking,
    Completed,
    Issued,
    NotBookable,
    Parked,
    Redeemed,
    Refused,
    Repeated,
    Waits,
)
from service.published import encode_completed, encode_refused
from service.records import (
    DeadLetterReason,
    Feed,
    Message,
    Record,
    Return,
    Unreadable,
)

Result = Completed | Refused | Repeated | Booking | Unreadable


@dataclass(slots=True)
class Settled:
    """What became of one record. `also`: 804's dead letter beside its outcome. `waited`: it is in the table waiting."""

    lane_id: int
    record: Record
    result: Result
    also: Unreadable | None = None
    waited: bool = False
    outcome: bytes = b""  # as it is published


@dataclass(slots=True)
class Batch:
    """Decides over a loaded ledger. `parked`: what begins to wait in this transaction, by place; batches of several lanes
    in one share it, as they do the ledger. `faults` holds the exceptions behind each 804, for the log."""

    ledger: Ledger
    lane_id: int
    feed_wait_seconds: float
    new_id: Callable[[], str]
    parked: dict[str, Waiting] = field(default_factory=dict)
    settled: list[Settled] = field(default_factory=list)
    faults: list[tuple[Record, Exception]] = field(default_factory=list)

    def take(self, record: Record, message: Message) -> None:
        """Decide a record that just came, then all that this sets free."""
        match message:
            case Unreadable():
                self.settled.append(Settled(self.lane_id, record, message))
            case Return():
                decision = self._decide(message, record, None)
                if isinstance(decision, Parked):
                    self._park(record, message, decision.deadline, "its redemption")
                else:
                    self._settle(Settled(self.lane_id, record, *decision))
            case _:
                result = self._book(message, record)
                if isinstance(result, Waits) and self.feed_wait_seconds > 0:
                    deadline = self.ledger.now + timedelta(seconds=self.feed_wait_seconds)
                    self._park(record, message, deadline, result.waits_for)
                else:
                    self._settle(Settled(self.lane_id, record, *_final(result)))

    def repeat(self, record: Record, message: Message) -> None:
        """Pass over a record that has its outcome already."""
        request = message if isinstance(message, Return) else Return(org_id=0, key="")
        self.settled.append(Settled(self.lane_id, record, Repeated(request)))

    def condemn(self, record: Record, message: Message, error: Exception, waiting: Waiting | None = None) -> None:
        """Settle a record (`waiting`: one that waited) that made its batch fail, alone, twice (804)."""
        self.faults.append((record, error))
        result, also = (
            (RAISED, None) if not isinstance(message, Return) else (reversal.failed(message, self.ledger), RAISED)
        )
        self._settle(Settled(self.lane_id, record, result, also, waited=waiting is not None))

    def take_due(self, waiting: Waiting) -> None:
        """Decide a waiting record whose time has come; it may go on waiting."""
        if not isinstance(waiting.message, Unreadable) and not self._still_waits(waiting):
            return
        settled = self._retry(waiting)
        if settled is None and self.ledger.now >= waiting.deadline and not isinstance(waiting.message, Return):
            message = f"waited since {waiting.parked_at.isoformat()} for: {waiting.waits_for}"
            unreadable = Unreadable(DeadLetterReason.NOT_BOOKABLE, message)
            settled = Settled(waiting.lane_id, waiting.record, unreadable, waited=True)
        if settled is not None:
            self._forget(waiting)
            self._settle(settled)

    def _settle(self, settled: Settled) -> None:
        """Note an end, then work off what it sets free: depth first, with a list instead of recursion."""
        todo = deque(self._note(settled))
        while todo:
            step = todo.popleft()
            steps = self._release(step) if isinstance(step, Waiting) else self._retry_feeds(step)
            todo.extendleft(reversed(steps))

    def _note(self, settled: Settled) -> list[Waiting | CustomerId]:
        """Apply and write down one end; returns what it sets free, in order."""
        result = settled.result
        if isinstance(result, Completed):
            outcome = encode_completed(result)
            reversal.apply(self.ledger, result)
            reversal.claim(self.ledger, result, settled.record.outcome_id, outcome)
            settled.outcome = outcome
            self.settled.append(settled)
            customer = (result.request.org_id, result.redemption.customer_id)
            return [customer] if customer in self.ledger.feeds else []
        if isinstance(result, Refused):
            reversal.apply(self.ledger, result)
            settled.outcome = encode_refused(result)
            self.settled.append(settled)
            return []
        self.settled.append(settled)
        if isinstance(result, Repeated | Unreadable):
            return []
        booking.apply(self.ledger, result)
        if isinstance(result, Issued):
            return [(result.lot.org_id, result.lot.customer_id)]
        if isinstance(result, Redeemed):
            redemption = result.redemption
            released = list(self.ledger.returns_by_redemption.get((redemption.org_id, redemption.redemption_id), ()))
            if redemption.order_id is not None:
                released += self.ledger.returns_by_order.get((redemption.org_id, redemption.order_id), ())
            released.sort(key=lambda waiting: waiting.age)
            return [*released, (redemption.org_id, redemption.customer_id)]
        return []

    def _release(self, waiting: Waiting) -> list[Waiting | CustomerId]:
        """Decide a return whose redemption was just booked."""
        settled = self._retry(waiting) if self._still_waits(waiting) else None
        if settled is None:
            return []
        self._forget(waiting)
        return self._note(settled)

    def _retry_feeds(self, customer: CustomerId) -> list[Waiting | CustomerId]:
        """Book the oldest of a customer's waiting feed records that can be booked now; then the same again."""
        for waiting in list(self.ledger.feeds.get(customer, ())):
            settled = self._retry(waiting)
            if settled is not None:
                self._forget(waiting)
                return [*self._note(settled), customer]
        return []

    def _retry(self, waiting: Waiting) -> Settled | None:
        """What a waiting record comes to now; None: it goes on waiting."""
        waited = waiting.record.place not in self.parked
        message = waiting.message
        if isinstance(message, Unreadable):  # a stricter build reads it now, or the row was changed by hand
            return Settled(waiting.lane_id, waiting.record, message, waited=waited)
        if isinstance(message, Return):
            decision = self._decide(message, waiting.record, waiting)
            return None if isinstance(decision, Parked) else Settled(waiting.lane_id, waiting.record, *decision, waited)
        result = self._book(message, waiting.record)
        if isinstance(result, Waits):
            return None
        return Settled(waiting.lane_id, waiting.record, *_final(result), waited)

    def _decide(
        self, request: Return, record: Record, waiting: Waiting | None
    ) -> Parked | tuple[Completed | Refused | Repeated, Unreadable | None]:
        """The decision, with the dead letter that goes with an 804."""
        deadline = waiting.deadline if waiting is not None else None
        for attempt in (1, 2):
            try:
                decision = reversal.decide(request, record.outcome_id, self.ledger, self.new_id, deadline)
                return decision if isinstance(decision, Parked) else (decision, None)
            except Exception as error:
                if attempt == 2:
                    self.faults.append((record, error))
        return reversal.failed(request, self.ledger), RAISED

    def _book(self, feed: Feed, record: Record) -> Booking | Unreadable:
        for attempt in (1, 2):
            try:
                return booking.book(feed, self.ledger, self.new_id)
            except Exception as error:
                if attempt == 2:
                    self.faults.append((record, error))
        return RAISED

    def _park(self, record: Record, message: Return | Feed, deadline: datetime, waits_for: str) -> None:
        waiting = Waiting(self.lane_id, record, message, deadline, self.ledger.now, waits_for)
        self.parked[record.place] = waiting
        self.ledger.add_waiting(waiting)

    def _still_waits(self, waiting: Waiting) -> bool:
        return waiting in self.ledger.waiting_beside(waiting)

    def _forget(self, waiting: Waiting) -> None:
        self.parked.pop(waiting.record.place, None)
        listed = self.ledger.waiting_beside(waiting)
        if waiting in listed:
            listed.remove(waiting)


RAISED = Unreadable(DeadLetterReason.DECISION_RAISED, "deciding this record raised a fault of the service, twice")


def _final(result: Booking | Unreadable) -> tuple[Result, Unreadable | None]:
    """A booking that never comes is a dead letter."""
    if isinstance(result, NotBookable):
        return Unreadable(DeadLetterReason.NOT_BOOKABLE, result.message), None
    if isinstance(result, Waits):
        return Unreadable(DeadLetterReason.NOT_BOOKABLE, f"it lacks: {result.waits_for}"), None
    return result, None

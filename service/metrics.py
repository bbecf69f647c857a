"""What one process counts for Prometheus, and the log line that sums up a batch."""

from __future__ import annotations

import time
from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from service.batch import Settled
from service.commit import end
from service.errors import Code
from service.logs import log, mask
from service.outcomes import Refused
from service.pipeline import Taken
from service.records import DeadLetterReason, Unreadable

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The registry of one process; every name begins with `points_reversal_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def named(name: str) -> str:
            return f"points_reversal_{name}"

        own = self.registry
        self.outcomes = Counter(
            named("outcomes"), "outcomes decided; code 0: completed", ["code", "name"], registry=own
        )
        self.bookings = Counter(named("bookings"), "feed records booked or unchanged", ["end"], registry=own)
        self.dead_letters = Counter(named("dead_letters"), "records to the dead letters", ["reason"], registry=own)
        self.batch_records = Histogram(named("batch_records"), "records of a batch", buckets=SIZES, registry=own)
        self.stages = Histogram(
            named("stage_seconds"), "seconds of a batch by stage", ["stage"], buckets=SECONDS, registry=own
        )
        self.age = Gauge(
            named("newest_record_age_seconds"),
            "age of the newest decided record when decided",
            ["lane"],
            registry=own,
        )
        self.outbox_rows = Gauge(named("outbox_rows"), "outcomes that may not be on Kafka yet", registry=own)
        self.outbox_age = Gauge(named("outbox_oldest_seconds"), "age of the oldest of them", registry=own)
        self.assigned = Gauge(named("assigned_partitions"), "partitions of this process", registry=own)
        self.rebalances = Counter(named("rebalances"), "times that the group took partitions back", registry=own)

    def observe(self, lane: str, taken: Taken) -> None:
        """Count a committed batch, and sum it up in one line of the log."""
        codes: Tally[str] = Tally()
        for kind, count in Tally(map(_kind, taken.settled)).items():
            codes[self._count(*kind, count)] += count
        if taken.records:
            self.batch_records.observe(taken.records)
        for stage, seconds in taken.seconds.items():
            self.stages.labels(stage).observe(seconds)
        lag_seconds = None
        if taken.newest_ms is not None:
            lag_seconds = round(max(0.0, time.time() - taken.newest_ms / 1000), 3)
            self.age.labels(lane).set(lag_seconds)
        for record, error in taken.faults:
            log.error("record.raised", lane=lane, offset=record.offset, error=mask(repr(error)), exc_info=error)
        if taken.records or taken.settled:
            log.info(
                "batch.decided",
                lane=lane,
                records=taken.records,
                outcomes=dict(codes),
                seconds={stage: round(seconds, 4) for stage, seconds in taken.seconds.items()},
                lag_seconds=lag_seconds,
            )

    def _count(self, ended: str, code: Code | None, reason: DeadLetterReason | None, count: int) -> str:
        """Count ends of one kind; returns the word that the log uses for it: a code, or how it ended otherwise."""
        if reason is not None:
            self.dead_letters.labels(str(reason)).inc(count)
        if ended == "completed":
            self.outcomes.labels("0", "completed").inc(count)
            return ended
        if code is not None:
            self.outcomes.labels(str(code.number), code.label).inc(count)
            return f"{code.number} {code.label}"
        if reason is not None:
            return f"dead {reason}"
        self.bookings.labels(ended).inc(count)
        return ended


def _kind(settled: Settled) -> tuple[str, Code | None, DeadLetterReason | None]:
    """How a record ended: the end that its lane counts, the code of a refusal, the reason of a dead letter."""
    result = settled.result
    code = result.errors[0].code if isinstance(result, Refused) else None
    unreadable = result if isinstance(result, Unreadable) else settled.also
    return end(settled), code, unreadable.reason if unreadable is not None else None

"""The clock jumps a day ahead and back, and two processes disagree by a day: each decision holds at its own moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from tests.faults.conftest import Doses, Trials
from tests.faults.engine import Trial
from tests.process import site
from tests.stack import Stack
from tests.traffic import Traffic

pytestmark = pytest.mark.timeout(7200)

BASE = datetime(2026, 11, 20, 1, 30, 2, 123456, tzinfo=UTC)
HOURS = (0, 24, -24)
SEGMENTS, RECORDS = 3, 150


async def test_what_was_decided_at_other_moments_counts_as_it_should(
    stack: Stack, template_database: str, trial: Trials, dose: Doses
) -> None:
    figures = trial("the clock", dose("clock, runs")).figures
    for number in range(figures.dose):
        with site(stack, template_database, settings={"batch_records": "20"}) as place:
            random = Random(f"clock {number}")
            run = Trial(place, figures, random, Traffic(random, customers=8, redemptions=20))
            run.lines = [timely(run.random, line) for line in run.traffic.lines()]
            async with run:
                for _ in range(SEGMENTS):
                    clocks = [BASE + timedelta(hours=run.random.choice(HOURS)) for _ in range(2)]
                    services = [place.start(test_clock=moment.isoformat()) for moment in clocks]
                    sent = run.traffic.next(RECORDS)  # the feeds of this stream have no place in the order of another
                    await place.produce("order.returned", sent["order.returned"])
                    await place.drained()
                    for service in services:
                        await service.stop()
                await run.judge()


def timely(random: Random, line: dict[str, Any]) -> dict[str, Any]:
    """A load line whose rules and expiries are within a day or so of now."""
    if line["kind"] == "program":
        rules: list[dict[str, Any]] = [
            {"maxReversals": {"count": 12, "days": 1}},
            {"expiredLots": {"policy": "extend", "graceDays": 1}},
            {"reversalWindowDays": 2},
        ]
        return line | random.choice(rules)
    if line["kind"] == "lot":
        moment = BASE + timedelta(hours=random.choice([-30, -12, 0, 12, 30]))
        return line | {"expiresAt": moment.isoformat()}
    if line["kind"] == "redemption":
        return line | {"redeemedAt": (BASE - timedelta(hours=random.choice([24, 48, 60]))).isoformat()}
    return line

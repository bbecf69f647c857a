"""A stream as bad producers make it: repeated, on two partitions, shuffled, months late, and all of it once more."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest
from aiokafka import TopicPartition

from tests.faults.conftest import Doses, Trials
from tests.process import Site
from tests.stack import Sending
from tests.traffic import send

pytestmark = pytest.mark.timeout(7200)

WINDOW = 1_000
LATE_MS = 90 * 24 * 3600 * 1000
TWICE, LATE = 0.1, 0.2  # so many of the returns are on both partitions; are late


async def test_each_record_has_its_outcome_and_once_more_changes_nothing(trial: Trials, dose: Doses) -> None:
    count = dose("stream, records")
    run = trial("the stream", count)
    place = run.site
    stream = {kind: worsened(run.random, records) for kind, records in run.traffic.next(count).items()}
    async with run:
        service = place.start()
        await send(place, stream)
        await place.drained(120)
        await service.stop()
        taken, completed = await sums(place)
        await set_back(place)
        service = place.start()
        await service.ready()
        marker = run.traffic.next(50)
        await send(place, marker)
        await place.drained()
        before = await sums(place)
        assert before[0] == taken + 50, "records of before were taken again"
        await send(place, stream)
        await place.drained(120)
        assert await sums(place) == (taken + 50 + sum(map(len, stream.values())), before[1]), "completed once more"
        assert completed > 0
        findings = await run.finish(service)
    assert findings.repeats == 0


def worsened(random: Random, records: list[Sending]) -> list[Sending]:
    """The records shuffled in a window, some on both partitions, some with an old timestamp."""
    late = int(time.time() * 1000) - LATE_MS
    found: list[Sending] = []
    for record in records:
        if random.random() < LATE:
            record = replace(record, timestamp=late + random.randint(0, 1000))
        both = random.random() < TWICE
        found += [replace(record, partition=partition) for partition in (0, 1)] if both else [record]
    for start in range(0, len(found), WINDOW):
        window = found[start : start + WINDOW]
        random.shuffle(window)
        found[start : start + WINDOW] = window
    return found


async def sums(place: Site) -> tuple[int, int]:
    """Records taken and reversals completed so far."""
    taken = await place.value("select sum(taken)::int from lane")
    return int(taken), int(await place.value("select count(*)::int from reversal"))


async def set_back(place: Site) -> None:
    """Sets the group's offsets on Kafka to 0."""
    partitions = [TopicPartition(topic, one) for topic in place.topics.inputs() for one in range(place.partitions)]
    async with place.consumer(place.group) as consumer:
        consumer.assign(partitions)
        await consumer.commit(dict.fromkeys(partitions, 0))

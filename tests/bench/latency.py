"""Latency at a steady rate: from just before a return is appended until its outcome is in a reader's hands."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service.settings import Settings
from tests.bench.arena import PARTITIONS

RETURN_ID = re.compile(rb'"returnId":\s*"([^"]+)"')
TICK_SECONDS = 0.01


@dataclass(frozen=True)
class Latency:
    """In milliseconds."""

    p50: float
    p99: float
    outcomes: int


async def latency(settings: Settings, records: list[tuple[bytes, bytes]], rate: int, warm_up: int) -> Latency:
    """Append the records at so many a second; the first `warm_up` are not counted."""
    sent: dict[bytes, float] = {}
    took: list[float] = []
    topics = (settings.topics.reversal_completed, settings.topics.reversal_failed)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, fetch_max_wait_ms=50)
    consumer.assign([TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)])
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    await consumer.start()
    await consumer.seek_to_end()
    await producer.start()

    async def read() -> None:
        seen = 0
        while seen < len(records):
            for fetched in (await consumer.getmany(timeout_ms=100)).values():
                now = time.perf_counter()
                for record in fetched:
                    seen += 1
                    found = RETURN_ID.search(record.value)
                    assert found is not None
                    if found[1] in sent:
                        took.append(now - sent.pop(found[1]))

    reader = asyncio.create_task(read())
    try:
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        each = max(1, round(rate * TICK_SECONDS))
        for at in range(0, len(records), each):
            delay = started + at / rate - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            for number, (key, value) in enumerate(records[at : at + each], at):
                if number >= warm_up:
                    sent[json.loads(value)["returnId"].encode()] = time.perf_counter()
                await producer.send(settings.topics.order_returned, value, key=key)
        await asyncio.wait_for(reader, 60)
    finally:
        reader.cancel()
        await producer.stop()
        await consumer.stop()
    cuts = statistics.quantiles(took, n=100)
    return Latency(p50=cuts[49] * 1000, p99=cuts[98] * 1000, outcomes=len(took))

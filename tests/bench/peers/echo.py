"""No database: what comes in goes out, with the service's own Kafka settings and an outcome's worth of bytes.

`python -m tests.bench.peers.echo` with the settings of the service in the environment.
"""

from __future__ import annotations

import asyncio
import signal

import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.headers import Headers
from service.kafka import client_options, input_bytes
from service.lane import Publisher
from service.settings import Settings
from tests.bench.arena import PARTITIONS

FILLER = "x" * 600  # an outcome has about 900 bytes more than what is echoed
HEADERS: Headers = [("content-type", b"application/json"), ("ce_specversion", b"1.0"), ("ce_source", b"/echo")] * 3


async def echo(settings: Settings, consumer: AIOKafkaConsumer, publisher: Publisher, partition: TopicPartition) -> None:
    """One partition, batch after batch."""
    while True:
        fetched = await consumer.getmany(partition, timeout_ms=100, max_records=settings.batch_records)
        records = fetched.get(partition, [])
        if records:
            bodies = [orjson.dumps({**orjson.loads(record.value), "filler": FILLER}) for record in records]
            topic = settings.topics.reversal_completed
            await publisher.publish(
                (topic, record.key, body, HEADERS) for record, body in zip(records, bodies, strict=True)
            )


async def main() -> None:
    """Until SIGTERM."""
    settings = Settings()
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka),
        fetch_max_wait_ms=settings.kafka.fetch_max_wait_ms,
        max_partition_fetch_bytes=input_bytes(settings),
        auto_offset_reset="earliest",
    )
    partitions = [TopicPartition(settings.topics.order_returned, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    await consumer.start()
    publisher = Publisher(settings)
    tasks = [asyncio.create_task(echo(settings, consumer, publisher, partition)) for partition in partitions]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    for task in tasks:
        task.cancel()
    await publisher.stop()
    await consumer.stop()


if __name__ == "__main__":
    uvloop.run(main())

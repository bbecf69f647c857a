"""A record that Kafka hands over broken: what can be known of it."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException

from service.kafka import client_options, input_bytes
from service.settings import Settings

BROKEN = (CorruptRecordException, UnicodeDecodeError)  # a checksum that does not fit; a header's name that is no UTF-8
READ_SECONDS = 5.0  # reading one record may take so long


async def read_unchecked(settings: Settings, partition: TopicPartition, offset: int) -> ConsumerRecord | None:
    """The record at an offset, or the next that is there, whether or not its checksum fits; None where not even its
    headers can be read. Raises whatever else keeps it from being read, TimeoutError among it."""
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka),
        group_id=None,
        check_crcs=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        max_partition_fetch_bytes=input_bytes(settings),
    )
    consumer.assign([partition])
    await consumer.start()
    try:
        consumer.seek(partition, offset)
        return await asyncio.wait_for(consumer.getone(partition), READ_SECONDS)
    except UnicodeDecodeError:
        return None
    finally:
        await consumer.stop()

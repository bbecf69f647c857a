"""How every client of Kafka is made from the settings, and what the commands ask of the brokers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from service.failures import Unreachable
from service.settings import Kafka, Settings

CLIENT_ID = "points-reversal"
# Of a record beside its value: its key, its headers, the `dlq.*` headers, the frame of its batch.
FRAME_BYTES = 256 * 1024
# More than the largest outcome: 1,000 extended lots whose origins' ids have 255 characters of 4 bytes each, each with
# its warning, come to 3.7 MB.
OUTCOME_BYTES = 6 * 1024 * 1024


def client_options(kafka: Kafka) -> dict[str, Any]:
    """What consumer, producer and admin client are given alike: where the brokers are and how they let us in."""
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "client_id": CLIENT_ID,
        "request_timeout_ms": kafka.request_timeout_ms,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = create_ssl_context(cafile=kafka.ssl_ca_file)
    if kafka.security_protocol.startswith("SASL"):
        password = kafka.sasl_password
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = password.get_secret_value() if password is not None else None
    return options


def input_bytes(settings: Settings) -> int:
    """The largest message that an input topic takes: a little more than the service reads, so that the service and
    not the broker has the word on what is too large."""
    return settings.max_record_bytes + FRAME_BYTES


def output_bytes(settings: Settings) -> int:
    """The largest message that the service sends, outcome or dead letter."""
    return max(OUTCOME_BYTES, input_bytes(settings) + FRAME_BYTES)


@asynccontextmanager
async def reader(settings: Settings, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer outside every group: it looks and leaves no trace. Raises Unreachable."""
    consumer = AIOKafkaConsumer(
        **client_options(settings.kafka),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=output_bytes(settings),
        **options,
    )
    with reached(settings):
        try:
            await consumer.start()
            await asyncio.sleep(0)  # stopping a consumer whose own task has not run once raises CancelledError
            yield consumer
        finally:
            await consumer.stop()


@asynccontextmanager
async def administrator(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for what concerns topics rather than records."""
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


@contextmanager
def reached(settings: Settings) -> Iterator[None]:
    """Turns the errors of clients whose brokers do not answer into Unreachable, which has words for people."""
    try:
        yield
    except (KafkaError, OSError) as error:
        words = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Unreachable(
            f"Kafka at {settings.kafka.bootstrap_servers} does not answer ({words}); is it running, and is "
            f"REVERSAL_KAFKA__BOOTSTRAP_SERVERS right?"
        ) from error


async def partitions_of(settings: Settings, topics: Iterable[str]) -> dict[str, list[TopicPartition]]:
    """The partitions of those topics that exist, in order. (A consumer only knows those of its own topics.)"""
    with reached(settings):
        async with administrator(settings) as admin:
            described = {topic["topic"]: topic for topic in await admin.describe_topics()}
    return {
        topic: sorted(TopicPartition(topic, one["partition"]) for one in described[topic]["partitions"])
        for topic in topics
        if topic in described
    }


async def ends_of(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """Where each partition's log starts and ends (the offset that its next record will have)."""
    if not partitions:
        return {}
    starts = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    return {partition: (starts[partition], ends[partition]) for partition in partitions}

"""Creates the topics that the service reads and writes, where they are missing."""

from __future__ import annotations

from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from service.failures import Wrong
from service.kafka import administrator, input_bytes, output_bytes, reached
from service.settings import Settings

ALREADY_EXISTS = 36  # Kafka's error code: another process was quicker


class TopicsMissing(Exception):
    """Kafka lacks topics that the service needs; the message names them and the way out."""


class Topic(NamedTuple):
    """A topic as the service needs it."""

    name: str
    carries: str
    max_message_bytes: int


def needed(settings: Settings) -> list[Topic]:
    """The inputs, the outputs and the inputs' dead letters."""
    topics = settings.topics
    inputs = list(topics.inputs())
    outputs = (topics.reversal_completed, topics.reversal_failed)
    return [
        *(Topic(name, "in", input_bytes(settings)) for name in inputs),
        *(Topic(name, "out", output_bytes(settings)) for name in outputs),
        *(Topic(topics.dead_letters(name), "dead letters", output_bytes(settings)) for name in inputs),
    ]


async def check(settings: Settings) -> None:
    """Raises TopicsMissing where a topic is missing, KafkaError where the brokers do not answer."""
    async with administrator(settings) as admin:
        known = set(await admin.list_topics())
    missing = [topic.name for topic in needed(settings) if topic.name not in known]
    if missing:
        raise TopicsMissing(f"there is no topic {', '.join(missing)}; run `points-reversal topics`")


async def create(settings: Settings) -> tuple[list[Topic], list[Topic]]:
    """Create what is missing; returns what was made and what was there. Existing topics are left as they are."""
    with reached(settings):
        async with administrator(settings) as admin:
            known = set(await admin.list_topics())
            missing = [topic for topic in needed(settings) if topic.name not in known]
            made = await _create(admin, settings, missing) if missing else []
    return made, [topic for topic in needed(settings) if topic not in made]


async def _create(admin: AIOKafkaAdminClient, settings: Settings, missing: list[Topic]) -> list[Topic]:
    response = await admin.create_topics([_request(topic, settings) for topic in missing])
    outcome = {name: (code, message) for name, code, message, *_ in response.topic_errors}
    for name, (code, message) in outcome.items():
        if code not in (0, ALREADY_EXISTS):
            raise Wrong(f"Kafka does not create the topic {name}: {message or for_code(code).description}")
    return [topic for topic in missing if outcome[topic.name][0] == 0]


def _request(topic: Topic, settings: Settings) -> NewTopic:
    replicas = settings.topics.replication_factor
    return NewTopic(
        topic.name,
        num_partitions=settings.topics.partitions,
        replication_factor=replicas,
        # NewTopic refuses the broker's default (-1) unless an assignment, if an empty one, is given.
        replica_assignments={} if replicas == -1 else None,
        topic_configs={"max.message.bytes": str(topic.max_message_bytes)},
    )

"""Creates the topics that the service reads and writes, where they are missing, and tells of those that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import for_code

from service.failures import Wrong
from service.kafka import FRAME_BYTES, Barred, administrator, input_bytes, known_as, output_bytes, reached
from service.logs import log
from service.settings import Settings

# Kafka's error codes.
ALREADY_EXISTS = 36  # another process was quicker
TOPIC_BARRED, CLUSTER_BARRED = 29, 31  # an ACL is missing


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
    """Warns of topics whose max.message.bytes can stop a lane. Raises TopicsMissing where a topic is missing, Barred where
    we may not see it, KafkaError where the brokers do not answer."""
    async with administrator(settings) as admin:
        known = set(await admin.list_topics())
        missing = [topic.name for topic in needed(settings) if topic.name not in known]
        described = await admin.describe_topics(missing) if missing else []
        hidden = [topic["topic"] for topic in described if topic["error_code"] == TOPIC_BARRED]
        if hidden:  # Kafka does not tell whether they are there
            raise Barred(
                f"Kafka does not let {known_as(settings.kafka)} see {', '.join(hidden)}: ACLs are missing, "
                f"Read on inputs, Write on outputs and dead letters"
            )
        if missing:
            raise TopicsMissing(f"there is no topic {', '.join(missing)}; run `points-reversal topics`")
        taken = await _max_message_bytes(admin, [topic.name for topic in needed(settings)])
    for topic, reason in unfit(settings, taken):
        log.warning("topic.unfit", topic=topic, max_message_bytes=taken[topic], reason=reason)


def unfit(settings: Settings, taken: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The topics that take too small messages, or as inputs too large ones, each with what can come of it and the way
    out. `taken`: max.message.bytes by topic; one that is not there is passed over."""
    most = output_bytes(settings)
    wanted = {topic.name: most for topic in needed(settings) if topic.carries == "out"}
    for name in settings.topics.inputs():
        largest = taken.get(name, 0) + FRAME_BYTES  # the whole record comes back, with headers of ours
        wanted[settings.topics.dead_letters(name)] = min(largest, most)
        if largest > most:
            reason = (
                f"{name} takes messages of {taken[name]} bytes, and such a one cannot be sent to its dead letters: its "
                f"lane would stop there. Lower its max.message.bytes to {input_bytes(settings)}"
            )
            yield name, reason
    for name, bytes_wanted in wanted.items():
        if taken.get(name, most) < bytes_wanted:
            reason = (
                f"{name} takes messages of {taken[name]} bytes, the service may send {bytes_wanted}: the lane would "
                f"stop there. Raise its max.message.bytes to {most}, as `points-reversal topics` makes it"
            )
            yield name, reason


async def _max_message_bytes(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """By topic; without those whose settings this client may not see."""
    key = "max.message.bytes"
    answers = await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name, {key: None}) for name in names]
    )
    return {
        name: int(entry[1])
        for answer in answers
        for code, _, _, name, entries in answer.resources
        for entry in entries
        if code == 0 and entry[0] == key
    }


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
        if code in (TOPIC_BARRED, CLUSTER_BARRED):
            raise Wrong(
                f"Kafka does not let {known_as(settings.kafka)} create the topic {name}: the ACL Create is missing, on the "
                f"topic or on the cluster (if it is there already: the ACL Describe)"
            )
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

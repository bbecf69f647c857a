"""How every client of Kafka is made from the settings, and what the commands ask of the brokers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.helpers import create_ssl_context
from aiokafka.protocol.metadata import MetadataRequest

from service.failures import Misused, Unreachable
from service.logs import words
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
        options["ssl_context"] = _ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        password = kafka.sasl_password
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = password.get_secret_value() if password is not None else None
    return options


def _ssl_context(kafka: Kafka) -> ssl.SSLContext:
    """What the brokers' certificates are checked by, and what we show them. Raises Misused."""
    # Without any password the library would ask for one on the terminal.
    password = kafka.ssl_key_password.get_secret_value() if kafka.ssl_key_password is not None else ""
    given = {
        "REVERSAL_KAFKA__SSL_CA_FILE": kafka.ssl_ca_file,
        "REVERSAL_KAFKA__SSL_CERTIFICATE_FILE": kafka.ssl_certificate_file,
        "REVERSAL_KAFKA__SSL_KEY_FILE": kafka.ssl_key_file,
    }
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=kafka.ssl_ca_file,
            certfile=kafka.ssl_certificate_file,
            keyfile=kafka.ssl_key_file or kafka.ssl_certificate_file,
            password=password,
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = ", ".join(f"{name} {path}" for name, path in given.items() if path is not None)
        said = getattr(error, "strerror", None) or error
        raise Misused(f"TLS to Kafka cannot be prepared ({said}); look at {named or 'the system'}") from error
    return context


class Barred(PermissionError):
    """The brokers are there and do not let us in, or not do this. The message says who, what, and the way out."""


async def barred(kafka: Kafka) -> Barred | None:
    """Why a client that could not be started was not let in; None where the brokers just do not answer.

    aiokafka's own error of a failed start names the addresses only, so each of them is asked once more.
    """
    options = client_options(kafka)
    servers = options.pop("bootstrap_servers")
    for host, port, _ in collect_hosts(servers):
        try:
            connection = await create_conn(host, port, **options)
            try:
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
        except (KafkaError, OSError, TimeoutError) as error:
            why = _barrier(kafka, error)
            if why is not None:
                return Barred(f"Kafka at {host}:{port} {why}")
    return None


def _barrier(kafka: Kafka, error: Exception) -> str | None:
    """What kept us out, after the brokers' name, or None."""
    match error:
        case SaslAuthenticationFailed() | AuthenticationFailedError():
            return (
                f"refuses the user {kafka.sasl_username} (wrong name or password, or no {kafka.sasl_mechanism} credentials); "
                f"look at REVERSAL_KAFKA__SASL_USERNAME and REVERSAL_KAFKA__SASL_PASSWORD"
            )
        case UnsupportedSaslMechanismError():
            return f"does not offer {kafka.sasl_mechanism}; look at REVERSAL_KAFKA__SASL_MECHANISM"
        case ssl.SSLCertVerificationError(verify_code=62 | 64):  # of another name, of another address
            return f"shows a certificate of another name ({error.verify_message}); name it as the certificate does"
        case ssl.SSLCertVerificationError():
            trusted = kafka.ssl_ca_file or "the system's CAs"
            return (
                f"shows a certificate that {trusted} does not vouch for ({error.verify_message}); "
                f"REVERSAL_KAFKA__SSL_CA_FILE names the PEM of the CA that signed it"
            )
        case ssl.SSLError() | KafkaConnectionError() | ConnectionResetError():
            if isinstance(error, KafkaConnectionError) and "closed" not in str(error):
                return None
            return (
                f"answers and breaks off; is {kafka.security_protocol} what that listener speaks "
                f"(REVERSAL_KAFKA__SECURITY_PROTOCOL), and does it ask for a certificate (REVERSAL_KAFKA__SSL_CERTIFICATE_FILE)?"
            )
    return None


def explained(kafka: Kafka, error: BaseException) -> str:
    """An error in one line; of a missing ACL, whose it is and what it must allow."""
    who = known_as(kafka)
    match error:
        case Barred():
            return str(error)
        case TopicAuthorizationFailedError():
            return f"Kafka does not allow {who} to use {_named(error)}: an ACL is missing, Read on inputs, Write on outputs"
        case GroupAuthorizationFailedError():
            return (
                f"Kafka does not allow {who} to join the group {kafka.group_id}: the ACL Read on that group is missing"
            )
        case ClusterAuthorizationFailedError():
            return (
                f"Kafka does not allow {who} to produce: an ACL is missing, Write on every output and dead-letter topic"
            )
    return words(error)


def known_as(kafka: Kafka) -> str:
    """Whom the brokers take us for."""
    return f"the user {kafka.sasl_username}" if kafka.sasl_username else "this client"


def _named(error: BaseException) -> str:
    """The topics that an error of authorization names."""
    named = error.args[0] if error.args else None
    if isinstance(named, str):
        return f"the topic {named}"
    return f"the topics {', '.join(sorted(named))}" if isinstance(named, set | frozenset | list | tuple) else "a topic"


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
            await started(settings.kafka, consumer)
            await asyncio.sleep(0)  # stopping a consumer whose own task has not run once raises CancelledError
            yield consumer
        finally:
            await consumer.stop()


@asynccontextmanager
async def administrator(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for what concerns topics rather than records."""
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    try:
        await started(settings.kafka, admin)
        yield admin
    finally:
        await admin.close()


async def started(kafka: Kafka, client: AIOKafkaConsumer | AIOKafkaAdminClient) -> None:
    """Start a client. Raises Barred where the brokers are there and do not let it in."""
    try:
        await client.start()
    except KafkaConnectionError as error:
        raise (await barred(kafka)) or error from None


@contextmanager
def reached(settings: Settings) -> Iterator[None]:
    """Turns the errors of clients whose brokers do not answer into Unreachable, which has words for people."""
    try:
        yield
    except (Barred, TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
        raise Unreachable(explained(settings.kafka, error)) from error
    except (KafkaError, OSError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Unreachable(
            f"Kafka at {settings.kafka.bootstrap_servers} does not answer ({said}); is it running, and is "
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

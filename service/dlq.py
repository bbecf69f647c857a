"""Dead letters: looking into them, and putting the original records back on their topics (contract, "Dead letters")."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service.envelope import origin
from service.failures import Misused, Unreachable, Wrong
from service.kafka import client_options, ends_of, output_bytes, partitions_of, reached, reader
from service.published import DEAD_LETTER_HEADERS
from service.records import DeadLetterReason, Record
from service.settings import Settings

READ_RECORDS = 200  # held at once; with the largest records about 200 MB, usually a few hundred KB
SILENCE_SECONDS = 15.0  # the log has more, but no broker says so for so long
REPLAY_OF = "replay-of"
VALUELESS = {DeadLetterReason.TOO_LARGE, DeadLetterReason.CORRUPT}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of a dead-letter topic, and the record that it was before; `original` None: its headers do not tell."""

    record: Record
    reason: str | None
    message: str | None
    group: str | None
    original: Record | None

    @property
    def place(self) -> str:
        """For people: `order.returned.dlq/0@17`."""
        return f"{self.record.topic}/{self.record.partition}@{self.record.offset}"

    def document(self, *, whole: bool = False) -> dict[str, Any]:
        """As `--json` prints it; `whole`: with headers and value (as text, else in base64)."""
        record, original = self.record, self.original
        document: dict[str, Any] = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": _time(record.timestamp_ms),
            "reason": self.reason,
            "message": self.message,
            "group": self.group,
            "original": None if original is None else {
                "topic": original.topic,
                "partition": original.partition,
                "offset": original.offset,
                "timestamp": _time(original.timestamp_ms),
            },
            "key": _text(record.key),
            "bytes": None if record.value is None else len(record.value),
        }  # fmt: skip
        if whole:
            document["headers"] = [{"name": name, "value": _text(value)} for name, value in record.headers]
            document["value"] = _text(record.value)
        return document


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters: of a topic (its own name or its input's), a partition, an offset, a reason; None: any."""

    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    reason: str | None = None

    def topics(self, settings: Settings) -> list[str]:
        """The dead-letter topics meant. Raises Misused where the name is none."""
        names = {name: settings.topics.dead_letters(name) for name in settings.topics.inputs()}
        if self.topic is None:
            return list(names.values())
        if self.topic not in names and self.topic not in names.values():
            raise Misused(f"--topic {self.topic} has no dead letters; input topics are {', '.join(names)}")
        return [names.get(self.topic, self.topic)]


async def dead_letters(settings: Settings, selection: Selection, latest: int | None) -> AsyncGenerator[DeadLetter]:
    """The dead letters that lie there now, partition by partition; of each only the `latest` (None: all).

    To be closed by who does not read it to its end: it holds a connection.
    """
    found = await partitions_of(settings, selection.topics(settings))
    partitions = [one for some in found.values() for one in some if selection.partition in (None, one.partition)]
    async with reader(settings) as consumer:
        ends = await ends_of(consumer, partitions)
        for partition, (start, end) in ends.items():
            first, last = _range(start, end, selection.offset, latest)
            async for record in _records(consumer, partition, first, last):
                letter = read(record)
                if selection.reason in (None, letter.reason):
                    yield letter


def _range(start: int, end: int, offset: int | None, latest: int | None) -> tuple[int, int]:
    if offset is not None:
        return (offset, offset + 1) if start <= offset < end else (end, end)
    return (start if latest is None else max(start, end - latest)), end


async def _records(
    consumer: AIOKafkaConsumer, partition: TopicPartition, first: int, last: int
) -> AsyncIterator[Record]:
    """The records from `first` up to before `last`."""
    if first >= last:
        return
    consumer.assign([partition])
    consumer.seek(partition, first)
    position = -1
    silent_since = asyncio.get_running_loop().time()
    while position < last:
        fetched = await consumer.getmany(partition, timeout_ms=500, max_records=READ_RECORDS)
        for one in fetched.get(partition, ()):
            # The reset that an assignment begins can come after the seek: then it reads from the start.
            if first <= one.offset < last:
                yield Record(
                    one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, tuple(one.headers)
                )
        moved = await consumer.position(partition)
        now = asyncio.get_running_loop().time()
        if moved > position:
            position, silent_since = moved, now
        elif now - silent_since > SILENCE_SECONDS:
            raise Unreachable(
                f"Kafka gives no more of {partition.topic}/{partition.partition} after offset {position}, though the "
                f"log goes to {last}; is its leader up?"
            )


async def dead_letter(settings: Settings, topic: str, partition: int, offset: int) -> DeadLetter:
    """One dead letter. Raises Wrong where there is none."""
    async with aclosing(dead_letters(settings, Selection(topic, partition, offset), None)) as letters:
        async for letter in letters:
            return letter
    raise Wrong(f"there is no dead letter of {topic} at partition {partition}, offset {offset}")


def read(record: Record) -> DeadLetter:
    """What the `dlq.*` headers tell."""
    told = {name: _text(value) or "" for name, value in record.headers if name in DEAD_LETTER_HEADERS}
    original = None
    try:
        when = datetime.fromisoformat(told["dlq.timestamp"])
        original = Record(
            topic=told["dlq.topic"],
            partition=int(told["dlq.partition"]),
            offset=int(told["dlq.offset"]),
            timestamp_ms=(when - EPOCH) // timedelta(milliseconds=1),
            key=record.key,
            value=record.value,
            headers=tuple(header for header in record.headers if header[0] not in DEAD_LETTER_HEADERS),
        )
    except (KeyError, ValueError, TypeError):  # no offset in the timestamp is the TypeError
        pass  # not one of ours: shown as it is, not replayed
    return DeadLetter(record, told.get("dlq.reason"), told.get("dlq.message"), told.get("dlq.group"), original)


def replayed(letter: DeadLetter, inputs: Iterable[str]) -> Record | str:
    """The record to put back on its topic: bytes and headers as they were, and `replay-of`; or why it cannot be.

    A dead letter that was a replay already keeps its `replay-of`, so that its derived key stays the same.
    """
    original = letter.original
    if original is None:
        return "its headers do not tell where it came from"
    if original.topic not in inputs:
        return f"{original.topic} is no input topic of this service"
    if letter.reason in VALUELESS:
        return (
            f"it is {letter.reason}, so that its value was not kept; the original is at "
            f"{original.topic}/{original.partition}@{original.offset}, if it is still there"
        )
    headers = tuple(header for header in original.headers if header[0] != REPLAY_OF)
    return Record(
        original.topic, original.partition, original.offset, original.timestamp_ms, original.key, original.value,
        (*headers, (REPLAY_OF, origin(original).encode())),
    )  # fmt: skip


async def replay(
    settings: Settings,
    letters: AsyncIterator[DeadLetter],
    say: Callable[[DeadLetter, str | None], None] = lambda _letter, _why: None,
) -> tuple[int, int]:
    """Put dead letters back on their topics, each on its old partition where that still is; returns how many were, and
    how many cannot be. `say` is told of each once it is acknowledged, or why it cannot be."""
    producer = AIOKafkaProducer(
        **client_options(settings.kafka), acks="all", enable_idempotence=True, max_request_size=output_bytes(settings)
    )
    done = left = 0
    try:
        with reached(settings):
            await producer.start()
            under_way: list[tuple[DeadLetter, asyncio.Future[Any]]] = []
            async for letter in letters:
                record = replayed(letter, settings.topics.inputs())
                if isinstance(record, str):
                    left += 1
                    say(letter, record)
                    continue
                partitions = await producer.partitions_for(record.topic)
                under_way.append((letter, await producer.send(
                    record.topic, record.value, key=record.key, headers=list(record.headers),
                    partition=record.partition if record.partition in partitions else None,
                )))  # fmt: skip
                if len(under_way) >= READ_RECORDS:
                    done += await _acknowledged(under_way, say)
            done += await _acknowledged(under_way, say)
    except Unreachable as error:
        raise Unreachable(f"{error}\n{done} were replayed; to replay them again changes nothing") from error
    finally:
        await producer.stop()
    return done, left


async def _acknowledged(
    under_way: list[tuple[DeadLetter, asyncio.Future[Any]]], say: Callable[[DeadLetter, str | None], None]
) -> int:
    for letter, acknowledgement in under_way:
        await acknowledgement
        say(letter, None)
    count = len(under_way)
    under_way.clear()
    return count


def _text(data: bytes | None) -> str | None:
    """Bytes as text where they are, else in base64 with `base64:` before."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def _time(timestamp_ms: int) -> str:
    try:
        moment = EPOCH + timedelta(milliseconds=timestamp_ms)
    except OverflowError:
        return f"{timestamp_ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The input partitions' stored offsets: looking at them beside the logs on Kafka, and setting one by hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from service.failures import Misused, Wrong
from service.kafka import ends_of, partitions_of, reader
from service.published import exact_time
from service.settings import Settings
from service.store import Connection, sql


@dataclass(frozen=True, slots=True)
class Lane:
    """An input partition as Postgres and Kafka know it; None where one of them does not."""

    topic: str
    partition: int
    lane_id: int | None
    owner: str | None
    epoch: int | None
    next_offset: int | None
    high_offset: int | None
    start_offset: int | None
    end_offset: int | None
    taken: int
    outbox: int
    waiting: int
    updated_at: datetime | None

    @property
    def lag(self) -> int | None:
        """Records on Kafka that were not taken; None where that cannot be said: the partition is gone, or the stored
        offset lies outside its log."""
        if self.start_offset is None or self.end_offset is None:
            return None
        at = self.start_offset if self.next_offset is None else self.next_offset
        if self.high_offset == 0 and self.epoch is not None:
            at = max(at, self.start_offset)  # a new lane begins at the log's start
        return self.end_offset - at if self.start_offset <= at <= self.end_offset else None

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "laneId": self.lane_id,
            "owner": self.owner,
            "epoch": self.epoch,
            "nextOffset": self.next_offset,
            "highOffset": self.high_offset,
            "startOffset": self.start_offset,
            "endOffset": self.end_offset,
            "lag": self.lag,
            "taken": self.taken,
            "outbox": self.outbox,
            "waiting": self.waiting,
            "updatedAt": exact_time(self.updated_at) if self.updated_at is not None else None,
        }


async def lanes(connection: Connection, settings: Settings) -> list[Lane]:
    """Every input partition on Kafka and every lane in Postgres, in order."""
    rows = {(row["topic"], row["partition"]): row for row in await connection.fetch(sql("lanes_list"))}
    found = await partitions_of(settings, {*settings.topics.inputs(), *(topic for topic, _ in rows)})
    partitions = [one for some in found.values() for one in some]
    async with reader(settings) as consumer:
        ends = await ends_of(consumer, partitions)
    keys = sorted({*rows, *((one.topic, one.partition) for one in partitions)})
    logs = {(one.topic, one.partition): log for one, log in ends.items()}
    return [_lane(key, rows.get(key), logs.get(key)) for key in keys]


def _lane(key: tuple[str, int], row: asyncpg.Record | None, log: tuple[int, int] | None) -> Lane:
    return Lane(
        topic=key[0],
        partition=key[1],
        lane_id=row["lane_id"] if row else None,
        owner=row["owner"] if row else None,
        epoch=row["epoch"] if row else None,
        next_offset=row["next_offset"] if row else None,
        high_offset=row["high_offset"] if row else None,
        start_offset=log[0] if log else None,
        end_offset=log[1] if log else None,
        taken=row["taken"] if row else 0,
        outbox=row["outbox"] if row else 0,
        waiting=row["waiting"] if row else 0,
        updated_at=row["updated_at"] if row else None,
    )


@dataclass(frozen=True, slots=True)
class Reset:
    """What setting a lane's stored offset comes to. `stored` None: nothing was ever taken."""

    topic: str
    partition: int
    stored: int | None
    high: int
    start: int
    end: int
    to: int

    def words(self) -> str:
        """What that skips or repeats, for the person who is to say yes."""
        name = f"{self.topic}/{self.partition}"
        stored = "has no stored offset" if self.stored is None else f"stands at the stored offset {self.stored}"
        return f"{name} {stored}, its log is {self.start} to {self.end}; it goes on at {self.to}. {self._effect()}"

    def _effect(self) -> str:
        at = self.start if self.stored is None else self.stored
        if not self.start <= at <= self.end:
            effect = f"Its {self.to - self.start:,} records before {self.to} are skipped: they are never decided. " * (
                self.to > self.start
            )
            effect += f"The {self.end - self.to:,} records from {self.to} on are taken."
            if at < self.start:
                effect += f" The records from {at} to {self.start - 1} are gone from the log."
            return effect
        if self.to > at:
            return f"That skips {self.to - at:,} records: they are never decided, unless it is set back again."
        if self.to < at:
            return (
                f"That repeats {at - self.to:,} records: returns that have an outcome keep it and get no second one; "
                f"feed records change nothing, unless a customer.updated without updatedAt is among them; dead letters "
                f"repeat."
            )
        return "That changes nothing but to make its owner start again from there."


async def plan_reset(connection: Connection, settings: Settings, topic: str, partition: int, to: str) -> Reset:
    """What `lanes reset` is about to do. Raises Misused or Wrong where it cannot be done."""
    if topic not in settings.topics.inputs():
        raise Misused(f"{topic} is no input topic; those are {', '.join(settings.topics.inputs())}")
    found = (await partitions_of(settings, [topic])).get(topic, [])
    if partition not in [one.partition for one in found]:
        raise Wrong(f"Kafka has no partition {partition} of {topic}, but {len(found)} partitions, counted from 0")
    async with reader(settings) as consumer:
        [(start, end)] = (await ends_of(consumer, [found[partition]])).values()
    row = await connection.fetchrow(sql("lanes_find"), topic, partition)
    offset = _offset(to, start, end)
    stored, high = (row["next_offset"], row["high_offset"]) if row else (None, 0)
    return Reset(topic, partition, stored, high, start, end, offset)


def _offset(to: str, start: int, end: int) -> int:
    if to in ("start", "end"):
        return start if to == "start" else end
    if not (to.isascii() and to.isdigit()):
        raise Misused(f"--to {to} is neither start nor end nor an offset")
    if not start <= int(to) <= end:
        raise Misused(f"--to {to} lies outside the log, which is {start} to {end}")
    return int(to)


async def reset(connection: Connection, plan: Reset) -> int:
    """Carry a plan out; returns the new epoch. Raises Wrong where the lane moved meanwhile."""
    async with connection.transaction():
        row = await connection.fetchrow(sql("lanes_find"), plan.topic, plan.partition)
        stored = row["next_offset"] if row else None
        if stored != plan.stored:
            raise Wrong(
                f"{plan.topic}/{plan.partition} moved from {plan.stored} to {stored} meanwhile: it is being consumed; "
                f"stop its owner ({row['owner'] if row else 'unknown'}) or try again"
            )
        epoch: int = await connection.fetchval(sql("lanes_reset"), plan.topic, plan.partition, plan.to)
        return epoch

"""Only wiring: pool, producer, consumer, health, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg

from service import __version__
from service.consumer import COMMIT_SECONDS, WORLD, Intake
from service.failpoint import arm
from service.grants import lacking
from service.health import BEAT_SECONDS, Health, serve
from service.kafka import explained
from service.lane import Publisher
from service.logs import log, words
from service.metrics import Metrics
from service.migrate import SchemaError, pending
from service.probes import Question, Waits
from service.session import check_tls_files, said_by_postgres
from service.settings import Settings
from service.store import Connection, connect, disconnect, hang_up, overlook, sql
from service.topics import TopicsMissing, check
from service.watchdog import Watchdog

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0
PROBE_SECONDS = 2.0  # health asks both servers this often
FORGET_SECONDS = 3600.0  # refusals past refusal_days are deleted this often
FORGET_ROWS = 5000

MISUSED = 2  # exit code: a setting cannot be what it is
NAME_TAKEN = (
    "another process joined the group {1} as {0}, too; give each a REVERSAL_KAFKA__GROUP_INSTANCE_ID of its own"
)

T = TypeVar("T")


class App:
    """One process of the service, from start to SIGTERM."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.health = Health()
        self.stopping = asyncio.Event()
        self.watchdog = Watchdog(self.health, self.stopping.set)
        self.waits = Waits(self.health)
        self.code = 0
        self.owner = f"{socket.gethostname()}:{os.getpid()}"

    async def run(self) -> int:
        """Consume until SIGTERM or SIGINT, then drain; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(overlook)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        settings = self.settings
        if settings.test_clock is not None:
            log.warning("service.test_clock", now=settings.test_clock.isoformat())
        arm(settings.test_failpoint)
        stop_serving = None
        if settings.http_port:
            stop_serving = serve(settings.http_host, settings.http_port, self.health, self.metrics)
        beat = asyncio.create_task(self._beat())
        self.watchdog.start()
        try:
            await self._serve()
        finally:
            self.watchdog.stop()
            beat.cancel()
            if stop_serving is not None:
                stop_serving()
        return self.code if self.watchdog.broken is None else 1

    def _stop(self, number: int) -> None:
        log.info("service.stopping", signal=signal.Signals(number).name)
        self.health.say("service", "is stopping")
        self.stopping.set()

    async def _serve(self) -> None:
        pool = await self._await_postgres()
        if pool is None:
            return
        publisher = Publisher(self.settings)
        intake = await self._await_kafka(pool, publisher)
        if intake is not None:
            log.info(
                "service.started",
                version=__version__,
                group=self.settings.kafka.group_id,
                topics=list(self.settings.topics.inputs()),
            )
            self.health.say("service", None)
            gc.freeze()  # what is loaded by now stays: the collector need not look at it again
            gc.set_threshold(200_000, 20, 50)  # more than the batches under way: they are freed without it
            chores = [
                asyncio.create_task(self._probe(pool, intake)),
                asyncio.create_task(self._commit(intake)),
                asyncio.create_task(self._forget(pool)),
            ]
            await self._until_told(chores, intake)
            await intake.drain()
            if not intake.drained:
                pool.terminate()  # what hangs there is undone
            await asyncio.gather(intake.leave(), publisher.stop(), disconnect(pool))
        else:
            await asyncio.gather(publisher.stop(), disconnect(pool))
        log.info("service.stopped")

    async def _until_told(self, chores: list[asyncio.Task[None]], intake: Intake) -> None:
        """Returns when told to stop, or when another process has this one's name; the chores never end before."""
        stopping, fenced = asyncio.create_task(self.stopping.wait()), asyncio.create_task(intake.fenced.wait())
        await asyncio.wait([stopping, fenced, *chores], return_when=asyncio.FIRST_COMPLETED)
        ended = [chore for chore in chores if chore.done()]
        if ended and not self.stopping.is_set():
            self.watchdog.give_up(f"a chore of the process has ended: {words(ended[0].exception() or EOFError())}")
        if fenced.done():
            self.code = MISUSED
            kafka = self.settings.kafka
            log.error("service.broken", reason=NAME_TAKEN.format(kafka.group_instance_id, kafka.group_id))
        for task in (stopping, fenced, *chores):
            task.cancel()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def _unless_stopping(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work returns; None when told to stop before, the work cancelled."""
        task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            return None
        return task.result()

    async def _await_postgres(self) -> asyncpg.Pool | None:
        """The pool, once Postgres answers with a current schema; None when told to stop before."""
        wait = FIRST_WAIT_SECONDS
        check_tls_files(self.settings)
        while not self.stopping.is_set():
            try:
                pool = await self._unless_stopping(self._reach_postgres())
            except SchemaError as error:
                self.waits.note("Postgres", str(error))
            except WORLD as error:
                self.waits.note("Postgres", said_by_postgres(error))
            else:
                self.waits.end("Postgres")
                return pool
            wait = await self._back_off(wait)
        return None

    async def _reach_postgres(self) -> asyncpg.Pool:
        """A pool; raises SchemaError where the schema is not current, or not open to the role."""
        pool = await connect(self.settings)
        try:
            async with pool.acquire() as connection:
                await _check_schema(connection)
        except BaseException:
            await disconnect(pool)
            raise
        return pool

    async def _await_kafka(self, pool: asyncpg.Pool, publisher: Publisher) -> Intake | None:
        """The intake, once the brokers answer and have all topics; None when told to stop before."""
        wait = FIRST_WAIT_SECONDS
        while not self.stopping.is_set():
            intake = Intake(self.settings, pool, publisher, self.metrics, self.owner)
            try:
                started = await self._unless_stopping(intake.start())
            except TopicsMissing as error:
                started = None
                self.waits.note("Kafka", str(error))
            except WORLD as error:
                started = None
                self.waits.note("Kafka", explained(self.settings.kafka, error))
            if started is not None:
                self.waits.end("Kafka")
                return started
            await intake.leave()
            wait = await self._back_off(wait)
        return None

    async def _back_off(self, seconds: float) -> float:
        """Pause for about so long; returns how long the next pause is."""
        await self._pause(random.uniform(seconds / 2, seconds))  # noqa: S311
        return min(seconds * 2, LONGEST_WAIT_SECONDS)

    async def _beat(self) -> None:
        while True:
            self.health.beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)

    async def _probe(self, pool: asyncpg.Pool, intake: Intake) -> None:
        """Keep health and the outbox's figures up to date, and see that the process gets on."""
        settings = self.settings
        questions = {"Postgres": Question(lambda: self._measure(pool)), "Kafka": Question(intake.answers)}
        while True:
            faults = await asyncio.gather(*(question.ask() for question in questions.values()))
            for server, fault in zip(questions, faults, strict=True):
                if fault is None:
                    self.waits.end(server)
                else:
                    self.waits.note(server, fault)
            # Longer than any lock is waited for: the connections may be dead, and nobody has said so.
            if questions["Postgres"].silent_seconds > settings.lock_timeout_ms / 1000 and await hang_up(pool, settings):
                self.waits.note("Postgres", "it answers new connections but not the old ones: those are ended")
            workers = list(intake.workers.values())
            doubts = {one.name: explained(settings.kafka, one.doubt) for one in workers if one.doubt is not None}
            if (doubts or "topics" in self.waits) and not any(faults):
                doubts |= await self._missing_topics()
            stopped = {worker.name: worker.stopped for worker in intake.workers.values() if worker.stopped}
            self.health.say("group", None if intake.assigned else "has not given partitions yet")
            self.health.say("lanes", "; ".join(stopped.values()) or None)
            self.health.say("doubt", "; ".join(f"{name}: {doubt}" for name, doubt in doubts.items()) or None)
            self.watchdog.look(intake, well=not any(faults) and "topics" not in self.waits)
            await asyncio.sleep(PROBE_SECONDS)

    async def _measure(self, pool: asyncpg.Pool) -> None:
        row = await pool.fetchrow(sql("measure_outbox"))
        assert row is not None
        self.metrics.outbox_rows.set(row["rows"])
        self.metrics.outbox_age.set(row["oldest_seconds"])

    async def _missing_topics(self) -> dict[str, str]:
        """The doubts of lanes whose servers answer may be for a topic that is gone."""
        try:
            await check(self.settings)
        except TopicsMissing as error:
            self.waits.note("topics", str(error))
            return {"topics": str(error)}
        except WORLD:
            return {}
        self.waits.end("topics")
        return {}

    async def _commit(self, intake: Intake) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            await intake.commit()

    async def _forget(self, pool: asyncpg.Pool) -> None:
        """Delete refusals past their days, a bounded number at a time."""
        while True:
            before = datetime.now(UTC) - timedelta(days=self.settings.refusal_days)
            try:
                while count := await pool.fetchval(sql("forget_refusals"), before, FORGET_ROWS):
                    log.info("refusals.forgotten", count=count)
            except WORLD as error:
                log.warning("service.waiting", server="Postgres", reason=words(error))
            await asyncio.sleep(FORGET_SECONDS)


async def _check_schema(connection: Connection) -> None:
    try:
        missing = await pending(connection)
    except asyncpg.InsufficientPrivilegeError:
        missing = []  # the role was granted nothing at all: that is told below
    if missing:
        raise SchemaError(f"the schema lacks {missing[0].name}; run `points-reversal migrate`")
    if denied := await lacking(connection):
        role = await connection.fetchval("select current_user")
        raise SchemaError(
            f"the role {role} lacks {', '.join(denied)}; run `points-reversal migrate --grant {role}` as the owner"
        )


async def run(settings: Settings) -> int:
    """Run the service until SIGTERM; returns the exit code."""
    return await App(settings).run()

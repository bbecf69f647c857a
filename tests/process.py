"""The service as real processes on the test stack: a place of their own to work in, started, stopped and killed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr

from service.audit import audit
from service.child import free_ports
from service.load import load
from service.logs import EVENTS
from service.settings import Kafka, Settings, Topics
from tests import stack as servers
from tests.stack import Record, Sending, Stack, eventually

Data = dict[str, Any]

START_SECONDS = 40.0  # a process on a busy machine of 2 cores
DRAIN_SECONDS = 40.0
END_SECONDS = 15.0  # SIGTERM to exit, everything being well
SESSION_MS = 3_000  # short, so that a killed process is missed soon, where the broker allows it
BATCH_FIELDS = {"lane", "records", "outcomes", "seconds", "lag_seconds"}
LEFT_BEHIND = re.compile(
    "never retrieved|never awaited|destroyed|Unclosed"
)  # what asyncio says of tasks, futures, sockets
PERSONAL = re.compile("@shop|9876543", re.IGNORECASE)  # within every e-mail address and phone of these tests
TOPICS = (
    "order_returned", "customer_updated", "points_issued", "points_redeemed", "reversal_completed", "reversal_failed",
)  # fmt: skip


class Service:
    """One process of the service, and what it has said."""

    def __init__(self, name: str, settings: Mapping[str, str], directory: Path) -> None:
        [self.port] = free_ports(1)
        self.name = name
        self.path = directory / f"{name}.log"
        # A frozen process wakes to sessions that Postgres has ended, and leaves behind what it waited for in them.
        self.excused = "freeze" in settings.get("REVERSAL_TEST_FAILPOINT", "")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("REVERSAL_")}
        environment = {**inherited, **settings, "REVERSAL_HTTP_PORT": str(self.port), "PYTHONUNBUFFERED": "1"}
        with self.path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "run"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def log(self) -> list[Data]:
        """What it has logged so far; a line that is no JSON object fails."""
        text = self.path.read_bytes()
        lines = text[: text.rfind(b"\n") + 1].splitlines()
        found = []
        for line in lines:
            try:
                found.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                raise AssertionError(f"{self.name} logged a line that is no JSON: {line!r}") from None
            assert isinstance(found[-1], dict), line
        return found

    def said(self, event: str, **fields: Any) -> list[Data]:
        """The lines of that event, with those values."""
        return [
            line
            for line in self.log()
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]

    async def says(self, event: str, timeout_seconds: float = START_SECONDS, **fields: Any) -> Data:
        """The first line of that event with those values, once it is there; fails when the process ends before."""

        def found() -> list[Data]:
            ended = not self.running
            lines = self.said(event, **fields)
            assert lines or not ended, f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"
            return lines

        try:
            return (await eventually(found, timeout_seconds))[0]
        except AssertionError as error:
            raise AssertionError(f"{self.name} did not say {event} {fields}: {error}\n{self.tail()}") from error

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.path.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of /livez, /readyz or /metrics; (0, "") while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    async def ready(self, timeout_seconds: float = START_SECONDS) -> None:
        """Returns when it says that it is ready."""

        def answer() -> bool:
            assert self.running, f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"
            return self.get("/readyz")[0] == 200

        await eventually(answer, timeout_seconds)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        self.excused = True
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once and for sure; nothing where it has ended."""
        self.process.kill()
        self.process.wait(END_SECONDS)

    async def ended(self, timeout_seconds: float = END_SECONDS) -> int:
        """Its exit code, once it has ended."""
        try:
            await eventually(lambda: not self.running, timeout_seconds)
        except AssertionError:
            raise AssertionError(f"{self.name} still runs after {timeout_seconds:g} s:\n{self.tail()}") from None
        return self.process.returncode

    async def stop(self) -> float:
        """SIGTERM; it must drain and exit 0. Returns the seconds that it took."""
        started = time.monotonic()
        self.terminate()
        code = await self.ended()
        assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"
        return time.monotonic() - started

    def check_log(self) -> None:
        """Every line is JSON of a listed event with level and time, and none names a person."""
        for line in self.log():
            assert line["event"] in EVENTS, f"{self.name} logged an event that is not listed: {line}"
            assert {"level", "timestamp"} <= line.keys(), line
            assert self.excused or not left_behind(line), f"{self.name} left something behind: {line}"
            assert not PERSONAL.search(orjson.dumps(line).decode()), f"{self.name} logged personal data: {line}"
            assert line["event"] != "batch.decided" or line.keys() >= BATCH_FIELDS, line


def left_behind(line: Data) -> bool:
    """Whether asyncio says in that line of the log that something was not waited for."""
    message = str(line.get("message"))
    return bool(LEFT_BEHIND.search(message))


@dataclass
class Site:
    """A database, topics and a consumer group of a test's own, and the processes that work there."""

    stack: Stack
    owner_url: str
    prefix: str
    directory: Path
    partitions: int = 2
    output_partitions: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    loaded: list[Data] = field(default_factory=list)  # the load lines

    @property
    def database_url(self) -> str:
        """The database as the service is told of it: as a role that may do no more than `run` needs."""
        return servers.as_role(self.owner_url, self.stack.run_role)

    @property
    def group(self) -> str:
        return f"{self.prefix}.group"

    @property
    def topics(self) -> Topics:
        """The topics' names, each the default one behind the prefix."""
        return Topics(**{name: self.topic(name) for name in TOPICS})

    @property
    def outputs(self) -> list[str]:
        topics = self.topics
        return [topics.reversal_completed, topics.reversal_failed, *map(topics.dead_letters, topics.inputs())]

    def topic(self, kind: str) -> str:
        """The topic's name here, by its default name or that of its setting."""
        name = kind.replace(".", "_").replace("-", "_")
        return f"{self.prefix}.{Topics.model_fields[name].default}"

    def environment(self, **settings: str) -> dict[str, str]:
        """The service's settings here, as environment variables; `settings` by name without prefix, in lower case."""
        chosen: dict[str, str] = {
            "database_url": self.database_url,
            "kafka__bootstrap_servers": self.stack.bootstrap_servers,
            "kafka__group_id": self.group,
            "kafka__session_timeout_ms": str(_session_ms(self.stack.bootstrap_servers)),
            "kafka__heartbeat_interval_ms": "200",
            "kafka__rebalance_timeout_ms": "10000",
            "log_format": "json",
            **{f"topics__{name}": self.topic(name) for name in TOPICS},
            **self.settings,
            **settings,
        }
        return {f"REVERSAL_{name.upper()}": value for name, value in chosen.items()}

    def in_process(self) -> Settings:
        """The same as settings of this process, for what tests call directly."""
        return Settings(
            database_url=SecretStr(self.database_url),
            kafka=Kafka(bootstrap_servers=self.stack.bootstrap_servers, group_id=self.group),
            topics=self.topics,
        )

    def start(self, name: str | None = None, **settings: str) -> Service:
        """One more process; `name`: where its log goes."""
        name = f"{len(self.services):02d}-{name or 'run'}"
        service = Service(name, self.environment(**settings), self.directory)
        self.services.append(service)
        return service

    def command(self, *words: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs another command of the service here, to its end."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("REVERSAL_")}
        return subprocess.run(
            [sys.executable, "-m", "service", *words],
            env={**inherited, **self.environment(**(settings or {}))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )

    def end_all(self) -> None:
        """Ends every process that still runs, also a frozen one."""
        for service in self.services:
            service.kill()

    def check_logs(self) -> None:
        for service in self.services:
            service.check_log()

    def create_topics(self, names: Iterable[str] | None = None, **config: str) -> None:
        """Creates them (all, where none are named), small enough for the tests and large enough for any outcome."""
        wanted = list(names) if names is not None else [*self.topics.inputs(), *self.outputs]
        config = {"max.message.bytes": "6000000"} | {name.replace("_", "."): value for name, value in config.items()}
        count = {name: self.output_partitions if name in self.outputs else self.partitions for name in wanted}
        servers.run(servers.create_topics(self.stack.bootstrap_servers, count, config))

    async def load(self, lines: Iterable[Data]) -> None:
        """Loads what a shop knows, as the command `load` does."""
        lines = list(lines)
        self.loaded += lines
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", dir=self.directory) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            async with self.database() as connection:
                summary = await load(connection, Path(file.name))
        assert summary.booked, summary.faults

    async def produce(self, kind: str, records: Iterable[Sending], **settings: Any) -> list[tuple[int, int]]:
        """Produces to an input topic, by its default name; returns partition and offset of each."""
        return await servers.produce(
            self.stack.bootstrap_servers, self.topic(kind), records, max_request_size=6_000_000, **settings
        )

    async def read(self, topic: str) -> list[Record]:
        return await servers.read_all(self.stack.bootstrap_servers, topic)

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection as the owner."""
        connection = await asyncpg.connect(self.owner_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def value(self, statement: str, *parameters: Any) -> Any:
        """One value from the database."""
        async with self.database() as connection:
            return await connection.fetchval(statement, *parameters)

    @contextlib.asynccontextmanager
    async def consumer(self, group: str | None = None) -> AsyncIterator[AIOKafkaConsumer]:
        async with AIOKafkaConsumer(
            bootstrap_servers=self.stack.bootstrap_servers, group_id=group, enable_auto_commit=False
        ) as consumer:
            yield consumer

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.bootstrap_servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def ends(self) -> dict[tuple[str, int], int]:
        """Where the log of each input partition ends."""
        partitions = [TopicPartition(topic, one) for topic in self.topics.inputs() for one in range(self.partitions)]
        async with self.consumer() as consumer:
            found = await consumer.end_offsets(partitions)
        return {(one.topic, one.partition): end for one, end in found.items()}

    async def drained(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        """Returns when every record produced so far is decided, and every outcome published and out of the outbox."""
        ends = {place: end for place, end in (await self.ends()).items() if end}
        async with self.database() as connection:

            async def left() -> list[str]:
                rows = await connection.fetch("select topic, partition, next_offset from lane")
                stored = {(row["topic"], row["partition"]): row["next_offset"] for row in rows}
                behind = [
                    f"{topic}/{partition}: {stored.get((topic, partition))} of {end}"
                    for (topic, partition), end in ends.items()
                    if stored.get((topic, partition), 0) < end
                ]
                rows_left = await connection.fetchval("select count(*) from outbox")
                return behind + ([f"{rows_left} rows in the outbox"] if rows_left else [])

            last: list[str] = []

            async def nothing_left() -> bool:
                last[:] = await left()
                return not last

            try:
                await eventually(nothing_left, timeout_seconds, poll_seconds=0.05)
            except AssertionError:
                words = "\n".join(f"{one.name}: {one.tail()}" for one in self.services)
                raise AssertionError(f"not drained in {timeout_seconds:g} s: {last}\n{words}") from None

    async def audit(self) -> None:
        """Every invariant of the ledger holds."""
        async with self.database() as connection:
            broken = [(found.check.name, found.broken) async for found in audit(connection, None, 5) if found.count]
        assert not broken, broken


@functools.cache
def _session_ms(bootstrap_servers: str) -> int:
    """A session's length that these brokers let a member have."""
    return max(SESSION_MS, servers.run(_shortest_session_ms(bootstrap_servers)))


async def _shortest_session_ms(bootstrap_servers: str) -> int:
    name = "group.min.session.timeout.ms"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        broker = str((await admin.describe_cluster())["brokers"][0]["node_id"])
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, broker, {name: None})])
    finally:
        await admin.close()
    [(_, _, _, _, entries)] = answer.resources
    return int(entries[0][1])


@contextlib.contextmanager
def site(
    stack: Stack,
    template_database: str | None,
    *,
    partitions: int = 2,
    output_partitions: int = 1,
    topics: bool = True,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Site]:
    """A place to work in for the time of a `with` block; whatever runs there afterwards is ended, every log checked.

    `template_database` None: the database is empty, without a schema; `topics` False: none is created.
    """
    with contextlib.ExitStack() as ending:
        directory = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="service-test-")))
        owner_url = servers.run(servers.create_database(stack.database_url, template_database))
        ending.callback(lambda: servers.run(servers.drop_database(owner_url)))
        here = Site(
            stack, owner_url, servers.unique("e"), directory, partitions, output_partitions, dict(settings or {})
        )
        ending.callback(here.end_all)
        if topics:
            here.create_topics()
        yield here
        here.check_logs()

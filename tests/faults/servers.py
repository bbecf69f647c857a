"""The servers of the stack as a fault has them: shut down, killed, frozen, and behind relays that make bad weather."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping

import psutil

from service.child import Server, free_ports
from service.embedded import EmbeddedKafka, EmbeddedPostgres
from tests.process import Site
from tests.proxy import Proxy, proxy_before, relay
from tests.stack import Stack, eventually

FAR = "FAR"  # the name of Kafka's listener behind the relay


def kafka_of(stack: Stack) -> EmbeddedKafka:
    assert stack.kafka is not None, "these tests stop Kafka themselves: they are marked `embedded`"
    return stack.kafka


def postgres_of(stack: Stack) -> EmbeddedPostgres:
    assert stack.postgres is not None, "these tests stop Postgres themselves: they are marked `embedded`"
    return stack.postgres


async def shut_down_at_once(postgres: EmbeddedPostgres) -> None:
    """An immediate shutdown: every session is dropped, nothing is written down."""
    os.kill(postgres.pid, signal.SIGQUIT)
    await eventually(lambda: not postgres.running, 30)
    await asyncio.to_thread(postgres.kill)


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    """A server's processes stand still for the time of a `with` block."""
    root = psutil.Process(server.pid)
    tree = [root]
    root.suspend()  # so that it starts no other meanwhile
    tree += root.children(recursive=True)
    for process in tree[1:]:
        process.suspend()
    try:
        yield
    finally:
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def end_sessions(site: Site) -> int:
    """Terminates every session that the service has; returns how many there were."""
    statement = """select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and application_name = 'points-reversal'"""
    return int(await site.value(statement))


@contextlib.contextmanager
def listening_far(kafka: EmbeddedKafka) -> Iterator[tuple[int, int]]:
    """Kafka with one more listener, whose advertised port is a relay's: yields that port and the listener's own.

    Kafka tells its clients where to connect, so a relay must stand where the listener says that it is.
    """
    far, relayed = free_ports(2)
    near, controller = (f"127.0.0.1:{port}" for port in kafka.ports)
    before: Mapping[str, str] = dict(kafka.properties)
    properties = {
        "listeners": f"PLAINTEXT://{near},CONTROLLER://{controller},{FAR}://127.0.0.1:{far}",
        "advertised.listeners": f"PLAINTEXT://{near},{FAR}://127.0.0.1:{relayed}",
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,{FAR}:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
    }
    _restart(kafka, {**before, **properties})
    try:
        yield relayed, far
    finally:
        _restart(kafka, before)


def _restart(kafka: EmbeddedKafka, properties: Mapping[str, str]) -> None:
    kafka.kill()
    kafka.properties = dict(properties)
    kafka.start()


@contextlib.asynccontextmanager
async def through_relays(site: Site, ports: tuple[int, int]) -> AsyncIterator[dict[str, Proxy]]:
    """The site's processes started from now on reach Kafka and Postgres through relays only."""
    relayed, far = ports
    async with proxy_before(site.database_url) as postgres, relay(far, port=relayed) as kafka:
        site.settings["database_url"] = postgres.url
        site.settings["kafka__bootstrap_servers"] = f"127.0.0.1:{relayed}"
        yield {"Postgres": postgres, "Kafka": kafka}

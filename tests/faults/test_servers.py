"""Postgres and Kafka go away and come back: records are delayed, none fails, the process goes on by itself."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.faults.conftest import Doses, Trials
from tests.faults.engine import Trial
from tests.faults.servers import end_sessions, frozen, kafka_of, postgres_of, shut_down_at_once
from tests.process import Service
from tests.proxy import Proxy, proxy_before
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(7200)]

RECOVERY_SECONDS = 10.0  # it goes on by itself within so long
FROZEN_SECONDS = 40.0


async def test_postgres_shuts_down_at_once_and_comes_back_and_sessions_are_ended(
    stack: Stack, trial: Trials, dose: Doses
) -> None:
    postgres, count = postgres_of(stack), dose("Postgres restarts")
    run = trial("Postgres restarts", count)
    async with run, proxy_before(run.site.database_url) as proxy:
        service = run.site.start(database_url=proxy.url)
        async with run.flowing():
            for way in itertools.islice(itertools.cycle(["down", "sessions", "reply", "down", "reply"]), count):
                await run.moves(run.random.randint(1, 400))
                if way == "down":
                    await shut_down_at_once(postgres)
                    await asyncio.sleep(run.random.uniform(0, 3))
                    await asyncio.to_thread(postgres.start)
                elif way == "sessions":
                    for _ in range(5):
                        await asyncio.sleep(run.random.uniform(0, 0.3))
                        await end_sessions(run.site)
                else:
                    await reply_lost(proxy)
                run.fault_ended()
                await run.recovered()
        await went_on(run, service)


async def reply_lost(proxy: Proxy) -> None:
    """A batch commits, and the service never hears of it."""
    stop = proxy.lose_reply(b"COMMIT;")
    await asyncio.wait_for(stop.reached.wait(), 30)


async def test_kafka_is_killed_and_comes_back_and_stands_still(stack: Stack, trial: Trials, dose: Doses) -> None:
    kafka, count = kafka_of(stack), dose("Kafka restarts")
    run = trial("Kafka restarts", count)
    async with run:
        service = run.site.start()
        async with run.flowing():
            for way in itertools.islice(itertools.cycle(["killed", "frozen", "killed"]), count):
                await run.moves(run.random.randint(1, 400))
                if way == "killed":
                    await asyncio.to_thread(kafka.kill)
                    await asyncio.sleep(run.random.uniform(0, 5))
                    await asyncio.to_thread(kafka.start)
                else:
                    with frozen(kafka):
                        await asyncio.sleep(FROZEN_SECONDS)
                run.fault_ended()
                await run.recovered()
        await went_on(run, service)


async def went_on(run: Trial, service: Service) -> None:
    """It is the same process, it is ready again, and it did not take longer than it may."""
    await run.site.drained(60)
    try:
        await eventually(lambda: service.get("/readyz")[0] == 200, 20)
    except AssertionError as error:
        raise AssertionError(f"unready: {service.get('/readyz')}") from error
    await run.finish(service)
    assert max(run.recoveries) < RECOVERY_SECONDS, run.recoveries

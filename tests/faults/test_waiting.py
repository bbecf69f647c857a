"""With a server away the service waits: it says so once, is unready, answers SIGTERM, and goes on when the server is back."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.child import Server
from tests.faults.conftest import Trials
from tests.faults.servers import frozen, kafka_of, postgres_of
from tests.process import Service
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(600)]

AWAY_SECONDS = 8.0
UNREADY_SECONDS = 10.0
TERMINATED_SECONDS = 5.0
RECOVERY_SECONDS = 10.0
LINES = 3  # at most, of a wait of some seconds: that it began, and another reason or two


def server_of(stack: Stack, name: str) -> Server:
    return kafka_of(stack) if name == "Kafka" else postgres_of(stack)


@pytest.mark.parametrize("way", ["gone", "silent"])
@pytest.mark.parametrize("name", ["Postgres", "Kafka"])
async def test_it_waits_for_a_server_and_goes_on_by_itself(stack: Stack, trial: Trials, name: str, way: str) -> None:
    server = server_of(stack, name)
    run = trial(f"{name} {way}", 1)
    async with run:
        staying, leaving = run.site.start("staying"), run.site.start("leaving")
        await staying.ready()
        await leaving.ready()
        async with run.flowing():
            await run.moves(500)
            if way == "gone":
                await asyncio.to_thread(server.kill)
                seconds = await away(name, staying, leaving)
                await asyncio.to_thread(server.start)
            else:
                with frozen(server):
                    seconds = await away(name, staying, leaving)
            run.fault_ended()
            await run.recovered()
        await eventually(lambda: staying.get("/readyz")[0] == 200, RECOVERY_SECONDS)
        await run.finish(staying)
    lines = [line for line in staying.said("service.waiting") if line["server"] == name]
    assert 1 <= len(lines) <= LINES, lines
    assert seconds[0] < UNREADY_SECONDS
    assert seconds[1] < TERMINATED_SECONDS
    assert max(run.recoveries) < RECOVERY_SECONDS, run.recoveries


async def away(name: str, staying: Service, leaving: Service) -> tuple[float, float]:
    """While the server is away: the seconds until the process is unready, and those that another takes to end."""
    began = time.monotonic()
    await eventually(lambda: staying.get("/readyz")[0] == 503, 40)
    unready_seconds = time.monotonic() - began
    await staying.says("service.waiting", server=name)
    leaving.terminate()
    since = time.monotonic()
    assert await leaving.ended(60) == 0
    terminated_seconds = time.monotonic() - since
    assert f"{name}: waits for it since" in staying.get("/readyz")[1]
    await asyncio.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - began)))
    assert staying.running
    assert staying.get("/livez")[0] == 200
    return unready_seconds, terminated_seconds

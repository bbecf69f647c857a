"""Processes that come and go, one of them frozen past its session and woken as a zombie: each record has one outcome."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.conftest import Doses, Trials
from tests.process import Service, Site, site
from tests.stack import Stack

pytestmark = pytest.mark.timeout(7200)

PROCESSES = 4
COMES_OR_GOES_SECONDS = 3.0
FROZEN_SECONDS = 6.0  # twice a session


@pytest.fixture
def wide(stack: Stack, template_database: str) -> Iterator[Site]:
    """A place with a partition of each topic for each process."""
    settings = {"batch_records": "40", "idle_in_transaction_timeout_ms": "1000", "lock_timeout_ms": "1500"}
    with site(stack, template_database, partitions=PROCESSES, output_partitions=2, settings=settings) as own:
        yield own


async def test_processes_come_and_go_and_one_wakes_as_a_zombie(wide: Site, trial: Trials, dose: Doses) -> None:
    seconds = dose("rebalances, seconds")
    run = trial("rebalances", seconds, at=wide)
    running = [wide.start() for _ in range(PROCESSES)]
    frozen: dict[Service, float] = {}
    ways = itertools.cycle(["freeze", "kill", "stop"])
    async with run:
        async with run.flowing():
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await asyncio.sleep(COMES_OR_GOES_SECONDS)
                for zombie in [one for one, since in frozen.items() if time.monotonic() - since > FROZEN_SECONDS]:
                    del frozen[zombie]
                    zombie.thaw()
                    running.append(zombie)
                if len(running) + len(frozen) < PROCESSES:
                    running.append(wide.start())
                    continue
                leaving = running.pop(run.random.randrange(len(running)))
                way = next(ways)
                if way == "freeze" and not frozen:
                    leaving.freeze()
                    frozen[leaving] = time.monotonic()
                elif way == "kill":
                    leaving.kill()
                else:
                    leaving.terminate()
                run.fault_ended()
        for zombie in frozen:
            zombie.thaw()
        await run.recovered()
        running = [one for one in wide.services if one.running]
        await run.finish(*running)
    left = [(one.name, one.process.returncode) for one in wide.services if not ended_as_told(one)]
    assert not left, f"ended otherwise than it was told: {left}"


def ended_as_told(service: Service) -> bool:
    """In order, or by SIGKILL; by SIGTERM itself only before it was a service."""
    code = service.process.returncode
    return code in (0, -signal.SIGKILL) or (code == -signal.SIGTERM and not service.log())

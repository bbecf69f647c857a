"""Bad weather between the service and its servers: the line is cut, half-open, slow or thin."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from tests.faults.conftest import Doses, Trials
from tests.faults.servers import kafka_of, listening_far, through_relays
from tests.proxy import Proxy
from tests.stack import Stack, eventually

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(7200)]

RECOVERY_SECONDS = 10.0
# What happens to the line, for how long, and to which servers; the first ten are the short dose.
WEATHER = (
    ("cut", 1, "Postgres"),
    ("cut", 1, "Kafka"),
    ("delay", 8, "both"),
    ("cut", 5, "both"),
    ("half-open", 16, "Postgres"),
    ("thin", 8, "both"),
    ("cut", 35, "both"),
    ("cut", 5, "Kafka"),
    ("half-open", 16, "Kafka"),
    ("cut", 5, "Postgres"),
    ("cut", 35, "Kafka"),
    ("cut", 35, "Postgres"),
)
DELAY_SECONDS = 0.5
BYTES_PER_SECOND = 1024


@pytest.fixture(scope="module")
def far(stack: Stack) -> Iterator[tuple[int, int]]:
    with listening_far(kafka_of(stack)) as ports:
        yield ports


async def test_the_line_is_cut_or_half_open_or_slow(far: tuple[int, int], trial: Trials, dose: Doses) -> None:
    count = dose("network")
    run = trial("network", count)
    late: list[tuple[str, int, str, float]] = []
    async with run, through_relays(run.site, far) as relays:
        service = run.site.start()
        async with run.flowing():
            for kind, seconds, server in itertools.islice(itertools.cycle(WEATHER), count):
                await run.moves(run.random.randint(1, 300))
                hit = [relay for name, relay in relays.items() if server in (name, "both")]
                for relay in hit:
                    make(relay, kind)
                await asyncio.sleep(seconds)
                for relay in hit:
                    relay.mend()
                run.fault_ended()
                late += [(kind, seconds, server, took)] if (took := await run.recovered()) > RECOVERY_SECONDS else []
        await run.site.drained(60)
        await eventually(lambda: service.get("/readyz")[0] == 200, 20)
        await run.finish(service)
    assert not late


def make(relay: Proxy, kind: str) -> None:
    if kind == "cut":
        relay.cut()
    elif kind == "half-open":
        relay.silence()
    elif kind == "delay":
        relay.delay_seconds = DELAY_SECONDS
    else:
        relay.bytes_per_second = BYTES_PER_SECOND

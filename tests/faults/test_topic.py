"""A topic changes under the service: partitions are added, or it is another one of the same name."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import NewPartitions

from tests.faults.conftest import Trials
from tests.faults.test_outputs import drop
from tests.stack import Sending, eventually
from tests.traffic import ORG, bare

pytestmark = pytest.mark.timeout(600)


async def test_partitions_that_are_added_are_read_from_their_start(trial: Trials) -> None:
    run = trial("partitions added", 1)
    place = run.site
    async with run:
        service = place.start()
        await run.feed(300)
        await place.drained()
        place.partitions = 5
        async with place.admin() as admin:
            await admin.create_partitions({topic: NewPartitions(5) for topic in place.topics.inputs()})
        run.fault_ended()

        async def on_all() -> bool:
            """Whether the stream's producer knows of all of them; the service most likely does not yet."""
            await run.feed(100)
            return all(end for (name, _), end in (await place.ends()).items() if name == place.topic("order_returned"))

        await eventually(on_all, 30)
        await place.drained(60)
        await run.finish(service)
    assert (
        await place.value("select count(*) from lane where topic = $1 and taken > 0", place.topic("order_returned"))
        == 5
    )


async def test_a_topic_made_anew_and_filled_at_once_is_noticed(trial: Trials) -> None:
    """The stored offset is within the new log: only the records themselves tell that they are others."""
    run = trial("topic recreated", 1)
    place = run.site
    topic = place.topic("order_returned")
    async with run:
        service = place.start()
        old = [a_return("old", 1, one) for one in range(10)]
        await place.produce("order.returned", old)
        await place.drained()
        await drop(place, topic)
        await asyncio.to_thread(place.create_topics, [topic])
        new = [a_return("new", 2, one) for one in range(200)]
        await place.produce("order.returned", new)
        for partition in range(place.partitions):
            await service.says("lane.stopped", 40, lane=f"{topic}/{partition}")
        await eventually(lambda: "`points-reversal lanes reset" in service.get("/readyz")[1])
        assert await place.value("select count(*) from reversal where idempotency_key like 'new-%'") == 0
        for number in ("0", "1"):
            answer = place.command("lanes", "reset", topic, number, "--to", "start", "--yes")
            assert answer.returncode == 0, answer.stderr
        run.fault_ended()
        await place.drained(60)
        await eventually(lambda: service.get("/readyz")[0] == 200, 20)
        assert await place.value("select count(*) from reversal where idempotency_key like 'new-%'") == 200
        await service.stop()
        await run.judge_ledger()


def a_return(which: str, customer: int, number: int) -> Sending:
    names = {"orgId": ORG, "redemptionId": f"R-{customer}-1", "idempotencyKey": f"{which}-{number}"}
    return bare({**names, "pointsToBeReversed": "1"}, customer, partition=number % 2)

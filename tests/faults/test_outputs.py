"""An output is missing, refuses, or takes less than an outcome: the lane stops and says so, and skips nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.faults.conftest import Trials
from tests.process import Site, left_behind
from tests.stack import eventually
from tests.traffic import Traffic, send

pytestmark = pytest.mark.timeout(600)

SETTINGS = {"publish_deadline_seconds": "3", "kafka__request_timeout_ms": "3000"}
MOST_ROWS = 2 * 2 * 40  # two batches of each partition of the returns: one on its way, one behind it
AS_MADE = {"max.message.bytes": "6000000"}


async def drop(place: Site, topic: str) -> None:
    async with place.admin() as admin:
        await admin.delete_topics([topic])

        async def gone() -> bool:
            return topic not in await admin.list_topics()

        await eventually(gone)


async def create(place: Site, topic: str) -> None:
    await asyncio.to_thread(place.create_topics, [topic])


def configured(**config: str) -> Callable[[Site, str], Awaitable[None]]:
    """What gives a topic another configuration."""

    async def alter(place: Site, topic: str) -> None:
        wanted = AS_MADE | {name.replace("_", "."): value for name, value in config.items()}
        async with place.admin() as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, wanted)])

    return alter


as_made = configured()
OUTPUTS = {
    "an output topic is missing": ("reversal_completed", drop, create, "`points-reversal topics`"),
    "a dead-letter topic is missing": ("dead letters", drop, create, "`points-reversal topics`"),
    # A broker that takes nothing older than itself refuses every record.
    "an output topic is not writable": (
        "reversal_failed", configured(message_timestamp_before_max_ms="0"), as_made, "InvalidTimestamp",
    ),
    "an outcome is too large": ("reversal_completed", configured(max_message_bytes="300"), as_made, "max.message.bytes"),
}  # fmt: skip


@pytest.mark.parametrize("fault", OUTPUTS)
async def test_nothing_is_skipped_and_the_reason_names_the_way_out(trial: Trials, fault: str) -> None:
    setting, breaks, mends, words = OUTPUTS[fault]
    run = trial(fault, 1)
    place = run.site
    topic = place.topics.dead_letters(place.topic("order_returned")) if "dead" in setting else place.topic(setting)
    async with run:
        service = place.start(**SETTINGS)
        await run.feed(200)
        await place.drained()
        await breaks(place, topic)
        await run.feed(600)
        await eventually(lambda: words in service.get("/readyz")[1], 40, poll_seconds=0.2)
        assert topic in service.get("/readyz")[1]
        assert service.get("/readyz")[0] == 503
        rows = await place.value("select count(*) from outbox")
        assert 0 < rows <= MOST_ROWS, "consumption was to stop until the outbox drains"
        await mends(place, topic)
        run.fault_ended()
        await run.feed(50)
        await place.drained(60)
        await eventually(lambda: service.get("/readyz")[0] == 200, 20)
        await service.stop()
        if breaks is drop:  # what lay in the topic went with it
            await run.judge_ledger()
        else:
            await run.judge()


async def test_a_publication_given_up_leaves_nothing_behind(place: Site) -> None:
    traffic = Traffic(Random("given up"))
    await place.load(traffic.lines())
    service = place.start(**SETTINGS)
    await send(place, traffic.next(200))
    await place.drained()
    topic = place.topic("reversal_completed")
    await drop(place, topic)
    await send(place, traffic.next(200))
    await service.says("producer.replaced")
    await create(place, topic)
    await place.drained(60)
    await service.stop()
    assert not [line for line in service.log() if left_behind(line)]

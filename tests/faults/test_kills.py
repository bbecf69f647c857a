"""kill -9 at every boundary of the pipeline and at random: the next process goes on, nothing is lost, nothing doubled."""

from __future__ import annotations

import itertools
import signal
from random import Random

import pytest

from service.failpoint import POINTS, arm
from tests.faults.conftest import Doses, Trials
from tests.process import Service, Site
from tests.stack import eventually
from tests.traffic import Traffic, send, verify

STATIC = {"kafka__group_instance_id": "one"}  # the next process has the partitions of the killed one at once


async def killed(service: Service) -> None:
    """Returns when it has killed itself; it must not end in another way, nor live on."""
    assert await service.ended(40) == -signal.SIGKILL, service.tail()


# Which time it is killed there, one process after the other. The first has returns only: some 14 batches on 2 lanes,
# of the 8 lanes that it owns.
KILLS = {
    "owned": (2, 7),
    "drained": (2, 7),
    "locked": (3,),
    "loaded": (4,),
    "decided": (5,),
    "written": (4,),
    "committed": (3, 4),
    "published": (1, 4),
    "revoked": (1,),
}


def test_every_failpoint_is_here() -> None:
    assert KILLS.keys() == POINTS.keys()


@pytest.mark.parametrize("text", ["elsewhere:1", "committed:x", "committed:1:melt", "committed:1:freeze:more"])
def test_an_unknown_failpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        arm(text)


@pytest.mark.parametrize("point", [point for point in POINTS if point != "revoked"])
async def test_killed_at_a_point_the_next_process_goes_on(place: Site, point: str) -> None:
    traffic = Traffic(Random(point), customers=10, unreadable=0.1)  # dead letters in every batch
    await place.load(traffic.lines())
    sent = traffic.next(600)
    await send(place, {"order.returned": sent.pop("order.returned")})
    if point in ("owned", "drained"):  # there must be something in the outbox to be drained
        await killed(place.start(**STATIC, test_failpoint="committed:3"))
        assert await left_in_the_outbox(place)
    first, *more = KILLS[point]
    # Outcomes linger on their way to Kafka: what a commit takes for published must be there.
    slow = {"kafka__linger_ms": "1000"} if point == "committed" else {}
    await killed(place.start(**STATIC, **slow, test_failpoint=f"{point}:{first}"))
    if point in ("committed", "published"):
        assert await left_in_the_outbox(place)
    await send(place, sent)
    for count in more:
        await killed(place.start(**STATIC, test_failpoint=f"{point}:{count}"))
    heir = place.start(**STATIC)
    await send(place, traffic.next(100))
    await place.drained()
    await heir.stop()
    findings = await verify(place)
    if point in ("published", "drained"):
        assert findings.repeats > 0
    assert findings.by_code().keys() >= {"completed", "902", "887", "dead not_json"}


async def left_in_the_outbox(place: Site) -> int:
    return int(await place.value("select count(*) from outbox"))


async def test_killed_while_partitions_are_taken_from_it(place: Site) -> None:
    traffic = Traffic(Random("revoked"), customers=10)
    await place.load(traffic.lines())
    first = place.start("first", test_failpoint="revoked:1")
    await first.ready()
    await send(place, traffic.next(2000))
    await eventually(lambda: place.value("select sum(taken) > 0 from lane"))
    second = place.start("second")
    await killed(first)
    await send(place, traffic.next(100))
    await place.drained()
    await second.stop()
    await verify(place)


async def test_a_restarted_process_has_its_partitions_back_at_once_by_its_name(place: Site) -> None:
    """Static membership: long before the session of the killed one is over."""
    session_seconds = 60
    named = {**STATIC, "kafka__session_timeout_ms": str(session_seconds * 1000)}
    traffic = Traffic(Random("static"), customers=10)
    await place.load(traffic.lines())
    first = place.start(**named)
    await send(place, traffic.next(100))
    await place.drained()
    first.kill()
    await send(place, traffic.next(100))
    second = place.start(**named)
    await place.drained(session_seconds / 2)
    await second.stop()
    await verify(place)


@pytest.mark.timeout(7200)
async def test_killed_again_and_again(trial: Trials, dose: Doses) -> None:
    """At every failpoint in turn and at random moments, also of the start-up; each time the next process goes on."""
    kills = dose("kills")
    run = trial("the service dies", kills)
    place, random = run.site, run.random
    ways = [way for _, way in zip(range(kills), itertools.cycle([*POINTS, "moment", "start"]), strict=False)]
    random.shuffle(ways)
    async with run:
        for way in ways:
            await run.feed(dose("records between kills"))
            if way == "revoked":
                await killed_by_a_rebalance(place)
            elif way in POINTS:
                count = random.randint(1, 8 if way in ("owned", "drained") else 4)
                await killed(place.start(**STATIC, test_failpoint=f"{way}:{count}"))
            else:
                service = place.start(**STATIC)
                if way == "start":
                    await starts(service, lanes=random.randint(0, 8))
                else:
                    await run.moves(random.randint(1, 300))
                assert service.running, service.tail()
                service.kill()
            run.fault_ended()
        heir = place.start(**STATIC)
        await run.recovered()
        findings = await run.finish(heir)
    assert findings.repeats > 0
    assert findings.by_code().keys() >= {"completed", "902", "887", "817", "dead not_json"}


async def killed_by_a_rebalance(place: Site) -> None:
    """The one from whom partitions are taken dies of it; the one that was to have them is killed too."""
    first = place.start(test_failpoint="revoked:1")
    await first.ready()
    second = place.start()
    await killed(first)
    second.kill()


async def starts(service: Service, lanes: int) -> None:
    """Returns in the middle of its start-up, when it has so many lanes."""
    await eventually(lambda: len(service.said("lane.owned")) >= lanes, 40, poll_seconds=0.001)

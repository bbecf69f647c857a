"""An output's ACL is taken away under a running service: the lane stops, says who lacks what, and skips nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.migrate import migrate
from tests import stack as servers
from tests.faults.conftest import Trials
from tests.faults.test_outputs import MOST_ROWS, SETTINGS
from tests.process import Site, site
from tests.secure import TOPIC, USER, WRITE, Acl, Secured, needed, secured
from tests.stack import eventually

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def kept() -> Iterator[Secured]:
    with secured() as found:
        yield found


@pytest.fixture
def place(kept: Secured) -> Iterator[Site]:
    """Where the service is a user with a password, who may do what the README allows."""
    stack = kept.stack()
    template = servers.run(servers.create_database(stack.database_url))
    servers.run(migrate(template, [stack.run_role]))
    settings = {**kept.by_password(), "batch_records": "40"}
    with site(stack, servers.database_name(template), settings=settings) as own:
        servers.run(kept.allow(USER, needed(own.topics, own.group)))
        yield own


@pytest.mark.parametrize("output", ["an output topic", "a dead-letter topic"])
async def test_without_the_acl_nothing_is_skipped_and_with_it_again_it_goes_on(
    kept: Secured, trial: Trials, output: str
) -> None:
    run = trial(f"{output} is not allowed", 1)
    place = run.site
    letters = place.topics.dead_letters(place.topic("order_returned"))
    topic = place.topics.reversal_completed if output == "an output topic" else letters
    async with run:
        service = place.start(**SETTINGS)
        await run.feed(200)
        await place.drained()
        await kept.forbid(USER, [Acl(TOPIC, topic, WRITE)])
        await run.feed(600)
        words = f"Kafka does not allow the user {USER} to use the topic {topic}: an ACL is missing"
        await eventually(lambda: words in service.get("/readyz")[1], 40, poll_seconds=0.2)
        assert "Write on outputs" in service.get("/readyz")[1]
        assert service.get("/readyz")[0] == 503
        assert any(words in line["error"] for line in service.said("lane.doubt"))
        await run.moves(1_000, 8)  # all that it can take meanwhile
        rows = await place.value("select count(*) from outbox")
        assert 0 < rows <= MOST_ROWS, "consumption was to stop until the outbox drains"
        await kept.allow(USER, [Acl(TOPIC, topic, WRITE)])
        run.fault_ended()
        await run.feed(50)
        await run.recovered()
        await place.drained(60)
        await eventually(lambda: service.get("/readyz")[0] == 200, 20)
        await run.finish(service)

"""Many hands on one thing: partials of one redemption at once over all partitions, one customer hit by every process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.conftest import Doses, Trials
from tests.process import Site, site
from tests.stack import Sending, Stack
from tests.traffic import ORG, bare

pytestmark = pytest.mark.timeout(7200)

PARTITIONS = 8
PARTIALS = 64  # of 5 points each, of a redemption of 200: 40 fit
PROCESSES = 2


@pytest.fixture
def wide(stack: Stack, template_database: str) -> Iterator[Site]:
    with site(stack, template_database, partitions=PARTITIONS, settings={"batch_records": "40"}) as own:
        yield own


async def test_partials_of_one_redemption_at_once_over_all_partitions(wide: Site, trial: Trials, dose: Doses) -> None:
    """Each round is of another redemption of the same few customers; every process has partitions of each."""
    rounds = dose("contention, rounds")
    run = trial("contention", rounds, customers=max(3, -(-rounds // 20)), at=wide)
    async with run:
        for number in range(rounds):
            # One after another, so that a customer is hit by 64 times 20 returns in a row.
            customer, redemption = number // 20 + 1, number % 20 + 1
            await wide.produce("order.returned", [partial(customer, redemption, one) for one in range(PARTIALS)])
        services = [wide.start() for _ in range(PROCESSES)]
        await wide.drained(300)
        findings = await run.finish(*services)
    assert findings.by_code() == {"completed": 40 * rounds, "817": 24 * rounds}


def partial(customer: int, redemption: int, number: int) -> Sending:
    names = {
        "orgId": ORG,
        "redemptionId": f"R-{customer}-{redemption}",
        "idempotencyKey": f"{redemption}/{number}/{customer}",
    }
    return bare({**names, "pointsToBeReversed": "5"}, customer, partition=number % PARTITIONS)

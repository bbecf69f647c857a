"""The first and the last moment that a time can name, in every field that keeps one.

Both come as what somebody's empty or endless time is written as: `DateTime.MinValue` is 0001-01-01T00:00:00Z.
"""

from __future__ import annotations

import pytest

from tests.integration.desk import COMPLETED, CUSTOMER, CUSTOMERS, ISSUES, REDEMPTIONS, RETURNS, Desk, Published

FIRST, LAST = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"
LOT = {"customerId": CUSTOMER, "lotId": "L-1", "points": "10"}
REDEMPTION = {"customerId": CUSTOMER, "redemptionId": "R-1", "points": "5"}
ASK = {"redemptionId": "R-1", "pointsToBeReversed": "1", "idempotencyKey": "K-1"}

BOUNDS = pytest.mark.parametrize("moment", [FIRST, LAST], ids=["first", "last"])


async def ask(desk: Desk) -> Published:
    """The one outcome of the return, which is no 804 with a dead letter beside it."""
    published = await desk.take_in(RETURNS, ASK)
    assert len(published) == 1, [(one.topic, one.value) for one in published]
    return published[0]


@BOUNDS
@pytest.mark.parametrize("field", ["expiresAt", "issuedAt"])
async def test_a_lot_with_such_a_time_is_one_like_others(desk: Desk, field: str, moment: str) -> None:
    other = {"expiresAt": "2031-01-01T00:00:00Z"} if field == "expiresAt" else {"issuedAt": "2026-01-01T00:00:00Z"}
    await desk.take_in(ISSUES, {**LOT, field: moment}, {**LOT, "lotId": "L-2", **other})
    assert await desk.take_in(REDEMPTIONS, REDEMPTION) == []  # no dead letter
    first = field == "issuedAt" and moment == FIRST  # what has expired is not consumed, what expires last comes last
    assert await desk.held() == ({"L-1": 5, "L-2": 10} if first else {"L-1": 10, "L-2": 5})
    assert (await ask(desk)).topic == COMPLETED


@BOUNDS
async def test_a_redemption_of_such_a_time_can_be_reversed(desk: Desk, moment: str) -> None:
    await desk.take_in(ISSUES, {**LOT, "issuedAt": "2026-01-01T00:00:00Z"})
    lots = [{"lotId": "L-1", "points": "5"}]
    assert await desk.take_in(REDEMPTIONS, {**REDEMPTION, "lots": lots, "redeemedAt": moment}) == []
    await desk.rules(reversal_window_days=30)
    outcome = await ask(desk)
    assert outcome.topic == COMPLETED if moment == LAST else outcome.refusal == "conditions_not_met"


@BOUNDS
async def test_a_customer_locked_until_such_a_time_is_decided(desk: Desk, moment: str) -> None:
    await desk.bought("R-1", 5)
    assert await desk.take_in(CUSTOMERS, {"customerId": CUSTOMER, "lockedUntil": moment}) == []
    outcome = await ask(desk)
    assert outcome.topic == COMPLETED if moment == FIRST else outcome.refusal == "customer_locked"


@BOUNDS
async def test_a_customer_updated_at_such_a_time_can_be_updated_again(desk: Desk, moment: str) -> None:
    update = {"customerId": CUSTOMER, "status": "inactive", "updatedAt": moment}
    assert await desk.take_in(CUSTOMERS, update) == []
    later = {"customerId": CUSTOMER, "status": "active", "updatedAt": "2026-01-01T00:00:00Z"}
    assert await desk.take_in(CUSTOMERS, later) == []
    status = await desk.value("select status from customer where customer_id = $1", CUSTOMER)
    assert status == ("active" if moment == FIRST else "inactive")


@BOUNDS
async def test_a_return_of_such_a_time_is_decided(desk: Desk, moment: str) -> None:
    await desk.bought("R-1", 5)
    await desk.rules(reversal_window_days=30)
    assert (await desk.ask(**ASK, returnedAt=moment)).topic == COMPLETED


@BOUNDS
async def test_a_return_that_waits_keeps_such_a_time(desk: Desk, moment: str) -> None:
    await desk.rules(park_unknown_seconds=60)
    assert await desk.take_in(RETURNS, {**ASK, "returnedAt": moment}) == []
    await desk.take_in(ISSUES, LOT)
    [outcome] = await desk.take_in(REDEMPTIONS, REDEMPTION)
    assert outcome.topic == COMPLETED

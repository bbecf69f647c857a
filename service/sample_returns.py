"""The sample's returns of redemptions that are known: whole, in part, by order, by unit, sent twice, and refused.

Each scenario has customers of its own and says what must come of each of its records.
"""

from __future__ import annotations

from service.sample_shop import MARKET, RETURNS, UNIT, Burned, Data, Shop, refused, spell

DAYS = (45, None, -20, 200, -3)  # until a lot expires


def _amount(index: int, least: int = 20) -> int:
    """Points with two decimals."""
    return (least + index * 37 % 380) * UNIT + index * 170 % 1000


def plain(shop: Shop, index: int, program_id: str = "main", lots: int = 2) -> Burned:
    """A redemption of a customer of its own, with nothing peculiar about it."""
    parts = [(_amount(index + 7 * lot), DAYS[(index + lot) % len(DAYS)]) for lot in range(lots)]
    if program_id == "outlet":
        parts = [(points // UNIT * UNIT, days) for points, days in parts]
    return shop.redeem(shop.customer(shop.main), program_id, parts)


def full_return(shop: Shop, index: int) -> None:
    burned = plain(shop, index, ("main", "vip", "outlet", "main")[index % 4], 1 + index % 3)
    shop.play(2, shop.ask(burned, burned.give_back_rest()))


def contracts_example(shop: Shop, index: int) -> None:
    """Lots A 100 (expired), B 60, C 40; asked for 50, 75, too much, the rest, and once more."""
    scale = (index % 4 + 2) * UNIT // 2
    customer = shop.customer(shop.main)
    burned = shop.redeem(customer, "main", [(100 * scale, -20), (60 * scale, 45), (40 * scale, None)])
    too_much = refused(817, "insufficient_points")
    shop.play(
        2,
        shop.ask(burned, burned.give_back(50 * scale), pointsToBeReversed=spell(50 * scale)),
        shop.ask(burned, burned.give_back(75 * scale), pointsToBeReversed=spell(75 * scale)),
        shop.ask(burned, too_much, pointsToBeReversed=spell(80 * scale)),
        shop.ask(burned, burned.give_back_rest()),
        shop.ask(burned, too_much, pointsToBeReversed=spell(scale)),
    )


def partial_returns(shop: Shop, index: int) -> None:
    burned = plain(shop, index, lots=3)
    first, second = burned.points // 30 * 10, burned.points // 70 * 10
    shop.play(
        2,
        shop.ask(burned, burned.give_back(first), pointsToBeReversed=spell(first)),
        shop.ask(burned, burned.give_back(second), pointsToBeReversed=spell(second)),
        *([shop.ask(burned, burned.give_back_rest())] if index % 3 else []),
    )


def by_order(shop: Shop, index: int) -> None:
    burned = plain(shop, index)
    points = 15 * UNIT + index % 2 * 500  # an amount may be a JSON number too
    shop.play(
        2,
        shop.ask(burned, burned.give_back(points), redemptionId=None, pointsToBeReversed=points / UNIT),
        *([shop.ask(burned, burned.give_back_rest(), redemptionId=None)] if index % 2 else []),
    )


def by_unit(shop: Shop, index: int) -> None:
    """Units whose worth does not come out even; the first of two hundredths of a point is worth nothing yet."""
    points, quantity, units = ((100_000, 3, (1, 1, 1)), (49_990, 7, (2, 4)), (20, 3, (1, 1, 1)))[index % 3]
    reward = ("tote-bag", "coffee-mug")[index % 2]
    parts = [(points // 2, DAYS[index % 5]), (points - points // 2, 90)]
    burned = shop.redeem(shop.customer(shop.main), "gifts", parts, quantity=quantity, rewardId=reward)
    asked = [shop.ask(burned, burned.give_back_units(some), quantity=some) for some in units]
    if sum(units) < quantity:
        asked.append(shop.ask(burned, burned.give_back_rest()))
    shop.play(2, *asked)


def imported(shop: Shop, index: int) -> None:
    """Without lots, or given back in part before."""
    customer, half = shop.customer(shop.main), _amount(index) // 20 * 10
    if index % 2:
        burned = shop.redeem(customer, ("main", "vip")[index // 2 % 2], [(2 * half, None)], lots_kept=False)
    else:
        burned = shop.redeem(customer, "main", [(half, -20), (half, 45)], reversed=spell(half // 20 * 10))
        burned.give_back(half // 20 * 10)
    shop.play(
        2,
        shop.ask(burned, burned.give_back(half), pointsToBeReversed=spell(half)),
        shop.ask(burned, burned.give_back_rest()),
    )


def duplicate(shop: Shop, index: int) -> None:
    """The same return again, in another form: the key is the sender's, or derived from the return."""
    burned = plain(shop, index)
    points = 10 * UNIT
    key = {"idempotencyKey": f"DESK-{index}"} if index % 2 else {"returnId": f"RMA-D{index}", "idempotencyKey": None}
    data = shop.request(burned, pointsToBeReversed=spell(points), **key)
    again = {**data, "pointsToBeReversed": 10, "reason": "sent twice"}
    twice = refused(902, "duplicate_reversal")
    who = burned.customer.customer_id
    shop.play(
        2,
        shop.event(RETURNS, who, data, burned.give_back(points)),
        shop.event(RETURNS, who, again, twice),
        *([shop.event(RETURNS, who, data, twice)] if index % 3 == 0 else []),
    )


def reused_key(shop: Shop, index: int) -> None:
    """A refusal does not claim its key; a reversal does, and then for its own request alone."""
    burned = plain(shop, index)
    key: Data = {"idempotencyKey": f"COUNTER-{index}"}
    too_much, points = burned.points + UNIT, burned.points // 20 * 10
    another = refused(887, "idempotency_key_reused")
    shop.play(
        2,
        shop.ask(burned, refused(817, "insufficient_points"), pointsToBeReversed=spell(too_much), **key),
        shop.ask(burned, burned.give_back(points), pointsToBeReversed=spell(points), identifier=None, **key),
        shop.ask(burned, another, pointsToBeReversed=spell(10 * UNIT), identifier=None, **key),
    )


def broken_shape(shop: Shop, index: int) -> None:
    burned = plain(shop, index, lots=1)
    faults: list[Data] = [
        {"pointsToBeReversed": "many"},
        {"pointsToBeReversed": "0"},
        {"pointsToBeReversed": "5", "quantity": 1},
        {"identifier": {"type": "FAX", "value": "1"}},
        {"returnedAt": "yesterday", "reason": ""},
        {"redemptionId": None, "orderId": None},
    ]
    shop.play(2, shop.ask(burned, refused(887, "validation_error"), **faults[index % len(faults)]))


def too_fine(shop: Shop, index: int) -> None:
    """Finer than points can be (rule 2), then finer than the program's are (rule 12)."""
    burned = plain(shop, index, ("main", "outlet")[index % 2])
    finer = refused(878, "precision_not_supported")
    shop.play(
        2,
        shop.ask(burned, finer, pointsToBeReversed="1.2345"),
        shop.ask(burned, finer, pointsToBeReversed="10.125" if index % 2 == 0 else "10.5"),
    )


def not_configured(shop: Shop, index: int) -> None:
    """Rules 5 to 8, one after the other."""
    customer, parts = shop.customer(shop.main), [(50 * UNIT, 45)]
    burned = plain(shop, index)
    vip = shop.redeem(shop.customer(shop.closed), "main", parts)
    of_another = shop.ask(burned, refused(885, "invalid_program"), programId="vip")
    shop.play(
        2,
        shop.ask(burned, refused(888, "invalid_configuration"), orgId=shop.unknown),
        of_another,
        shop.ask(burned, refused(885, "invalid_program"), programId="no-such-club"),
    )
    misconfigured, not_allowed = refused(899, "misconfigured_program"), refused(818, "reversal_not_allowed")
    shop.play(
        2,
        shop.ask(shop.redeem(customer, "founders", parts), misconfigured),
        shop.ask(shop.redeem(customer, "staff", parts), misconfigured),
        shop.ask(shop.redeem(customer, "final-sale", parts), not_allowed),
    )
    shop.play(2, shop.ask(vip, not_allowed))


def not_found(shop: Shop, index: int) -> None:
    """Rule 9: unknown, of another order, several on the order, points of what goes by units and the reverse."""
    burned, other = plain(shop, index), plain(shop, index + 1)
    unknown = refused(887, "redemption_not_found")
    shop.play(
        2,
        shop.ask(burned, unknown, redemptionId=f"R-404{index}", orderId=None),
        shop.ask(burned, unknown, redemptionId=None, orderId=f"SO-404{index}"),
        shop.ask(burned, unknown, orderId=other.order_id),
    )
    two = [shop.redeem(other.customer, "main", [(30 * UNIT, 45)], orderId=f"SO-TWO-{index}") for _ in range(2)]
    for burned in two:
        burned.order_id = f"SO-TWO-{index}"
    units = shop.redeem(other.customer, "gifts", [(80 * UNIT, 45)], quantity=2, rewardId="coffee-mug")
    shop.play(
        2,
        shop.ask(two[0], refused(887, "ambiguous_order"), redemptionId=None),
        shop.ask(two[1], two[1].give_back_rest()),
        shop.ask(units, refused(887, "wrong_measure"), pointsToBeReversed="40"),
        shop.ask(two[0], refused(887, "wrong_measure"), quantity=1),
    )


def not_eligible(shop: Shop, index: int) -> None:
    """Rules 10 and 11."""
    burned, other = plain(shop, index), shop.customer(shop.main)
    nobody = {"type": "EMAIL", "value": f"nobody.{index}@example.com"}
    wrong, parts = refused(901, "customer_not_eligible"), [(25 * UNIT, 45)]
    shop.play(
        2,
        shop.ask(burned, wrong, identifier=other.identifiers[index % 6]),
        shop.ask(burned, wrong, identifier=nobody),
        shop.ask(burned, burned.give_back_rest(), identifier=burned.customer.identifiers[3]),
    )
    banned = shop.redeem(shop.customer(shop.main, status=("inactive", "fraud")[index % 2]), "main", parts)
    locked = shop.redeem(shop.customer(shop.main, lockedUntil=shop.at(10)), "main", parts)
    released = shop.redeem(shop.customer(shop.main, lockedUntil=shop.at(-10)), "main", parts)
    shop.play(2, shop.ask(banned, wrong))
    shop.play(2, shop.ask(locked, refused(904, "customer_locked")))
    shop.play(2, shop.ask(released, released.give_back_rest()))


def conditions(shop: Shop, _index: int) -> None:
    """Rule 13: too late (but not where it came back in time), too little, a part where only all is given back."""
    parts = [(70 * UNIT, 45), (12 * UNIT, 90)]
    not_met = refused(827, "conditions_not_met")
    old = shop.redeem(shop.customer(shop.main), "main", parts, days_ago=75)
    outlet = shop.redeem(shop.customer(shop.main), "outlet", parts)
    market = shop.redeem(shop.customer(shop.market), MARKET, parts)
    shop.play(
        2,
        shop.ask(old, not_met, returnedAt=shop.at(-1)),
        shop.ask(old, old.give_back_rest(), returnedAt=shop.at(-20)),
    )
    shop.play(2, shop.ask(outlet, not_met, pointsToBeReversed="12"), shop.ask(outlet, outlet.give_back_rest()))
    shop.play(
        2,
        shop.ask(market, not_met, pointsToBeReversed="12"),
        shop.ask(market, market.give_back(70 * UNIT), pointsToBeReversed="70"),
        shop.ask(market, market.give_back(12 * UNIT), pointsToBeReversed="12"),
    )


def limit(shop: Shop, index: int) -> None:
    """Rule 14: three reversals in thirty days."""
    burned = plain(shop, index, "vip", lots=3)
    parts = [shop.ask(burned, burned.give_back(7 * UNIT), pointsToBeReversed="7") for _ in range(3)]
    shop.play(2, *parts, shop.ask(burned, refused(903, "reversal_limit_exceeded")))

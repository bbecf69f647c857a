"""The sample's records that cannot be read, the feeds, and the returns that come before what they are about.

Each scenario has customers of its own and says what must come of each of its records.
"""

from __future__ import annotations

from service.sample_shop import (
    BOOKED,
    CUSTOMERS,
    ISSUED,
    REDEEMED,
    RETURNS,
    UNIT,
    WAITS,
    Burned,
    Data,
    Event,
    Shop,
    dead,
    enveloped,
    refused,
)

LONGEST_VALUE = 1024 * 1024  # what max_record_bytes is by default


def unreadable(shop: Shop, index: int) -> None:
    """Each reason for the dead letters that a producer can give."""
    good: Data = {"orgId": shop.main, "orderId": f"SO-X{index}"}
    text, number = str(good).replace("'", '"').encode(), shop.number("event")
    binary, structured = (("ce_specversion", b"1.0"),), (("content-type", b"application/cloudevents+json"),)
    old = enveloped("structured", RETURNS, number, good)[0].replace(b'"1.0"', b'"0.3"')
    values: list[tuple[bytes | None, tuple[tuple[str, bytes], ...], str]] = [
        (text[:-1], (), "not_json"),
        (b"\xef\xbb\xbf" + text, (), "not_json"),
        (None, (), "not_json"),
        (b"[1, 2, 3]", (), "not_an_object"),
        (b'{"specversion":"1.0","id":"1","source":"/shop","type":"order.returned"}', structured, "not_an_object"),
        (text.replace(str(shop.main).encode(), b"0"), (), "no_org"),
        (b'{"orderId": "SO-1"}', (), "no_org"),
        (text[:-1] + b', "note": "' + b"x" * LONGEST_VALUE + b'"}', (), "too_large"),
        (text, binary, "bad_envelope"),
        (old, structured, "bad_envelope"),
    ]
    value, headers, reason = values[index % len(values)]
    shop.play(2, Event(RETURNS, f"SO-X{index}".encode(), value, headers, dead(reason)))


def parked(shop: Shop, index: int) -> None:
    """A return that comes before its redemption waits for it, and is then decided by all the rules."""
    customer = shop.customer(shop.market)
    burned, data = shop.coming(customer, [(60 * UNIT, 45), (40 * UNIT, 90)], named=index % 2 == 0)
    if index % 3 == 0:
        first = shop.ask(burned, burned.give_back_rest(), waits=True)
    elif index % 3 == 1:
        points = {"pointsToBeReversed": "75"}
        first = shop.ask(burned, burned.give_back(75 * UNIT), waits=True, redemptionId=None, **points)
    else:
        first = shop.ask(burned, refused(817, "insufficient_points"), waits=True, pointsToBeReversed="100.5")
    shop.play(1, first)
    shop.play(3, shop.event(REDEEMED, customer.customer_id, data, BOOKED))


def waits_for_points(shop: Shop, index: int) -> None:
    """A return waits for its redemption, and that for its points."""
    customer = shop.customer(shop.market)
    burned, data = shop.coming(customer, [(90 * UNIT, None)], named=False, issued=False)
    who = customer.customer_id
    lot: Data = {"orgId": shop.market, "customerId": who, "lotId": f"L-NEW-{index}", "points": "120"}
    shop.play(1, shop.ask(burned, burned.give_back_rest(), waits=True))
    shop.play(1, shop.event(REDEEMED, who, data, BOOKED, waits=True))
    shop.play(3, shop.event(ISSUED, who, lot, BOOKED))


def changed_customer(shop: Shop, _index: int) -> None:
    """Returns of customers who were unlocked, banned, or gave their telephone to another, just before."""
    parts = [(35 * UNIT, 45)]
    locked = shop.redeem(shop.customer(shop.main, lockedUntil=shop.at(10)), "main", parts)
    banned, before, after = (shop.redeem(shop.customer(shop.main), "main", parts) for _ in range(3))
    phone = before.customer.identifiers[0]
    changes: list[tuple[Burned, Data]] = [
        (locked, {"lockedUntil": None}),
        (banned, {"status": "fraud"}),
        (after, {"identifiers": [phone]}),
    ]
    for burned, change in changes:
        who = burned.customer.customer_id
        shop.play(1, shop.event(CUSTOMERS, who, {"orgId": shop.main, "customerId": who, **change}, BOOKED))
    wrong = refused(901, "customer_not_eligible")
    shop.play(3, shop.ask(locked, locked.give_back_rest()))
    shop.play(3, shop.ask(banned, wrong))
    shop.play(3, shop.ask(before, wrong, identifier=phone))
    shop.play(3, shop.ask(after, after.give_back_rest(), identifier=phone))


def other_feeds(shop: Shop, index: int) -> None:
    """Feed records that change nothing, that never can be booked, and one that still waits at the end."""
    customer = shop.customer(shop.main)
    lot_id = shop.lot(customer, "main", 80 * UNIT, days=45)
    who: Data = {"orgId": shop.main, "customerId": customer.customer_id}
    lot: Data = {**who, "lotId": lot_id, "programId": "main"}
    key = customer.customer_id
    shop.play(1, shop.event(ISSUED, key, {**lot, "points": "80"}, BOOKED))
    shop.play(1, shop.event(ISSUED, key, {**lot, "points": "90"}, dead("not_bookable")))
    shop.play(1, shop.event(REDEEMED, key, {**who, "redemptionId": f"R-BAD-{index}"}, dead("malformed_feed")))
    shop.play(1, shop.event(CUSTOMERS, key, {**who, "orgId": shop.unknown}, WAITS, waits=True))

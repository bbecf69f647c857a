"""The demo's sample: a shop's program to load, then its returns, every way that the contract knows at least once.

It comes in three acts. The first brings what must be known, or must wait, before the last; the second is the shop's
day; the last brings what the first waits for, and returns that depend on what the first changed. Within an act, records
that depend on each other have the same key, so that they lie on one partition in their order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from service import sample_feeds as feeds
from service import sample_returns as returns
from service.sample_shop import MARKET, ORGS, Data, Event, Shop

ACTS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Sample:
    """`lines`: to load; `contradictory`: the program whose rules are to be spoiled afterwards, past `load`; `acts`: the
    records to produce, act by act."""

    lines: list[Data]
    contradictory: tuple[int, str]
    orgs: range
    acts: tuple[list[Event], ...]

    @property
    def events(self) -> list[Event]:
        return [event for act in self.acts for event in act]


def build(now: datetime, first_org: int) -> Sample:
    """The same sample for the same arguments; times lie around `now`, ids of orgs from `first_org` on."""
    shop = Shop(now, first_org)
    _configure(shop)
    for scenario, times in SCENARIOS.items():
        for index in range(times):
            scenario(shop, index)
    mixer = random.Random(1881)  # noqa: S311 - the same mixture each time
    acts = tuple(_mixed(shop.strands[act], mixer) for act in ACTS)
    return Sample(shop.lines, (shop.main, "staff"), range(first_org, first_org + ORGS), acts)


def _mixed(strands: list[list[Event]], mixer: random.Random) -> list[Event]:
    """All strands interwoven, each in its own order."""
    turns = [index for index, strand in enumerate(strands) for _ in strand]
    mixer.shuffle(turns)
    rest = [iter(strand) for strand in strands]
    return [next(rest[index]) for index in turns]


def _configure(shop: Shop) -> None:
    shop.org(shop.main)
    shop.program(shop.main, "main", default=True, decimals=2, reversalWindowDays=60)
    shop.program(
        shop.main, "vip", maxReversals={"count": 3, "days": 30}, expiredLots={"policy": "extend", "graceDays": 30}
    )
    shop.program(shop.main, "outlet", decimals=0, allowPartial=False)
    shop.program(shop.main, "gifts", decimals=2)
    shop.program(shop.main, "founders", live=False)
    shop.program(shop.main, "staff")
    shop.program(shop.main, "final-sale", reversalAllowed=False)
    shop.reward(shop.main, "tote-bag", maxTotal=60, redeemedCount=60, status="OUT_OF_STOCK")
    shop.reward(shop.main, "coffee-mug", maxTotal=500, redeemedCount=210)
    shop.org(shop.market)
    shop.program(shop.market, MARKET, default=True, parkUnknownSeconds=600, minimumPoints="20")
    shop.program(shop.market, "stars")
    shop.org(shop.closed, reversalEnabled=False)
    shop.program(shop.closed, "main")


SCENARIOS: dict[Callable[[Shop, int], None], int] = {
    returns.full_return: 96,
    returns.contracts_example: 10,
    returns.partial_returns: 24,
    returns.by_order: 24,
    returns.by_unit: 18,
    returns.imported: 12,
    returns.duplicate: 18,
    returns.reused_key: 10,
    returns.broken_shape: 6,
    returns.too_fine: 4,
    returns.not_configured: 3,
    returns.not_found: 4,
    returns.not_eligible: 4,
    returns.conditions: 4,
    returns.limit: 4,
    feeds.unreadable: 10,
    feeds.parked: 6,
    feeds.waits_for_points: 2,
    feeds.changed_customer: 2,
    feeds.other_feeds: 1,
}

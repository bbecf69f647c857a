"""`make bench`: the service beside what others would write and beside the limits of the machine.

One embedded pair; every contestant reads the same prepared stream (one in ten a duplicate) against a fresh copy of the
same loaded database, in turn, several rounds interleaved; after each the audit looks at what it did. Everything is
durable for all: fsync, full_page_writes, synchronous_commit and acks=all are on. Medians over the rounds go to
build/bench.json. QUICK: fewer events, one round, no long runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from service import embedded
from tests.bench.arena import (
    ORG,
    SERVICE,
    Arena,
    Site,
    broken,
    lines,
    measure,
    produce,
    resident_mb,
    returns,
    say,
    stop,
)
from tests.bench.latency import latency
from tests.bench.limit import limit
from tests.bench.plot import plot

STAGES = ("decode", "lock", "load", "decide", "write", "commit")
BATCH = 500  # the service's batch, for the limit
RATE = 1000  # events per second at which latency is measured

PEERS = {
    "naive": (sys.executable, "-m", "tests.bench.peers.naive"),
    "careful": (sys.executable, "-m", "tests.bench.peers.careful"),
    "echo": (sys.executable, "-m", "tests.bench.peers.echo"),
}
BARS = {
    "naive": (">=", 25.0), "careful": (">=", 3.5), "limit": (">=", 0.5), "two_processes": (">=", 0.95),
    "latency_p50": ("<=", 3.0), "latency_p99": ("<=", 3.0), "growth": (">=", 0.8), "hot": (">=", 0.5),
    "feeds": (">=", 0.5),
}  # fmt: skip


@dataclass
class Doses:
    """How much of everything."""

    events: int = 100_000
    rounds: int = 5
    naive_seconds: float = 15
    careful_seconds: float = 15
    latency_seconds: float = 20
    memory_events: int = 1_000_000
    stored: int = 10_000_000
    hot_redemptions: int = 20_000
    feeds: int = 50_000


QUICK = Doses(
    events=30_000, rounds=1, naive_seconds=6, careful_seconds=8, latency_seconds=8, memory_events=0, stored=0,
    hot_redemptions=10_000, feeds=15_000,
)  # fmt: skip


@dataclass
class Figures:
    """What was measured: rates of every round by contestant, and single figures."""

    rates: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    others: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Of the rounds."""
        return statistics.median(self.rates[name])

    def ratio(self, one: str, other: str) -> float:
        """The median over the rounds of one rate by the other, each of the same round."""
        return statistics.median([a / b for a, b in zip(self.rates[one], self.rates[other], strict=True)])


class Bench:
    """One run of everything."""

    def __init__(self, arena: Arena, doses: Doses) -> None:
        self.arena = arena
        self.doses = doses
        self.figures = Figures()

    async def race(
        self,
        name: str,
        site: Site,
        command: tuple[str, ...],
        expected: int,
        *,
        processes: int = 1,
        seconds: float = 600.0,
        audited: bool = True,
    ) -> float:
        """Start a contestant on a site, measure it, stop it, audit it."""
        for _ in range(processes):
            self.arena.start(site, command)
        rate, _ = await measure(site, expected, seconds, settle=3.0 if processes > 1 else 0.0)
        for process in site.processes:
            await stop(process)
        faults = await broken(site.url, lanes=command == SERVICE) if audited else []
        self.figures.faults += [f"{name}: {fault}" for fault in faults]
        say(f"  {name}: {rate:,.0f} events/s{'' if not faults else ', BROKEN: ' + ', '.join(faults)}")
        return rate

    async def rounds(self, stream: str) -> None:
        """Every contestant in turn, again and again."""
        events, rates = self.doses.events, self.figures.rates
        for number in range(self.doses.rounds):
            say(f"round {number + 1} of {self.doses.rounds}")
            async with self.arena.site("loaded", {"order_returned": stream}) as site:
                rates["service"].append(await self.race("service", site, SERVICE, events))
                for connections in (1, 2):
                    name = f"limit_{connections}"
                    async with self.arena.site("loaded", {"order_returned": stream}) as copy:
                        rates[name].append(await limit(site.url, copy.url, connections, BATCH))
                    say(f"  {name}: {rates[name][-1]:,.0f} events/s")
            async with self.arena.site("loaded", {"order_returned": stream}) as site:
                rates["two_processes"].append(await self.race("two processes", site, SERVICE, events, processes=2))
            for name, seconds in (("naive", self.doses.naive_seconds), ("careful", self.doses.careful_seconds)):
                async with self.arena.site("loaded", {"order_returned": stream}) as site:
                    rates[name].append(await self.race(name, site, PEERS[name], events, seconds=seconds))

    async def stages(self, stream: str) -> None:
        """A run of the service that is not in the race, for what its log tells: µs by stage, start, memory."""
        async with self.arena.site("loaded", {"order_returned": stream}) as site:
            started = time.monotonic()
            process, log = self.arena.start(site, SERVICE)
            _, first = await measure(site, self.doses.events, 600)
            self.figures.others["start_seconds"] = round(first - started, 2)
            self.figures.others["rss_mb"] = round(resident_mb(process))
            await stop(process)
            self.figures.others["microseconds_per_event_by_stage"] = stages_of(log)

    async def latencies(self) -> None:
        """Of the service and of echo, at the same rate."""
        events = int(RATE * self.doses.latency_seconds)
        for name, command in (("service", SERVICE), ("echo", PEERS["echo"])):
            async with self.arena.site("loaded", {}) as site:
                self.arena.start(site, command)
                measured = await latency(site.settings, list(returns(events)), RATE, RATE * 2)
                self.figures.others[f"latency_ms_{name}"] = {
                    "p50": round(measured.p50, 1),
                    "p99": round(measured.p99, 1),
                }
                say(f"  latency of {name} at {RATE}/s: p50 {measured.p50:.1f} ms, p99 {measured.p99:.1f} ms")

    async def hot(self) -> None:
        """All events on one customer, beside as many spread over customers."""
        events = self.doses.hot_redemptions
        await self.arena.template("hot", lines(events, customers=1, per_lot=10))
        for name, template, customers in (("hot", "hot", 1), ("spread", "loaded", None)):
            stream = await self.arena.topic(f"{name}.returned", returns(events, customers=customers))
            async with self.arena.site(template, {"order_returned": stream}) as site:
                self.figures.rates[name].append(await self.race(name, site, SERVICE, events))

    async def feeds(self) -> None:
        """`points.issued`, then `points.redeemed`."""
        count = self.doses.feeds
        issued = [
            (str(number).encode(), json.dumps({
                "orgId": ORG, "customerId": number % 10_000 + 1, "lotId": f"N-{number}", "points": "100",
                "expiresAt": "2035-01-31T00:00:00Z",
            }).encode())
            for number in range(count)
        ]  # fmt: skip
        redeemed = [
            (str(number).encode(), json.dumps({
                "orgId": ORG, "customerId": number % 10_000 + 1, "redemptionId": f"B-{number}", "orderId": f"SO-B-{number}",
                "points": "60", "lots": [{"lotId": f"N-{number}", "points": "60"}],
            }).encode())
            for number in range(count)
        ]  # fmt: skip
        async with self.arena.site("loaded", {}) as site:
            topics = site.settings.topics
            await produce(site.settings, topics.points_issued, issued)
            self.arena.start(site, SERVICE)
            self.figures.rates["issued"].append(await booked(site, topics.points_issued, count))
            for process in site.processes:
                await stop(process)
            site.processes.clear()
            await produce(site.settings, topics.points_redeemed, redeemed)
            self.arena.start(site, SERVICE)
            self.figures.rates["redeemed"].append(await booked(site, topics.points_redeemed, count))
            self.figures.faults += [f"feeds: {fault}" for fault in await broken(site.url)]
        for name in ("issued", "redeemed"):
            say(f"  points.{name}: {self.figures.median(name):,.0f} events/s")

    async def memory(self) -> None:
        """Resident memory over a long stream: it must not grow."""
        events = self.doses.memory_events
        await self.arena.template("long", lines(events))
        stream = await self.arena.topic("long.returned", returns(events))
        async with self.arena.site("long", {"order_returned": stream}) as site:
            process, _ = self.arena.start(site, SERVICE)
            samples: list[float] = []
            measuring = asyncio.create_task(measure(site, events, 3600))
            while not measuring.done():
                await asyncio.sleep(2)
                samples.append(resident_mb(process, "VmRSS"))
            rate, _ = await measuring
            self.figures.others["rss_mb"] = round(resident_mb(process))
            quarter = max(1, len(samples) // 4)
            self.figures.others["rss_mb_first_and_last_quarter"] = [
                round(statistics.median(samples[:quarter])), round(statistics.median(samples[-quarter:])),
            ]  # fmt: skip
            say(f"  {events:,} events: {rate:,.0f}/s, at most {self.figures.others['rss_mb']} MB")

    async def growth(self, stream: str) -> None:
        """With many stored reversals, beside few."""
        for name, stored in (("few", 100_000), ("many", self.doses.stored)):
            async with self.arena.site("loaded", {"order_returned": stream}) as site:
                await fill(site.url, stored)
                rate = await self.race(name, site, SERVICE, self.doses.events, audited=False)
                self.figures.rates[name].append(rate)

    def report(self, load_lines_per_second: float) -> dict[str, Any]:
        """All figures, as they go to the file."""
        figures = self.figures
        ratios = {
            "naive": figures.ratio("service", "naive"),
            "careful": figures.ratio("service", "careful"),
            "limit": figures.median("service") / max(figures.median("limit_1"), figures.median("limit_2")),
            "two_processes": figures.ratio("two_processes", "service"),
            "hot": figures.ratio("hot", "spread"),
            "feeds": min(figures.median("issued"), figures.median("redeemed")) / figures.median("service"),
        }
        for part in ("p50", "p99"):
            ratios[f"latency_{part}"] = (
                figures.others["latency_ms_service"][part] / figures.others["latency_ms_echo"][part]
            )
        if figures.rates["many"]:
            ratios["growth"] = figures.ratio("many", "few")
        return {
            "events": self.doses.events,
            "rounds": self.doses.rounds,
            "events_per_second": {name: round(figures.median(name)) for name in figures.rates if figures.rates[name]},
            "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
            "load_lines_per_second": round(load_lines_per_second),
            **figures.others,
            "broken_invariants": figures.faults,
        }


async def booked(site: Site, topic: str, expected: int) -> float:
    """Feed records taken per second, from the first batch to the last, by what the lanes say."""
    connection = await asyncpg.connect(site.url)
    statement = "select coalesce(sum(taken), 0)::bigint from lane where topic = $1"
    started: tuple[float, int] | None = None
    deadline = time.monotonic() + 300
    try:
        while time.monotonic() < deadline:
            taken, now = await connection.fetchval(statement, topic), time.monotonic()
            if taken and started is None:
                started = now, taken
            if started is not None and taken >= expected:
                return float((taken - started[1]) / max(now - started[0], 0.001))
            await asyncio.sleep(0.05)
    finally:
        await connection.close()
    raise SystemExit(f"{topic} was not taken within 300 s")


FILL = """
with stored as (
    select n, (lpad(to_hex(n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid as id, n % 100000 + 1 as customer_id
    from generate_series($1::bigint, $2::bigint - 1) as n
), entered as (
    insert into journal
    select $3::bigint, id, 'reversal', '2024-01-01'::timestamptz + n * interval '1 s', customer_id, 'O-' || n,
        array['redeemed', 'held', 'held'], array['O-' || n, 'P-' || n || '-1', 'P-' || n || '-2'], array[-150500, 100000, 50500]
    from stored
)
insert into reversal
select $3::bigint, id, 'RMA-' || n || '/0', customer_id, 'main', 'O-' || n, id, 150500, 150500, 0, null, 1,
    '2024-01-01'::timestamptz + n * interval '1 s', 1, n, id, '\\x00112233445566778899aabbccddeeff', repeat('x', 750)
from stored
"""


async def fill(url: str, stored: int) -> None:
    """Reversals and their entries as of years before, of the stream's customers; their keys lie among the stream's."""
    connection = await asyncpg.connect(url)
    try:
        for start in range(0, stored, 500_000):
            await connection.execute(FILL, start, min(start + 500_000, stored), ORG)
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()


def stages_of(log: Path) -> dict[str, float]:
    """Microseconds per event by stage, from the log's lines."""
    seconds: Counter[str] = Counter()
    records = 0
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event.get("event") == "batch.decided" and event["records"]:
            seconds.update(event["seconds"])
            records += event["records"]
    return {stage: round(seconds[stage] / records * 1e6, 1) for stage in STAGES}


def show(report: dict[str, Any]) -> None:
    """The table."""
    rates = report["events_per_second"]
    print(f"\nmedians of {report['rounds']} round(s) of {report['events']:,} returns")
    for name in sorted(rates, key=lambda name: -rates[name]):
        print(f"  {name:<16}{rates[name]:>10,} events/s{rates[name] / rates['service']:>9.2f} x the service")
    print("µs per event by stage (lanes overlap, so the sum exceeds the time per event):")
    for stage, microseconds in report["microseconds_per_event_by_stage"].items():
        print(f"  {stage:<16}{microseconds:>10,}")
    print("ratios, and the bar for each")
    for name, ratio in report["ratios"].items():
        sign, bar = BARS[name]
        holds = ratio >= bar if sign == ">=" else ratio <= bar
        print(f"  {name:<16}{ratio:>10,.2f}   {sign} {bar:<6}{'holds' if holds else 'MISSED'}")
    for name in (
        "latency_ms_service", "latency_ms_echo", "rss_mb", "rss_mb_first_and_last_quarter", "start_seconds",
        "load_lines_per_second",
    ):  # fmt: skip
        if name in report:
            print(f"  {name.replace('_', ' '):<32}{report[name]}")
    found = report["broken_invariants"]
    print("invariants: " + (", ".join(found) + " BROKEN" if found else "all hold"))


async def everything(arena: Arena, doses: Doses) -> dict[str, Any]:
    """All of it, in order."""
    bench = Bench(arena, doses)
    say("loading")
    rate = await arena.template("loaded", lines(doses.events))
    stream = await arena.topic("prepared.returned", returns(doses.events))
    await bench.stages(stream)  # first: no contestant meets a broker and a Postgres that are still cold
    await bench.rounds(stream)
    await bench.latencies()
    await bench.hot()
    await bench.feeds()
    if doses.stored:
        await bench.growth(stream)
    if doses.memory_events:
        await bench.memory()
    return bench.report(rate)


def main() -> int:
    """Run it; 0 only where every invariant holds afterwards."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer events, one round, no long runs")
    parser.add_argument("--events", type=int, help="returns of the prepared stream (default 100,000; quick 30,000)")
    parser.add_argument("--rounds", type=int, help="how often each contestant runs (default 5; quick 1)")
    arguments = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a new topic has no leader for a moment
    doses = QUICK if arguments.quick else Doses()
    doses.events = arguments.events or doses.events
    doses.rounds = arguments.rounds or doses.rounds
    with tempfile.TemporaryDirectory() as folder, embedded.pair() as pair:
        report = asyncio.run(everything(Arena(pair, Path(folder)), doses))
    build = Path("build")
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(report, build / "bench.png")
    show(report)
    return 1 if report["broken_invariants"] else 0


if __name__ == "__main__":
    sys.exit(main())

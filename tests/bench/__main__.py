"""`make bench`: how many returns per second one process of the service decides, and where the microseconds go.

A real Kafka and a real Postgres are started, 100,000 redemptions are loaded with the real `load`, as many returns (one
in ten a duplicate) are produced, and only then is the service started, so that it runs at full speed from the first
record on. The clock runs from the first outcome that can be read to the last one. Everything is durable: fsync,
full_page_writes, synchronous_commit and acks=all are on. The audit closes the run. Figures go to build/bench.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service import embedded
from service.audit import audit
from service.load import load
from service.migrate import migrate
from service.session import session
from service.settings import Settings
from service.topics import create

ORG = 100458
STAGES = ("decode", "fence", "load", "decide", "write", "commit")


def write_lines(path: Path, redemptions: int) -> int:
    """A file for `load`: one customer, two lots and one redemption of them for each redemption asked for."""
    with path.open("w") as file:
        print(json.dumps({"kind": "org", "orgId": ORG}), file=file)
        print(json.dumps({"kind": "program", "orgId": ORG, "programId": "main"}), file=file)
        for number in range(1, redemptions + 1):
            owner = {"orgId": ORG, "customerId": number}
            identifiers = [{"type": "PHONE", "value": f"+65{number:08d}"}]
            lots = [{"lotId": f"L-{number}-{part}", "points": "100"} for part in (1, 2)]
            lines = [{"kind": "customer", **owner, "identifiers": identifiers}]
            lines += [
                {"kind": "lot", **owner, **lot, "remaining": "0", "expiresAt": "2035-01-31T00:00:00Z"} for lot in lots
            ]
            redemption = {"redemptionId": f"R-{number}", "orderId": f"SO-{number}", "points": "200", "lots": lots}
            lines.append({"kind": "redemption", **owner, **redemption, "redeemedAt": "2026-11-01T00:00:00Z"})
            for line in lines:
                print(json.dumps(line), file=file)
    return 4 * redemptions + 2


def returns(events: int, chance: random.Random) -> list[tuple[bytes, bytes]]:
    """Keys and values: one in ten repeats a return of the last few hundred."""
    made: list[tuple[bytes, bytes]] = []
    for number in range(1, events + 1):
        if number > 1 and chance.random() < 0.1:
            made.append(made[chance.randrange(max(0, len(made) - 400), len(made))])
            continue
        value = {
            "orgId": ORG, "orderId": f"SO-{number}", "returnId": f"RMA-{number}", "redemptionId": f"R-{number}",
            "pointsToBeReversed": "150.5", "identifier": {"type": "PHONE", "value": f"+65 {number:08d}"},
            "idempotencyKey": f"RMA-{number}/1", "reason": "size does not fit", "programId": "main",
            "returnedAt": "2026-11-20T09:30:00+08:00",
        }  # fmt: skip
        made.append((str(number).encode(), json.dumps(value).encode()))
    return made


async def produce(bootstrap_servers: str, topic: str, records: list[tuple[bytes, bytes]]) -> None:
    """Append all records."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5, max_batch_size=256 * 1024)
    await producer.start()
    try:
        sent = [await producer.send(topic, value, key=key) for key, value in records]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def await_outcomes(settings: Settings, expected: int, process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """When the first outcome and when the last one could be read."""
    topics = (settings.topics.reversal_completed, settings.topics.reversal_failed)
    partitions = [TopicPartition(topic, number) for topic in topics for number in range(settings.topics.partitions)]
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await consumer.start()
    first = 0.0
    deadline = time.monotonic() + 600
    try:
        while time.monotonic() < deadline:
            done = sum((await consumer.end_offsets(partitions)).values())
            now = time.monotonic()
            first = first or (now if done else 0.0)
            if sys.stderr.isatty():
                print(f"\r{done:,} of {expected:,} outcomes", end="", file=sys.stderr, flush=True)
            if done >= expected:
                return first, now
            if process.poll() is not None:
                raise SystemExit(f"the service ended with {process.returncode}")
            await asyncio.sleep(0.05)
    finally:
        await consumer.stop()
    raise SystemExit("the outcomes did not come within 600 s")


def peak_memory_mb(pid: int) -> float:
    """The greatest resident memory of a process so far, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def stages_of(log: Path) -> tuple[dict[str, float], int, float]:
    """Microseconds per event by stage, the number of batches, and their mean size, from the log's lines."""
    seconds: Counter[str] = Counter()
    records = batches = 0
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event.get("event") == "batch.decided" and event["records"]:
            seconds.update(event["seconds"])
            records += event["records"]
            batches += 1
    return {stage: round(seconds[stage] / records * 1e6, 1) for stage in STAGES}, batches, records / batches


async def broken(database_url: str) -> list[str]:
    """The names of the invariants that do not hold."""
    connection = await asyncpg.connect(database_url)
    try:
        return [finding.check.name async for finding in audit(connection, None, 5) if finding.count]
    finally:
        await connection.close()


async def measure(events: int, folder: Path, settings: Settings) -> dict[str, Any]:
    """One run from loaded data to the last outcome; returns the figures."""
    url, servers = settings.database_url.get_secret_value(), settings.kafka.bootstrap_servers
    await migrate(url)
    await create(settings)
    lines = write_lines(folder / "load.jsonl", events)
    started = time.monotonic()
    async with session(settings) as connection:
        summary = await load(connection, folder / "load.jsonl")
    if not summary.booked:
        raise SystemExit(f"the bench's own file was refused: {summary.faults}")
    load_seconds = time.monotonic() - started
    await produce(servers, settings.topics.order_returned, returns(events, random.Random(5)))
    log = folder / "service.log"
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "service", "run"], stderr=file, stdout=file
        )
    try:
        first, last = await await_outcomes(settings, events, process)
        memory_mb = peak_memory_mb(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    stages, batches, mean = stages_of(log)
    faults = await broken(url)
    return {
        "events": events,
        "events_per_second": round(events / (last - first)),
        "start_seconds": round(first - started, 2),
        "microseconds_per_event_by_stage": stages,
        "batches": batches,
        "mean_batch_records": round(mean),
        "peak_memory_mb": round(memory_mb),
        "load_lines_per_second": round(lines / load_seconds),
        "broken_invariants": faults,
    }


def main() -> int:
    """Run it; 0 only where every invariant holds afterwards."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--events", type=int, default=100_000, help="how many returns (default 100,000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded.pair() as pair:
        os.environ["REVERSAL_DATABASE_URL"] = pair.database_url
        os.environ["REVERSAL_KAFKA__BOOTSTRAP_SERVERS"] = pair.bootstrap_servers
        os.environ["REVERSAL_HTTP_PORT"] = "0"
        os.environ["REVERSAL_LOG_FORMAT"] = "json"
        figures = asyncio.run(measure(arguments.events, Path(folder), Settings()))
    build = Path("build")
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n{figures['events_per_second']:,} events/s over {figures['events']:,} returns, one process")
    print("µs per event by stage (lanes overlap, so the sum exceeds the time per event):")
    for stage, microseconds in figures["microseconds_per_event_by_stage"].items():
        print(f"  {stage:<8}{microseconds:>8}")
    for name in ("mean_batch_records", "start_seconds", "peak_memory_mb", "load_lines_per_second"):
        print(f"{name.replace('_', ' '):<24}{figures[name]:>10,}")
    print(
        "invariants: "
        + (", ".join(figures["broken_invariants"]) + " BROKEN" if figures["broken_invariants"] else "all hold")
    )
    return 1 if figures["broken_invariants"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""A record whose bytes rotted on the broker's disk goes to the dead letters alone; its neighbours are decided."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from service import embedded
from service.migrate import migrate
from service.settings import Settings
from service.topics import create
from tests.stack import Sending, eventually, produce, read_all, run

RECORDS, ROTTEN = 6, 3
LANE = "select next_offset, failed, dead, taken from lane where topic = 'order.returned' and partition = 0"


@pytest.fixture
def pair() -> Iterator[embedded.Pair]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        with embedded.pair(Path(folder) / "pair") as servers:
            yield servers


def rot(pair: embedded.Pair) -> None:
    """Change one byte of one record on the broker's disk."""
    pair.kafka.stop()
    (log,) = pair.kafka.directory.glob("**/order.returned-0/*.log")
    content = bytearray(log.read_bytes())
    content[content.index(f"MARK{ROTTEN}".encode())] = ord("N")
    log.write_bytes(content)
    pair.kafka.start()


async def everything_taken(database_url: str) -> asyncpg.Record | None:
    connection = await asyncpg.connect(database_url)
    try:
        row = await connection.fetchrow(LANE)
    finally:
        await connection.close()
    return row if row is not None and row["next_offset"] == RECORDS else None


@pytest.mark.embedded
def test_only_the_rotten_record_is_passed_over(pair: embedded.Pair, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "REVERSAL_DATABASE_URL": pair.database_url,
        "REVERSAL_KAFKA__BOOTSTRAP_SERVERS": pair.bootstrap_servers,
        "REVERSAL_HTTP_PORT": "0",
    }
    settings = Settings(database_url=pair.database_url, kafka={"bootstrap_servers": pair.bootstrap_servers})
    run(migrate(pair.database_url))
    run(create(settings))
    for number in range(RECORDS):
        value = json.dumps({"orgId": 1, "orderId": f"MARK{number}"}).encode()
        run(produce(pair.bootstrap_servers, "order.returned", [Sending(value, b"k", [("h", b"x")], 0)]))
    rot(pair)
    assert pair.bootstrap_servers == environment["REVERSAL_KAFKA__BOOTSTRAP_SERVERS"]
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "service", "run"], env=environment, stdout=log, stderr=log)
    try:
        lane = asyncio.run(eventually(lambda: everything_taken(pair.database_url), 60))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert lane is not None
    assert (lane["failed"], lane["dead"], lane["taken"]) == (RECORDS - 1, 1, RECORDS)
    (letter,) = run(read_all(pair.bootstrap_servers, "order.returned.dlq"))
    assert (letter.key, letter.value, letter.header("h")) == (b"k", None, "x")
    assert (letter.header("dlq.reason"), letter.header("dlq.offset")) == ("corrupt", str(ROTTEN))

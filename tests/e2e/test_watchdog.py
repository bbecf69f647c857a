"""What hangs for good ends the process, with its reason and an exit code that has a supervisor start it anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.process import site
from tests.stack import Stack

DEAF = """
import time
from service import watchdog
from service.health import Health
from service.logs import set_up

set_up(style="json")
watchdog.HANG_SECONDS = 2
watchdog.Watchdog(Health(), lambda: None).start()
time.sleep(60)
"""
# The task in which aiokafka keeps the process in its group ends, as by an error of aiokafka's own.
COORDINATION = """
import asyncio, sys
from service import app, consumer
from service.logs import set_up
from service.settings import Settings

start = consumer.Intake.start

async def start_and_break(intake):
    await start(intake)
    asyncio.get_running_loop().call_later(0.5, intake.consumer._coordinator._coordination_task.cancel)
    return intake

set_up(style="json")
consumer.Intake.start = start_and_break
sys.exit(asyncio.run(app.run(Settings())))
"""


def broken(script: str, environment: dict[str, str] | None = None) -> str:
    """Runs it to its end, which it must come to by itself; the reason that it gives."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line["event"] == "service.broken"]
    assert line["level"] == "error"
    return str(line["reason"])


def test_a_loop_that_does_not_turn() -> None:
    assert "loop" in broken(DEAF)


def test_aiokafka_left_the_group_for_good(stack: Stack, template_database: str) -> None:
    with site(stack, template_database, partitions=1) as place:
        assert "coordination" in broken(COORDINATION, place.environment(http_port="0"))

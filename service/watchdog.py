"""Ends the process when something hangs that cannot be mended in place, so that a supervisor starts it anew.

A server that is away is waited for, however long. What hangs although both servers answer does so for good: aiokafka's
group coordination ended or does not come back from a rebalance, a lane stays in doubt, the loop does not turn.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import asyncpg

from service.consumer import WORLD, Intake, end_of
from service.health import Health
from service.logs import log, words

HANG_SECONDS = 60.0  # longer than every time-out and backoff of the service together
LOOK_SECONDS = 1.0
END_SECONDS = 30.0  # a process that is to end may take so long over it


class Watchdog:
    """Looks after the intake from the loop, and after the loop from a thread. `broken`: why the process has to end."""

    def __init__(self, health: Health, end: Callable[[], None]) -> None:
        self.health = health
        self.broken: str | None = None
        self._end = end
        self._well_since = time.monotonic()  # since when both servers answer
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch_the_loop, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def look(self, intake: Intake, *, well: bool) -> None:
        """To be called every few seconds; `well`: both servers answer, and have what is asked of them."""
        now = time.monotonic()
        if not well:
            self._well_since = now
        seconds = max(HANG_SECONDS, 2 * intake.settings.publish_deadline_seconds)
        reason = hanging(intake, seconds, well_seconds=now - self._well_since)
        if reason is not None:
            self.give_up(reason)

    def give_up(self, reason: str) -> None:
        """End the process, in order where that can be."""
        if self.broken is None:
            self.broken = reason
            log.error("service.broken", reason=reason)
            timer = threading.Timer(END_SECONDS, os._exit, (1,))  # however it hangs
            timer.daemon = True
            timer.start()
            self._end()

    def _watch_the_loop(self) -> None:
        beat, looks = self.health.beat, 0
        while not self._stopped.wait(LOOK_SECONDS):
            # Looks are counted, not seconds: in a process that was frozen both stand still.
            beat, looks = (beat, looks + 1) if beat == self.health.beat else (self.health.beat, 0)
            if looks * LOOK_SECONDS >= HANG_SECONDS:
                log.error("service.broken", reason=f"the loop has not turned for {HANG_SECONDS:g} s")
                os._exit(1)


def hanging(intake: Intake, seconds: float, *, well_seconds: float) -> str | None:
    """What does not go on in this process though both servers have answered for `well_seconds`; None: nothing."""
    if intake.stopping:
        return None
    coordination = intake.consumer._coordinator._coordination_task  # aiokafka tells in no other way
    if coordination.done():
        return f"the coordination of the group has ended: {end_of(coordination)}"
    workers = list(intake.workers.values())
    for worker in workers:
        if worker.task.done():
            return f"the worker of {worker.name} has ended: {end_of(worker.task)}"
    if well_seconds < seconds:
        return None
    now = time.monotonic()
    if intake.rejoining_since is not None and now - intake.rejoining_since > seconds + intake.rebalance_seconds:
        return f"the group has taken partitions back and given none for {now - intake.rejoining_since:.0f} s"
    if now - intake.publisher.failed_at < seconds:
        return None  # an output refuses: that is waited for
    for worker in workers:
        # What Postgres itself gives as its reason is waited for, and a fault of our own would come again.
        doubt, lasts = worker.doubt, now - worker.doubt_since
        if isinstance(doubt, WORLD) and not isinstance(doubt, asyncpg.PostgresError) and lasts > seconds:
            return f"{worker.name} is in doubt for {lasts:.0f} s: {words(doubt)}"
    return None

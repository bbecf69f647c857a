"""Whether the servers answer, and what the process waits for: said once in the log, and shown by /readyz."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from service.consumer import WORLD
from service.health import Health
from service.logs import log, words

SAY_SECONDS = 30.0  # what is waited for is said again this often
ANSWER_SECONDS = 2.0  # a server that takes longer does not answer


@dataclass(slots=True)
class Wait:
    """Since when something is waited for, and what was said of it."""

    since: float
    said_at: float = -math.inf
    reasons: set[str] = field(default_factory=set)


class Waits:
    """What the process waits for, by its name."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self._waits: dict[str, Wait] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._waits

    def note(self, name: str, reason: str) -> None:
        """It is waited for. Said when that begins, when the reason is another one, and now and then while it lasts."""
        now = time.monotonic()
        wait = self._waits.setdefault(name, Wait(now))
        if reason not in wait.reasons or now - wait.said_at > SAY_SECONDS:
            wait.reasons.add(reason)
            wait.said_at = now
            log.warning("service.waiting", server=name, reason=reason, seconds=round(now - wait.since, 1))
        self.health.say(name, f"waits for it since {now - wait.since:.0f} s: {reason}")

    def end(self, name: str) -> None:
        """It is waited for no longer, if it was."""
        self._waits.pop(name, None)
        self.health.say(name, None)


class Question:
    """Asks a server again and again whether it answers. One that hangs is left to itself, and no other is asked until
    it ends: what it waits in cannot always be cancelled."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[str | None] | None = None
        self._asked_at = 0.0

    @property
    def silent_seconds(self) -> float:
        """For how long the question now asked has no answer."""
        return 0.0 if self._asking is None else time.monotonic() - self._asked_at

    async def ask(self) -> str | None:
        """Why the server does not answer; None where it does."""
        if self._asking is None:
            self._asking, self._asked_at = asyncio.create_task(self._fault()), time.monotonic()
        asking = self._asking
        await asyncio.wait([asking], timeout=ANSWER_SECONDS)
        if not asking.done():
            return f"no answer within {ANSWER_SECONDS:g} s"
        self._asking = None
        return asking.result()

    async def _fault(self) -> str | None:
        try:
            await self._ask()
        except WORLD as error:
            return words(error)
        return None

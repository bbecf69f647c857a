"""`points-reversal demo`: a real Kafka, a real Postgres, a shop's sample and the service as a process of its own.

Everything that it starts ends with it, however it ends. Its exit code is 0 only if each record came to exactly what the
sample expects of it and every invariant of the ledger holds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

from pydantic import SecretStr

from service.audit import Finding
from service.child import LOOPBACK, EmbeddedError, Launch, Server
from service.demo_check import PUBLISHED, Verdict, judge
from service.demo_play import Played, look, play, prepare
from service.demo_view import Figures, View
from service.embedded import pair
from service.embedded_kafka import KAFKA_VERSION
from service.failures import Failure
from service.settings import Kafka, Settings

T = TypeVar("T")

INTERRUPTED = 130  # exit code: Ctrl-C, as shells count it
ASK_SECONDS = 1.0


class Service(Server):
    """`points-reversal run` as a process of its own, which ends when the demo does; what it logs is in `log`."""

    name: ClassVar[str] = "service"

    def __init__(self, directory: Path, settings: Settings) -> None:
        super().__init__(directory)
        self.settings = settings
        self.exit_code: int | None = None

    def stop(self) -> None:
        """SIGTERM; returns when it has drained and ended."""
        child = self._child
        super().stop()
        if child is not None:
            self.exit_code = child.exit_code

    def _prepare(self) -> None:
        self.log.unlink(missing_ok=True)

    def _launch(self) -> Launch:
        settings = {
            "REVERSAL_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "REVERSAL_KAFKA__BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
            "REVERSAL_HTTP_HOST": LOOPBACK,
            "REVERSAL_HTTP_PORT": str(self.port),
            "REVERSAL_LOG_FORMAT": "json",
        }
        return Launch([sys.executable, "-m", "service", "run"], cwd=self.directory, env={**os.environ, **settings})

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/readyz", timeout=ASK_SECONDS) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class BrokenOffError(Exception):
    """Ctrl-C, or a signal to end; raised only where everything can be left in order."""


class Interruption:
    """Takes the signals to end. None tears anything out of its work, least of all the stopping of servers: what can be
    broken off is told so, the rest is finished."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self._break_off: Callable[[], object] = lambda: None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP come here."""
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {number: signal.signal(number, self._take) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _take(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted.set()
        self._break_off()

    def check(self) -> None:
        """Raises BrokenOffError once a signal came."""
        if self.wanted.is_set():
            raise BrokenOffError

    @contextmanager
    def breaking_off(self, break_off: Callable[[], object]) -> Iterator[None]:
        """What to call when a signal comes within the block."""
        self._break_off = break_off
        try:
            self.check()
            yield
        except (Exception, asyncio.CancelledError):
            self.check()
            raise
        finally:
            self._break_off = lambda: None

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine to its end, or to where a signal cancels it."""

        async def until_told() -> T:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            with self.breaking_off(lambda: loop.call_soon_threadsafe(task.cancel)):
                return await work()

        return asyncio.run(until_told())


class Demo:
    """One run."""

    def __init__(self, view: View, interruption: Interruption, directory: Path | None) -> None:
        self.view = view
        self.interruption = interruption
        self.directory = directory
        self.steps: list[tuple[str, float]] = []

    def run(self) -> int:
        """All of it; returns the exit code."""
        started = time.monotonic()
        with self._place() as place:
            played, verdict, findings, still_waiting = self._run_servers(place)
            self.steps.append(("in all", time.monotonic() - started))
            figures = Figures(len(played.sent), played.stream_seconds, self.steps, played.waited, still_waiting)
            self.view.summary(verdict, findings, figures)
            broken = [finding for finding in findings if finding.count]
            for finding in broken:
                verdict.differences += [f"invariant {finding.check.number}: {row}" for row in finding.broken]
            if verdict.differences:
                raise NotAsExpectedError(verdict.differences)
        self.view.good(len(played.sent))
        return 0

    def _run_servers(self, place: Path) -> tuple[Played, Verdict, list[Finding], int]:
        """From the start of the servers to their end."""
        interruption = self.interruption
        with ExitStack() as ending:
            with (
                self._step("Kafka and Postgres", f"starting Kafka {KAFKA_VERSION} and Postgres"),
                interruption.breaking_off(lambda: None),  # it looks at `wanted` by itself
            ):
                both = pair(self.directory, progress=self.view.say, cancelled=interruption.wanted)
                servers = ending.enter_context(both)
            settings = Settings(
                database_url=SecretStr(servers.database_url),
                kafka=Kafka(bootstrap_servers=servers.bootstrap_servers),
            )
            with self._step("loading", "creating the schema and the topics, loading the shop"):
                sample, summary = interruption.run(lambda: prepare(settings, place / "sample.jsonl"))
            self.view.loaded(summary)
            service = Service(place / "service", settings)
            ending.callback(service.stop)
            with self._step("service", "starting the service"), interruption.breaking_off(service.cancel):
                service.start()
            with (
                self._step("records"),
                self.view.outcomes(sum(event.expected.end in PUBLISHED for event in sample.events)) as stream,
            ):
                played = interruption.run(lambda: play(settings, sample, stream.add, lambda: service.running))
            with self._step("checks", "stopping the service, reading everything once more, auditing"):
                service.stop()
                came, waiting, findings = interruption.run(lambda: look(settings, played))
            with self._step("stopping", "stopping Kafka and Postgres"):
                ending.close()
        verdict = judge(played.sent, came, waiting)
        verdict.differences[:0] = played.differences
        if service.exit_code != 0:
            verdict.differences.append(f"the service ended with exit code {service.exit_code}")
        return played, verdict, findings, len(waiting)

    @contextmanager
    def _step(self, name: str, doing: str | None = None) -> Iterator[None]:
        """Measures a part of the run, and says what it is about."""
        started = time.monotonic()
        with self.view.doing(doing) if doing else nullcontext():
            yield
        self.steps.append((name, time.monotonic() - started))

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """Where the service's log and the lines to load lie: kept where asked for, and after a failure."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        place = self.directory or Path(tempfile.mkdtemp(prefix="points-reversal-demo-"))
        keep = self.directory is not None
        try:
            yield place
        except BrokenOffError:
            raise
        except Exception:
            keep = True
            log = place / "service" / "service.log"
            if log.exists():
                self.view.say(f"the service's log is {log}")
            raise
        finally:
            if not keep:
                shutil.rmtree(place, ignore_errors=True)


class NotAsExpectedError(Exception):
    """The run came to its end, but not to the expected one; `differences`: a line each."""

    def __init__(self, differences: list[str]) -> None:
        super().__init__(f"{len(differences)} differences")
        self.differences = differences


@contextmanager
def deaf_to_settings() -> Iterator[None]:
    """The environment without our variables: they may be set for another Kafka and Postgres."""
    found = {name: value for name, value in os.environ.items() if name.upper().startswith("REVERSAL_")}
    for name in found:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(found)


def run(directory: Path | None = None) -> int:
    """Run the demo; returns the exit code. `directory`: keeps the servers' data there; else it is gone afterwards."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what matters comes as an exception
    view, interruption = View(), Interruption()
    try:
        with deaf_to_settings(), interruption.taken():
            return Demo(view, interruption, directory).run()
    except BrokenOffError:
        view.say("interrupted: everything that was started is stopped")
        return INTERRUPTED
    except NotAsExpectedError as error:
        view.differences(error.differences)
        return 1
    except (EmbeddedError, Failure) as error:
        view.say(f"error: {error}")
        return 1


def main() -> int:
    """`python -m service.demo`: the same as `points-reversal demo`."""
    parser = argparse.ArgumentParser(prog="python -m service.demo", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the data is kept (default: a temporary directory)")
    return run(parser.parse_args().dir)


if __name__ == "__main__":
    sys.exit(main())

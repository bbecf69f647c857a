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
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import ClassVar

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


class Demo:
    """One run."""

    def __init__(self, view: View, directory: Path | None) -> None:
        self.view = view
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
        with ExitStack() as ending:
            with self._step("Kafka and Postgres", f"starting Kafka {KAFKA_VERSION} and Postgres"):
                servers = ending.enter_context(pair(self.directory, progress=self.view.say))
            settings = Settings(
                database_url=SecretStr(servers.database_url),
                kafka=Kafka(bootstrap_servers=servers.bootstrap_servers),
            )
            with self._step("loading", "creating the schema and the topics, loading the shop"):
                sample, summary = asyncio.run(prepare(settings, place / "sample.jsonl"))
            self.view.loaded(summary)
            service = Service(place / "service", settings)
            ending.callback(service.stop)
            with self._step("service", "starting the service"):
                service.start()
            with (
                self._step("records"),
                self.view.outcomes(sum(event.expected.end in PUBLISHED for event in sample.events)) as stream,
            ):
                played = asyncio.run(play(settings, sample, stream.add, lambda: service.running))
            with self._step("checks", "stopping the service, reading everything once more, auditing"):
                service.stop()
                came, waiting, findings = asyncio.run(look(settings, played))
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
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: everything that it started is stopped."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)  # asyncio, where it runs, ends its work in order at this one

    # A shell that starts it in the background has it ignore SIGINT.
    previous = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    previous |= {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    view = View()
    try:
        with deaf_to_settings(), ending_in_order():
            return Demo(view, directory).run()
    except KeyboardInterrupt:
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

"""Kafka and Postgres for one machine, from packages alone: nothing is asked of the machine but Python.

Needs the extra `embedded`. Each server listens on the loopback address only, on a port chosen at the first start and
kept for the later ones, and ends with the process that started it, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.child import EmbeddedError, Server, write_file
from service.embedded_kafka import KAFKA_VERSION, EmbeddedKafka, fetch_jars, write_lock
from service.embedded_postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

__all__ = ["EmbeddedError", "EmbeddedKafka", "EmbeddedPostgres", "Pair", "main", "pair", "serve"]

WATCH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Pair:
    """Both servers, running, and their addresses."""

    kafka: EmbeddedKafka
    postgres: EmbeddedPostgres

    @property
    def bootstrap_servers(self) -> str:
        return self.kafka.bootstrap_servers

    @property
    def database_url(self) -> str:
        """The address of the superuser's database, password included."""
        return self.postgres.url


def say(message: str) -> None:
    """The default progress: a line on the error output."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def pair(
    directory: Path | None = None,
    *,
    kafka_properties: Mapping[str, str] | None = None,
    postgres_settings: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = say,
    cancelled: threading.Event | None = None,
) -> Iterator[Pair]:
    """Both servers for the time of a `with` block; without a directory their data is gone afterwards.

    Raises EmbeddedError when one of them does not start, also when `cancelled` is set meanwhile; the other is
    stopped then.
    """
    with contextlib.ExitStack() as ending:
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="points-reversal-"))
            directory.chmod(0o711)  # the user that runs Postgres for root must get through
            ending.callback(_remove, directory)
        directory.mkdir(parents=True, exist_ok=True)
        servers = Pair(
            kafka=EmbeddedKafka(directory / "kafka", kafka_properties, progress),
            postgres=EmbeddedPostgres(directory / "postgres", postgres_settings),
        )
        ending.callback(_stop_both, servers)
        _start_both(servers, cancelled or threading.Event())
        yield servers


def serve(directory: Path | None = None, env_file: Path | None = None, progress: Callable[[str], None] = say) -> int:
    """Runs both servers until SIGTERM or SIGINT; returns the exit code: 0, or 1 when one failed.

    `env_file` is written when both answer, and never read half: its existence is the sign that they do. To be called
    from the main thread.
    """
    wanted_end = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        wanted_end.set()

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if env_file is not None:
            env_file.parent.mkdir(parents=True, exist_ok=True)
            env_file.unlink(missing_ok=True)
        with pair(directory, progress=progress, cancelled=wanted_end) as servers:
            _announce(servers, env_file, progress)
            while not wanted_end.wait(WATCH_SECONDS):
                for server in (servers.kafka, servers.postgres):
                    if not server.running:
                        progress(f"{server.name} has died; stopping the other\n{server.log_tail()}")
                        return 1
            progress("stopping Kafka and Postgres")
    except (EmbeddedError, OSError) as error:
        if wanted_end.is_set():
            return 0
        progress(f"error: {error}")
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _announce(servers: Pair, env_file: Path | None, progress: Callable[[str], None]) -> None:
    lines = (
        f"REVERSAL_DATABASE_URL={servers.database_url}\nREVERSAL_KAFKA__BOOTSTRAP_SERVERS={servers.bootstrap_servers}\n"
    )
    progress(f"Kafka {KAFKA_VERSION} answers on {servers.bootstrap_servers}, Postgres on port {servers.postgres.port}")
    if env_file is None:
        print(lines, end="", flush=True)  # noqa: T201 - for whoever starts it in a terminal
    else:
        write_file(env_file, lines, mode=0o600)
        progress(f"their addresses are in {env_file}")


def _start_both(servers: Pair, cancelled: threading.Event) -> None:
    both: tuple[Server, ...] = (servers.kafka, servers.postgres)
    with ThreadPoolExecutor(len(both), thread_name_prefix="embedded") as pool:
        starts = [pool.submit(server.start) for server in both]
        try:
            pending = set(starts)
            while pending and not cancelled.is_set():
                done, pending = wait(pending, timeout=WATCH_SECONDS, return_when=FIRST_EXCEPTION)
                if any(start.exception() for start in done):
                    break
        finally:
            if not all(start.done() for start in starts):
                for server in both:
                    server.cancel()
    # The one that failed by itself first; the other one was only told to give up.
    for start in sorted(starts, key=lambda start: start not in done):
        start.result()


def _stop_both(servers: Pair) -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="embedded") as pool:
        for stop in [pool.submit(servers.kafka.stop), pool.submit(servers.postgres.stop)]:
            stop.result()


def _remove(directory: Path) -> None:
    EmbeddedKafka(directory / "kafka").remove()
    EmbeddedPostgres(directory / "postgres").remove()
    with contextlib.suppress(OSError):
        directory.rmdir()


def main(arguments: list[str] | None = None) -> int:
    """`python -m service.embedded`: the command `points-reversal embedded`, and what keeps its parts ready."""
    parser = argparse.ArgumentParser(prog="python -m service.embedded", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the data is kept (default: a temporary directory)")
    parser.add_argument("--env-file", type=Path, help="where the addresses are written when both servers answer")
    parser.add_argument("--fetch", action="store_true", help="only download Kafka, for a start without a network")
    parser.add_argument("--lock", action="store_true", help="only resolve Kafka's jars afresh and write embedded.lock")
    options = parser.parse_args(arguments)
    try:
        if options.lock:
            say(f"wrote the sums of {write_lock()} jars")
        elif options.fetch:
            say(f"{len(fetch_jars(say))} jars are here and have the right sums")
        else:
            return serve(options.dir, options.env_file)
    except EmbeddedError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

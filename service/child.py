"""A server that runs as our child: it starts in the background, answers, and never outlives us.

Whoever starts a `Child` also starts its guard, a small process that waits on a pipe. However we end (a return, an
exception, SIGKILL), the pipe closes, and the guard stops the server. A parent-death signal would not do: Linux sends
it when the starting thread ends, and servers are started from threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 20.0
POLL_SECONDS = 0.02
# How long a second start on a directory waits for what a killed owner's guard still has to stop.
LOCK_SECONDS = STOP_SECONDS + 5.0
TAIL_LINES = 15
START_SECONDS = 120.0
START_TRIES = 3
LAST_WORD = b"done"


class EmbeddedError(Exception):
    """The embedded pair cannot do what was asked; the message says what to do about it."""


class DirectoryLock:
    """One owner at a time for a server's directory, known to others by its process id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    @property
    def fileno(self) -> int:
        assert self._file is not None, "the lock is not held"
        return self._file.fileno()

    def acquire(self) -> None:
        """Raises EmbeddedError while another living process owns the directory."""
        assert self._file is None, "the lock is held already"
        file = self.path.open("a+", encoding="ascii")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip()
                # A dead owner's guard keeps the lock until it has stopped the server.
                if (owner.isdigit() and psutil.pid_exists(int(owner))) or time.monotonic() > deadline:
                    file.close()
                    raise EmbeddedError(
                        f"{self.path.parent} is in use by process {owner or '(unknown)'}: stop that one first, "
                        "or choose another directory"
                    ) from None
                time.sleep(POLL_SECONDS)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server's process is started."""

    command: Sequence[str | Path]
    cwd: Path
    env: Mapping[str, str]
    stop_signal: signal.Signals = signal.SIGTERM
    # The user and group to run as; None: our own.
    user: tuple[int, int] | None = None


class Child:
    """One running server process with all that it started, and the guard that ends it should we die."""

    def __init__(self, launch: Launch, log: Path, lock: DirectoryLock) -> None:
        self._stop_signal = launch.stop_signal
        uid, gid = launch.user or (None, None)
        # A session of its own: Ctrl-C in our terminal is for us, and we stop the server in order.
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [os.fspath(word) for word in launch.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=launch.cwd,
                env=dict(launch.env),
                user=uid,
                group=gid,
                extra_groups=None if launch.user is None else [],
                start_new_session=True,
            )
        # The guard inherits the lock: a directory is free again only when its server has ended.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", __file__, str(self.pid), str(int(launch.stop_signal))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=(lock.fileno,),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while the server runs; a negative signal number if one ended it."""
        return self._process.poll()

    def stop(self) -> None:
        """Ends the server in order, by SIGKILL if it takes longer than STOP_SECONDS."""
        if self.exit_code is None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                kill_tree(self.pid)
                self._process.wait()
        self._dismiss_guard()

    def kill(self) -> None:
        """Sends SIGKILL to the server and to all that it started; returns when all of them are gone."""
        if self.exit_code is None:
            kill_tree(self.pid)
            self._process.wait()
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        assert self._guard.stdin is not None
        if self._guard.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(LAST_WORD)
            self._guard.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        self._guard.wait()


class Server:
    """A server on a directory of its own; a later start on the same directory finds its data and its ports again.

    A subclass says how to prepare the directory, how to launch the server and how to tell that it answers.
    """

    name: ClassVar[str]
    port_count: ClassVar[int] = 1

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.ports: list[int] = []
        self.log = self.directory / f"{self.name.lower()}.log"
        self._lock = DirectoryLock(self.directory / "lock")
        self._child: Child | None = None
        self._cancelled = threading.Event()

    def _prepare(self) -> None:
        """Makes the directory ready for `_launch`; called with the lock held."""
        raise NotImplementedError

    def _launch(self) -> Launch:
        """Writes the configuration for the ports chosen and says how to start the server."""
        raise NotImplementedError

    def _answers(self) -> bool:
        """Whether the server that runs now does what a client wants of it."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        assert self.ports, f"{self.name} has not been started"
        return self.ports[0]

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} does not run"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.exit_code is None

    def start(self) -> None:
        """Starts the server and returns when it answers; raises EmbeddedError."""
        assert self._child is None, f"{self.name} has been started already: stop() or kill() it first"
        self._cancelled.clear()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._prepare()
            self._run()
        except BaseException:
            self._end(Child.kill)
            raise

    def stop(self) -> None:
        """Ends the server in order: it finishes what it must and writes its data down."""
        self._end(Child.stop)

    def kill(self) -> None:
        """SIGKILL to every process of the server. start() on the same object then takes the same port."""
        self._end(Child.kill)

    def cancel(self) -> None:
        """Makes a start() that is under way in another thread raise EmbeddedError soon."""
        self._cancelled.set()

    def log_tail(self) -> str:
        """The log's last lines, for a person to read; says where the whole of it lies."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        except FileNotFoundError:
            lines = []
        return "\n".join([*(f"  | {line}" for line in lines[-TAIL_LINES:]), f"  (the whole log: {self.log})"])

    def check_wanted(self) -> None:
        """Raises EmbeddedError when cancel() was called."""
        if self._cancelled.is_set():
            raise EmbeddedError(f"{self.name} was stopped while it started")

    def state(self) -> dict[str, Any]:
        """What the directory remembers from one start to the next."""
        try:
            remembered: dict[str, Any] = json.loads((self.directory / "state.json").read_bytes())
        except FileNotFoundError:
            remembered = {}
        return remembered

    def remember(self, **values: object) -> None:
        write_file(self.directory / "state.json", json.dumps(self.state() | values, indent=1) + "\n")

    def _run(self) -> None:
        for attempt in range(1, START_TRIES + 1):
            self.ports = free_ports(self.port_count, self.state().get("ports", []))
            self.remember(ports=self.ports)
            self._child = Child(self._launch(), self.log, self._lock)
            try:
                self._await_answer(self._child)
            except EmbeddedError:
                self._child.kill()
                # Between our look and the server's, another process may have taken a port.
                taken = not all(is_free(port) for port in self.ports)
                if not taken or attempt == START_TRIES or self._cancelled.is_set():
                    raise
            else:
                return

    def _await_answer(self, child: Child) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            self.check_wanted()
            if child.exit_code is not None:
                raise EmbeddedError(f"{self.name} ended at its start, exit code {child.exit_code}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} does not answer after {START_SECONDS:g} s:\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def _end(self, end: Callable[[Child], None]) -> None:
        if self._child is not None:
            end(self._child)
            self._child = None
        self._lock.release()


def kill_tree(pid: int) -> None:
    """Sends SIGKILL to a process and its descendants; returns when none of them runs any more."""
    try:
        root = psutil.Process(pid)
        root.suspend()  # so that it starts nothing more while we look
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(tree, STOP_SECONDS)


def free_ports(count: int, remembered: Iterable[int] = ()) -> list[int]:
    """`count` ports that are free on the loopback address: those remembered if all are, else new ones.

    They lie below the range that the kernel gives to outgoing connections. In that range a client that connects
    again and again to a stopped server may take the server's own port.
    """
    ports = list(remembered)
    if len(ports) == count and all(is_free(port) for port in ports):
        return ports
    lowest_outgoing = _lowest_outgoing_port()
    candidates = range(15_000, lowest_outgoing) if lowest_outgoing > 20_000 else range(20_000, 60_000)
    found: list[int] = []
    for port in random.sample(candidates, 1000):
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise EmbeddedError(f"no {count} free ports on {LOOPBACK} among 1,000 tried")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def write_file(path: Path, text: str, *, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Replaces a file as a whole: a reader sees the old text or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if owner is not None:
            os.fchown(file.fileno(), *owner)
    unfinished.replace(path)


def _lowest_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0


def _await_end(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Whether all of the processes ended in time; one that only waits to be reaped has ended."""
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def guard(pid: int, stop_signal: int) -> None:
    """The guard's whole life: wait for the parent's last word, and without one stop the server."""
    try:
        server = psutil.Process(pid)  # remembers when that process began, so never stops a later one of its number
    except psutil.NoSuchProcess:
        return
    if sys.stdin.buffer.read() == LAST_WORD:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        server.send_signal(stop_signal)
        if not _await_end([server], STOP_SECONDS):
            kill_tree(pid)


if __name__ == "__main__":
    guard(int(sys.argv[1]), int(sys.argv[2]))

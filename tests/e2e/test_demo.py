"""The demo as a new user meets it: all as expected, or exit code 1 and why; nothing is left behind, however it ends."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from service.audit import CHECKS
from service.errors import Code

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

DEMO = (sys.executable, "-m", "service", "demo")
END_SECONDS = 60.0
COLUMNS = 80
SAYS_ITS_WAY = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
NEVER_FROM_KAFKA = {886, 896, 898}

# The demo with one expectation that nothing fulfils.
SPOILED = """
import dataclasses, sys
from service import demo, demo_play
from service.sample_shop import refused
build = demo_play.build
def spoiled(*arguments):
    sample = build(*arguments)
    sample.acts[1][0] = dataclasses.replace(sample.acts[1][0], expected=refused(999, "never_heard_of"))
    return sample
demo_play.build = spoiled
sys.exit(demo.main())
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the demo makes its temporary directories. Root's Postgres must get through, so it is not pytest's own."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts a demo; whatever a failed test left running is ended."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    environment |= {"TMPDIR": str(directory), "COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm"}
    # Meant for other servers, and wrong: the demo must not heed them.
    environment |= {"REVERSAL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere", "REVERSAL_BATCH_RECORDS": "x"}
    with contextlib.ExitStack() as ending:

        def begin(*command: str, out: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=environment
            )
            ending.callback(process.kill)  # the guards of what it started then end that
            return process

        yield begin


def left_running(directory: Path) -> list[str]:
    """Processes that work below the directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(directory) in f"{process.cwd()} {' '.join(process.cmdline())}":
                found.append(process.name())
    return found


def await_line(stream: IO[bytes] | None, word: str) -> None:
    assert stream is not None
    for line in iter(stream.readline, b""):
        if word in line.decode():
            return
    raise AssertionError(f"it never said {word}")


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=END_SECONDS)
    return process.returncode, said.decode()


def test_everything_comes_to_what_is_expected_and_nothing_is_left(start: Start, directory: Path) -> None:
    process = start(*DEMO)
    out, err = (text.decode() for text in process.communicate())
    assert process.returncode == 0, err + out
    assert "\x1b" not in out + err, "control codes, and no terminal"
    assert max(map(len, out.splitlines())) <= COLUMNS
    names = [code.label for code in Code if code.number not in NEVER_FROM_KAFKA and code is not Code.REVERSAL_FAILED]
    assert [name for name in names if name not in out] == []
    counts = re.findall(r"(\d+) of (\d+)   ", out)
    assert len(counts) > len(names)
    assert all(seen == expected for seen, expected in counts)
    assert len(re.findall(r"^ \d +holds ", out, re.MULTILINE)) == len(CHECKS)
    assert re.search(r"\d+ records in [0-9.]+ s = [0-9,]+ a second", out)
    assert out.rstrip().endswith("every invariant holds.")
    assert not list(directory.iterdir())
    assert not left_running(directory)


def test_what_differs_is_named_on_a_terminal_too_and_the_log_is_kept(start: Start, directory: Path) -> None:
    ours, its = pty.openpty()
    process = start(sys.executable, "-c", SPOILED, out=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # so ends a terminal that nobody writes to any more
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    _, err = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 1
    out = SAYS_ITS_WAY.sub("", shown.decode())
    assert shown.count(b"\x1b") > 100, "the table lives"
    [difference] = [line for line in out.splitlines() if "expected failed 999 never_heard_of, came" in line]
    assert re.match(r" +order\.returned/\d@\d+: ", difference)
    assert "Not as expected in 1 place:" in out
    assert "0 of 1" in out
    found = re.search(r"the service's log is (\S+)", err.decode())
    assert found is not None, err.decode()
    assert "service.started" in Path(found[1]).read_text()
    assert not left_running(directory)


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "starting Kafka"), (signal.SIGINT, "starting the service")],
    ids=["terminated while the servers start", "interrupted while the service starts"],
)
def test_an_end_before_the_end_stops_all_that_was_started(
    start: Start, directory: Path, number: signal.Signals, moment: str
) -> None:
    process = start(*DEMO)
    await_line(process.stderr, moment)
    code, said = interrupt(process, number)
    assert code == 130, said
    assert "everything that was started is stopped" in said
    assert not list(directory.iterdir())
    assert not left_running(directory)


def test_an_interruption_amid_the_stream_stops_all_that_was_started(start: Start, directory: Path) -> None:
    process = start(*DEMO)
    await_line(process.stdout, "completed")
    code, said = interrupt(process, signal.SIGINT)
    assert code == 130, said
    assert not list(directory.iterdir())
    assert not left_running(directory)

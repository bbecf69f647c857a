"""`make faults-selftest`: builds of the service that break a promise, each of which some test must notice.

For each sabotage a copy of the tree (what git knows of, and what is new and not ignored) is changed and its tests are run
there. A sabotage is caught when one of them fails by an assertion; that a test cannot begin, or that the time is up,
does not count, nor does a build that is so broken that it cannot serve (SERVES must pass). First all of these tests run
on an unchanged copy, where they must pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.sabotages import SABOTAGES, NoLongerFits, Sabotage

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 600.0  # the tests of one sabotage may take so long
END_SECONDS = 60.0  # an interrupted pytest stops its servers within so long
ASSERTIONS = ("AssertionError", "assert ", "Failed: DID NOT RAISE", 'failed on teardown with "AssertionError')
SERVES = "tests/e2e/test_run.py::test_health_and_metrics_are_served"  # a return, a duplicate, a dead letter
NAME_OF_SERVES = "test_run::test_health_and_metrics_are_served"
PLACE = re.compile(r"^(\S+\.py:\d+): (?:in |AssertionError)")
WAITING = "tests/stack.py:"
WHERE_FROM = "import service.cli, tests.process; print(service.cli.__file__, tests.process.__file__, sep='\\n')"


@dataclass(frozen=True)
class Failure:
    """A test that failed: at which line, by which words."""

    test: str
    place: str
    words: str
    by_assertion: bool


@dataclass(frozen=True)
class Run:
    """What a run of pytest came to: its exit code (None: the time was up), how many tests ran, which failed."""

    code: int | None
    tests: int
    failures: list[Failure]
    tail: str
    seconds: float

    @property
    def serves(self) -> bool:
        """Whether the build does its work where nothing happens to it."""
        return self.code is not None and not any(one.test == NAME_OF_SERVES for one in self.failures)

    @property
    def catch(self) -> Failure | None:
        """The test that noticed."""
        return next((one for one in self.failures if one.by_assertion), None) if self.serves else None


def say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def copy_tree(to: Path) -> None:
    """Copies the tree as it stands, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # one that was removed and not committed is still listed
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def environment(tree: Path) -> dict[str, str]:
    """What makes Python, and every process that a test starts, take the modules of that tree: PYTHONPATH comes before the
    path of the environment's own installation, which is the original tree."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def check_path(tree: Path) -> None:
    """Fails where the modules would be taken from elsewhere, also by a process that starts in another folder."""
    for folder in (tree, Path("/")):
        command = [sys.executable, "-c", WHERE_FROM]
        done = subprocess.run(command, cwd=folder, env=environment(tree), check=True, capture_output=True, text=True)
        files = done.stdout.split()
        assert all(Path(file).is_relative_to(tree) for file in files), f"{files} are not of the copy {tree}"


def run_tests(tree: Path, tests: Sequence[str], most_seconds: float) -> Run:
    """Runs the tests on that tree."""
    report, log = tree / "build" / "selftest.xml", tree / "build" / "selftest.log"
    report.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "--tb=short", f"--junitxml={report}", "-p", "no:cacheprovider"]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *tests], cwd=tree, env=environment(tree), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            code = process.wait(most_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
    tail = "\n".join(line[:200] for line in log.read_text(errors="replace").splitlines()[-20:])
    ran, failures = _read(report)
    return Run(code, ran, failures, tail, time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """An interrupt first: pytest stops the servers that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(report: Path) -> tuple[int, list[Failure]]:
    if not report.exists():
        return 0, []
    failures: list[Failure] = []
    cases = list(ET.parse(report).iter("testcase"))
    for case in cases:
        name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        found = [*case.iter("failure"), *case.iter("error")]
        failures += [failure_of(name, one.get("message") or "", one.text or "") for one in found]
    return len(cases), failures


def failure_of(test: str, message: str, text: str) -> Failure:
    """A failure as pytest tells it: `text` its short traceback, in which the last place is the check (where it is one
    that was waited for: who waited)."""
    places = [match[1] for match in map(PLACE.match, text.splitlines()) if match]
    places = [place for place in places if not place.startswith(WAITING)] or places
    words = next((line for line in message.splitlines() if line.strip()), "").removeprefix("AssertionError: ")
    return Failure(test, places[-1] if places else "?", words, message.startswith(ASSERTIONS))


def on_a_copy(sabotage: Sabotage | None, tests: Sequence[str], most_seconds: float) -> Run:
    """Runs the tests on a copy, which the sabotage changes."""
    with tempfile.TemporaryDirectory(prefix="sabotage-") as made:
        tree = Path(made).resolve() / "tree"
        tree.mkdir()
        copy_tree(tree)
        for path, text in (sabotage.changed(tree) if sabotage else {}).items():
            (tree / path).write_text(text, "utf-8")
        check_path(tree)
        return run_tests(tree, tests, most_seconds)


def passes(chosen: Sequence[Sabotage]) -> bool:
    """Whether all of the tests pass on an unchanged copy."""
    tests = list(dict.fromkeys([SERVES, *(test for one in chosen for test in one.tests)]))
    say(f"no sabotage: {len(tests)} selections of tests, which must pass ...")
    run = on_a_copy(None, tests, MOST_SECONDS * 2)
    if run.code == 0:
        say(f"  {run.tests} tests passed in {run.seconds:.0f} s")
        return True
    say(f"{run.tail}\nthe tests do not pass without a sabotage, so nothing can be said of those with one")
    return False


def try_one(sabotage: Sabotage) -> tuple[str, str, str]:
    """A row of the table; its second cell is empty where the sabotage was not caught."""
    say(f"{sabotage.name}: {', '.join(sabotage.tests)} ...")
    run = on_a_copy(sabotage, (SERVES, *sabotage.tests), MOST_SECONDS)
    catch = run.catch
    if catch is not None:
        say(f"  caught in {run.seconds:.0f} s: {catch.test}\n  {catch.place}: {catch.words[:200]}")
        return sabotage.name, catch.test, f"{catch.place}: {catch.words[:100]}"
    if run.code is None:
        why = f"the time of {MOST_SECONDS:g} s was up"
    elif run.code == 0:
        why = f"all {run.tests} tests passed"
    else:
        why = "no test failed by an assertion" if run.serves else "the build does not even serve"
    say(f"  NOT CAUGHT in {run.seconds:.0f} s: {why}" + (f"\n{run.tail}" if run.code else ""))
    return sabotage.name, "", f"NOT CAUGHT: {why}"


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [("sabotage", "caught by", "the check"), *rows]
    first, second = (max(len(line[at]) for line in lines) for at in (0, 1))
    return "\n".join(f"{name:<{first}}  {test:<{second}}  {check}" for name, test, check in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.selftest", description=__doc__)
    names = [one.name for one in SABOTAGES]
    parser.add_argument("--list", action="store_true", help="name the sabotages and their tests, and run nothing")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help="this sabotage alone (may be repeated)"
    )
    parser.add_argument(
        "--trust-clean", action="store_true", help="leave out the run without a sabotage, as after a `make faults`"
    )
    given = parser.parse_args(arguments)
    chosen = [one for one in SABOTAGES if not given.only or one.name in given.only]
    if given.list:
        sys.stdout.write("".join(f"{one.name}: {', '.join(one.tests)}\n" for one in chosen))
        return 0
    try:
        for one in chosen:
            one.changed(ROOT)
    except NoLongerFits as error:
        say(str(error))
        return 1
    began = time.monotonic()
    if not given.trust_clean and not passes(chosen):
        return 1
    rows = [try_one(one) for one in chosen]
    caught = sum(1 for _, test, _ in rows if test)
    minutes = (time.monotonic() - began) / 60
    sys.stdout.write(f"{table(rows)}\n{caught} of {len(rows)} sabotages caught, in {minutes:.0f} minutes\n")
    return 0 if caught == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

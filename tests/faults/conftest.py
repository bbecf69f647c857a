"""The dose of the faults, and the figures that each run leaves: build/faults.json, and a table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.faults.engine import DOSES, Figures, Trial
from tests.process import Site, site
from tests.stack import Stack
from tests.traffic import Traffic

FILE = Path("build/faults.json")
HEADINGS = ("fault", "dose", "records", "repeats", "differences", "longest recovery, s")

figures: list[Figures] = []

Doses = Callable[[str], int]
Trials = Callable[..., Trial]


@pytest.fixture
def dose(request: pytest.FixtureRequest) -> Doses:
    """How much of a fault is injected, by its name in the table of doses."""
    short = request.config.getoption("--dose") == "short"
    return lambda name: DOSES[name][0 if short else 1]


@pytest.fixture
def place(stack: Stack, template_database: str) -> Iterator[Site]:
    """A database and topics of the run's own; its batches are small, so that there are many."""
    with site(stack, template_database, settings={"batch_records": "40"}) as own:
        yield own


@pytest.fixture
def trial(place: Site, request: pytest.FixtureRequest) -> Trials:
    """Makes a run of a fault at a place, whose figures are kept. The fault's name is the seed of all its chance."""

    def make(fault: str, count: int, *, customers: int = 60, at: Site | None = None) -> Trial:
        row = Figures(fault, count)
        figures.append(row)
        random = Random(fault)
        return Trial(at or place, row, random, Traffic(random, customers=customers, redemptions=20))

    return make


def pytest_sessionfinish() -> None:
    if figures:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps([one.row() for one in figures], indent=1) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not figures:
        return
    cells = [HEADINGS, *(tuple(_shown(value) for value in one.row().values()) for one in figures)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    terminalreporter.section(f"faults ({FILE})")
    for row in cells:
        first, *rest = (cell.ljust(width) if not at else cell.rjust(width)
                        for at, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        terminalreporter.line("  ".join([first, *rest]))


def _shown(value: object) -> str:
    return "failed" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

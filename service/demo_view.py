"""What the demo shows: on a terminal a table that lives and a bar, elsewhere plain lines; at the end a summary."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service.demo_check import Came, Verdict
from service.points import format_points
from service.sample_shop import End

if TYPE_CHECKING:
    from service.audit import Finding
    from service.load import Summary

ROWS = 12  # of the table that lives
OTHER_LINES = 8  # of the screen: the table's head, the bar, what was said before
LONGEST_OUTCOME = len("887 idempotency_key_reused")
EVERY = 100  # without a terminal, a line for so many outcomes
DIFFERENCES = 20  # named at the end
WRONG = "bold red reverse"
STYLES = {End.COMPLETED: "green", End.FAILED: "yellow", End.DEAD: "red"}
HEAD = ("order", "asked", "given back", "available/expired", "outcome")


class Row(NamedTuple):
    """An outcome as the table shows it."""

    order: str
    asked: str
    given: str
    split: str
    outcome: str
    style: str


class Figures(NamedTuple):
    """What was measured: the records sent, the seconds from the first of them to the last outcome, those of each step
    from the start on; how many records had to wait, and how many still do."""

    records: int
    stream_seconds: float
    steps: list[tuple[str, float]]
    waited: int
    still_waiting: int


def row(came: Came) -> Row:
    """A completed reversal, a refusal or a dead letter in the words of the table."""
    end, body = came.end, came.body
    style = STYLES[end.end]
    if body is None:
        return Row("-", "-", "-", "-", f"dead letter: {end.name}", style)
    order = str(body.get("orderId") or body.get("redemptionId") or "-")
    quantity = body.get("quantity")
    asked = f"{quantity} unit{'s' if quantity > 1 else ''}" if quantity else body.get("pointsToBeReversed") or "all"
    if end.end is not End.COMPLETED:
        return Row(order, asked, "-", "-", f"{end.code or ''} {end.name}".strip(), style)
    available, expired = format_points(end.available), format_points(end.expired)
    return Row(order, asked, format_points(end.available + end.expired), f"{available} / {expired}", "completed", style)


class View:
    """The demo's screen: results on the standard output, what goes on meanwhile on the error output."""

    def __init__(self, out: Console | None = None, err: Console | None = None) -> None:
        # Not asked of rich: it also takes FORCE_COLOR for a terminal, and there would be control codes in a log.
        live = sys.stdout.isatty()
        self.out = out or Console(force_terminal=None if live else False, highlight=False)
        self.err = err or Console(stderr=True, force_terminal=None if sys.stderr.isatty() else False, highlight=False)
        self.live = self.out.is_terminal and not self.out.is_dumb_terminal

    def say(self, text: str) -> None:
        """A line about what goes on."""
        self.err.print(Text(text), soft_wrap=not self.err.is_terminal)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """What goes on now, for as long as it does."""
        if self.err.is_terminal and not self.err.is_dumb_terminal:
            with self.err.status(text, spinner="line"):
                yield
        else:
            self.say(f"{text} ...")
            yield

    @contextmanager
    def outcomes(self, total: int) -> Iterator[Stream]:
        """Room for the outcomes as they come."""
        if not self.live:
            yield Stream(self.out, total)
            return
        stream = LiveStream(self.out, total)
        with Live(stream, console=self.out, refresh_per_second=12, vertical_overflow="crop"):
            yield stream

    def differences(self, differences: Sequence[str]) -> None:
        """The last lines, when it is not."""
        places = "1 place" if len(differences) == 1 else f"{len(differences)} places"
        self.out.print(Text(f"Not as expected in {places}:", "bold red"))
        for difference in differences[:DIFFERENCES]:
            self.out.print(Text(f"  {difference}", style="red"), soft_wrap=True)
        if len(differences) > DIFFERENCES:
            self.out.print(f"  ... and {len(differences) - DIFFERENCES} more")

    def loaded(self, summary: Summary) -> None:
        """What the shop has."""
        counts = ", ".join(f"{number:,} {kind}s" for kind, number in summary.changed.items() if number)
        self.say(f"loaded {counts} in {summary.seconds:.1f} s")

    def good(self, records: int) -> None:
        """The last line, when all is well."""
        self.out.print(
            Text(f"All {records} records came to exactly what was expected, and every invariant holds.", "bold green")
        )

    def summary(self, verdict: Verdict, findings: Sequence[Finding], figures: Figures) -> None:
        """Everything at one sight."""
        self.out.print(self._counts(verdict))
        self.out.print(self._audit(findings))
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, text in _figures(verdict, figures):
            table.add_row(Text(name, "bold"), Text(text))
        self.out.print(table)
        self.out.print()

    def _counts(self, verdict: Verdict) -> Table:
        table = _table("outcome", "seen", "for example")
        table.columns[1].justify = "right"
        table.columns[2].no_wrap = True
        # Without UTF-8 there is no sign for what is left out.
        table.columns[2].overflow = "ellipsis" if self.out.encoding.startswith("utf") else "crop"
        keys = {**verdict.expected, **verdict.came}
        for key in sorted(keys, key=lambda key: (list(End).index(key[0]), key[1] or 0, key[2])):
            expected, came = verdict.expected[key], verdict.came[key]
            style = STYLES[key[0]] if expected == came else WRONG
            name = f"{key[1]} {key[2]}" if key[0] is End.FAILED else f"{key[0]} {key[2]}"
            table.add_row(
                Text(name, style),
                Text(f"{came} of {expected}", "" if expected == came else WRONG),
                Text(verdict.examples.get(key, ""), "dim"),
            )
        return table

    def _audit(self, findings: Sequence[Finding]) -> Table:
        table = _table("audit", "", "invariant")
        for finding in findings:
            holds = Text("holds", "green") if finding.count == 0 else Text(f"{finding.count} broken", WRONG)
            table.add_row(str(finding.check.number), holds, finding.check.meaning)
        return table


class Stream:
    """Without a terminal: the first outcome of each kind, and how far it is."""

    def __init__(self, out: Console, total: int) -> None:
        self.out = out
        self.total = total
        self.done = 0
        self._known: Counter[str] = Counter()

    def _print(self, order: str, asked: str, given: str, split: str, outcome: str) -> None:
        self.out.print(Text(f"{order:<10} {asked:>9} {given:>10} {split:>17}  {outcome}"), soft_wrap=True)

    def add(self, came: Came) -> None:
        """One more outcome."""
        if self.done == 0:
            self._print(*HEAD)
        self.done += 1
        one = row(came)
        self._known[one.outcome] += 1
        if self._known[one.outcome] == 1:
            self._print(*one[:5])
        if self.done % EVERY == 0 or self.done == self.total:
            self.out.print(f"{self.done} of {self.total} outcomes")


class LiveStream(Stream):
    """On a terminal: the latest outcomes and a bar."""

    def __init__(self, out: Console, total: int) -> None:
        super().__init__(out, total)
        self._latest: deque[Row] = deque(maxlen=max(1, min(ROWS, out.height - OTHER_LINES)))
        self._bar = Progress(
            TextColumn("outcomes"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), console=out
        )
        self._task = self._bar.add_task("", total=total)

    def add(self, came: Came) -> None:
        """One more outcome."""
        self.done += 1
        self._latest.append(row(came))
        self._bar.update(self._task, completed=self.done)

    def __rich__(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
        for name in HEAD:
            table.add_column(name, justify="left" if name in ("order", "outcome") else "right", no_wrap=True)
        table.columns[-1].min_width = LONGEST_OUTCOME
        for one in tuple(self._latest):
            table.add_row(*one[:4], Text(one.outcome, one.style))
        return Group(table, self._bar)


def _table(*columns: str) -> Table:
    """A table in which only the last column gives way."""
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    table.columns[-1].ratio = 1
    table.columns[-1].no_wrap = False
    return table


def _figures(verdict: Verdict, figures: Figures) -> Iterator[tuple[str, str]]:
    given, available, expired = map(
        format_points, (verdict.available + verdict.expired, verdict.available, verdict.expired)
    )
    yield "given back", f"{given} points: {available} spendable, {expired} into expired lots"
    waited, left = figures.waited - figures.still_waiting, figures.still_waiting
    yield (
        "waiting",
        f"{waited} records waited until what they are about had come; {left} still wait{'s' if left == 1 else ''}",
    )
    rate = figures.records / figures.stream_seconds if figures.stream_seconds > 0 else 0
    speed = (
        f"{figures.records} records in {figures.stream_seconds:.2f} s = {rate:,.0f} a second, from the first sent to "
        f"the last outcome readable. A tiny stream: it shows that it works, not how fast (`make bench` does)"
    )
    yield "speed", speed
    yield "time", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures.steps)

"""The commands about the ledger: load, audit."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from service.commands.flags import AsJson, DatabaseUrl, err, out, print_json, run, settings_with

if TYPE_CHECKING:
    from service.audit import Finding
    from service.load import Summary


def add_to(app: typer.Typer) -> None:
    """Give the commands to the application."""
    for command in (load, audit):
        app.command()(command)


def load(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl", exists=True, dir_okay=False, readable=True, help="A JSON object on each line."
        ),
    ],
    keep_going: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Book the good lines and write the others there, each with its faults in a field `faults`: mend that "
            "file and load it.",
        ),
    ] = None,
    faults: Annotated[int, typer.Option(metavar="N", min=0, help="Most faults to name.")] = 20,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Load orgs, programs, customers, rewards, lots and redemptions: all lines of a file, or none if one is faulty.

    A line has a `kind`: `org`, `program`, `customer`, `reward`, `lot` or `redemption`; their order does not matter. A
    second run of the same file changes nothing, and a running service need not be stopped. Exits 1 where a line is
    faulty.

    ```
    {"kind": "org", "orgId": 7}
    {"kind": "program", "orgId": 7, "programId": "main"}
    {"kind": "customer", "orgId": 7, "customerId": 42, "status": "active"}
    {"kind": "reward", "orgId": 7, "rewardId": "W-1", "maxTotal": 100}
    {"kind": "lot", "orgId": 7, "customerId": 42, "lotId": "L-9",
        "points": "200", "remaining": "50"}              (on one line)
    {"kind": "redemption", "orgId": 7, "customerId": 42,
        "redemptionId": "R-5001", "orderId": "SO-1881", "points": "150",
        "lots": [{"lotId": "L-9", "points": "150"}]}     (on one line)
    ```

    Example: `points-reversal load shop.jsonl --keep-going faulty.jsonl`
    """

    async def command() -> Summary:
        from service.load import load as load_file
        from service.session import session

        settings = settings_with(database_url=database_url)
        async with session(settings) as connection:
            with ExitStack() as ending:
                bar = Bar(ending) if err.is_terminal and not as_json else None
                return await load_file(
                    connection,
                    file,
                    keep_going=keep_going,
                    moment=settings.test_clock,
                    faults=faults,
                    progress=bar.show if bar else lambda _what, _done, _all: None,
                )

    if not file.is_file():
        raise typer.BadParameter(
            f"{file} is a pipe or a device; load takes a file, which it can read from its start again: write the lines "
            f"into one first",
            param_hint="FILE.jsonl",
        )
    if keep_going is not None and not keep_going.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no directory {keep_going.parent}", param_hint="--keep-going")
    summary = run(command())
    if as_json:
        print_json(summary.document())
    else:
        _print_summary(summary)
    if summary.faulty_lines:
        raise typer.Exit(1)


class Bar:
    """The progress of a load: by bytes while the file is read, then by name of what is done."""

    def __init__(self, ending: ExitStack) -> None:
        self.progress = ending.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
        )
        self.task = self.progress.add_task("read", total=None)

    def show(self, what: str, done: int, in_all: int) -> None:
        """To be called with the name of the step, and how far it is where that is known."""
        if in_all:
            self.progress.update(self.task, description=what, completed=done, total=in_all)
        else:
            self.progress.update(self.task, description=what)


def _print_summary(summary: Summary) -> None:
    for fault in summary.faults:
        out.print(f"line {fault.line}: {escape(fault.message)}", soft_wrap=True)
    unnamed = summary.faulty_lines - len({fault.line for fault in summary.faults})
    if unnamed > 0:
        out.print(f"… and {unnamed:,} more faulty line{'' if unnamed == 1 else 's'}")
    if not summary.booked:
        out.print(
            f"nothing was booked: {summary.faulty_lines:,} of {summary.lines:,} lines are faulty; mend them, or book "
            f"the others with --keep-going FILE",
            soft_wrap=True,
        )
        return
    changed = ", ".join(
        f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in summary.changed.items() if count
    )
    rate = summary.lines / summary.seconds if summary.seconds else 0
    out.print(
        f"{summary.lines:,} lines in {summary.seconds:.1f} s ({rate:,.0f}/s); added or changed: {changed or 'nothing'}",
        soft_wrap=True,
    )
    if summary.faulty_lines:
        out.print(f"{summary.faulty_lines:,} faulty lines are in {summary.rejected}", soft_wrap=True)


def audit(
    org: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=2**63 - 1, help="Only this org; lanes are always checked whole."),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Most broken rows to name for each statement.")] = 20,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Check every invariant of the ledger over the whole database, in one snapshot; writes nothing.

    Exits 1 where one is broken, and names the rows. A running service need not be stopped.

    Example: `points-reversal audit --org 7 --json`
    """

    async def command() -> list[Finding]:
        from service.audit import audit as findings
        from service.session import session

        found: list[Finding] = []
        started = time.monotonic()
        async with session(settings_with(database_url=database_url)) as connection:
            async for finding in findings(connection, org, rows):
                found.append(finding)
                if not as_json:
                    _print_finding(finding)
        if not as_json:
            broken = sum(bool(finding.count) for finding in found)
            verdict = (
                f"{broken} of {len(found)} invariants are broken" if broken else f"all {len(found)} invariants hold"
            )
            out.print(f"{verdict} ({time.monotonic() - started:.1f} s)")
        return found

    found = run(command())
    ok = not any(finding.count for finding in found)
    if as_json:
        print_json({"ok": ok, "checks": [finding.document() for finding in found]})
    if not ok:
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    check = finding.check
    if not finding.count:
        out.print(f"[green]ok[/]      {check.number}  {check.name:<10} {check.meaning}", soft_wrap=True)
        return
    out.print(f"[bold red]broken[/]  {check.number}  {check.name:<10} {check.meaning}", soft_wrap=True)
    for row in finding.broken:
        out.print(f"           {escape(_named(row))}", soft_wrap=True)
    if finding.count > len(finding.broken):
        out.print(f"           … and {finding.count - len(finding.broken):,} more rows")


def _named(row: dict[str, Any]) -> str:
    """`orgId 7, lotId L-9: holds 300 of 200 points`."""
    keys = ", ".join(f"{name} {value}" for name, value in row.items() if name != "fault")
    return f"{keys}: {row['fault']}"

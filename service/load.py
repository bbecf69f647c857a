"""Bulk load (contract, "Command line"): a file of lines into the ledger, all of it or, where asked, its good lines.

The file streams into temporary tables, a bounded piece at a time; then one transaction checks what needs other lines or
the ledger, and writes everything set by set. While it writes it holds the customers that the file touches, in the order
in which the service locks them, so that both may run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import asyncpg
import orjson

from service.failures import Misused, Wrong
from service.load_lines import KINDS, LINE_BYTES, read_lines
from service.store import Connection, sql

CHUNK_LINES, CHUNK_BYTES = 5_000, 4 * 1024 * 1024  # most that is staged at once; bounds memory
ANALYZED_LINES = 10_000  # a load of so many lines changes what the planner knows of the tables
READERS = min(4, os.cpu_count() or 1)  # reading a line takes about as long as Postgres needs to book four
ALONE_BYTES = 16 * 1024 * 1024  # a smaller file is read sooner than processes are started for it
LOAD_LOCK = 0x6C6F6164  # "load": one load writes at a time
LOCK_SECONDS = 60  # the service's batches hold a customer for milliseconds; a longer wait means that something hangs
ATTEMPTS = 5
WORK_MEM_KIB = 128 * 1024
STAGED = ("org", "program", "customer", "identifier", "reward", "lot", "redemption")

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: not known)


class LineFault(NamedTuple):
    """What is wrong with a line, and with which of its fields."""

    line: int
    field: str
    message: str


@dataclass(slots=True)
class Summary:
    """What became of a file. `changed`: rows added or changed, by kind; empty where nothing was booked."""

    lines: int = 0
    booked: bool = False
    changed: dict[str, int] = field(default_factory=dict)
    faulty_lines: int = 0
    faults: list[LineFault] = field(default_factory=list)
    rejected: Path | None = None
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "lines": self.lines,
            "booked": self.booked,
            "changed": self.changed,
            "faultyLines": self.faulty_lines,
            "faults": [fault._asdict() for fault in self.faults],
            "rejected": str(self.rejected) if self.rejected is not None else None,
            "seconds": round(self.seconds, 3),
        }


async def load(
    connection: Connection,
    path: Path,
    *,
    keep_going: Path | None = None,
    moment: datetime | None = None,
    faults: int = 20,
    progress: Progress = lambda _what, _done, _all: None,
) -> Summary:
    """Load a file; raises nothing for faulty lines: they are in the summary, the first `faults` of them by name.

    `keep_going`: where the faulty lines are written, so that the good ones are booked without them. `moment` stands in
    for the clock.
    """
    if keep_going is not None and _same(keep_going, path):
        raise Misused(f"--keep-going {keep_going} is the file to load itself; name another one")
    started = time.monotonic()
    summary = Summary()
    await connection.execute(sql("bulk_stage"))
    summary.lines = await _stage(connection, path, progress)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await _book(connection, path, keep_going, moment, faults, summary, progress)
            break
        except CROSSED as error:
            if attempt == ATTEMPTS:
                raise Wrong(
                    f"other writers got in between {ATTEMPTS} times ({error}); nothing was booked; load again when "
                    f"fewer of the file's customers, lots and redemptions arrive by other ways"
                ) from error
        except asyncpg.LockNotAvailableError:
            raise Wrong(
                f"customers of the file stayed locked for {LOCK_SECONDS} s; nothing was booked; look at "
                f"pg_stat_activity for a hanging transaction, then load again"
            ) from None
    if summary.lines >= ANALYZED_LINES:  # until autovacuum comes by, the planner would take the tables for empty
        await connection.execute("analyze customer, identifier, lot, redemption, reward, journal")
    summary.seconds = time.monotonic() - started
    return summary


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, from 1, without blank ones; of one that is too long only the beginning."""
    number = 0
    while text := file.readline(LINE_BYTES + 1):
        number += 1
        if len(text) > LINE_BYTES and not text.endswith(b"\n"):
            while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        elif number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")  # some editors put a byte order mark there
        text = text.rstrip(b"\r\n")
        if text.strip():
            yield number, text


async def _stage(connection: Connection, path: Path, progress: Progress) -> int:
    """Read the whole file into the staging tables; returns the number of lines.

    Processes read a few pieces ahead while Postgres takes the one before; a small file is not worth starting them.
    """
    count = 0
    with path.open("rb", buffering=1024 * 1024) as file, contextlib.ExitStack() as ending:
        size = os.fstat(file.fileno()).st_size
        pool = ending.enter_context(_readers()) if size > ALONE_BYTES else None
        pieces = _pieces(lines_of(file))
        ahead: deque[Awaitable[dict[str, bytes]]] = deque()
        while True:
            for piece in itertools.islice(pieces, READERS + 1 - len(ahead)):
                count += len(piece)
                ahead.append(asyncio.get_running_loop().run_in_executor(pool, read_lines, piece))
            if not ahead:
                break
            await _copy(connection, await ahead.popleft())
            progress("read", file.tell(), size)
    for kind in STAGED:
        await connection.execute(f"analyze staged_{kind}")
    return count


def _pieces(lines: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """The lines by as many as are staged at once, fewer where they are long."""
    piece: list[tuple[int, bytes]] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line[1])
        if len(piece) >= CHUNK_LINES or size >= CHUNK_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _readers() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(READERS, mp_context=context, initializer=_follow_parent)


def _follow_parent() -> None:
    """A reading process ends with the one that it reads for, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


async def _copy(connection: Connection, rows: dict[str, bytes]) -> None:
    for kind, text in rows.items():
        await connection.copy_to_table(f"staged_{kind}", source=io.BytesIO(text))


class _Faulty(Exception):
    """Rolls the transaction back."""


class _Crossed(Exception):
    """The service created a customer in between."""


# The service committed in between: what it wrote is seen by the next attempt.
CROSSED = (asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError, asyncpg.DeadlockDetectedError, _Crossed)


async def _book(
    connection: Connection,
    path: Path,
    keep_going: Path | None,
    moment: datetime | None,
    faults: int,
    summary: Summary,
    progress: Progress,
) -> None:
    """Check and write everything in one transaction; where lines are faulty and may not be, roll it back."""
    try:
        async with connection.transaction():
            progress("wait for another load", 0, 0)
            await connection.execute("select pg_advisory_xact_lock($1)", LOAD_LOCK)
            await connection.execute(f"set local work_mem = {WORK_MEM_KIB:d}")
            await connection.execute(f"set local lock_timeout = {LOCK_SECONDS * 1000:d}")
            changed = await _write_rules(connection)
            progress("check", 0, 0)
            await _check(connection)
            await _read_faults(connection, faults, summary)
            _stop_at_faults(summary, keep_going)
            changed["customer"] = await _lock_customers(connection, progress)
            await connection.execute(sql("bulk_overdrawn_lots"))
            await _read_faults(connection, faults, summary)
            _stop_at_faults(summary, keep_going)
            changed += await _write(connection, moment, progress)
            if keep_going is not None:
                progress("write the faulty lines", 0, 0)
                await _reject(connection, path, keep_going)
                summary.rejected = keep_going
            progress("commit", 0, 0)
    except _Faulty:
        return
    summary.booked = True
    summary.changed = {kind: changed[kind] for kind in STAGED}


def _stop_at_faults(summary: Summary, keep_going: Path | None) -> None:
    if summary.faulty_lines and keep_going is None:
        raise _Faulty


async def _write_rules(connection: Connection) -> Counter[str]:
    """Orgs and programs, which the checks of all other lines need. Nobody waits for them: decisions only read them."""
    changed: Counter[str] = Counter()
    changed["org"] = _rows(await connection.execute(sql("bulk_orgs")))
    await connection.execute(_of("bulk_unknown_orgs", "program"))
    while _rows(await connection.execute(sql("bulk_two_defaults"))):
        pass
    changed["program"] = _rows(await connection.execute(sql("bulk_demote_defaults")))
    changed["program"] += _rows(await connection.execute(sql("bulk_programs")))
    await connection.execute(sql("bulk_default_programs"))
    return changed


async def _check(connection: Connection) -> None:
    """Take the lines out of the staging that are faulty, or say what is known already.

    Nothing that this reads can change afterwards, but for lots and redemptions that come in between: those end in a
    conflict and another attempt.
    """
    for kind in ("customer", "reward", "lot", "redemption"):
        await connection.execute(_of("bulk_unknown_orgs", kind))
    for kind in ("lot", "redemption"):
        await connection.execute(_of("bulk_unknown_programs", kind))
        await connection.execute(sql(f"bulk_known_{kind}s"))
        await connection.execute(sql(f"bulk_repeated_{kind}s"))
    await connection.execute(sql("bulk_foreign_lots"))


async def _lock_customers(connection: Connection, progress: Progress) -> int:
    """Create the customers that are new, and lock those that are not; returns how many are new."""
    progress("lock the customers", 0, 0)
    await connection.execute(sql("bulk_touched_customers"))
    await connection.execute("analyze touched_customer")
    await connection.execute(sql("bulk_stale_customers"))
    new = await connection.fetchval("select count(*) from touched_customer where not known")
    if _rows(await connection.execute(sql("bulk_create_customers"))) < new:
        raise _Crossed
    await connection.execute(sql("bulk_lock_customers"))
    return int(new)


async def _write(connection: Connection, moment: datetime | None, progress: Progress) -> Counter[str]:
    """Everything but orgs and programs, in the service's order: rewards, which customers share, last."""
    now = moment or await connection.fetchval("select clock_timestamp()")
    entry = (now, f"{int(now.timestamp() * 1000):012x}7{secrets.token_hex(2)[1:]}", secrets.token_hex(3)[1:])
    changed: Counter[str] = Counter()
    progress("customers", 0, 0)
    await connection.execute(sql("bulk_outdated_customers"))
    changed["customer"] = _rows(await connection.execute(sql("bulk_customers")))
    await connection.execute(sql("bulk_final_identifiers"))
    await connection.execute("analyze final_identifier")
    changed["identifier"] = _rows(await connection.execute(sql("bulk_drop_identifiers")))
    changed["identifier"] += _rows(await connection.execute(sql("bulk_put_identifiers")))
    progress("lots", 0, 0)
    changed["lot"] = _rows(await connection.execute(sql("bulk_lots"), now))
    await connection.execute(sql("bulk_lot_entries"), *entry)
    progress("redemptions", 0, 0)
    changed["redemption"] = _rows(await connection.execute(sql("bulk_redemptions"), now))
    await connection.execute(sql("bulk_redemption_entries"), *entry)
    await connection.execute(sql("bulk_lock_rewards"))
    changed["reward"] = _rows(await connection.execute(sql("bulk_rewards")))
    return changed


async def _read_faults(connection: Connection, most: int, summary: Summary) -> None:
    summary.faulty_lines = await connection.fetchval(sql("bulk_count_faults"))
    summary.faults = [LineFault(*row) for row in await connection.fetch(sql("bulk_faults"), most)]


async def _reject(connection: Connection, path: Path, target: Path) -> None:
    """Write the faulty lines, each with its faults, before the good ones are committed without them."""
    draft = target.with_name(target.name + ".part")
    with path.open("rb", buffering=1024 * 1024) as source, draft.open("wb") as file:
        lines = lines_of(source)
        number, text = 0, b""
        faults: list[dict[str, Any]] = []
        async for row in connection.cursor(sql("bulk_faults"), None, prefetch=1000):
            if row["line"] != number:
                file.write(_rejected(text, faults))
                number, text = next(one for one in lines if one[0] == row["line"])
                faults = []
            faults.append({"line": row["line"], "field": row["field"], "message": row["message"]})
        file.write(_rejected(text, faults))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)


def _rejected(text: bytes, faults: list[dict[str, Any]]) -> bytes:
    """The line as it was with one more field, `faults`, so that the file can be mended and loaded; a line that is no
    object becomes the field `text` of one."""
    if not faults:
        return b""
    text = text.strip()
    if faults[0]["field"] == "line":
        return orjson.dumps({"text": text[:LINE_BYTES].decode(errors="replace"), "faults": faults}) + b"\n"
    comma = b"" if text[1:-1].isspace() or text == b"{}" else b","
    return text[:-1] + comma + b'"faults":' + orjson.dumps(faults) + b"}\n"


def _of(statement: str, kind: str) -> str:
    """A statement that serves several kinds, for one of them."""
    assert kind in KINDS
    return sql(statement).replace("{table}", f"staged_{kind}")


def _rows(status: str) -> int:
    """How many rows a statement touched, from its status: `INSERT 0 12`."""
    return int(status.rsplit(" ", 1)[1])

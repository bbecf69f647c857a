"""Postgres: the statements by name, connections, and what an error of the database means."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.copy_text import array
from service.settings import Settings

Connection = asyncpg.Connection | PoolConnectionProxy

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # Postgres counts from then
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FIRST_MICROSECOND, LAST_MICROSECOND = (FIRST - EPOCH) // MICROSECOND, (LAST - EPOCH) // MICROSECOND
PLAN_SECONDS = 60.0  # a session's plans grow no older
CLOSE_SECONDS = 2.0  # longer than any healthy connection takes to come back to a pool that closes
HANG_UP_SECONDS = 2.0  # a new connection is to answer within so long


class Restart(Exception):
    """The batch met another's change: roll it back and run it again at once. `customers`: to be locked as well."""

    def __init__(self, why: str, customers: Iterable[tuple[int, int]] = ()) -> None:
        super().__init__(why)
        self.customers = set(customers)


class Crowded(Exception):
    """More waiting records could be set free than one transaction takes up: a smaller batch is to be tried."""


class LaneLost(Exception):
    """Another process owns the lane now, or its stored offset is not where this process thinks."""


@cache
def sql(name: str) -> str:
    """The statement in service/sql/NAME.sql."""
    return files("service").joinpath("sql", f"{name}.sql").read_text("utf-8")


def columns(rows: Iterable[tuple[Any, ...]], width: int, plain: Collection[int] = ()) -> list[Any]:
    """Rows as array parameters, one per column: as text but for the `plain` ones, which asyncpg encodes (bytes, and what
    is long). Statements that lock say by themselves in which order."""
    made = list(zip(*rows, strict=True)) or [()] * width
    return [column if at in plain else array(column) for at, column in enumerate(made)]


def blames_a_record(error: BaseException) -> bool:
    """Whether some record of the batch is at fault (data, constraints, sizes), not the world."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in ("22", "23", "54")
    if isinstance(error, asyncpg.DataError):
        return True
    world = (
        OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | TimeoutError | EOFError | MemoryError | Restart
    )
    return not isinstance(error, world)


def meets_another(error: BaseException) -> bool:
    """Whether another batch's commit got in between, so that the same batch run again sees it."""
    return isinstance(
        error,
        asyncpg.UniqueViolationError
        | asyncpg.ForeignKeyViolationError
        | asyncpg.DeadlockDetectedError
        | asyncpg.SerializationError
        | Restart,
    )


class Session(asyncpg.Connection):
    """A connection whose plans keep up with its tables, and whose COPY ends when the connection does.

    asyncpg's own goes on waiting for room to write where there is none at that moment, for ever; and it writes on where
    uvloop has closed the socket, which is a RuntimeError, and no word of the world's fault.
    """

    __slots__ = ("_made_at", "_planned_at")

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._made_at = self._planned_at = time.monotonic()

    def get_reset_query(self) -> str:
        """What asyncpg runs before another may have the session. Nothing here leaves one other than it was, but its
        plans are made once: for tables that may have been empty then. They are made again when the session is 1 s old,
        2 s, 4 s and so on, then every PLAN_SECONDS."""
        now = time.monotonic()
        if now - self._planned_at < min(max(1.0, self._planned_at - self._made_at), PLAN_SECONDS):
            return ""
        self._planned_at = now
        return "discard plans"

    async def copy_records_to_table(self, *args: Any, **given: Any) -> str:
        """As asyncpg's; raises ConnectionDoesNotExistError where the connection ends in the middle."""
        done = False

        def end(_: object) -> None:
            if not done:
                until.reschedule(0)

        self.add_termination_listener(end)
        try:
            async with asyncio.timeout(None) as until:
                try:
                    return await super().copy_records_to_table(*args, **given)
                finally:
                    done = True
        except (RuntimeError, TimeoutError) as error:
            await asyncio.sleep(0)  # the protocol is told of a socket's end one step of the loop later
            if self.is_closed():
                raise asyncpg.ConnectionDoesNotExistError("the connection ended in the middle of a COPY") from error
            raise
        finally:
            self.remove_termination_listener(end)


def overlook(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: asyncio's own, but for the future that asyncpg leaves behind where a connection
    ends in the middle of a COPY. Nobody can ask that one, and the COPY itself has raised."""
    future = context.get("future")
    ended = isinstance(context.get("exception"), asyncpg.ConnectionDoesNotExistError)
    if not ended or future is None or isinstance(future, asyncio.Task):
        loop.default_exception_handler(context)


def _microseconds(moment: datetime) -> tuple[int]:
    return ((moment - EPOCH) // MICROSECOND,)


def _moment(microseconds: tuple[int]) -> datetime:
    if FIRST_MICROSECOND <= microseconds[0] <= LAST_MICROSECOND:
        return EPOCH + timedelta(0, 0, microseconds[0])
    return FIRST if microseconds[0] < 0 else LAST


async def keep_times(connection: asyncpg.Connection) -> None:
    """Times as they are: asyncpg's own codec takes the first and the last that Python knows for infinite, and hands
    such out without a zone. An infinite one, of another writer, is read as the first or the last."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_microseconds, decoder=_moment, format="tuple"
    )


async def _bound_silence(connection: asyncpg.Connection, tcp_user_timeout_ms: int) -> None:
    """A peer that vanished is noticed, whatever the kernel's defaults."""
    transport = getattr(connection, "_transport", None)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, tcp_user_timeout_ms)


async def connect(settings: Settings) -> asyncpg.Pool:
    """A pool whose sessions are bounded in time, so that a frozen process holds no customer for ever."""

    async def prepare(connection: asyncpg.Connection) -> None:
        await _bound_silence(connection, settings.tcp_user_timeout_ms)
        await keep_times(connection)

    return await asyncpg.create_pool(
        settings.database_url.get_secret_value(),
        min_size=1,
        max_size=settings.database_connections,
        max_inactive_connection_lifetime=300,
        timeout=10,
        command_timeout=settings.statement_timeout_ms / 1000 + 5,
        init=prepare,
        connection_class=Session,
        server_settings={
            "application_name": "points-reversal",
            "timezone": "UTC",
            "jit": "off",
            # Every statement looks rows up by key, some of them in 20 tables: one plan, never by reading a whole table.
            "plan_cache_mode": "force_generic_plan",
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "statement_timeout": str(settings.statement_timeout_ms),
            "lock_timeout": str(settings.lock_timeout_ms),
            "idle_in_transaction_session_timeout": str(settings.idle_in_transaction_timeout_ms),
            "tcp_user_timeout": str(settings.tcp_user_timeout_ms),
        },
    )


async def disconnect(pool: asyncpg.Pool) -> None:
    """Close the pool: its connections come back first, unless that takes longer than CLOSE_SECONDS.

    Not `terminate` at once: where whoever had a connection was cancelled, asyncpg still gives it back by a task of its
    own, which nobody asks whether it failed.
    """
    try:
        await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        pool.terminate()


async def hang_up(pool: asyncpg.Pool, settings: Settings) -> bool:
    """End every connection of the pool where Postgres answers a new one: what stands between may have forgotten the old
    ones without a word, and each would be waited for until its statement's time is up. Returns whether it did."""
    try:
        connection = await asyncpg.connect(settings.database_url.get_secret_value(), timeout=HANG_UP_SECONDS)
        await connection.close(timeout=HANG_UP_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await pool.expire_connections()
    for holder in pool._holders:  # type: ignore[attr-defined]  # asyncpg ends all of them in no other way
        holder.terminate()
    return True

"""Connections, and what becomes of a COPY whose connection ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
import uvloop
from pydantic import SecretStr

from service import store
from service.app import App
from service.settings import Settings
from service.store import blames_a_record, connect, disconnect, overlook
from tests.proxy import proxy_before
from tests.stack import eventually

BLOCKED = """select pid from pg_stat_activity
    where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"""
LARGE = [(number, "x" * 1000) for number in range(50_000)]  # more than the sockets on the way take
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


async def cut_in_a_copy(url: str) -> BaseException | None:
    """A COPY that Postgres does not read on waits for room to write; then its session is ended."""
    asyncio.get_running_loop().set_exception_handler(overlook)
    administrator = await asyncpg.connect(url)
    pool = await connect(Settings(database_url=SecretStr(url)))
    await administrator.execute("create table large (number int, text text)")

    async def copy() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.copy_records_to_table("large", records=LARGE)

    async with pool.acquire() as connection:  # so that the table need not be looked at under the lock
        await connection.copy_records_to_table("large", records=LARGE[:1])
    async with administrator.transaction():
        await administrator.execute("lock table large")
        copying = asyncio.create_task(copy())
        pid = await eventually(lambda: administrator.fetchval(BLOCKED))
        assert not copying.done()
        await administrator.execute("select pg_terminate_backend($1)", pid)
        await asyncio.wait([copying], timeout=10)
    waits_for_ever = not copying.done()
    if waits_for_ever:  # or the loop would wait for it, too
        copying.cancel()
        await asyncio.wait([copying])
    await asyncio.wait_for(copy(), 30)  # the pool is whole
    await disconnect(pool)
    await administrator.close()
    assert not waits_for_ever
    return copying.exception()


@pytest.mark.parametrize("name", LOOPS)
def test_a_copy_ends_with_its_connection(database: str, caplog: pytest.LogCaptureFixture, name: str) -> None:
    def cut(factory: Callable[[], asyncio.AbstractEventLoop]) -> BaseException | None:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(cut_in_a_copy(database))

    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(cut, LOOPS[name]).result()
    gc.collect()
    assert isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError)
    assert not blames_a_record(error)
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_start_that_is_broken_off_while_a_connection_goes_back_leaves_nothing_behind(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy_before(database) as proxy:
        stop = proxy.hold(b"discard plans")  # what a session is reset with
        monkeypatch.setattr(store, "PLAN_SECONDS", 0.0)
        starting = asyncio.create_task(App(Settings(database_url=SecretStr(proxy.url)))._reach_postgres())
        await stop.reached.wait()
        starting.cancel()
        await asyncio.sleep(0)  # told
        stop.release()
        with pytest.raises(asyncio.CancelledError):
            await starting
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


async def test_what_else_nobody_waits_for_is_told(caplog: pytest.LogCaptureFixture) -> None:
    overlook(asyncio.get_running_loop(), {"message": "left behind", "exception": OSError("no answer")})
    [record] = caplog.records
    assert record.getMessage() == "left behind"

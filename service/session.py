"""One connection to Postgres for a command, with words for whatever keeps it from being made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from service.failures import Misused, Unreachable, Wrong
from service.migrate import SchemaError, pending
from service.settings import Settings

CONNECT_SECONDS = 10
# What a command may meet while it talks to Postgres that is not its own fault.
LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
)


def address(settings: Settings) -> str:
    """Which database, for people: the URL without user, password and parameters."""
    try:
        parts = urlsplit(settings.database_url.get_secret_value())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the address in REVERSAL_DATABASE_URL"
    return f"{parts.hostname or 'the local socket'}{port}{parts.path}"


@asynccontextmanager
async def session(settings: Settings, *, migrated: bool = True) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose statements may take as long as they take; `migrated`: refuse a schema that is not current."""
    connection = await _connect(settings)
    try:
        if migrated:
            await _must_be_migrated(connection, settings)
        yield connection
    except asyncpg.InsufficientPrivilegeError as error:
        raise Wrong(
            f"{error.as_dict().get('message', error)}: `migrate` and `load` are the owner's, all else may be done by a role "
            f"that `points-reversal migrate --grant ROLE` was given; REVERSAL_DATABASE_URL names whom it was done as"
        ) from error
    except LOST as error:
        if not connection.is_closed():
            raise  # not the connection's fault
        raise unreachable(settings, error) from error
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


async def _connect(settings: Settings) -> asyncpg.Connection:
    url = settings.database_url.get_secret_value()
    try:
        return await asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS,
            server_settings={
                "application_name": "points-reversal",
                "timezone": "UTC",
                "jit": "off",
                "statement_timeout": "0",
                "tcp_user_timeout": str(settings.tcp_user_timeout_ms),
            },
        )
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise unreachable(settings, error) from error
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        # The cause would repeat the URL, and with it a password.
        raise Misused(
            "REVERSAL_DATABASE_URL is no address of a Postgres database; write "
            "postgresql://user:password@host:port/database"
        ) from error
    except LOST as error:
        raise unreachable(settings, error) from error


async def _must_be_migrated(connection: asyncpg.Connection, settings: Settings) -> None:
    try:
        missing = await pending(connection)
    except SchemaError as error:
        raise Wrong(str(error)) from error
    if missing:
        names = ", ".join(migration.name for migration in missing)
        raise Wrong(f"the database {address(settings)} lacks {names}; run: points-reversal migrate")


def unreachable(settings: Settings, error: BaseException) -> Unreachable:
    """The words for a database that does not answer, or not to us."""
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return Unreachable(
        f"Postgres at {address(settings)} cannot be used ({said}); is it running, and is REVERSAL_DATABASE_URL right?"
    )

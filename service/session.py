"""One connection to Postgres for a command, with words for whatever keeps it from being made."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from service.failures import Misused, Unreachable, Wrong
from service.logs import mask
from service.migrate import SchemaError, pending
from service.settings import Settings
from service.store import keep_times

CONNECT_SECONDS = 10
TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")  # of a Postgres address
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
    check_tls_files(settings)
    try:
        connection = await asyncpg.connect(
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
    except ssl.SSLError as error:  # one of them is a ValueError too
        raise unreachable(settings, error) from error
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        if "sslmode" in str(error) or "root certificate" in str(error):
            raise Misused(f"REVERSAL_DATABASE_URL: {str(error).splitlines()[0]}") from error
        # The cause would repeat the URL, and with it a password.
        raise Misused(
            "REVERSAL_DATABASE_URL is no address of a Postgres database; write "
            "postgresql://user:password@host:port/database"
        ) from error
    except LOST as error:
        raise unreachable(settings, error) from error
    await keep_times(connection)
    return connection


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
    said = said_by_postgres(error)
    return Unreachable(
        f"Postgres at {address(settings)} cannot be used ({said}); is it running, and is REVERSAL_DATABASE_URL right?"
    )


def said_by_postgres(error: BaseException) -> str:
    """What Postgres or the way to it said, in one line; of a certificate, who has to vouch for it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not to be trusted: {error.verify_message}; sslrootcert in the address, or PGSSLROOTCERT, "
            f"names the PEM of the CA that signed it, and with sslmode=verify-full the host must be as the certificate names it"
        )
    return mask(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__


def check_tls_files(settings: Settings) -> None:
    """Raises Misused where a file that the address names for TLS cannot be read: asyncpg would not tell which."""
    try:
        named = parse_qsl(urlsplit(settings.database_url.get_secret_value()).query)
    except ValueError:
        return  # no address at all: told when it is used
    for name, path in named:
        if name in TLS_FILES:
            try:
                Path(path).expanduser().open("rb").close()
            except OSError as error:
                raise Misused(f"REVERSAL_DATABASE_URL: {name}={path} cannot be read ({error.strerror})") from error

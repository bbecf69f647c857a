"""Kafka with TLS, SCRAM-SHA-512 and ACLs, Postgres with TLS: the service on real servers that keep strangers out, and what it
says when it is the stranger."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.kafka import administrator
from service.migrate import migrate
from service.settings import Kafka, Settings
from tests import stack as servers
from tests.process import Service, Site, site
from tests.secure import (
    CREATE,
    DESCRIBE,
    GROUP,
    PASSWORD,
    READ,
    STRANGER,
    TOPIC,
    USER,
    WRITE,
    Acl,
    MachinePostgres,
    Secured,
    needed,
    secured,
)  # fmt: skip
from tests.stack import Stack, eventually
from tests.traffic import ORG, bare, shop

# A handshake that fails leaves its socket to asyncio, which closes it in a later turn of the loop: a command ends before.
pytestmark = [
    pytest.mark.embedded,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _left_to_asyncio() -> Iterator[None]:
    yield
    gc.collect()


TLS_POSTGRES = MachinePostgres.binaries() is not None
needs_tls_postgres = pytest.mark.skipif(
    not TLS_POSTGRES, reason="Debian's Postgres 15 or later is not here, and the wheel's was built without TLS"
)


@pytest.fixture(scope="module")
def servers_secured() -> Iterator[Secured]:
    with secured() as found:
        yield found


@pytest.fixture(scope="module")
def secure_stack(servers_secured: Secured) -> Stack:
    return servers_secured.stack()


@pytest.fixture(scope="module")
def template(secure_stack: Stack) -> str:
    url = servers.run(servers.create_database(secure_stack.database_url))
    servers.run(migrate(url, [secure_stack.run_role]))
    return servers.database_name(url)


@pytest.fixture
def place(servers_secured: Secured, secure_stack: Stack, template: str) -> Iterator[Site]:
    """Where the service is told to come by TLS, as a user with a password."""
    with site(secure_stack, template, settings=servers_secured.by_password()) as place:
        yield place


def part(customer: int, points: str, key: str) -> dict[str, object]:
    """A return of part of the customer's first redemption."""
    names = {"orgId": ORG, "redemptionId": f"R-{customer}-1", "idempotencyKey": key}
    return {**names, "pointsToBeReversed": points}


def by_tls(place: Site, secured: Secured, **others: Any) -> str:
    """The address of the place's database for one who trusts the CA and nobody else."""
    wanted = {"sslmode": "verify-full", "sslrootcert": secured.certificates.ca_file, **others}
    return place.database_url + "?" + "&".join(f"{name}={value}" for name, value in wanted.items())


async def call(place: Site, *words: str, **settings: str) -> Result:
    runner = CliRunner(env={**place.environment(**settings), "COLUMNS": "200"})
    return await asyncio.to_thread(runner.invoke, app, list(words), catch_exceptions=False)


def said(result: Result) -> str:
    return re.sub(r"\s+", " ", result.stderr)


async def waits(service: Service, words: str, event: str = "service.waiting", field: str = "reason") -> None:
    """Returns when it says that it waits, with those words; it must not end."""

    def found() -> bool:
        assert service.running, service.tail()
        return any(words in str(line[field]) for line in service.said(event))

    try:
        await eventually(found, 40)
    except AssertionError:
        raise AssertionError(f"it did not say {words!r}:\n{service.tail()}") from None


async def test_returns_are_decided_over_tls_with_what_the_readme_allows(place: Site, servers_secured: Secured) -> None:
    await place.load(shop(customers=2))
    await servers_secured.allow(USER, needed(place.topics, place.group))
    url = by_tls(place, servers_secured) if TLS_POSTGRES else place.database_url
    service = place.start(database_url=url)
    await service.ready()
    await place.produce("order.returned", [bare(part(1, "5", "k"), 1), bare(part(1, "9999", "l"), 1), bare({}, 1)])
    await place.produce("points.issued", [bare({"orgId": 1}, 1)])
    await place.drained()
    assert len(await place.read(place.topics.reversal_completed)) == 1
    assert len(await place.read(place.topics.reversal_failed)) == 1
    assert len(await place.read(place.topics.dead_letters(place.topic("order_returned")))) == 1
    encrypted = "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity a using (pid) where a.usename = $1"
    assert await place.value(encrypted, place.stack.run_role) is TLS_POSTGRES
    listed = await call(place, "lanes", "list", database_url=url)
    assert listed.exit_code == 0, listed.output
    assert not service.said("lane.doubt")
    await service.stop()


# Kafka


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"kafka__sasl_password": "wrong"}, 3, f"refuses the user {USER} (wrong name or password"),
        ({"kafka__sasl_username": "nobody"}, 3, "refuses the user nobody (wrong name or password"),
        ({"kafka__sasl_mechanism": "SCRAM-SHA-256"}, 3, "does not offer SCRAM-SHA-256; look at REVERSAL_KAFKA__SASL_MECHANISM"),
        ({"kafka__ssl_ca_file": "OTHER"}, 3, "does not vouch for (unable to get local issuer certificate); REVERSAL_KAFKA__SSL_"),
        ({"kafka__ssl_ca_file": ""}, 3, "does not vouch for"),
        ({"kafka__security_protocol": "SASL_PLAINTEXT"}, 3, "is SASL_PLAINTEXT what that listener speaks"),
        ({"kafka__security_protocol": "PLAINTEXT"}, 3, "is PLAINTEXT what that listener speaks"),
        ({"kafka__security_protocol": "SSL"}, 3, "is SSL what that listener speaks"),
        ({"kafka__ssl_ca_file": "/nowhere/ca.pem"}, 2, "REVERSAL_KAFKA__SSL_CA_FILE /nowhere/ca.pem"),
        ({"kafka__sasl_password": ""}, 2, "SASL_SSL needs REVERSAL_KAFKA__SASL_USERNAME and REVERSAL_KAFKA__SASL_PASSWORD"),
    ],
)  # fmt: skip
async def test_a_command_that_kafka_keeps_out_says_why(
    place: Site, servers_secured: Secured, settings: dict[str, str], code: int, words: str
) -> None:
    given = {**settings}
    if given.get("kafka__ssl_ca_file") == "OTHER":
        given["kafka__ssl_ca_file"] = str(servers_secured.certificates.other_ca_file)
    result = await call(place, "topics", **given)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in said(result)
    assert PASSWORD not in result.output
    assert "Traceback" not in result.output


async def test_a_service_that_kafka_keeps_out_waits_and_says_why(place: Site, servers_secured: Secured) -> None:
    other = str(servers_secured.certificates.other_ca_file)
    wrong = place.start("password", kafka__sasl_password="wrong")
    unknown = place.start("ca", kafka__ssl_ca_file=other)
    await waits(wrong, f"refuses the user {USER} (wrong name or password")
    await waits(unknown, f"shows a certificate that {other} does not vouch for")
    for service in (wrong, unknown):
        assert service.get("/readyz")[0] == 503
        assert "Traceback" not in service.path.read_text()
        await service.stop()


async def test_a_client_may_show_a_certificate_instead(place: Site, servers_secured: Secured, tmp_path: Path) -> None:
    async def listed(**others: str | None) -> list[str]:
        kafka = Kafka(
            bootstrap_servers=servers_secured.kafka.mutual_servers, security_protocol="SSL", request_timeout_ms=5000,
            ssl_ca_file=str(servers_secured.certificates.ca_file), **others,
        )  # fmt: skip
        async with administrator(Settings(kafka=kafka)) as admin:
            return list(await admin.list_topics())

    assert await listed(ssl_certificate_file=str(servers_secured.certificates.client_file)) == []  # it may see none
    with pytest.raises(PermissionError, match="does it ask for a certificate"):
        await listed()


async def test_each_missing_acl_is_named_and_once_it_is_there_it_goes_on(place: Site, servers_secured: Secured) -> None:
    """The stranger is let in and may do nothing; then one thing after the other."""
    await place.load(shop(customers=2))
    topics, everything = place.topics, needed(place.topics, place.group)
    inputs, outputs = list(topics.inputs()), place.outputs
    refused = await call(place, "topics", kafka__sasl_username=STRANGER)
    assert refused.exit_code == 1
    assert f"Kafka does not let the user {STRANGER} create the topic" in said(refused)
    listed = await call(place, "dlq", "list", kafka__sasl_username=STRANGER)
    assert listed.exit_code == 0  # it sees none

    service = place.start(kafka__sasl_username=STRANGER)
    await waits(service, f"Kafka does not let the user {STRANGER} see ")
    await servers_secured.allow(STRANGER, [Acl(TOPIC, name, DESCRIBE) for name in [*inputs, *outputs]])
    await waits(service, f"does not allow the user {STRANGER} to join the group {place.group}")
    await servers_secured.allow(STRANGER, [Acl(GROUP, place.group, READ)])
    await waits(service, f"does not allow the user {STRANGER} to use the topic", "lane.doubt", "error")
    await servers_secured.allow(STRANGER, [Acl(TOPIC, name, READ) for name in inputs])
    await service.ready()
    await place.produce("order.returned", [bare(part(1, "5", "k"), 1)])
    await waits(service, f"does not allow the user {STRANGER} to produce", "lane.doubt", "error")
    await servers_secured.allow(
        STRANGER, [one for one in everything if one.operation == WRITE and "failed" in one.name]
    )
    await waits(service, f"to use the topic {topics.reversal_completed}", "lane.doubt", "error")
    await servers_secured.allow(STRANGER, [one for one in everything if one.operation == WRITE])
    await place.drained()
    assert len(await place.read(topics.reversal_completed)) == 1
    await service.ready()
    await service.stop()


async def test_topics_are_created_by_who_may(place: Site, servers_secured: Secured) -> None:
    """Who may use them need not be who may create them."""
    await servers_secured.allow(
        USER, [*needed(place.topics, place.group), Acl(TOPIC, f"{place.prefix}.new.dlq", CREATE)]
    )
    wanted = {"topics__points_issued": f"{place.prefix}.new"}
    refused = await call(place, "topics", **wanted)
    assert refused.exit_code == 1
    assert f"create the topic {place.prefix}.new: the ACL Create is missing" in said(refused)
    await servers_secured.allow(USER, [Acl(TOPIC, f"{place.prefix}.new", CREATE)])
    assert (await call(place, "topics", **wanted)).exit_code == 0


# Postgres


@needs_tls_postgres
async def test_a_command_that_postgres_keeps_out_says_why(place: Site, servers_secured: Secured) -> None:
    certificates = servers_secured.certificates
    wrong = place.database_url.replace(f":{place.stack.run_role}@", ":hush@")
    for url, code, words in (
        (wrong, 3, f'password authentication failed for user "{place.stack.run_role}"'),
        (by_tls(place, servers_secured, sslrootcert=certificates.other_ca_file), 3,
         "its certificate is not to be trusted: unable to get local issuer certificate; sslrootcert"),
        (by_tls(place, servers_secured, sslrootcert="/nowhere/ca.pem"), 2, "sslrootcert=/nowhere/ca.pem cannot be read"),
        (by_tls(place, servers_secured, sslmode="verify"), 2, "`sslmode` parameter must be one of"),
        (by_tls(place, servers_secured).replace("@localhost:", "@0.0.0.0:"), 3, "not to be trusted: IP address mismatch"),
    ):  # fmt: skip
        for command in ("audit", "migrate"):
            result = await call(place, command, database_url=url)
            assert (result.exit_code, result.stdout) == (code, ""), result.output
            assert words in said(result)
            assert "hush" not in result.output
            assert "Traceback" not in result.output


@needs_tls_postgres
async def test_a_service_that_postgres_keeps_out_waits_and_says_why(place: Site, servers_secured: Secured) -> None:
    wrong = place.database_url.replace(f":{place.stack.run_role}@", ":hush@")
    other = by_tls(place, servers_secured, sslrootcert=servers_secured.certificates.other_ca_file)
    services = [place.start("password", database_url=wrong), place.start("ca", database_url=other)]
    await waits(services[0], "password authentication failed")
    await waits(services[1], "its certificate is not to be trusted")
    for service in services:
        assert service.get("/readyz")[0] == 503
        assert "hush" not in service.path.read_text()
        await service.stop()


@needs_tls_postgres
async def test_an_address_without_a_mode_uses_tls_where_it_is_offered(place: Site) -> None:
    connection = await asyncpg.connect(place.database_url)
    try:
        assert await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()") is True
    finally:
        await connection.close()

"""Real servers, started at the first test that asks for them; a database and topics of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from service.migrate import migrate
from tests import stack as servers

pytest.register_assert_rewrite("tests.integration.desk")  # what it asserts is to be shown


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=servers.CHOICES,
        default="auto",
        help="the Kafka and Postgres to test on: auto is those that TEST_DATABASE_URL and "
        "TEST_KAFKA_BOOTSTRAP_SERVERS name, else embedded",
    )
    parser.addoption(
        "--dose",
        choices=("short", "long"),
        default="short",
        help="how much of each fault tests/faults injects (the table DOSES in its engine.py)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The fast tests first; on containers none of the embedded pair, which is not what is tried there."""
    if config.getoption("--stack") == "containers":
        elsewhere = pytest.mark.skip(reason="about the embedded pair; the stack is containers")
        for item in items:
            if item.get_closest_marker("embedded"):
                item.add_marker(elsewhere)
    for item in items:
        if "trial" in getattr(item, "fixturenames", ()):
            item.add_marker("dosed")
    order = ("unit", "integration", "e2e", "hostile", "faults")
    places = {name: place for place, name in enumerate(order)}

    def place(item: pytest.Item) -> int:
        return next((places[part] for part in item.path.parts[::-1] if part in places), len(order))

    items.sort(key=place)


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--stack") == "containers":
        from tests import containers

        try:
            containers.fetch_images()
        except Exception as error:
            pytest.exit(f"--stack=containers: {error}", returncode=3)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[servers.Stack]:
    """Kafka and Postgres, one of each for the whole run."""
    with servers.running_stack(request.config.getoption("--stack")) as running:
        yield running


@pytest.fixture(scope="session")
def template_database(stack: servers.Stack) -> Iterator[str]:
    """The name of a migrated database that nobody writes to: what each test's own is cloned from."""
    url = servers.run(servers.create_database(stack.database_url))
    servers.run(migrate(url, [stack.run_role]))
    yield servers.database_name(url)
    servers.run(servers.drop_database(url))


@pytest.fixture
async def database(stack: servers.Stack, template_database: str) -> AsyncIterator[str]:
    """The address of a migrated, empty database of the test's own, as its owner."""
    url = await servers.create_database(stack.database_url, template_database)
    yield url
    await servers.drop_database(url)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    """Connections to the test's own database."""
    async with asyncpg.create_pool(database, min_size=1, max_size=8) as connections:
        yield connections


@pytest.fixture
def topic_prefix() -> str:
    """What the names of the test's topics and groups begin with."""
    return servers.unique("t")

"""The desk that the tests of the pipeline stand at."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.desk import Desk, desk_on


@pytest.fixture
async def desk(database: str) -> AsyncIterator[Desk]:
    """A desk on a database of the test's own, audited at the end."""
    async with desk_on(database) as desk:
        yield desk

"""Which topics do not fit what the service reads and sends."""

from __future__ import annotations

import pytest

from service.kafka import FRAME_BYTES, input_bytes, output_bytes
from service.settings import Settings
from service.topics import needed, unfit

SETTINGS = Settings()
MADE = {topic.name: topic.max_message_bytes for topic in needed(SETTINGS)}
BROKERS_DEFAULT = 1_048_588
LARGEST_INPUT = output_bytes(SETTINGS) - FRAME_BYTES


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"reversal-failed": output_bytes(SETTINGS) - 1}, ["reversal-failed"]),
        ({"order.returned.dlq": input_bytes(SETTINGS)}, ["order.returned.dlq"]),
        ({"order.returned": BROKERS_DEFAULT, "order.returned.dlq": BROKERS_DEFAULT + FRAME_BYTES}, []),
        ({"points.issued": LARGEST_INPUT}, []),
        ({"points.issued": LARGEST_INPUT + 1}, ["points.issued"]),
    ],
)
def test_a_topic_is_told_that_can_stop_a_lane(changed: dict[str, int], found: list[str]) -> None:
    told = list(unfit(SETTINGS, {**MADE, **changed}))
    assert [name for name, _ in told] == found
    assert all(str(changed[name]) in reason for name, reason in told)


def test_where_nothing_is_known_nothing_is_told() -> None:
    assert list(unfit(SETTINGS, {})) == []

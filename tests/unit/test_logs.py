"""What a log line may hold, and how often a library may say the same thing."""

from __future__ import annotations

import logging

import pytest

from service import logs


def line(text: str, *values: object, name: str = "aiokafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "f.py", 1, text, values, None)


def test_a_library_says_the_same_thing_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("service.logs.time.monotonic", lambda: now)
    seldom = logs.Seldom()
    assert seldom.filter(line("no answer from %s", 1))
    assert not seldom.filter(line("no answer from %s", 2))
    assert seldom.filter(line("no answer from %s", 1, name="asyncio"))
    assert seldom.filter(line("another thing"))
    now = logs.QUIET_SECONDS
    assert seldom.filter(line("no answer from %s", 3))


def test_texts_made_anew_do_not_fill_the_memory() -> None:
    seldom = logs.Seldom()
    for number in range(5000):
        assert seldom.filter(line(f"no answer from {number}"))
    assert len(seldom._said) <= 1001


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Key (1, EMAIL, ann@shop.example) exists", "Key (1, EMAIL, [email]) exists"),
        ("call +65 9123-4567 now", "call [phone] now"),
        ("phone:91234567", "phone:[phone]"),
        ('{"PHONE":"+65 9123 4567","value":6591234567}', '{"PHONE":"[phone]","value":[phone]}'),
        ("a:+6591234567, b:(65) 9123-4567", "a:[phone], b:[phone]"),
        ("customer 42 of org 7", "customer 42 of org 7"),
        ("at 12:52:21.812533 and 2026-11-21T12:52:21.812533Z", "at 12:52:21.812533 and 2026-11-21T12:52:21.812533Z"),
        ("localhost:16372, [::1]:16372, fe80::12345678", "localhost:16372, [::1]:16372, fe80::12345678"),
    ],
)
def test_what_names_a_person_is_masked_within_texts(text: str, masked: str) -> None:
    assert logs.mask(text) == masked


@pytest.mark.parametrize("field", sorted(logs.PERSONAL))
def test_fields_that_hold_what_names_a_person_are_masked_whole(field: str) -> None:
    assert logs.redact(None, "info", {"event": "batch.decided", field: "x"}) == {
        "event": "batch.decided",
        field: "[personal]",
    }


@pytest.mark.parametrize("text", ["Connection at 127.0.0.1:32236 closed", "Connect call failed ('10.20.30.40', 5432)"])
def test_the_address_of_a_server_is_no_phone(text: str) -> None:
    assert logs.mask(text) == text

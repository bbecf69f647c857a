"""Dead letters: what their headers tell, and what is put back of them."""

from __future__ import annotations

import pytest

from service.dlq import DeadLetter, read, replayed
from service.headers import sent
from service.published import dead_letter_headers
from service.records import DeadLetterReason, Record

INPUTS = ("order.returned", "points.redeemed")
HEADERS = (("h", b"1"), ("h", b"2"), ("empty", None), ("content-type", b"text/plain"))


def original(*more: tuple[str, bytes | None]) -> Record:
    return Record("order.returned", 3, 1841, 1_700_000_000_123, b"k\xff", b"{\xff", (*HEADERS, *more))


def letter(record: Record, reason: DeadLetterReason = DeadLetterReason.NOT_JSON, value: bool = True) -> Record:
    """The dead letter of a record, as the service writes it."""
    headers = tuple(sent(dead_letter_headers(record, reason, "why", "group")))
    return Record("order.returned.dlq", 0, 17, 1_800_000_000_000, record.key, record.value if value else None, headers)


def back(found: DeadLetter) -> Record:
    record = replayed(found, INPUTS)
    assert isinstance(record, Record), record
    return record


def test_its_headers_tell_the_original_to_the_millisecond() -> None:
    found = read(letter(original()))
    assert found.original == original()
    assert (found.reason, found.message, found.group, found.place) == (
        "not_json",
        "why",
        "group",
        "order.returned.dlq/0@17",
    )


def test_bytes_and_headers_go_back_as_they_were() -> None:
    record = back(read(letter(original())))
    assert (record.topic, record.partition, record.key, record.value) == ("order.returned", 3, b"k\xff", b"{\xff")
    assert record.headers == (*HEADERS, ("replay-of", b"order.returned/3/1841@1700000000123"))


def test_a_replay_that_failed_again_still_names_the_first_record() -> None:
    first = back(read(letter(original())))
    again = Record("order.returned", 3, 2000, 1_900_000_000_000, first.key, first.value, first.headers)
    assert back(read(letter(again))).headers == first.headers


def test_a_replay_of_that_is_malformed_does_not_stand() -> None:
    record = back(read(letter(original(("replay-of", b"nonsense")))))
    assert record.headers == (*HEADERS, ("replay-of", b"order.returned/3/1841@1700000000123"))


@pytest.mark.parametrize("reason", [DeadLetterReason.TOO_LARGE, DeadLetterReason.CORRUPT])
def test_what_has_no_value_cannot_be_replayed(reason: DeadLetterReason) -> None:
    why = replayed(read(letter(original(), reason, value=False)), INPUTS)
    assert isinstance(why, str)
    assert f"it is {reason}" in why
    assert "order.returned/3@1841" in why


def test_a_record_that_never_had_a_value_can() -> None:
    empty = Record("order.returned", 0, 1, 5, None, None, ())
    assert back(read(letter(empty))).value is None


def test_of_another_service_s_dead_letter_is_told_what_is_missing() -> None:
    foreign = read(Record("order.returned.dlq", 0, 1, 5, None, b"x", (("x-error", b"oops"),)))
    assert (foreign.original, foreign.reason) == (None, None)
    assert replayed(foreign, INPUTS) == "its headers do not tell where it came from"
    assert replayed(read(letter(original())), ["other"]) == "order.returned is no input topic of this service"


def test_its_document_holds_texts_as_texts_and_bytes_in_base64() -> None:
    document = read(letter(original())).document(whole=True)
    assert document["original"] == {
        "topic": "order.returned", "partition": 3, "offset": 1841, "timestamp": "2023-11-14T22:13:20.123Z",
    }  # fmt: skip
    assert (document["key"], document["value"], document["bytes"]) == ("base64:a/8=", "base64:e/8=", 2)
    assert document["headers"][:3] == [
        {"name": "h", "value": "1"}, {"name": "h", "value": "2"}, {"name": "empty", "value": None},
    ]  # fmt: skip
    assert "value" not in read(letter(original())).document()

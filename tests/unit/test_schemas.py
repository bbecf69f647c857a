"""The schemas in `schemas/` follow the models, and every example in it is what its folder says."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service import schemas
from service.envelope import Event, parse_json, read_envelope
from service.events import decode, read_feed, read_lot_line, read_redemption_line
from service.fields import camel
from service.records import DeadLetterReason, Fault, Kind, Record, Return, Unreadable

EXAMPLES = schemas.DIRECTORY / "examples"
OUTCOMES = (schemas.COMPLETED, schemas.FAILED)


def examples(folder: str, *, outcomes: bool) -> list[Any]:
    found = sorted((EXAMPLES / folder).glob("*/*.json"))
    assert found
    return [
        pytest.param(path, id=f"{path.parent.name}/{path.stem}")
        for path in found
        if outcomes or path.parent.name not in OUTCOMES
    ]


@cache
def validator(name: str) -> Draft202012Validator:
    schema = json.loads((schemas.DIRECTORY / f"{name}.json").read_text())
    return Draft202012Validator(schema)


def allowed(path: Path) -> bool:
    return bool(validator(path.parent.name).is_valid(json.loads(path.read_text())))


def faulty_fields(path: Path) -> list[str]:
    """What the service finds wrong with the example: the fields, by the first part of their names."""
    name, value = path.parent.name, path.read_bytes()
    if name == "cloudevent":
        return _envelope_faults(value)
    if name in ("load.lot", "load.redemption"):
        read: Callable[[dict[str, Any]], object] = read_lot_line if name == "load.lot" else read_redemption_line
        return _names(read(_object(value)))
    kind = Kind(name)
    message = decode(kind, Record(name, 0, 0, 0, None, value), 2**20)
    if isinstance(message, Unreadable) and message.reason is DeadLetterReason.MALFORMED_FEED:
        return _names(read_feed(kind, _object(value)))
    if isinstance(message, Unreadable):
        assert message.reason is DeadLetterReason.NO_ORG
        return ["orgId"]
    return _names(message.faults) if isinstance(message, Return) else []


def _envelope_faults(value: bytes) -> list[str]:
    event = read_envelope(Record("t", 0, 0, 0, None, value, (("content-type", b"application/cloudevents"),)), 10**4)
    if isinstance(event, Event):
        return []
    if event.reason is DeadLetterReason.NOT_AN_OBJECT:
        return ["data"]
    return [event.message.removeprefix("the CloudEvent's ").split()[0]]


def _object(value: bytes) -> dict[str, Any]:
    document = parse_json(value)
    assert isinstance(document, dict)
    return document


def _names(answer: object) -> list[str]:
    faults = answer if isinstance(answer, tuple) else ()
    return [fault.field.split(".")[0].split("[")[0] for fault in faults if isinstance(fault, Fault)]


@pytest.mark.parametrize("path", examples("valid", outcomes=True))
def test_the_schema_allows_a_valid_example(path: Path) -> None:
    validator(path.parent.name).validate(json.loads(path.read_text()))


@pytest.mark.parametrize("path", examples("valid", outcomes=False))
def test_the_service_reads_a_valid_example(path: Path) -> None:
    assert faulty_fields(path) == []


@pytest.mark.parametrize("path", examples("invalid", outcomes=False))
def test_schema_and_service_refuse_an_invalid_example_for_the_field_that_it_names(path: Path) -> None:
    assert not allowed(path)
    assert path.stem.split(".")[0] in faulty_fields(path)


@pytest.mark.parametrize("path", examples("beyond-schema", outcomes=False))
def test_the_service_alone_refuses_what_is_beyond_the_schema(path: Path) -> None:
    assert allowed(path), "the schema says it after all: move the example to invalid/"
    assert path.stem.split(".")[0] in faulty_fields(path)


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "valid" / Kind.ORDER_RETURNED).glob("*.json")), ids=lambda path: path.stem
)
def test_snake_case_says_the_same(path: Path) -> None:
    camel_case = json.loads(path.read_text())
    snake_case = {_snake(name): value for name, value in camel_case.items()}
    read = [
        decode(Kind.ORDER_RETURNED, Record("t", 0, 0, 0, None, json.dumps(value).encode()), 2**20)
        for value in (camel_case, snake_case)
    ]
    assert read[0] == read[1]


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)


SPELLINGS: list[Any] = [
    None, True, 0, 1, -1, 7, 42, 0.5, 1.0, 1.2345, 10**9, 10**9 + 1, 10**15, 2**63 - 1, 2**63, "", " ", "0", "0.0", "1",
    "01", ".5", "1.", "1.5000", "1.2345", "+1", "-1", "1e3", "1_000", "١", "9" * 15, "9" * 16, "a\n", "a\u2028", "\x7f",
    "\u200b", "x" * 255, "x" * 256, "x" * 501, "RAW", "UNIT_BASED", "active", "PHONE", "2026-11-20T09:30:00+08:00",
    "2026-11-20T09:30:00", "2026-11-20t09:30:00.5z", "2026-11-20T09:30:60Z", [], {}, [None], [{}],
    {"type": "PHONE", "value": "+65 9"}, {"type": "EMAIL", "value": None}, [{"type": "ID", "value": 42}],
    [{"lotId": "L", "points": "1"}], [{"lotId": "L", "points": 1.0001}],
]  # fmt: skip


@pytest.mark.parametrize("kind", Kind)
def test_what_the_service_reads_the_schema_allows(kind: Kind) -> None:
    properties = schemas.schemas()[kind]["properties"]
    least = {"orgId": 1, "customerId": 42, "redemptionId": "R", "lotId": "L", "points": "1"}
    base = {name: value for name, value in least.items() if name in properties}
    for name in properties:
        for other in properties:
            for value in SPELLINGS:
                document = base | {other: base.get(other, "1")} | {name: value}
                message = decode(kind, Record(kind, 0, 0, 0, None, json.dumps(document).encode()), 2**20)
                read = not isinstance(message, Unreadable) and not (isinstance(message, Return) and message.faults)
                assert not read or validator(kind).is_valid(document), document


def test_every_schema_has_examples_and_every_example_a_schema() -> None:
    made = schemas.schemas().keys()
    valid = {path.parent.name for path in (EXAMPLES / "valid").glob("*/*.json")}
    assert valid == set(made)
    for folder in ("invalid", "beyond-schema"):
        assert {path.parent.name for path in (EXAMPLES / folder).glob("*/*.json")} <= set(made)


def test_every_input_field_is_in_an_example_that_is_invalid_for_it() -> None:
    for kind in Kind:
        described = set(schemas.schemas()[kind]["properties"])
        folders = (EXAMPLES / "invalid" / kind).glob("*.json")
        named = {path.stem.split(".")[0] for path in folders}
        assert named <= described
        if kind is Kind.ORDER_RETURNED:
            assert named == described


def test_the_files_are_what_the_models_say() -> None:
    assert schemas.differences(schemas.DIRECTORY) == [], "run `make schemas`"


def test_a_drift_is_noticed(tmp_path: Path) -> None:
    made = schemas.files()
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    assert schemas.differences(tmp_path) == []
    (tmp_path / "order.returned.json").write_text("{}")
    (tmp_path / "points.issued.json").unlink()
    (tmp_path / "gone.json").write_text("{}")
    assert schemas.differences(tmp_path) == ["gone.json", "order.returned.json", "points.issued.json"]


@pytest.mark.parametrize("name", schemas.schemas())
def test_every_schema_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(schemas.schemas()[name])


def test_inputs_are_described_in_camel_case() -> None:
    for kind in Kind:
        for name in schemas.schemas()[kind]["properties"]:
            assert name == camel(_snake(name))


def test_asyncapi_refers_only_to_what_there_is() -> None:
    document = schemas.asyncapi()
    for reference in _references(document):
        if reference.startswith("./"):
            assert (schemas.DIRECTORY / reference).is_file()
            continue
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    topics = {*Kind, *OUTCOMES, *(f"{kind}.dlq" for kind in Kind)}
    assert document["channels"].keys() == topics
    assert {name.split()[1] for name in document["operations"]} == topics


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []


def test_the_readme_names_every_file() -> None:
    readme = (schemas.DIRECTORY / "README.md").read_text()
    for name in schemas.files():
        assert f"`{name}`" in readme

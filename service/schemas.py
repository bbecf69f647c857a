"""The schemas of every event, made from the wire models.

`python -m service.schemas` writes them, `--check` compares.

They describe the canonical spelling (camelCase). What JSON Schema cannot say, `schemas/README.md` lists.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from service import events, published
from service.envelope import REQUIRED_ATTRIBUTES
from service.records import DeadLetterReason, Kind

DIRECTORY = Path(__file__).parent.parent / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
COMPLETED = "reversal-completed"
FAILED = "reversal-failed"

_GIVEN = {"not": {"type": "null"}}
_NULL = {"type": "null"}


def _given(*names: str) -> dict[str, Any]:
    return {"required": list(names), "properties": dict.fromkeys(names, _GIVEN)}


# The rules on several fields that JSON Schema can say; `events` applies them.
_ORDER_RETURNED_RULES: dict[str, Any] = {
    "allOf": [
        {"anyOf": [_given("redemptionId"), _given("orderId")]},
        {"not": _given("pointsToBeReversed", "quantity")},
    ]
}
_UNIT_BASED = {"required": ["type"], "properties": {"type": {"const": "UNIT_BASED"}}}
_REDEEMED_RULES: dict[str, Any] = {
    "if": _UNIT_BASED,
    "then": _given("quantity"),
    "else": {"properties": {"quantity": _NULL}},
}
_REDEMPTION_LINE_RULES: dict[str, Any] = {
    **_REDEEMED_RULES,
    "else": {"properties": {"quantity": _NULL, "reversedQuantity": _NULL}},
}
_INPUTS: dict[str, tuple[TypeAdapter[Any], dict[str, Any]]] = {
    Kind.ORDER_RETURNED: (events.RETURN.adapter, _ORDER_RETURNED_RULES),
    Kind.CUSTOMER_UPDATED: (events.CUSTOMER.adapter, {}),
    Kind.POINTS_ISSUED: (events.ISSUE.adapter, {}),
    Kind.POINTS_REDEEMED: (events.REDEMPTION.adapter, _REDEEMED_RULES),
    "load.lot": (events.LOT_LINE.adapter, {}),
    "load.redemption": (events.REDEMPTION_LINE.adapter, _REDEMPTION_LINE_RULES),
}
_OUTPUTS: dict[str, type] = {COMPLETED: published.CompletedBody, FAILED: published.RefusedBody}


def schemas() -> dict[str, dict[str, Any]]:
    """Every JSON Schema by name: inputs, outcomes, the structured CloudEvent, lines of a load file."""
    made = {name: _input_schema(name, *source) for name, source in _INPUTS.items()}
    made |= {name: _named(name, TypeAdapter(model).json_schema()) for name, model in _OUTPUTS.items()}
    made["cloudevent"] = _cloudevent_schema()
    return made


def _input_schema(name: str, adapter: TypeAdapter[Any], rules: dict[str, Any]) -> dict[str, Any]:
    schema = adapter.json_schema(by_alias=True, mode="validation")
    for part in (schema, *schema.get("$defs", {}).values()):
        _allow_nulls(part)
    return _named(name, schema) | rules


def _allow_nulls(schema: dict[str, Any]) -> None:
    """`null` means absent, wherever a field may be absent."""
    required = schema.get("required", ())
    for field, value in schema["properties"].items():
        if field in required:
            continue
        if "type" in value:
            types = value["type"]
            value["type"] = [*([types] if isinstance(types, str) else types), "null"]
        elif "enum" in value:
            value["enum"] = [*value["enum"], None]
        else:
            schema["properties"][field] = {"anyOf": [value, _NULL]}


def _named(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        for value in part["properties"].values():
            value.pop("title", None)  # pydantic's, made of the field's name: they say nothing
    return {"$schema": DIALECT, "$id": f"urn:points-reversal:{name}", "title": name, **schema}


def _cloudevent_schema() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    properties: dict[str, Any] = dict.fromkeys(REQUIRED_ATTRIBUTES, text)
    properties["specversion"] = {"type": "string", "pattern": "^1\\."}
    properties["data"] = {"anyOf": [{"type": "object"}, _NULL]}
    properties["data_base64"] = {"anyOf": [{"type": "string", "contentEncoding": "base64"}, _NULL]}
    properties["traceparent"] = {"description": "Goes on to the outcome."}
    schema = {
        "type": "object",
        "description": "A CloudEvent 1.0 in structured form; `data` is one of the events beside this.",
        "properties": properties,
        "required": list(REQUIRED_ATTRIBUTES),
        "anyOf": [_given("data"), _given("data_base64")],
    }
    return _named("cloudevent", schema)


def asyncapi() -> dict[str, Any]:
    """The topics with their keys, messages and headers, as an AsyncAPI 3 document."""
    sent = (COMPLETED, FAILED)
    letters = [f"{kind}.dlq" for kind in Kind]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "points-reversal",
            "version": "1.0.0",
            "description": "Loyalty points back for returned orders. Topics by their default names.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name) for name in (*Kind, *sent)}
        | {name: _dead_letter_channel(name) for name in letters},
        "operations": {f"take {name}": _operation("receive", name) for name in Kind}
        | {f"publish {name}": _operation("send", name) for name in (*sent, *letters)},
        "components": {
            "messages": {name: _input_message(name) for name in Kind}
            | {name: _outcome_message(name) for name in sent}
            | {"dead-letter": _dead_letter_message()},
        },
    }


def _reference(*steps: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(steps)}


def _channel(name: str, message: str | None = None) -> dict[str, Any]:
    message = message or name
    return {"address": name, "messages": {message: _reference("components", "messages", message)}}


def _dead_letter_channel(name: str) -> dict[str, Any]:
    return _channel(name, "dead-letter") | {"description": "What could not be attributed, read or booked."}


def _operation(action: str, channel: str) -> dict[str, Any]:
    return {"action": action, "channel": _reference("channels", channel)}


def _key(description: str) -> dict[str, Any]:
    return {"kafka": {"key": {"type": "string", "description": description}}}


def _payload(name: str) -> dict[str, Any]:
    return {
        "schemaFormat": "application/schema+json;version=draft-2020-12",
        "schema": {"$ref": f"./{name}.json"},
    }


def _input_message(name: Kind) -> dict[str, Any]:
    order_id = "A customer or order id; one key keeps one order."
    return {
        "name": name.value,
        "description": "Bare JSON, or a CloudEvent 1.0 in binary or structured form.",
        "payload": _payload(name),
        "bindings": _key(order_id if name is Kind.ORDER_RETURNED else "The customer id."),
    }


def _outcome_message(name: str) -> dict[str, Any]:
    headers = {
        "content-type": {"const": "application/json"},
        "ce_specversion": {"const": "1.0"},
        "ce_id": {"type": "string", "format": "uuid", "description": "The same input record, the same id."},
        "ce_source": {"const": published.SOURCE[1]},
        "ce_type": {"const": name},
        "ce_time": {"type": "string", "format": "date-time", "description": "The decision moment."},
        "ce_subject": {"type": "string", "description": "The redemption, where known."},
        "ce_orgid": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "traceparent": {"type": "string", "description": "Of the input, where it carried one."},
    }
    optional = {"ce_subject", "traceparent"}
    if name == FAILED:
        headers["ce_errorcode"] = {"type": "string", "pattern": "^[0-9]{3}$"}
    required = [header for header in headers if header not in optional]
    return {
        "name": name,
        "description": "A CloudEvent 1.0 in binary form. It may come again, byte for byte: dedupe by ce_id.",
        "headers": {"type": "object", "properties": headers, "required": required},
        "payload": _payload(name),
        "bindings": _key(
            "The customer id where known, else the input's key." if name == FAILED else "The customer id."
        ),
    }


def _dead_letter_message() -> dict[str, Any]:
    headers: dict[str, Any] = {name: {"type": "string"} for name in published.DEAD_LETTER_HEADERS}
    headers["dlq.reason"] = {"enum": [reason.value for reason in DeadLetterReason]}
    return {
        "name": "dead-letter",
        "description": "The input's bytes and headers, untouched; no value if too large or corrupt.",
        "headers": {"type": "object", "properties": headers, "required": list(headers)},
        "payload": {},
        "bindings": _key("The input's key."),
    }


def files() -> dict[str, str]:
    """Every generated file's text by its name in `schemas/`."""
    documents = {f"{name}.json": schema for name, schema in schemas().items()}
    documents["asyncapi.json"] = asyncapi()
    return {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}


def differences(directory: Path) -> list[str]:
    """The names of generated files that are missing from the directory, stale there, or no longer made."""
    made = files()
    found = {path.name: path.read_text() for path in directory.glob("*.json")}
    return sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))


def main(arguments: list[str] | None = None) -> int:
    """Writes the files; with `--check` writes nothing and returns 1 where one differs."""
    parser = argparse.ArgumentParser(prog="python -m service.schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args(arguments).check
    differing = differences(DIRECTORY)
    if check:
        for name in differing:
            sys.stderr.write(f"schemas/{name} differs from the models: run `make schemas`\n")
        return 1 if differing else 0
    DIRECTORY.mkdir(exist_ok=True)
    made = files()
    for name in differing:
        if name in made:
            (DIRECTORY / name).write_text(made[name])
        else:
            (DIRECTORY / name).unlink()
    sys.stdout.write(f"{len(made)} schemas, {len(differing)} of them changed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

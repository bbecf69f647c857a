"""PURE. The values of fields (contract, "Values"), and reading an object's fields by a wire model.

Each value has one reader, which returns it or raises Unfit with words that follow the field's name, and one
annotated type, which carries that reader and its JSON Schema into the wire models (TypedDicts). Readers take
what `parse_json` yields: numbers as `Number`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel

from service.envelope import Number
from service.points import TEXT_LENGTH, WHOLE_DIGITS, Amount, NotPoints, parse_points
from service.records import Fault, Identifier

MAX_ID = 2**63 - 1
MAX_QUANTITY = 10**9  # units of one redemption; fits a 32-bit column with room to add
MAX_TEXT = 255
MAX_REASON = 500
IDENTIFIER_TYPES = ("ID", "PHONE", "EMAIL", "EXTERNAL_ID")

_UNPRINTABLE = "[\\u0000-\\u001f\\u007f-\\u009f\\u2028\\u2029]"
_CONTROL = "[\\u0000-\\u001f\\u007f-\\u009f]"
_UNPRINTABLE_RE = re.compile(_UNPRINTABLE)
_CONTROL_RE = re.compile(_CONTROL)
# RFC 3339, section 5.6; a fraction beyond microseconds is cut off, one beyond 18 digits refused.
_TIME = (
    "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    "(?:\\.[0-9]{1,18})?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_TIME_RE = re.compile(_TIME)
# What does not count in a phone: spaces, dashes, dots, brackets, in the spellings that editors make of them.
_PHONE_NOISE = str.maketrans("", "", " \u00a0\u202f-\u2010\u2011\u2012\u2013\u2014\u2212.()[]")
_PHONE_RE = re.compile(r"\+?([0-9]+)")


class Unfit(ValueError):
    """A field's value is not what it must be; the message follows the field's name: `must be a string`."""


def read_text(value: object) -> str:
    """An id or key: 1 to 255 printable characters; a JSON integer is read as its digits."""
    if type(value) is Number and value.lstrip("-").isdigit():
        value = str(value)
    if type(value) is not str:
        raise Unfit("must be a string")
    if not 1 <= len(value) <= MAX_TEXT:
        raise Unfit(_wrong_length(value, MAX_TEXT))
    if not value.isprintable():  # the quick answer for most; it also refuses signs that the contract allows
        found = _UNPRINTABLE_RE.search(value)
        if found is not None:
            raise Unfit(f"has a control character or line separator at position {found.start() + 1}")
    return value


def read_reason(value: object) -> str:
    """1 to 500 characters, no control characters."""
    if type(value) is not str:
        raise Unfit("must be a string")
    if not 1 <= len(value) <= MAX_REASON:
        raise Unfit(_wrong_length(value, MAX_REASON))
    found = _CONTROL_RE.search(value)
    if found is not None:
        raise Unfit(f"has a control character at position {found.start() + 1}")
    return value


def _wrong_length(value: str, most: int) -> str:
    return f"is {len(value)} characters long, {most} are allowed" if value else "must not be empty"


def whole_number(low: int, high: int) -> Callable[[object], int]:
    """A reader of JSON integers from `low` (not negative) to `high`, written as digits alone."""
    assert 0 <= low <= high

    def read(value: object) -> int:
        if type(value) is Number and len(value) <= 19 and value.isdigit() and low <= int(value) <= high:
            return int(value)
        raise Unfit(f"must be a whole number from {low} to {high}")

    return read


def read_flag(value: object) -> bool:
    """JSON true or false."""
    if type(value) is bool:
        return value
    raise Unfit("must be true or false")


def one_of(*names: str) -> Callable[[object], str]:
    """A reader of one of the names, spelled exactly so."""
    listed = f"must be one of {', '.join(names)}"

    def read(value: object) -> str:
        if type(value) is str and value in names:
            return value
        raise Unfit(listed)

    return read


def read_time(value: object) -> datetime:
    """A moment, in UTC: RFC 3339 with an offset, in the years 1 to 9999 of UTC; cut to microseconds."""
    if type(value) is not str:
        raise Unfit("must be a string")
    if _TIME_RE.fullmatch(value) is None:
        if value[16:19] == ":60":
            raise Unfit("names a leap second, which no clock here knows")
        raise Unfit("must be an RFC 3339 time with an offset, such as 2026-11-20T09:30:00+08:00")
    try:
        moment = datetime.fromisoformat(value.upper())
    except ValueError:
        raise Unfit("names no day of the calendar") from None
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise Unfit("lies outside the years 1 to 9999") from None


def read_amount(value: object) -> Amount:
    """More than zero points, to any number of decimal places: whether they are supported is another rule."""
    amount = _amount(value)
    if not amount.thousandths and amount.decimals <= 3:
        raise Unfit("must be more than zero")
    return amount


def read_points(value: object) -> int:
    """More than zero points with at most 3 decimal places, in thousandths."""
    return _exact(read_amount(value))


def read_points_or_none(value: object) -> int:
    """Zero points or more with at most 3 decimal places, in thousandths."""
    return _exact(_amount(value))


def _amount(value: object) -> Amount:
    try:
        if type(value) is str:
            return parse_points(value)
        if type(value) is Number:
            return parse_points(value, digits_in_all=WHOLE_DIGITS)
    except NotPoints as fault:
        raise Unfit(str(fault)) from None
    raise Unfit("must be a decimal string or a number")


def _exact(amount: Amount) -> int:
    if amount.thousandths is None:
        raise Unfit(f"has {amount.decimals} decimal places, 3 are allowed")
    return amount.thousandths


def identifier_of(kind: str, value: str) -> Identifier:
    """The identifier with what it is compared by. Raises Unfit for a phone or e-mail that leaves nothing."""
    lookup = value
    if kind == "PHONE":
        match = _PHONE_RE.fullmatch(value) or _PHONE_RE.fullmatch(value.translate(_PHONE_NOISE))
        if match is None:
            raise Unfit("must be the digits of a phone number, with an optional + in front")
        lookup = match[1]
    elif kind == "EMAIL":
        lookup = value.strip().lower()
        if not 1 <= len(lookup) <= MAX_TEXT:
            raise Unfit("must be an e-mail address")
    return Identifier(kind, value, lookup)


def present(value: object) -> object:
    """An object without its nulls: `null` means absent."""
    if isinstance(value, dict) and None in value.values():
        return {name: item for name, item in value.items() if item is not None}
    return value


_HAS_CONTROL = {"type": "string", "pattern": _CONTROL}
_TEXT = {
    "type": ["string", "integer"],
    "minLength": 1,
    "maxLength": MAX_TEXT,
    "not": {"type": "string", "pattern": _UNPRINTABLE},
}
_AMOUNT = {
    "type": ["string", "number"],
    "maxLength": TEXT_LENGTH,
    "pattern": "^(?:0|[1-9][0-9]{0,14})(?:\\.[0-9]+)?$",
    "minimum": 0,
    "maximum": 10**WHOLE_DIGITS - 1,
}
_EXACT = {"pattern": "^(?:0|[1-9][0-9]{0,14})(?:\\.[0-9]{1,3}0*)?$"}
_MORE_THAN_ZERO = {"not": {"anyOf": [{"type": "string", "pattern": "^[0.]*$"}, {"const": 0}]}}

OrgId = Annotated[
    int,
    PlainValidator(whole_number(1, MAX_ID)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_ID, "description": "The tenant."}),
]
CustomerId = Annotated[
    int,
    PlainValidator(whole_number(1, MAX_ID)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_ID}),
]
Text = Annotated[str, PlainValidator(read_text), WithJsonSchema(_TEXT)]
Reason = Annotated[
    str,
    PlainValidator(read_reason),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_REASON, "not": _HAS_CONTROL}),
]
Flag = Annotated[bool, PlainValidator(read_flag), WithJsonSchema({"type": "boolean"})]
Quantity = Annotated[
    int,
    PlainValidator(whole_number(1, MAX_QUANTITY)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_QUANTITY}),
]
QuantityOrNone = Annotated[
    int,
    PlainValidator(whole_number(0, MAX_QUANTITY)),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_QUANTITY}),
]
Time = Annotated[
    datetime,
    PlainValidator(read_time),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": f"^{_TIME}$"}),
]
AskedPoints = Annotated[Amount, PlainValidator(read_amount), WithJsonSchema(_AMOUNT | _MORE_THAN_ZERO)]
Points = Annotated[int, PlainValidator(read_points), WithJsonSchema(_AMOUNT | _EXACT | _MORE_THAN_ZERO)]
PointsOrNone = Annotated[int, PlainValidator(read_points_or_none), WithJsonSchema(_AMOUNT | _EXACT)]
IdentifierType = Annotated[
    str, PlainValidator(one_of(*IDENTIFIER_TYPES)), WithJsonSchema({"enum": list(IDENTIFIER_TYPES)})
]
WithoutNulls = BeforeValidator(present)

# Every wire model carries this: camelCase names, snake_case accepted, unknown fields ignored.
WIRE = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="ignore")

T = TypeVar("T", bound=Mapping[str, Any])


class Shape(Generic[T]):
    """A wire model (a TypedDict with `@with_config(WIRE)`), compiled once, as a reader of objects."""

    def __init__(self, model: type[T]) -> None:
        self.adapter: TypeAdapter[T] = TypeAdapter(model)

    def read(self, data: dict[str, Any]) -> T | tuple[Fault, ...]:
        """The fields given, by snake_case name, or every fault of the object."""
        try:
            return self.adapter.validate_python(present(data))
        except ValidationError as error:
            return _faults(error)

    def readable(self, data: dict[str, Any], faults: tuple[Fault, ...]) -> T:
        """The fields in which no fault was found. No required one may be among the faulty."""
        broken = {re.split(r"[.\[]", fault.field)[0] for fault in faults}
        return self.adapter.validate_python(
            {name: value for name, value in data.items() if value is not None and camel(name) not in broken}
        )


def camel(name: str) -> str:
    """A field's canonical name, however it was spelled."""
    return to_camel(name) if "_" in name else name


def fault(field: str, words: str) -> Fault:
    """A fault whose message begins with the field's name: `lots[3].points must be more than zero`."""
    return Fault(field, f"{field} {words}")


def _faults(error: ValidationError) -> tuple[Fault, ...]:
    return tuple(
        fault(_path(found["loc"]), _words(cast("dict[str, Any]", found)))
        for found in error.errors(include_url=False, include_input=False)
    )


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{camel(step)}" if path else camel(step)
    return path


def _words(found: dict[str, Any]) -> str:
    """Plain words for what pydantic found: its own texts and the classes that it names stay inside."""
    context = found.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Unfit):
        return str(cause)
    match found["type"]:
        case "missing":
            return "is required"
        case "dict_type":
            return "must be an object"
        case "list_type":
            return "must be a list"
        case "too_long":
            return f"has more than {context['max_length']} entries"
    return "cannot be read"

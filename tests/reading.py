"""How the model reads values, returns and feeds: the contract's "Values", read a second time, and slowly.

Points are integers of thousandths, but for a return's, which may have more decimal places and stay a Decimal.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

Data = dict[str, Any]


class Number(str):
    """A JSON number as it was written, say `1.50`; `tests/streams.encode` writes it without quotes."""

    __slots__ = ()


class WrongError(Exception):
    """This value breaks the shape."""


def snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def given(data: Data, name: str) -> Any:
    """The value under the camelCase name, else under the snake_case one; null means absent."""
    return data[name] if data.get(name) is not None else data.get(snake(name))


def number(value: Any) -> str | None:
    """The text of a JSON number; None when it is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | Number):
        return str(value)
    return format(value, "f") if isinstance(value, Decimal) else None


def read_integer(value: Any) -> int:
    text = number(value)
    if text is None or not re.fullmatch("[1-9][0-9]*", text) or int(text) >= 2**63:
        raise WrongError
    return int(text)


def read_text(value: Any, longest: int, forbidden: tuple[str, ...]) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise WrongError
    if any(unicodedata.category(character) in forbidden for character in value):
        raise WrongError
    return str(value)


def read_id(value: Any) -> str:
    text = number(value)
    if text is not None:
        if not re.fullmatch("-?[0-9]+", text):
            raise WrongError
        value = text
    return read_text(value, 255, ("Cc", "Cs", "Zl", "Zp"))


def read_reason(value: Any) -> str:
    if number(value) is not None:
        raise WrongError
    return read_text(value, 500, ("Cc", "Cs"))


def read_time(value: Any) -> datetime:
    shape = r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    if not isinstance(value, str) or not re.fullmatch(shape, value, re.ASCII):
        raise WrongError
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise WrongError from None


def read_decimal(value: Any, *, zero: bool = False) -> Decimal:
    """Points as they were asked, of any number of decimal places."""
    text = number(value)
    if text is not None:
        if len(re.sub("[^0-9]", "", text)) > 15:
            raise WrongError
    elif isinstance(value, str):
        text = value
    if text is None or not re.fullmatch(r"(0|[1-9][0-9]{0,14})(\.[0-9]+)?", text):
        raise WrongError
    if Decimal(text) == 0 and not zero:
        raise WrongError
    return Decimal(text)


def read_points(value: Any, *, zero: bool = False) -> int:
    """Thousandths, for feeds and load lines, where a fourth decimal place is a fault of shape."""
    asked = read_decimal(value, zero=zero)
    if decimal_places(asked) > 3:
        raise WrongError
    return int(asked * 1000)


def decimal_places(points: Decimal) -> int:
    text = format(points, "f")
    return len(text.split(".")[1].rstrip("0")) if "." in text else 0


def plain(points: Decimal) -> str:
    text = format(points, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def show_points(thousandths: int) -> str:
    return plain(Decimal(thousandths) / 1000)


def show_time(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def read_identifier(value: Any) -> tuple[Data | None, int]:
    """The identifier as given, and the number of its faults."""
    if not isinstance(value, dict):
        return None, 1
    faults = 0
    kind, text = given(value, "type"), None
    if kind not in ("ID", "PHONE", "EMAIL", "EXTERNAL_ID"):
        faults += 1
    try:
        text = read_id(given(value, "value"))
    except WrongError:
        faults += 1
    return (None, faults) if faults else ({"type": str(kind), "value": text}, 0)


def compared(identifier: Data) -> tuple[str, str]:
    """What two identifiers must share to be the same one."""
    kind, value = identifier["type"], identifier["value"]
    if kind == "PHONE":
        value = re.sub(r"[\s.()\[\]{}\-]", "", value).removeprefix("+")
    if kind == "EMAIL":
        value = value.strip().lower()
    return kind, value


def read_return(data: Data, place: str, ce: Data | None, replay_of: str | None) -> Data:
    """A return: what could be read of each field (None else), `faults` counted, `key` in force."""
    ask: Data = {"org_id": read_integer(given(data, "orgId")), "faults": 0}
    readers = {
        "orderId": read_id,
        "returnId": read_id,
        "redemptionId": read_id,
        "programId": read_id,
        "idempotencyKey": read_id,
        "reason": read_reason,
        "returnedAt": read_time,
        "quantity": read_integer,
        "pointsToBeReversed": read_decimal,
    }
    for name, read in readers.items():
        ask[name] = None
        if given(data, name) is not None:
            try:
                ask[name] = read(given(data, name))
            except WrongError:
                ask["faults"] += 1
    ask["identifier"] = None
    if given(data, "identifier") is not None:
        ask["identifier"], faults = read_identifier(given(data, "identifier"))
        ask["faults"] += faults
    if given(data, "redemptionId") is None and given(data, "orderId") is None:
        ask["faults"] += 1
    if given(data, "quantity") is not None and given(data, "pointsToBeReversed") is not None:
        ask["faults"] += 1
    if given(data, "reason") is None:
        ask["reason"] = "order returned"
    ask["key"] = ask["idempotencyKey"] or derived_key(ask, place, ce, replay_of)
    return ask


def derived_key(ask: Data, place: str, ce: Data | None, replay_of: str | None) -> str:
    def part(text: str) -> str:
        return quote(text, safe="")

    about = ask["redemptionId"] or ask["orderId"]
    if ask["returnId"] and about:
        key = f"return:{part(ask['returnId'])}/{part(about)}"
    elif ce is not None:
        key = f"event:{part(ce['source'])}#{part(ce['id'])}"
    else:
        match = re.fullmatch("(.*)/([0-9]+)/([0-9]+)@(-?[0-9]+)", replay_of or place)
        assert match, f"not topic/partition/offset@timestamp: {replay_of or place}"
        topic, partition, offset, timestamp = match.groups()
        key = f"record:{part(topic)}/{partition}/{offset}@{timestamp}"
    return key if len(key) <= 255 else "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def same_request(ask: Data) -> tuple[Any, ...]:
    """What two requests under one key must share to be the same request."""
    names = ("redemptionId", "orderId", "pointsToBeReversed", "quantity", "programId")
    identifier = compared(ask["identifier"]) if ask["identifier"] else None
    return (*[ask[name] for name in names], identifier)


def optional(data: Data, name: str, read: Any) -> Any:
    value = given(data, name)
    return None if value is None else read(value)


def read_customer(data: Data) -> Data:
    fields: Data = {"customer_id": read_integer(given(data, "customerId")), "status": given(data, "status")}
    if fields["status"] not in (None, "active", "inactive", "fraud"):
        raise WrongError
    stands = "lockedUntil" in data or "locked_until" in data
    fields["unlock"] = stands and given(data, "lockedUntil") is None
    fields["locked_until"] = optional(data, "lockedUntil", read_time)
    fields["updated_at"] = optional(data, "updatedAt", read_time)
    fields["identifiers"] = None
    if given(data, "identifiers") is not None:
        fields["identifiers"] = []
        if not isinstance(given(data, "identifiers"), list):
            raise WrongError
        for value in given(data, "identifiers"):
            identifier, faults = read_identifier(value)
            if identifier is None or faults:
                raise WrongError
            if identifier["type"] != "ID":
                fields["identifiers"].append(identifier)
            elif identifier["value"] != str(fields["customer_id"]):
                raise WrongError
    return fields


def read_lot(data: Data) -> Data:
    return {
        "customer_id": read_integer(given(data, "customerId")),
        "lot_id": read_id(given(data, "lotId")),
        "program_id": optional(data, "programId", read_id),
        "points": read_points(given(data, "points")),
        "expires_at": optional(data, "expiresAt", read_time),
        "issued_at": optional(data, "issuedAt", read_time),
    }


def read_redemption(data: Data) -> Data:
    fields = {
        "customer_id": read_integer(given(data, "customerId")),
        "redemption_id": read_id(given(data, "redemptionId")),
        "order_id": optional(data, "orderId", read_id),
        "program_id": optional(data, "programId", read_id),
        "type": given(data, "type"),
        "points": read_points(given(data, "points")),
        "reward_id": optional(data, "rewardId", read_id),
        "quantity": optional(data, "quantity", read_integer),
        "redeemed_at": optional(data, "redeemedAt", read_time),
        "lots": None,
    }
    if fields["type"] not in (None, "RAW", "AMOUNT_BASED", "UNIT_BASED"):
        raise WrongError
    if (fields["type"] == "UNIT_BASED") != (fields["quantity"] is not None):
        raise WrongError
    lots = given(data, "lots")
    if lots is not None:
        if not isinstance(lots, list) or len(lots) > 1000 or not all(isinstance(lot, dict) for lot in lots):
            raise WrongError
        fields["lots"] = [(read_id(given(lot, "lotId")), read_points(given(lot, "points"))) for lot in lots]
        if len({lot_id for lot_id, _ in fields["lots"]}) < len(lots):
            raise WrongError
        if sum(points for _, points in fields["lots"]) != fields["points"]:
            raise WrongError
    return fields


READ_FEED = {"customer.updated": read_customer, "points.issued": read_lot, "points.redeemed": read_redemption}

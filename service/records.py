"""What comes in: one Kafka record, and the values that it can be read as. Points are integers of thousandths."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeVar, dataclass_transform

LARGEST_ID = 2**63 - 1  # of orgs and customers

T = TypeVar("T")


def uuid_text(digits: str, version: int) -> str:
    """32 hexadecimal digits as a UUID (RFC 9562): the version and the variant take the place of 6 bits."""
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-{version}{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


@dataclass_transform(frozen_default=True)
def value(made: type[T]) -> type[T]:
    """A dataclass whose fields are never assigned to, which mypy sees to: a `frozen` one, as Python checks it, takes
    three times as long to make, and a record of the hot path is made of ten."""
    return dataclass(slots=True, unsafe_hash=True)(made)


class Kind(StrEnum):
    """An input, named by its topic's default name."""

    ORDER_RETURNED = "order.returned"
    CUSTOMER_UPDATED = "customer.updated"
    POINTS_ISSUED = "points.issued"
    POINTS_REDEEMED = "points.redeemed"


@dataclass(slots=True, unsafe_hash=True)
class Record:
    """A record as it lies on its topic: `timestamp_ms` in milliseconds since 1970, bytes untouched."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    _outcome_id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes of value and key: what counts towards `batch_bytes`."""
        return len(self.value or b"") + len(self.key or b"")

    @property
    def place(self) -> str:
        """`topic/partition/offset@timestamp`: names this very record, also after its topic was recreated."""
        return f"{self.topic}/{self.partition}/{self.offset}@{self.timestamp_ms}"

    @property
    def outcome_id(self) -> str:
        """The `ce_id` of whatever comes of this record: the same record, the same id (RFC 9562, version 8)."""
        if not self._outcome_id:
            digest = hashlib.blake2b(self.place.encode(), digest_size=16).hexdigest()
            self._outcome_id = uuid_text(digest, 8)
        return self._outcome_id


@value
class Identifier:
    """How a customer is named: `type` is ID, PHONE, EMAIL or EXTERNAL_ID; `value` as given, `lookup` as compared."""

    type: str
    value: str
    lookup: str

    @property
    def customer_id(self) -> int | None:
        """The customer id that an `ID` spells, else None; `042` spells none."""
        spells = self.lookup.isascii() and self.lookup.isdigit() and not self.lookup.startswith("0")
        if self.type != "ID" or not spells or len(self.lookup) > 19:
            return None
        number = int(self.lookup)
        return number if number <= LARGEST_ID else None


@value
class Fault:
    """One breach of a message's shape: the field (camelCase, `identifier.type`, `lots[3].points`) and plain words."""

    field: str
    message: str


@value
class Return:
    """A readable `order.returned`. A field that is absent or could not be read is None; `faults` tells which broke.

    `points` is None when none were asked, when they broke the shape, or when they have more than 3 decimals;
    `points_text` is what was asked in canonical spelling (`"150.5"`), None when absent or unreadable;
    `points_decimals` the number of its decimal places. `key` is the key in force, given or derived.
    """

    org_id: int
    key: str
    order_id: str | None = None
    return_id: str | None = None
    redemption_id: str | None = None
    points: int | None = None
    points_text: str | None = None
    points_decimals: int = 0
    quantity: int | None = None
    identifier: Identifier | None = None
    reason: str = "order returned"
    program_id: str | None = None
    returned_at: datetime | None = None
    faults: tuple[Fault, ...] = ()

    def fingerprint(self) -> bytes:
        """16 bytes that are equal for the same request (contract, "Duplicates")."""
        named = self.identifier and (self.identifier.type, self.identifier.lookup)
        asked = (self.redemption_id, self.order_id, self.points_text, self.quantity, named, self.program_id)
        return hashlib.blake2b(repr(asked).encode(), digest_size=16).digest()


@value
class CustomerUpdated:
    """A readable `customer.updated`. `identifiers` None: not given. `unlocks`: `lockedUntil` was given (maybe null)."""

    org_id: int
    customer_id: int
    status: str | None = None
    locked_until: datetime | None = None
    locked_until_given: bool = False
    identifiers: tuple[Identifier, ...] | None = None
    updated_at: datetime | None = None


@value
class PointsIssued:
    """A readable `points.issued`: one lot."""

    org_id: int
    customer_id: int
    lot_id: str
    points: int
    program_id: str | None = None
    expires_at: datetime | None = None
    issued_at: datetime | None = None


@value
class PointsRedeemed:
    """A readable `points.redeemed`. `type` None: not given. `lots`: (lot id, points) in order of consumption."""

    org_id: int
    customer_id: int
    redemption_id: str
    points: int
    order_id: str | None = None
    program_id: str | None = None
    type: str | None = None
    reward_id: str | None = None
    quantity: int | None = None
    redeemed_at: datetime | None = None
    lots: tuple[tuple[str, int], ...] | None = None


Feed = CustomerUpdated | PointsIssued | PointsRedeemed


class DeadLetterReason(StrEnum):
    """`dlq.reason` (contract, "Dead letters")."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_ORG = "no_org"
    TOO_LARGE = "too_large"
    CORRUPT = "corrupt"
    BAD_ENVELOPE = "bad_envelope"
    DECISION_RAISED = "decision_raised"
    MALFORMED_FEED = "malformed_feed"
    NOT_BOOKABLE = "not_bookable"


@value
class Unreadable:
    """A record that goes to its topic's dead letters, with why."""

    reason: DeadLetterReason
    message: str


Message = Return | Feed | Unreadable

KINDS: dict[type, Kind] = {
    Return: Kind.ORDER_RETURNED,
    CustomerUpdated: Kind.CUSTOMER_UPDATED,
    PointsIssued: Kind.POINTS_ISSUED,
    PointsRedeemed: Kind.POINTS_REDEEMED,
}

"""The reversal as both peers decide it: pydantic in, plain objects, a dict out.

They do what the service does to the ledger with the same stream (lots, redemption, journal, sequence, reversal or
refusal, the outcome with its headers); what no record of the stream needs (feeds, parking, units) they leave out.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Identifier(BaseModel):
    """How the return names the customer."""

    type: str
    value: str


class Return(BaseModel):
    """`order.returned`, as the bench produces it."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    org_id: int
    order_id: str | None = None
    return_id: str | None = None
    redemption_id: str
    points_to_be_reversed: Decimal
    identifier: Identifier | None = None
    idempotency_key: str
    reason: str = "order returned"
    program_id: str | None = None
    returned_at: datetime | None = None

    @property
    def points(self) -> int:
        """In thousandths."""
        return int(self.points_to_be_reversed * 1000)

    @property
    def phone(self) -> str:
        """The identifier as it is stored."""
        return "".join(sign for sign in (self.identifier.value if self.identifier else "") if sign.isdigit())

    @property
    def fingerprint(self) -> bytes:
        """Tells whether another request has the key."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self.redemption_id}|{self.order_id}|{self.points}|{self.phone}").bytes


@dataclass
class Decided:
    """What becomes of a return: `outcome` as published; `parts`: points by lot."""

    request: Return
    customer_id: int
    sequence: int
    at: datetime
    outcome: dict[str, Any]
    parts: list[tuple[str, int]]
    available: int
    reversal_id: uuid.UUID | None = None
    entry_id: uuid.UUID | None = None
    code: int | None = None
    name: str = ""
    message: str = ""

    @property
    def type(self) -> str:
        """The type of the event, and the name of its topic."""
        return "reversal-completed" if self.code is None else "reversal-failed"

    def text(self) -> str:
        """The outcome as JSON."""
        return json.dumps(self.outcome, separators=(",", ":"))

    def headers(self, outcome_id: uuid.UUID) -> dict[str, str]:
        """Of the CloudEvent."""
        headers = {
            "content-type": "application/json", "ce_specversion": "1.0", "ce_id": str(outcome_id),
            "ce_source": "/points-reversal", "ce_type": self.type, "ce_time": self.at.isoformat(),
            "ce_subject": self.request.redemption_id, "ce_orgid": str(self.request.org_id),
        }  # fmt: skip
        if self.code is not None:
            headers["ce_errorcode"] = str(self.code)
        return headers


def points(thousandths: int) -> str:
    """A decimal string."""
    return (
        f"{Decimal(thousandths) / 1000:f}".rstrip("0").rstrip(".") if thousandths % 1000 else str(thousandths // 1000)
    )


def outcome_id(topic: str, partition: int, offset: int) -> uuid.UUID:
    """The same record, the same id."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{topic}/{partition}/{offset}")


def refuse(
    request: Return, customer: dict[str, Any], at: datetime, code: int, name: str, message: str, existing: str | None
) -> Decided:
    """The return is not granted."""
    customer["sequence"] += 1
    outcome = {
        "orgId": request.org_id, "programId": request.program_id, "customerId": customer["customer_id"],
        "identifier": request.identifier.model_dump() if request.identifier else None,
        "orderId": request.order_id, "returnId": request.return_id, "redemptionId": request.redemption_id,
        "idempotencyKey": request.idempotency_key, "reason": request.reason,
        "pointsToBeReversed": points(request.points), "quantity": None,
        "returnedAt": request.returned_at.isoformat() if request.returned_at else None,
        "sequence": customer["sequence"],
        "errors": [{"code": code, "name": name, "message": message, "retryable": False, "details": {}}],
        "existing": json.loads(existing) if existing else None, "failedAt": at.isoformat(),
    }  # fmt: skip
    return Decided(request, customer["customer_id"], customer["sequence"], at, outcome, [], 0,
                   code=code, name=name, message=message)  # fmt: skip


def decide(
    request: Return,
    customer: dict[str, Any],
    redemption: dict[str, Any],
    owner: int | None,
    existing: str | None,
    lots: dict[str, dict[str, Any]],
    balance: int,
) -> Decided:
    """Grant a return or refuse it; brings customer, redemption and lots up to date."""
    at = datetime.now(UTC)
    remaining = redemption["points"] - redemption["reversed"]
    if existing is not None:
        return refuse(request, customer, at, 902, "duplicate_reversal", "the points were given back already", existing)
    if owner != customer["customer_id"] or customer["status"] != "active":
        return refuse(request, customer, at, 901, "customer_not_eligible", "another customer", None)
    if request.points > remaining:
        return refuse(request, customer, at, 817, "insufficient_points", f"{points(remaining)} remain", None)
    parts: list[tuple[str, int]] = []
    left, before = request.points, redemption["reversed"]
    for lot_id, taken in zip(reversed(redemption["lot_ids"]), reversed(redemption["lot_points"]), strict=True):
        part = min(max(taken - before, 0), left)
        before = max(before - taken, 0)
        if part:
            parts.append((lot_id, part))
            lots[lot_id]["remaining"] += part
            left -= part
    redemption["reversed"] += request.points
    customer["sequence"] += 1
    expired = {lot_id for lot_id, _ in parts if lots[lot_id]["expires_at"] and lots[lot_id]["expires_at"] <= at}
    available = sum(part for lot_id, part in parts if lot_id not in expired)
    reversal_id, entry_id = uuid.uuid4(), uuid.uuid4()
    outcome = {
        "orgId": request.org_id, "programId": redemption["program_id"], "customerId": customer["customer_id"],
        "identifier": request.identifier.model_dump() if request.identifier else None,
        "orderId": redemption["order_id"], "returnId": request.return_id, "redemptionId": request.redemption_id,
        "reversalId": str(reversal_id), "journalEntryId": str(entry_id), "idempotencyKey": request.idempotency_key,
        "reason": request.reason, "pointsToBeReversed": points(request.points),
        "pointsReversed": points(request.points), "quantity": None,
        "pointsReversedDetails": {"available": points(available), "expired": points(request.points - available)},
        "lots": [
            {"lotId": lot_id, "points": points(part), "expired": lot_id in expired,
             "expiresAt": lots[lot_id]["expires_at"].isoformat() if lots[lot_id]["expires_at"] else None}
            for lot_id, part in parts
        ],
        "redemption": {"points": points(redemption["points"]), "reversed": points(redemption["reversed"]),
                       "remaining": points(redemption["points"] - redemption["reversed"])},
        "balance": {"available": points(balance + available)}, "sequence": customer["sequence"], "warnings": [],
        "createdAt": at.isoformat(),
    }  # fmt: skip
    return Decided(request, customer["customer_id"], customer["sequence"], at, outcome, parts, available,
                   reversal_id=reversal_id, entry_id=entry_id)  # fmt: skip

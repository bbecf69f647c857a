"""The codes of a refused return, in the contract's order of precedence.

One member per row of the contract's section "Deciding a return"; README and tests follow this order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Code(Enum):
    """A reason why points were not given back: number, name, whether the same request can succeed later, meaning."""

    VALIDATION_ERROR = (
        887,
        "validation_error",
        False,
        "the request is readable but breaks the shape of a return",
    )
    PRECISION_NOT_SUPPORTED = (
        878,
        "precision_not_supported",
        False,
        "more decimal places than points can have",
    )
    DUPLICATE_REVERSAL = (
        902,
        "duplicate_reversal",
        False,
        "the key has a completed reversal of the same request",
    )
    IDEMPOTENCY_KEY_REUSED = (
        887,
        "idempotency_key_reused",
        False,
        "the key has a completed reversal of another request",
    )
    INVALID_CONFIGURATION = (888, "invalid_configuration", True, "the org is not configured")
    INVALID_PROGRAM = (
        885,
        "invalid_program",
        False,
        "no such program in the org, or not the redemption's program",
    )
    MISCONFIGURED_PROGRAM = (
        899,
        "misconfigured_program",
        True,
        "the program is not live or its rules contradict",
    )
    REVERSAL_NOT_ALLOWED = (
        818,
        "reversal_not_allowed",
        True,
        "the org or the program does not allow reversals",
    )
    REDEMPTION_NOT_FOUND = (887, "redemption_not_found", True, "no such redemption or order")
    AMBIGUOUS_ORDER = (887, "ambiguous_order", False, "several redemptions on the order and none named")
    WRONG_MEASURE = (
        887,
        "wrong_measure",
        False,
        "points asked of a unit-based redemption, or units of another",
    )
    CUSTOMER_NOT_ELIGIBLE = (
        901,
        "customer_not_eligible",
        False,
        "not the customer who redeemed, or not an active one",
    )
    CUSTOMER_LOCKED = (904, "customer_locked", True, "the customer is locked")
    CONDITIONS_NOT_MET = (
        827,
        "conditions_not_met",
        False,
        "outside the program's window, minimum or partial rule",
    )
    REVERSAL_LIMIT_EXCEEDED = (
        903,
        "reversal_limit_exceeded",
        True,
        "too many reversals in the program's period",
    )
    INSUFFICIENT_POINTS = (817, "insufficient_points", False, "more than what remains of the redemption")
    REVERSAL_FAILED = (804, "reversal_failed", True, "deciding this record raised a fault of ours")
    TEMPORARILY_UNAVAILABLE = (886, "temporarily_unavailable", True, "for synchronous entrances only")
    TEMPORARILY_OVERLOADED = (896, "temporarily_overloaded", True, "for synchronous entrances only")
    TEMPORARILY_TIMED_OUT = (898, "temporarily_timed_out", True, "for synchronous entrances only")

    def __init__(self, number: int, label: str, retryable: bool, meaning: str) -> None:
        self.number = number
        self.label = label
        self.retryable = retryable
        self.meaning = meaning


@dataclass(frozen=True, slots=True)
class Error:
    """One entry of `reversal-failed.errors`; `details` holds strings (or lists of strings) by camelCase name."""

    code: Code
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The entry as it is published."""
        return {
            "code": self.code.number,
            "name": self.code.label,
            "message": self.message,
            "retryable": self.code.retryable,
            "details": self.details,
        }

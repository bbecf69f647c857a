"""PURE. Exact points: integers of thousandths inside, decimal text outside (contract, "Values").

Laws: no binary float is ever involved; `format_points(parse_points(text).thousandths)` is the canonical
spelling of `text`; the shares of all units of a redemption make its points exactly.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

DECIMALS = 3
SCALE = 10**DECIMALS
WHOLE_DIGITS = 15  # before the point, and in all of a JSON number
MAX_POINTS = 10 ** (WHOLE_DIGITS + DECIMALS) - 1  # in thousandths; fits 64 bits
TEXT_LENGTH = 255  # bounds what a refused request makes us carry; no amount in use comes near

_AMOUNT = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")


class NotPoints(ValueError):
    """The text is no amount of points; the message says why, in words that follow the field's name."""


class Amount(NamedTuple):
    """An amount as read: `thousandths` is None beyond 3 decimal places, `text` its canonical spelling,
    `decimals` the places that it needs (`"1.5000"` needs one)."""

    thousandths: int | None
    text: str
    decimals: int


def parse_points(text: str, *, digits_in_all: int | None = None) -> Amount:
    """The amount that a decimal text spells; zero is one. Raises NotPoints.

    `digits_in_all` bounds the digits before and after the point together: 15 for a JSON number.
    """
    if len(text) > TEXT_LENGTH:
        raise NotPoints(f"is {len(text)} characters long, {TEXT_LENGTH} are allowed")
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise NotPoints(_why_not(text))
    whole, fraction = match.groups("")
    if len(whole) > WHOLE_DIGITS:
        raise NotPoints(f"has {len(whole)} digits before the point, {WHOLE_DIGITS} are allowed")
    if digits_in_all is not None and len(whole) + len(fraction) > digits_in_all:
        digits = len(whole) + len(fraction)
        raise NotPoints(f"is a number of {digits} digits, {digits_in_all} are allowed: send it as a string")
    fraction = fraction.rstrip("0")
    if not fraction:
        return Amount(int(whole) * SCALE, whole, 0)
    decimals = len(fraction)
    thousandths = int(whole + fraction.ljust(DECIMALS, "0")) if decimals <= DECIMALS else None
    return Amount(thousandths, f"{whole}.{fraction}", decimals)


def _why_not(text: str) -> str:
    if text.startswith("-"):
        return "must not be negative"
    return 'must be digits with an optional fraction, such as "150.5", without sign, exponent or spaces'


@lru_cache(maxsize=65536)  # few amounts, each written many times
def format_points(thousandths: int) -> str:
    """The canonical spelling: `150500` is `"150.5"`; no trailing zeros, no exponent."""
    if thousandths < 0:
        return "-" + format_points(-thousandths)
    whole, rest = divmod(thousandths, SCALE)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


def unit_share(points: int, units: int, given: int, decimals: int) -> int:
    """What the first `given` of `units` units are worth in total, of `points` thousandths for all of them:
    rounded down at `decimals` places, and all of `points` for all units (contract, "order.returned")."""
    assert points >= 0
    assert 0 <= given <= units
    assert units >= 1
    assert 0 <= decimals <= DECIMALS
    if given == units:
        return points
    step: int = 10 ** (DECIMALS - decimals)
    return points * given // (units * step) * step

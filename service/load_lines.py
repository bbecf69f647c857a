"""PURE. The lines of a load file: from bytes to rows of the staging tables, or to what is wrong with them.

Laws: nothing here raises, whatever the bytes; a line gives rows or faults, never both. What a line can tell by itself
is judged here; what needs other lines or the ledger is left to the statements in service/sql/bulk_*.sql.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Required

from pydantic import PlainValidator, WithJsonSchema, with_config
from typing_extensions import TypedDict

from service import fields
from service.copy_text import copy_text
from service.envelope import NotJson, parse_json
from service.events import LotLine, RedemptionLine, read_feed, read_lot_line, read_redemption_line
from service.fields import WIRE, Shape, WithoutNulls, fault
from service.ledger import Program
from service.points import format_points
from service.records import CustomerUpdated, Fault, Kind
from service.rules import contradictions

LINE_BYTES = 16 * 1024 * 1024  # the largest redemption of 1,000 lots has about 1.2 MB
DAYS = 365_000  # a thousand years: beyond it the calendar ends
INTEGER = 2**31 - 1


def _whole(low: int, high: int) -> tuple[PlainValidator, WithJsonSchema]:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return PlainValidator(fields.whole_number(low, high)), WithJsonSchema(schema)


def _one_of(*names: str) -> tuple[PlainValidator, WithJsonSchema]:
    return PlainValidator(fields.one_of(*names)), WithJsonSchema({"enum": list(names)})


Days = Annotated[int, *_whole(0, DAYS)]
Count = Annotated[int, *_whole(0, INTEGER)]
Total = Annotated[int, *_whole(0, fields.MAX_ID)]
Decimals = Annotated[int, *_whole(0, 3)]
Policy = Annotated[str, *_one_of("keep", "extend")]
RewardStatus = Annotated[str, *_one_of("ACTIVE", "OUT_OF_STOCK", "INACTIVE")]

Row = tuple[Any, ...]
Rows = list[tuple[str, Row]]  # each with its staging table's kind


@with_config(WIRE)
class OrgLine(TypedDict, total=False):
    """An `org` line."""

    org_id: Required[fields.OrgId]
    reversal_enabled: fields.Flag


@with_config(WIRE)
class MaxReversals(TypedDict, total=False):
    """So many reversals of a customer in so many days."""

    count: Count
    days: Days


@with_config(WIRE)
class ExpiredLots(TypedDict, total=False):
    """What becomes of points that return to an expired lot."""

    policy: Policy
    grace_days: Days


@with_config(WIRE)
class ProgramLine(TypedDict, total=False):
    """A `program` line."""

    org_id: Required[fields.OrgId]
    program_id: Required[fields.Text]
    default: fields.Flag
    live: fields.Flag
    decimals: Decimals
    reversal_allowed: fields.Flag
    allow_partial: fields.Flag
    reversal_window_days: Days
    minimum_points: fields.PointsOrNone
    max_reversals: Annotated[MaxReversals, WithoutNulls]
    expired_lots: Annotated[ExpiredLots, WithoutNulls]
    park_unknown_seconds: Count


@with_config(WIRE)
class RewardLine(TypedDict, total=False):
    """A `reward` line."""

    org_id: Required[fields.OrgId]
    reward_id: Required[fields.Text]
    max_total: Total
    redeemed_count: Total
    status: RewardStatus


ORG, PROGRAM, REWARD = Shape(OrgLine), Shape(ProgramLine), Shape(RewardLine)


def read_lines(lines: list[tuple[int, bytes]]) -> dict[str, bytes]:
    """The rows of numbered lines for COPY, by kind of staging table; what is wrong with them is the kind `fault`."""
    rows: dict[str, list[Row]] = {kind: [] for kind in (*KINDS, "identifier", "fault")}
    for number, text in lines:
        read = read_line(number, text)
        if isinstance(read, list):
            for kind, row in read:
                rows[kind].append(row)
        else:
            rows["fault"] += [(number, fault.field, fault.message) for fault in read]
    return {kind: copy_text(some) for kind, some in rows.items() if some}


def read_line(number: int, text: bytes) -> Rows | tuple[Fault, ...]:
    """The rows of one line, the first of its own kind; or every fault that the line shows by itself."""
    if len(text) > LINE_BYTES:
        return (Fault("line", f"the line is longer than {LINE_BYTES} bytes"),)
    try:
        document = parse_json(text)
    except NotJson as error:
        words = str(error).replace("the value", "the line").replace("(line 1, column", "(column")
        return (Fault("line", words),)
    if type(document) is not dict:
        return (Fault("line", "the line must be an object"),)
    kind = document.get("kind")
    reader = _READERS.get(kind) if type(kind) is str else None
    if reader is None:
        return (fault("kind", f"must be one of {', '.join(_READERS)}"),)
    return reader(number, document)


def _org(number: int, document: dict[str, Any]) -> Rows | tuple[Fault, ...]:
    given = ORG.read(document)
    if isinstance(given, tuple):
        return given
    return [("org", (number, given["org_id"], given.get("reversal_enabled", True)))]


def _program(number: int, document: dict[str, Any]) -> Rows | tuple[Fault, ...]:
    given = PROGRAM.read(document)
    if isinstance(given, tuple):
        return given
    limit, expired = given.get("max_reversals", {}), given.get("expired_lots", {})
    program = Program(
        org_id=given["org_id"],
        program_id=given["program_id"],
        is_default=given.get("default", False),
        live=given.get("live", True),
        decimals=given.get("decimals", 3),
        reversal_allowed=given.get("reversal_allowed", True),
        allow_partial=given.get("allow_partial", True),
        reversal_window_days=given.get("reversal_window_days"),
        minimum_points=given.get("minimum_points", 0),
        max_reversals_count=limit.get("count"),
        max_reversals_days=limit.get("days"),
        expired_lots_policy=expired.get("policy", "keep"),
        grace_days=expired.get("grace_days"),
        park_unknown_seconds=given.get("park_unknown_seconds", 0),
    )
    wrong = contradictions(program)
    if wrong:
        return tuple(Fault(words.split(" ")[0], words) for words in wrong)
    return [(
        "program",
        (
            number, program.org_id, program.program_id, program.is_default, program.live, program.decimals,
            program.reversal_allowed, program.allow_partial, program.reversal_window_days, program.minimum_points,
            program.max_reversals_count, program.max_reversals_days, program.expired_lots_policy, program.grace_days,
            program.park_unknown_seconds,
        ),
    )]  # fmt: skip


def _reward(number: int, document: dict[str, Any]) -> Rows | tuple[Fault, ...]:
    given = REWARD.read(document)
    if isinstance(given, tuple):
        return given
    row = (
        number, given["org_id"], given["reward_id"], given.get("max_total"), given.get("redeemed_count", 0),
        given.get("status", "ACTIVE"),
    )  # fmt: skip
    return [("reward", row)]


def _customer(number: int, document: dict[str, Any]) -> Rows | tuple[Fault, ...]:
    feed = read_feed(Kind.CUSTOMER_UPDATED, document)
    if isinstance(feed, tuple):
        return feed
    assert isinstance(feed, CustomerUpdated)
    org_id, customer_id = feed.org_id, feed.customer_id
    identifiers = feed.identifiers or ()
    row = (
        number, org_id, customer_id, feed.status, feed.locked_until, feed.locked_until_given,
        feed.identifiers is not None, feed.updated_at,
    )  # fmt: skip
    return [
        ("customer", row),
        *(("identifier", (number, org_id, customer_id, one.type, one.lookup, one.value)) for one in identifiers),
    ]


def _lot(number: int, document: dict[str, Any]) -> Rows | tuple[Fault, ...]:
    line = read_lot_line(document)
    if not isinstance(line, LotLine):
        return line
    feed, remaining = line
    row = (
        number, feed.org_id, feed.customer_id, feed.lot_id, feed.program_id, feed.points, remaining, feed.expires_at,
        feed.issued_at,
    )  # fmt: skip
    return [("lot", row)]


def _redemption(number: int, document: dict[str, Any]) -> Rows | tuple[Fault, ...]:
    line = read_redemption_line(document)
    if not isinstance(line, RedemptionLine):
        return line
    feed, given_back, units_back = line
    if units_back is not None and units_back == feed.quantity and given_back < feed.points:
        back, points = format_points(given_back), format_points(feed.points)
        return (fault("reversed", f"is {back}, but all {units_back} units are given back and made {points}"),)
    lots = feed.lots
    row = (
        number, feed.org_id, feed.customer_id, feed.redemption_id, feed.program_id, feed.order_id, feed.type,
        feed.points, given_back, feed.quantity, units_back, feed.reward_id, feed.redeemed_at,
        None if lots is None else [lot_id for lot_id, _ in lots],
        None if lots is None else [points for _, points in lots],
    )  # fmt: skip
    return [("redemption", row)]


_READERS: dict[str, Callable[[int, dict[str, Any]], Rows | tuple[Fault, ...]]] = {
    "org": _org,
    "program": _program,
    "customer": _customer,
    "reward": _reward,
    "lot": _lot,
    "redemption": _redemption,
}
KINDS = tuple(_READERS)

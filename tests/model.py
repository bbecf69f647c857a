"""A second reading of the contract: slow, one record at a time, plain dicts, nothing of the service imported.

What it decides is compared with what the service published, and its tables with the database. Points are
integers of thousandths. Where the service draws an id at random, the model writes a name made of the key in
force (`tests/compare` gives the service's ids the same names). Messages, details and the names of warnings
are left out.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.reading import (
    READ_FEED,
    WrongError,
    compared,
    decimal_places,
    given,
    plain,
    read_customer,
    read_id,
    read_integer,
    read_lot,
    read_points,
    read_redemption,
    read_return,
    same_request,
    show_points,
    show_time,
)

Data = dict[str, Any]

# name: code, retryable; in the contract's order
REFUSALS = {
    "validation_error": (887, False),
    "precision_not_supported": (878, False),
    "duplicate_reversal": (902, False),
    "idempotency_key_reused": (887, False),
    "invalid_configuration": (888, True),
    "invalid_program": (885, False),
    "misconfigured_program": (899, True),
    "reversal_not_allowed": (818, True),
    "redemption_not_found": (887, True),
    "ambiguous_order": (887, False),
    "wrong_measure": (887, False),
    "customer_not_eligible": (901, False),
    "customer_locked": (904, True),
    "conditions_not_met": (827, False),
    "reversal_limit_exceeded": (903, True),
    "insufficient_points": (817, False),
}
DAY = timedelta(hours=24)


class Model:
    """The whole service, as a few dicts keyed by (org, id).

    `dead` lists (place, `dlq.reason`); `counts` tells what became of the records taken: completed, failed,
    booked, unchanged, dead; what is still in `parked` and `waiting` waits.
    """

    def __init__(self, feed_wait_seconds: float = 300) -> None:
        self.feed_wait_seconds = feed_wait_seconds
        self.orgs: dict[int, Data] = {}
        self.program_rows: dict[tuple[int, str], Data] = {}
        self.customer_rows: dict[tuple[int, int], Data] = {}
        self.identifier_rows: dict[tuple[int, str, str], Data] = {}
        self.reward_rows: dict[tuple[int, str], Data] = {}
        self.lot_rows: dict[tuple[int, str], Data] = {}
        self.redemption_rows: dict[tuple[int, str], Data] = {}
        self.reversals: dict[tuple[int, str], Data] = {}
        self.parked: list[Data] = []
        self.waiting: list[Data] = []
        self.seen: set[str] = set()
        self.dead: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()

    def load(self, lines: list[Data], now: datetime) -> None:
        """Takes good load lines; an AssertionError or WrongError names no line: they are the test's own."""
        for line in lines:
            org_id = read_integer(given(line, "orgId"))
            getattr(self, "load_" + line["kind"])(org_id, line, now)
        for org_id in self.orgs:
            programs = [row for (org, _), row in self.program_rows.items() if org == org_id]
            if len(programs) == 1 and programs[0]["is_default"] is None:
                programs[0]["is_default"] = True
            for program in programs:
                program["is_default"] = bool(program["is_default"])

    def load_org(self, org_id: int, line: Data, _now: datetime) -> None:
        self.orgs[org_id] = {"reversal_enabled": line.get("reversalEnabled", True)}

    def load_program(self, org_id: int, line: Data, _now: datetime) -> None:
        assert org_id in self.orgs
        limit, expired = line.get("maxReversals") or {}, line.get("expiredLots") or {"policy": "keep"}
        minimum = line.get("minimumPoints")
        row = {
            "org_id": org_id,
            "program_id": read_id(line["programId"]),
            "is_default": line.get("default"),
            "live": line.get("live", True),
            "decimals": line.get("decimals", 3),
            "reversal_allowed": line.get("reversalAllowed", True),
            "allow_partial": line.get("allowPartial", True),
            "reversal_window_days": line.get("reversalWindowDays"),
            "minimum_points": 0 if minimum is None else read_points(minimum, zero=True),
            "max_reversals_count": limit.get("count"),
            "max_reversals_days": limit.get("days"),
            "expired_lots_policy": expired["policy"],
            "grace_days": expired.get("graceDays"),
            "park_unknown_seconds": line.get("parkUnknownSeconds", 0),
        }
        assert not contradicts_itself(row), row
        self.store_program(row)

    def store_program(self, row: Data) -> None:
        """Stores a program's row as it is, as other writers than `load` may."""
        self.program_rows[row["org_id"], row["program_id"]] = dict(row)

    def load_customer(self, org_id: int, line: Data, now: datetime) -> None:
        assert org_id in self.orgs
        self.book_customer(org_id, read_customer(line), now)

    def load_reward(self, org_id: int, line: Data, _now: datetime) -> None:
        assert org_id in self.orgs
        known = self.reward_rows.get((org_id, line["rewardId"]))
        row = {
            "org_id": org_id,
            "reward_id": line["rewardId"],
            "max_total": line.get("maxTotal"),
            "redeemed_count": known["redeemed_count"] if known else line.get("redeemedCount", 0),
            "status": line.get("status", "ACTIVE"),
        }
        self.reward_rows[org_id, line["rewardId"]] = row

    def load_lot(self, org_id: int, line: Data, now: datetime) -> None:
        done = self.book_lot(org_id, read_lot(line), now)
        assert done in ("booked", "unchanged"), done
        if done == "booked" and line.get("remaining") is not None:
            row = self.lot_rows[org_id, read_id(line["lotId"])]
            row["remaining"] = read_points(line["remaining"], zero=True)

    def load_redemption(self, org_id: int, line: Data, now: datetime) -> None:
        fields = read_redemption(line)
        known = self.redemption_rows.get((org_id, fields["redemption_id"]))
        if known is not None:
            assert not differs(fields, known)
            return
        program_id = self.program_of_feed(org_id, fields)
        assert program_id is not None
        lots = fields["lots"] or []
        assert not lots or sum(points for _, points in lots) == fields["points"]
        assert all((org_id, lot_id) in self.lot_rows for lot_id, _ in lots)
        row = self.add_redemption(org_id, program_id, fields, lots, now)
        if line.get("reversed") is not None:
            row["reversed"] = row["imported_reversed"] = read_points(line["reversed"], zero=True)
        if row["quantity"] is not None:
            row["reversed_quantity"] = row["imported_reversed_quantity"] = line.get("reversedQuantity", 0)

    def take(
        self,
        kind: str,
        data: Any,
        *,
        place: str,
        now: datetime,
        ce: Data | None = None,
        replay_of: str | None = None,
    ) -> list[Data]:
        """Takes one record; the outcomes that are published at once, in their order.

        `place` is `topic/partition/offset@timestamp in ms`; the same place again is the same record again.
        """
        if place in self.seen:
            return []
        self.seen.add(place)
        if not isinstance(data, dict):
            return self.bury(place, "not_an_object")
        try:
            org_id = read_integer(given(data, "orgId"))
        except WrongError:
            return self.bury(place, "no_org")
        if kind == "order.returned":
            ask = read_return(data, place, ce, replay_of)
            wait = self.seconds_to_park(ask, now)
            if wait:
                deadline = now + timedelta(seconds=wait)
                self.parked.append({"number": len(self.seen), "ask": ask, "deadline": deadline})
                return []
            return self.decide_and_retry(ask, now)
        try:
            fields = READ_FEED[kind](data)
        except WrongError:
            return self.bury(place, "malformed_feed")
        record = {"number": len(self.seen), "place": place, "kind": kind, "org_id": org_id, "fields": fields}
        record["deadline"] = now + timedelta(seconds=self.feed_wait_seconds)
        done, outcomes = self.try_feed(record, now)
        if done == "wait":
            self.waiting.append(record)
        return outcomes

    def tick(self, now: datetime) -> list[Data]:
        """Lets the deadlines up to `now` pass; what that publishes. Sees redemptions that came by `load`, too."""
        outcomes = []
        due = [entry for entry in self.waiting + self.parked if entry["deadline"] <= now]
        due += [entry for entry in self.parked if entry not in due and self.find(entry["ask"])[0] != "unknown"]
        for entry in sorted(due, key=lambda entry: (entry["deadline"], entry["number"])):
            if entry in self.parked:
                self.parked.remove(entry)
                outcomes += self.decide_and_retry(entry["ask"], now)
            elif entry in self.waiting:
                self.waiting.remove(entry)
                done, published = self.try_feed(entry, now)
                outcomes += published
                if done == "wait":
                    self.bury(entry["place"], "not_bookable")
        return outcomes

    def bury(self, place: str, reason: str) -> list[Data]:
        self.dead.append((place, reason))
        self.counts["dead"] += 1
        return []

    def decide_and_retry(self, ask: Data, now: datetime) -> list[Data]:
        outcome = self.decide(ask, now)
        completed = "errors" not in outcome
        self.counts["completed" if completed else "failed"] += 1
        return [outcome, *(self.retry(ask["org_id"], outcome["customerId"], now) if completed else [])]

    def try_feed(self, record: Data, now: datetime) -> tuple[str, list[Data]]:
        """Books a feed record if that can be, and what follows from it."""
        org_id, fields = record["org_id"], record["fields"]
        books = {
            "customer.updated": self.book_customer,
            "points.issued": self.book_lot,
            "points.redeemed": self.book_redemption,
        }
        done = books[record["kind"]](org_id, fields, now)
        if done == "wait":
            return done, []
        if done == "not_bookable":
            return done, self.bury(record["place"], done)
        self.counts[done] += 1
        outcomes: list[Data] = []
        if done == "booked" and record["kind"] == "points.redeemed":
            outcomes += self.release(org_id, fields["redemption_id"], now)
        if done == "booked" and record["kind"] != "customer.updated":
            outcomes += self.retry(org_id, fields["customer_id"], now)
        return done, outcomes

    def release(self, org_id: int, redemption_id: str, now: datetime) -> list[Data]:
        """Decides the parked returns of a redemption that was just booked, oldest first."""
        order_id = self.redemption_rows[org_id, redemption_id]["order_id"]
        outcomes = []
        for entry in list(self.parked):
            ask = entry["ask"]
            meant = ask["redemptionId"] == redemption_id or (ask["redemptionId"] is None and ask["orderId"] == order_id)
            if ask["org_id"] == org_id and meant and entry in self.parked:
                self.parked.remove(entry)
                outcomes += self.decide_and_retry(ask, now)
        return outcomes

    def retry(self, org_id: int, customer_id: int, now: datetime) -> list[Data]:
        """Tries the waiting feed records of a customer whose points changed, oldest first."""
        outcomes = []
        for record in list(self.waiting):
            if (record["org_id"], record["fields"]["customer_id"]) != (org_id, customer_id):
                continue
            if record in self.waiting:
                self.waiting.remove(record)
                done, published = self.try_feed(record, now)
                outcomes += published
                if done == "wait":
                    self.waiting.append(record)
                    self.waiting.sort(key=lambda record: int(record["number"]))
        return outcomes

    def program_of_feed(self, org_id: int, fields: Data) -> str | None:
        """The program given, else the org's default; None when it is not known."""
        program_id = fields["program_id"] or self.default_program(org_id)
        return program_id if (org_id, program_id) in self.program_rows else None

    def default_program(self, org_id: int) -> str | None:
        programs = [row for (org, _), row in self.program_rows.items() if org == org_id]
        for row in programs:
            if row["is_default"] or (row["is_default"] is None and len(programs) == 1):
                return str(row["program_id"])
        return None

    def mention(self, org_id: int, customer_id: int) -> Data:
        row = {
            "org_id": org_id,
            "customer_id": customer_id,
            "status": "active",
            "locked_until": None,
            "sequence": 0,
            "updated_at": None,
        }
        return self.customer_rows.setdefault((org_id, customer_id), row)

    def book_customer(self, org_id: int, fields: Data, _now: datetime) -> str:
        if org_id not in self.orgs:
            return "wait"
        new = (org_id, fields["customer_id"]) not in self.customer_rows
        row = self.mention(org_id, fields["customer_id"])
        if fields["updated_at"] and row["updated_at"] and fields["updated_at"] < row["updated_at"]:
            return "unchanged"
        before = (dict(row), dict(self.identifier_rows))
        row["status"] = fields["status"] or row["status"]
        row["locked_until"] = None if fields["unlock"] else fields["locked_until"] or row["locked_until"]
        row["updated_at"] = fields["updated_at"] or row["updated_at"]
        if fields["identifiers"] is not None:
            for key, kept in list(self.identifier_rows.items()):
                if (kept["org_id"], kept["customer_id"]) == (org_id, row["customer_id"]):
                    del self.identifier_rows[key]
            for identifier in fields["identifiers"]:
                kept = {"org_id": org_id, **identifier, "customer_id": row["customer_id"]}
                self.identifier_rows[org_id, *compared(identifier)] = kept
        return "booked" if new or before != (row, self.identifier_rows) else "unchanged"

    def book_lot(self, org_id: int, fields: Data, now: datetime) -> str:
        known = self.lot_rows.get((org_id, fields["lot_id"]))
        if known is not None:
            return "not_bookable" if differs(fields, known) else "unchanged"
        program_id = self.program_of_feed(org_id, fields)
        if org_id not in self.orgs or program_id is None:
            return "wait"
        self.mention(org_id, fields["customer_id"])
        self.add_lot(
            org_id=org_id,
            lot_id=fields["lot_id"],
            customer_id=fields["customer_id"],
            program_id=program_id,
            points=fields["points"],
            expires_at=fields["expires_at"],
            issued_at=fields["issued_at"] or now,
        )
        return "booked"

    def add_lot(self, **row: Any) -> None:
        self.lot_rows[row["org_id"], row["lot_id"]] = {
            "remaining": row["points"],
            "restored_from": None,
            **row,
        }

    def book_redemption(self, org_id: int, fields: Data, now: datetime) -> str:
        lots = fields["lots"]
        known = self.redemption_rows.get((org_id, fields["redemption_id"]))
        if known is not None:
            return "not_bookable" if differs(fields, known) else "unchanged"
        program_id = self.program_of_feed(org_id, fields)
        if org_id not in self.orgs or program_id is None:
            return "wait"
        if lots is None:
            lots = self.lots_to_consume(org_id, program_id, fields, fields["redeemed_at"] or now)
        for lot_id, _ in lots:
            lot = self.lot_rows.get((org_id, lot_id))
            if lot and (lot["customer_id"], lot["program_id"]) != (fields["customer_id"], program_id):
                return "not_bookable"
        for lot_id, points in lots:
            lot = self.lot_rows.get((org_id, lot_id))
            if lot is None or lot["remaining"] < points:
                return "wait"
        if sum(points for _, points in lots) < fields["points"]:
            return "wait"
        for lot_id, points in lots:
            self.lot_rows[org_id, lot_id]["remaining"] -= points
        self.add_redemption(org_id, program_id, fields, lots, now)
        self.count_reward(org_id, fields["reward_id"], fields["quantity"] or 0)
        return "booked"

    def lots_to_consume(
        self, org_id: int, program_id: str, fields: Data, redeemed_at: datetime
    ) -> list[tuple[str, int]]:
        spendable = self.spendable_lots(org_id, fields["customer_id"], program_id, redeemed_at)
        never = datetime.max.replace(tzinfo=UTC)
        spendable.sort(key=lambda lot: (lot["expires_at"] or never, lot["issued_at"], lot["lot_id"].encode()))
        wanted, lots = fields["points"], []
        for lot in spendable:
            points = min(wanted, lot["remaining"])
            if points:
                lots.append((lot["lot_id"], points))
            wanted -= points
        return lots

    def spendable_lots(self, org_id: int, customer_id: int, program_id: str, moment: datetime) -> list[Data]:
        return [
            lot
            for (org, _), lot in self.lot_rows.items()
            if (org, lot["customer_id"], lot["program_id"]) == (org_id, customer_id, program_id)
            and not is_expired(lot, moment)
        ]

    def add_redemption(
        self, org_id: int, program_id: str, fields: Data, lots: list[tuple[str, int]], now: datetime
    ) -> Data:
        self.mention(org_id, fields["customer_id"])
        units = None if fields["quantity"] is None else 0
        row = {
            "org_id": org_id,
            "redemption_id": fields["redemption_id"],
            "customer_id": fields["customer_id"],
            "program_id": program_id,
            "order_id": fields["order_id"],
            "type": fields["type"] or "RAW",
            "points": fields["points"],
            "reversed": 0,
            "imported_reversed": 0,
            "quantity": fields["quantity"],
            "reversed_quantity": units,
            "imported_reversed_quantity": units,
            "reward_id": fields["reward_id"],
            "redeemed_at": fields["redeemed_at"] or now,
            "lot_ids": [lot_id for lot_id, _ in lots],
            "lot_points": [points for _, points in lots],
        }
        self.redemption_rows[org_id, fields["redemption_id"]] = row
        return row

    def count_reward(self, org_id: int, reward_id: str | None, units: int) -> None:
        """Units redeemed (above zero) or given back (below) change the count of a known reward."""
        reward = self.reward_rows.get((org_id, reward_id or ""))
        if reward is None or units == 0:
            return
        reward["redeemed_count"] = max(0, reward["redeemed_count"] + units)
        if reward["max_total"] is None:
            return
        full = reward["redeemed_count"] >= reward["max_total"]
        if units > 0 and full and reward["status"] == "ACTIVE":
            reward["status"] = "OUT_OF_STOCK"
        if units < 0 and not full and reward["status"] == "OUT_OF_STOCK":
            reward["status"] = "ACTIVE"

    def find(self, ask: Data) -> tuple[str, Data | None]:
        """("one", the redemption), or why there is none: "unknown", "several", "other_order"."""
        rows = [row for (org, _), row in self.redemption_rows.items() if org == ask["org_id"]]
        if ask["redemptionId"] is not None:
            rows = [row for row in rows if row["redemption_id"] == ask["redemptionId"]]
            if rows and ask["orderId"] is not None and rows[0]["order_id"] != ask["orderId"]:
                return "other_order", None
        else:
            rows = [row for row in rows if row["order_id"] == ask["orderId"] is not None]
        if not rows:
            return "unknown", None
        return ("one", rows[0]) if len(rows) == 1 else ("several", None)

    def named(self, org_id: int, identifier: Data | None) -> int | None:
        """The customer whom an identifier names."""
        if identifier is None:
            return None
        if identifier["type"] == "ID":
            for org, customer_id in self.customer_rows:
                if org == org_id and str(customer_id) == identifier["value"]:
                    return customer_id
            return None
        kept = self.identifier_rows.get((org_id, *compared(identifier)))
        return None if kept is None else int(kept["customer_id"])

    def seconds_to_park(self, ask: Data, now: datetime) -> int:
        """How long the return waits for its redemption; 0 when it is decided at once."""
        found, _ = self.find(ask)
        if found != "unknown" or self.first_rule(ask, now)[0] != "redemption_not_found":
            return 0
        program_id = ask["programId"] or self.default_program(ask["org_id"])
        program = self.program_rows.get((ask["org_id"], program_id or ""))
        return int(program["park_unknown_seconds"]) if program else 0

    def first_rule(self, ask: Data, now: datetime) -> tuple[str | None, int]:
        """The name of the first rule that applies, None when none does; and the points to give back then."""
        org_id = ask["org_id"]
        points: Decimal | None = ask["pointsToBeReversed"]
        # 1, 2
        if ask["faults"]:
            return "validation_error", 0
        if points is not None and decimal_places(points) > 3:
            return "precision_not_supported", 0
        # 3, 4
        existing = self.reversals.get((org_id, ask["key"]))
        if existing:
            same = existing["request"] == same_request(ask)
            return ("duplicate_reversal" if same else "idempotency_key_reused"), 0
        # 5
        if org_id not in self.orgs:
            return "invalid_configuration", 0
        # 6, 7, 8
        found, redemption = self.find(ask)
        # a redemption of another order is known all the same, and so is its program
        known = redemption or self.redemption_rows.get((org_id, ask["redemptionId"])) or {}
        program_id = ask["programId"] or known.get("program_id") or self.default_program(org_id)
        program = self.program_rows.get((org_id, program_id or ""))
        if program_id is not None:
            if program is None or known.get("program_id", program_id) != program_id:
                return "invalid_program", 0
            if not program["live"] or contradicts_itself(program):
                return "misconfigured_program", 0
            if not self.orgs[org_id]["reversal_enabled"] or not program["reversal_allowed"]:
                return "reversal_not_allowed", 0
        # 9
        if found == "several":
            return "ambiguous_order", 0
        if redemption is None or program is None:
            return "redemption_not_found", 0
        if redemption["quantity"] is None and ask["quantity"] is not None:
            return "wrong_measure", 0
        if redemption["quantity"] is not None and points is not None:
            return "wrong_measure", 0
        return self.last_rules(ask, redemption, program, now)

    def last_rules(self, ask: Data, redemption: Data, program: Data, now: datetime) -> tuple[str | None, int]:
        """Rules 10 to 15, where the redemption is known."""
        org_id, customer_id = redemption["org_id"], redemption["customer_id"]
        customer = self.customer_rows[org_id, customer_id]
        # 10
        if ask["identifier"] is not None and self.named(org_id, ask["identifier"]) != customer_id:
            return "customer_not_eligible", 0
        if customer["status"] in ("inactive", "fraud"):
            return "customer_not_eligible", 0
        # 11
        if customer["locked_until"] is not None and customer["locked_until"] > now:
            return "customer_locked", 0
        # 12
        points: Decimal | None = ask["pointsToBeReversed"]
        if points is not None and decimal_places(points) > program["decimals"]:
            return "precision_not_supported", 0
        # 13
        remaining = redemption["points"] - redemption["reversed"]
        asked = asked_points(ask, redemption, program)
        if program["reversal_window_days"] is not None:
            returned_at = ask["returnedAt"] if ask["returnedAt"] and ask["returnedAt"] <= now else now
            if returned_at - redemption["redeemed_at"] > program["reversal_window_days"] * DAY:
                return "conditions_not_met", 0
        if remaining > 0:
            if asked < program["minimum_points"] and asked != remaining:
                return "conditions_not_met", 0
            if asked < remaining and not program["allow_partial"]:
                return "conditions_not_met", 0
        # 14
        if program["max_reversals_count"] is not None:
            since = now - program["max_reversals_days"] * DAY
            who = (org_id, customer_id, program["program_id"])
            theirs = [row for row in self.reversals.values() if row["customer"] == who]
            recent = [row for row in theirs if row["created_at"] > since]
            if len(recent) >= program["max_reversals_count"]:
                return "reversal_limit_exceeded", 0
        # 15
        if remaining == 0 or asked > remaining or units_asked(ask, redemption) > units_left(redemption):
            return "insufficient_points", 0
        return None, asked

    def decide(self, ask: Data, now: datetime) -> Data:
        """The outcome of a return, by all the rules, with its effects."""
        name, points = self.first_rule(ask, now)
        _, redemption = self.find(ask)
        if name is not None:
            return self.refuse(ask, name, now)
        assert redemption is not None
        return self.give_back(ask, redemption, points, now)

    def next_sequence(self, org_id: int, customer_id: int) -> int:
        customer = self.customer_rows[org_id, customer_id]
        customer["sequence"] += 1
        return int(customer["sequence"])

    def refuse(self, ask: Data, name: str, now: datetime) -> Data:
        org_id = ask["org_id"]
        _, redemption = self.find(ask)
        customer_id = redemption["customer_id"] if redemption else self.named(org_id, ask["identifier"])
        code, retryable = REFUSALS[name]
        asked = ask["pointsToBeReversed"]
        outcome = {
            "orgId": org_id,
            "programId": ask["programId"],
            "customerId": customer_id,
            "identifier": ask["identifier"],
            "orderId": ask["orderId"],
            "returnId": ask["returnId"],
            "redemptionId": ask["redemptionId"],
            "idempotencyKey": ask["key"],
            "reason": ask["reason"],
            "pointsToBeReversed": None if asked is None else plain(asked),
            "quantity": ask["quantity"],
            "returnedAt": show_time(ask["returnedAt"]),
            "sequence": None if customer_id is None else self.next_sequence(org_id, customer_id),
            "errors": [{"code": code, "name": name, "retryable": retryable}]
            * (ask["faults"] if name == "validation_error" else 1),
            "failedAt": show_time(now),
        }
        if name in ("duplicate_reversal", "idempotency_key_reused"):
            outcome["existing"] = self.reversals[org_id, ask["key"]]["outcome"]
        return outcome

    def give_back(self, ask: Data, redemption: Data, points: int, now: datetime) -> Data:
        org_id, key = redemption["org_id"], ask["key"]
        units = None
        if redemption["quantity"] is not None:
            units = units_asked(ask, redemption)
            self.count_reward(org_id, redemption["reward_id"], -units)
            redemption["reversed_quantity"] += units
        lots, expired, warnings = self.restore(redemption, points, key, now)
        redemption["reversed"] += points
        customer_id, program_id = redemption["customer_id"], redemption["program_id"]
        spendable = self.spendable_lots(org_id, customer_id, program_id, now)
        outcome = {
            "orgId": org_id,
            "programId": program_id,
            "customerId": customer_id,
            "identifier": ask["identifier"],
            "orderId": redemption["order_id"],
            "returnId": ask["returnId"],
            "redemptionId": redemption["redemption_id"],
            "reversalId": f"reversal:{org_id}/{key}",
            "journalEntryId": f"journal:{org_id}/{key}",
            "idempotencyKey": key,
            "reason": ask["reason"],
            "pointsToBeReversed": show_points(points),
            "pointsReversed": show_points(points),
            "quantity": units,
            "pointsReversedDetails": {
                "available": show_points(points - expired),
                "expired": show_points(expired),
            },
            "lots": lots,
            "redemption": {
                "points": show_points(redemption["points"]),
                "reversed": show_points(redemption["reversed"]),
                "remaining": show_points(redemption["points"] - redemption["reversed"]),
            },
            "balance": {"available": show_points(sum(lot["remaining"] for lot in spendable))},
            "sequence": self.next_sequence(org_id, customer_id),
            "warnings": [{}] * warnings,
            "createdAt": show_time(now),
        }
        self.reversals[org_id, key] = {
            "request": same_request(ask),
            "customer": (org_id, customer_id, program_id),
            "created_at": now,
            "outcome": outcome,
        }
        return outcome

    def restore(self, redemption: Data, points: int, key: str, now: datetime) -> tuple[list[Data], int, int]:
        """Gives points back to lots: the outcome's `lots`, how many points are expired, how many warnings."""
        org_id = redemption["org_id"]
        program = self.program_rows[org_id, redemption["program_id"]]
        if points == 0:
            return [], 0, 0
        new = {
            "org_id": org_id,
            "customer_id": redemption["customer_id"],
            "program_id": redemption["program_id"],
            "expires_at": None if program["grace_days"] is None else now + program["grace_days"] * DAY,
            "issued_at": now,
        }
        if not redemption["lot_ids"]:
            new["lot_id"] = f"lot:{org_id}/{key}/0"
            self.add_lot(points=points, **new)
            return [shown_lot(new, points, expired=False)], 0, 1
        lots, expired, warnings = [], 0, 0
        for lot_id, part in lifo(redemption, points):
            lot = self.lot_rows[org_id, lot_id]
            if not is_expired(lot, now):
                lot["remaining"] += part
                lots.append(shown_lot(lot, part, expired=False))
            elif program["expired_lots_policy"] == "keep":
                lot["remaining"] += part
                expired += part
                lots.append(shown_lot(lot, part, expired=True))
            else:
                new_id = f"lot:{org_id}/{key}/{len(lots)}"
                self.add_lot(**{**new, "lot_id": new_id, "points": part, "restored_from": lot_id})
                shown = shown_lot({**new, "lot_id": new_id}, part, expired=False)
                lots.append({**shown, "restoredFrom": lot_id})
                warnings += 1
        return lots, expired, warnings

    def lots(self) -> list[Data]:
        """As table `lot`."""
        return [self.lot_rows[key] for key in sorted(self.lot_rows)]

    def redemptions(self) -> list[Data]:
        """As table `redemption`."""
        return [self.redemption_rows[key] for key in sorted(self.redemption_rows)]

    def customers(self) -> list[Data]:
        """As table `customer`, less `forgotten`."""
        return [self.customer_rows[key] for key in sorted(self.customer_rows)]

    def identifiers(self) -> list[Data]:
        """As table `identifier`, less `lookup`."""
        return [self.identifier_rows[key] for key in sorted(self.identifier_rows)]

    def rewards(self) -> list[Data]:
        """As table `reward`."""
        return [self.reward_rows[key] for key in sorted(self.reward_rows)]


def contradicts_itself(program: Data) -> bool:
    """Whether a program's rules cannot all be meant: `load` refuses such."""
    count, days = program["max_reversals_count"], program["max_reversals_days"]
    return (
        program["decimals"] not in range(4)
        or program["minimum_points"] < 0
        or (program["reversal_window_days"] or 0) < 0
        or program["park_unknown_seconds"] < 0
        or (count is None) != (days is None)
        or (count is not None and (count < 1 or days < 1))
        or program["expired_lots_policy"] not in ("keep", "extend")
        or (program["expired_lots_policy"] == "extend" and program["grace_days"] is None)
        or (program["grace_days"] is not None and program["grace_days"] < 1)
    )


def differs(fields: Data, row: Data) -> bool:
    """Whether a lot or redemption seen before comes with another content, by the fields that are given."""
    times = ("issued_at", "redeemed_at")
    for name, value in fields.items():
        if value is None or name in times:
            continue
        if name == "lots":
            if value != list(zip(row["lot_ids"], row["lot_points"], strict=True)):
                return True
        elif value != row[name]:
            return True
    return False


def is_expired(lot: Data, moment: datetime) -> bool:
    return lot["expires_at"] is not None and lot["expires_at"] <= moment


def shown_lot(lot: Data, points: int, *, expired: bool) -> Data:
    return {
        "lotId": lot["lot_id"],
        "points": show_points(points),
        "expiresAt": show_time(lot["expires_at"]),
        "expired": expired,
    }


def units_left(redemption: Data) -> int:
    return 0 if redemption["quantity"] is None else redemption["quantity"] - redemption["reversed_quantity"]


def units_asked(ask: Data, redemption: Data) -> int:
    """The units that a return asks for: all that remain where it names none; 0 where units do not count."""
    if redemption["quantity"] is None:
        return 0
    return int(units_left(redemption) if ask["quantity"] is None else ask["quantity"])


def asked_points(ask: Data, redemption: Data, program: Data) -> int:
    """The thousandths that a return asks for."""
    remaining = int(redemption["points"] - redemption["reversed"])
    if ask["pointsToBeReversed"] is not None:
        return int(ask["pointsToBeReversed"] * 1000)
    if ask["quantity"] is None or ask["quantity"] == units_left(redemption):
        return remaining
    step = 10 ** (3 - program["decimals"])
    units = redemption["reversed_quantity"] + ask["quantity"]
    worth = redemption["points"] * units // (redemption["quantity"] * step) * step
    return max(0, int(worth) - int(redemption["reversed"]))


def lifo(redemption: Data, points: int) -> list[tuple[str, int]]:
    """The parts in which points go back, point by point the reverse of how they were taken."""
    skip, parts = redemption["reversed"], []
    taken = list(zip(redemption["lot_ids"], redemption["lot_points"], strict=True))
    for lot_id, whole in reversed(taken):
        skipped = min(skip, whole)
        part = min(points, whole - skipped)
        if part:
            parts.append((lot_id, part))
        skip -= skipped
        points -= part
    assert points == 0
    return parts

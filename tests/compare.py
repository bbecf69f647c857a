"""Makes what the service published comparable with what `tests/model` decided.

Ids drawn at random get names made of the org and the idempotency key in force, which one completed reversal
holds; messages, details and the words of warnings are dropped; times are spelled in one way. All else stays.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Data = dict[str, Any]


class Names:
    """The names of random ids, learned from each completed reversal in its turn.

    An id that no completed reversal brought into the world keeps its spelling and so compares unequal: an
    `existing` must carry the very ids of the reversal that was published before.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def learn(self, outcome: Data) -> None:
        """Takes the ids that a completed reversal made: its own, its journal entry's, its new lots'."""
        if "errors" in outcome:
            return
        where = f"{outcome['orgId']}/{outcome['idempotencyKey']}"
        self.names[outcome["reversalId"]] = f"reversal:{where}"
        self.names[outcome["journalEntryId"]] = f"journal:{where}"
        # A new lot names its origin, or is the one lot of a redemption without lots: only a warning tells.
        bare = bool(outcome["warnings"]) and not any(lot.get("restoredFrom") for lot in outcome["lots"])
        for index, lot in enumerate(outcome["lots"]):
            if bare or lot.get("restoredFrom"):
                self.names[lot["lotId"]] = f"lot:{where}/{index}"

    def name(self, value: Any) -> Any:
        return self.names.get(str(value), value)

    def outcome(self, outcome: Data) -> Data:
        """An outcome, comparable; a completed one is learned first."""
        self.learn(outcome)
        return self.rewritten(outcome)

    def rewritten(self, outcome: Data) -> Data:
        plain = dict(outcome)
        for field in ("reversalId", "journalEntryId"):
            if field in plain:
                plain[field] = self.name(plain[field])
        if "lots" in plain:
            plain["lots"] = [self.lot(lot) for lot in plain["lots"]]
        if "warnings" in plain:
            plain["warnings"] = len(plain["warnings"])
        if "errors" in plain:
            kept = ("code", "name", "retryable")
            plain["errors"] = [{field: error[field] for field in kept} for error in plain["errors"]]
        for field in ("createdAt", "failedAt", "returnedAt"):
            if field in plain:
                plain[field] = one_spelling(plain[field])
        if plain.get("existing") is None:
            plain.pop("existing", None)
        else:
            plain["existing"] = self.rewritten(plain["existing"])
        return plain

    def lot(self, lot: Data) -> Data:
        plain = {**lot, "lotId": self.name(lot["lotId"]), "expiresAt": one_spelling(lot["expiresAt"])}
        origin = plain.pop("restoredFrom", None)
        return {**plain, "restoredFrom": self.name(origin)} if origin is not None else plain

    def row(self, row: Data) -> Data:
        """A row of table `lot` or `redemption` (the model's or the database's), its lots' ids named alike."""
        plain = dict(row)
        for field in ("lot_id", "restored_from"):
            if field in plain:
                plain[field] = self.name(plain[field])
        for field in ("lot_ids", "lot_points"):
            if field in plain:
                plain[field] = [self.name(value) for value in plain[field]]
        return plain


def one_spelling(moment: Any) -> Any:
    """A time in UTC to the microsecond, however it was written; what is no time with an offset stays."""
    try:
        time = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return moment
    return moment if time.tzinfo is None else time.astimezone(UTC).isoformat(timespec="microseconds")


def normalise(outcome: Data, names: Names | None = None) -> Data:
    """An outcome, comparable; without `names` the reversal in `existing` is taken at its word."""
    if names is None:
        names = Names()
        if outcome.get("existing"):
            names.learn(outcome["existing"])
    return names.outcome(outcome)


def normalise_all(outcomes: Iterable[Data], names: Names | None = None) -> list[Data]:
    """Outcomes in the order in which they were decided, comparable; pass `names` to compare rows too."""
    names = names or Names()
    return [names.outcome(outcome) for outcome in outcomes]


def by_customer(outcomes: Iterable[Data]) -> dict[tuple[int, int | None], list[Data]]:
    """Outcomes by (org, customer) in order of `sequence`; of unknown customers by idempotency key.

    For streams over several partitions, whose outcomes have no order but this.
    """
    customers: dict[tuple[int, int | None], list[Data]] = {}
    for outcome in outcomes:
        customers.setdefault((outcome["orgId"], outcome["customerId"]), []).append(outcome)
    for (_, customer_id), group in customers.items():
        group.sort(key=lambda outcome: outcome["idempotencyKey" if customer_id is None else "sequence"])
    return customers

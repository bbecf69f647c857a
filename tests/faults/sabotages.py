"""Builds of the service that break a promise, each by a few exact replacements; some test must fail of each.

What is replaced is as short as can be, so that it outlives small changes around it. tests/unit/test_sabotages.py sees to
it that each still stands once in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class NoLongerFits(Exception):
    """What a sabotage replaces does not stand exactly once in its file; the message names both."""


@dataclass(frozen=True)
class Edit:
    """An exact replacement in one file. It must stand there once."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Sabotage:
    """A broken promise: how it is broken, and the tests (as pytest names them) that are to notice."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def changed(self, root: Path) -> dict[str, str]:
        """The changed texts of the tree there, by path. Raises NoLongerFits."""
        texts: dict[str, str] = {}
        for edit in self.edits:
            text = texts[edit.path] if edit.path in texts else (root / edit.path).read_text("utf-8")
            texts[edit.path] = self._replaced(edit, text)
        return texts

    def _replaced(self, edit: Edit, text: str) -> str:
        found = text.count(edit.old)
        if found != 1:
            raise NoLongerFits(
                f"the sabotage {self.name!r} no longer fits: {edit.old!r} stands {found} times in {edit.path}, once is "
                f"wanted; write it anew in tests/faults/sabotages.py"
            )
        return text.replace(edit.old, edit.new)


KILLS = "tests/faults/test_kills.py::test_killed_at_a_point_the_next_process_goes_on"
STREAM = "tests/faults/test_stream.py::test_each_record_has_its_outcome_and_once_more_changes_nothing"
CONTENTION = "tests/faults/test_contention.py"
OUTPUTS = "tests/faults/test_outputs.py::test_nothing_is_skipped_and_the_reason_names_the_way_out"
SCHEDULES = "tests/integration/test_schedules.py"

# Where a batch's offset is compared with the stored one: the builds that keep it elsewhere must not stumble over that.
ANY_OFFSET = Edit("service/pipeline.py", "if offset != lane.next_offset:", "if False:")

SABOTAGES = (
    Sabotage(
        "no stored offset",  # it goes on where the group's offsets on Kafka say
        (
            Edit(
                "service/consumer.py",
                'log.info("lane.owned"',
                "lane.next_offset = await intake.consumer.committed(self.partition) or 0\n"
                "        self._seek(lane.next_offset)\n"
                '        log.info("lane.owned"',
            ),
            ANY_OFFSET,
        ),
        (f"{KILLS}[committed]",),
    ),
    Sabotage(
        "offset moved before the effect",
        (
            Edit(
                "service/pipeline.py",
                "async with connection.transaction():",
                "moved = 'update lane set next_offset = $2, high_offset = greatest(high_offset, $2) where lane_id = $1'\n"
                "            for lane, work in works:\n"
                "                if work.next_offset is not None:\n"
                "                    await connection.execute(moved, lane.lane_id, work.next_offset)\n"
                "            async with connection.transaction():",
            ),
            ANY_OFFSET,
        ),
        (f"{KILLS}[written]",),
    ),
    Sabotage(
        "publishing before the commit",
        (
            Edit(
                "service/consumer.py",
                "self.pipeline = Pipeline(pool, settings)",
                "self.pipeline = Pipeline(pool, settings)\n        self.pipeline.publisher = publisher",
            ),
            Edit(
                "service/pipeline.py",
                'reach("written")',
                "early = [one for share in shares for one in share.outbox]\n"
                "                await self.publisher.publish((a.topic, a.key, a.payload, sent(a.headers)) for a in early)\n"
                '                reach("written")',
            ),
            Edit(
                "service/pipeline.py",
                "from service.failpoint import reach\n",
                "from service.failpoint import reach\nfrom service.headers import sent\n",
            ),
            Edit(
                "service/lane.py",
                "await publisher.publish((one.topic, one.key, one.payload, sent(one.headers)) for one in outbox)",
                "pass",
            ),
        ),
        (f"{KILLS}[written]",),
    ),
    Sabotage(
        "no row lock",
        (Edit("service/sql/lock_batch.sql", "for no key update\n    ) as c", ") as c"),),
        (CONTENTION,),
    ),
    Sabotage(
        "no unique key",
        (
            Edit(
                "service/migrations/0001_ledger.sql",
                "    constraint reversal_key unique (org_id, idempotency_key),\n",
                "",
            ),
        ),
        (f"{SCHEDULES}::TestOneKeyOnTwoLanes",),
    ),
    Sabotage(
        "FIFO restoring",
        (Edit("service/reversal.py", "in reversed(lots):", "in lots:"),),
        (STREAM,),
    ),
    Sabotage(
        "float arithmetic",
        (
            Edit(
                "service/points.py",
                'int(whole + fraction.ljust(DECIMALS, "0"))',
                'int(float(f"{whole}.{fraction}") * SCALE)',
            ),
        ),
        (STREAM,),
    ),
    Sabotage(
        "a failure that burns its key",
        (
            Edit(
                "service/batch.py",
                "settled.outcome = encode_refused(result)",
                "settled.outcome = encode_refused(result)\n"
                "            if result.existing is None:\n"
                "                reversal.claim(self.ledger, result, settled.record.outcome_id, settled.outcome)",
            ),
            Edit(
                "service/sql/load_batch.sql",
                "join reversal r on",
                "join (select org_id, idempotency_key, outcome, fingerprint, outcome_id from reversal union all\n"
                "    select org_id, idempotency_key, outcome, ''::bytea, outcome_id from refusal\n"
                "    where name not in ('duplicate_reversal', 'idempotency_key_reused')) as r on",
            ),
        ),
        (STREAM,),
    ),
    Sabotage(
        "a random ce_id",
        (
            Edit(
                "service/records.py",
                "hashlib.blake2b(self.place.encode(), digest_size=16).hexdigest()",
                '__import__("uuid").uuid4().hex',
            ),
        ),
        (f"{KILLS}[committed]",),
    ),
    Sabotage(
        "dead letters acknowledged late",  # after the offset: the outbox does not hold them
        (
            Edit(
                "service/commit.py",
                "in enumerate(share.outbox, share.position)",
                'in enumerate(share.outbox, share.position) if one.aggregatetype != "dead-letter"',
            ),
        ),
        (f"{KILLS}[committed]",),
    ),
    Sabotage(
        "an outbox that is cleared unread",
        (Edit("service/lane.py", "await publisher.publish(_stored(row) for row in rows)", "pass"),),
        (f"{KILLS}[committed]",),
    ),
    Sabotage(
        "a publication that fails is skipped",
        (
            Edit(
                "service/consumer.py",
                "await publishing\n",
                "await asyncio.gather(publishing, return_exceptions=True)\n",
            ),
        ),
        (f"{OUTPUTS}[an outcome is too large]",),
    ),
    Sabotage(
        "no fence",
        (
            Edit("service/pipeline.py", "if epoch != lane.epoch:", "if False:"),
            ANY_OFFSET,
            Edit("service/sql/write_batch.sql", "and l.epoch = t.epoch", ""),
        ),
        (f"{SCHEDULES}::TestANewOwner",),
    ),
)

"""A returns desk on a database of its own: input partitions, processes of the service, and what they published.

Kafka is left out at the seam where the service meets it: a `Partition` hands its records over as a broker would, an
`Outlet` stands where the producer does and keeps what it is given. All between is the service's own, on a real
Postgres.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import SecretStr

from service import lane as lanes
from service.audit import audit
from service.lane import Publication, Publisher
from service.pipeline import Lane, Pipeline, Taken
from service.records import Record, Unreadable
from service.settings import Settings
from service.store import connect
from tests.stack import run_address

Data = dict[str, Any]

NOW = datetime(2026, 11, 20, 1, 30, 2, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
ORG = 100458
CUSTOMER = 42
FIRST_TIMESTAMP_MS = 1_763_000_000_000

RETURNS, CUSTOMERS, ISSUES, REDEMPTIONS = "order.returned", "customer.updated", "points.issued", "points.redeemed"
COMPLETED, FAILED = "reversal-completed", "reversal-failed"

LEDGER = ("customer", "identifier", "reward", "lot", "redemption", "reversal", "journal")


@dataclass
class Partition:
    """An input partition as a broker keeps it."""

    topic: str
    number: int = 0
    records: list[Record] = field(default_factory=list)

    def append(
        self, value: Data | bytes | None, *, key: bytes | None = None, headers: Iterable[tuple[str, bytes]] = ()
    ) -> Record:
        """Adds a record; data goes as bare JSON."""
        offset = len(self.records)
        content = json.dumps(value).encode() if isinstance(value, dict) else value
        timestamp_ms = FIRST_TIMESTAMP_MS + offset
        record = Record(self.topic, self.number, offset, timestamp_ms, key, content, tuple(headers))
        self.records.append(record)
        return record


@dataclass(frozen=True)
class Published:
    """A record as it was handed to the producer."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    def header(self, name: str) -> str | None:
        """The one header of that name, as text."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, f"{name} stands {len(found)} times"
        return found[0].decode() if found and found[0] is not None else None

    @property
    def document(self) -> Data:
        assert self.value is not None
        document = json.loads(self.value)
        assert isinstance(document, dict)
        return document

    @property
    def refusal(self) -> str:
        """The name of the one error of a `reversal-failed`."""
        assert self.topic == FAILED, self
        [error] = self.document["errors"]
        assert str(error["code"]) == self.header("ce_errorcode")
        return str(error["name"])


class Outlet(Publisher):
    """Stands where the producer does. `fault`: what publishing raises while it is set."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.published: list[Published] = []
        self.fault: Exception | None = None

    async def publish(self, publications: Iterable[Publication]) -> None:
        if self.fault is not None:
            raise self.fault
        self.published += [Published(topic, key, value, tuple(headers)) for topic, key, value, headers in publications]


class Process:
    """One process of the service: a pool, a pipeline and an outlet of its own, and the lanes that it owns."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.pipeline = Pipeline(pool, settings)
        self.outlet = Outlet(settings)
        self.lanes: dict[tuple[str, int], Lane] = {}

    @property
    def published(self) -> list[Published]:
        return self.outlet.published

    async def own(self, partition: Partition) -> Lane:
        """Becomes the owner of the partition's lane, whoever was before."""
        lane = await lanes.own(self.pool, self.outlet, partition.topic, partition.number, "test")
        self.lanes[partition.topic, partition.number] = lane
        return lane

    async def lane(self, partition: Partition) -> Lane:
        """The partition's lane, owned if it was not."""
        return self.lanes.get((partition.topic, partition.number)) or await self.own(partition)

    async def take(
        self, partition: Partition, most: int | None = None, unreadable: dict[int, Unreadable] | None = None
    ) -> list[Taken]:
        """Takes the next records through Postgres as one batch; publishes nothing."""
        lane = await self.lane(partition)
        records = [record for record in partition.records if record.offset >= lane.next_offset][:most]
        assert records, f"{partition.topic}/{partition.number} has no record from {lane.next_offset} on"
        return await self.pipeline.take(lane, records, records[-1].offset + 1, unreadable)

    async def publish(self, partition: Partition, taken: Sequence[Taken]) -> list[Published]:
        """Publishes what batches came to, as the consumer does; returns it."""
        before = len(self.published)
        outbox = [one for each in taken for one in each.outbox]
        if outbox:
            await lanes.publish(self.outlet, await self.lane(partition), outbox, taken[0].position)
        return self.published[before:]

    async def serve(
        self, partition: Partition, *, batch: int | None = None, unreadable: dict[int, Unreadable] | None = None
    ) -> list[Published]:
        """Takes and publishes all that the partition holds, in batches of so many records (else in one)."""
        lane = await self.lane(partition)
        published = []
        while lane.next_offset < len(partition.records):
            published += await self.publish(partition, await self.take(partition, batch, unreadable))
        await self.clear(partition)
        return published

    async def serve_due(self, partition: Partition) -> list[Published]:
        """Decides and publishes the lane's waiting records whose time has come: one look, as the consumer makes."""
        published = await self.publish(partition, await self.pipeline.take_due(await self.lane(partition)))
        await self.clear(partition)
        return published

    async def clear(self, partition: Partition) -> None:
        """Empties the outbox of what is acknowledged, as an idle consumer does."""
        await lanes.clear(self.pool, await self.lane(partition))

    def kill(self) -> None:
        """Ends the process's sessions as its death would."""
        self.pool.terminate()


class Desk:
    """The database, its input partitions and its processes; the first one serves where no other is named."""

    def __init__(self, database_url: str, owner_url: str, pool: asyncpg.Pool) -> None:
        self.database_url = database_url  # for the service: as a role that may do no more than `run` needs
        self.owner_url = owner_url
        self.pool = pool  # the test's own, as the owner; no process of the service uses it
        self.processes: list[Process] = []
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.clock: datetime | None = NOW

    @property
    def process(self) -> Process:
        return self.processes[0]

    async def start(self, database_url: str | None = None, **settings: Any) -> Process:
        """Starts one more process."""
        url = SecretStr(database_url or self.database_url)
        configured = Settings(database_url=url, test_clock=self.clock, **settings)
        process = Process(await connect(configured), configured)
        self.processes.append(process)
        return process

    async def restart(self) -> Process:
        """The first process dies and another takes its place, which owns no lane yet."""
        settings = self.process.settings
        self.process.kill()
        process = Process(await connect(settings), settings)
        self.processes[0] = process
        return process

    def set_clock(self, moment: datetime | None) -> None:
        """Freezes the decision moment of all processes; None lets it go."""
        self.clock = moment
        for process in self.processes:
            process.settings.test_clock = moment

    def partition(self, topic: str, number: int = 0) -> Partition:
        return self.partitions.setdefault((topic, number), Partition(topic, number))

    def send(self, topic: str, *values: Data | bytes | None, number: int = 0, **rest: Any) -> Partition:
        """Adds records to a partition; data without an org is of ORG."""
        partition = self.partition(topic, number)
        for value in values:
            partition.append({"orgId": ORG, **value} if isinstance(value, dict) else value, **rest)
        return partition

    async def take_in(self, topic: str, *values: Data | bytes | None, number: int = 0) -> list[Published]:
        """Adds records and serves them as one batch; returns what was published."""
        return await self.process.serve(self.send(topic, *values, number=number))

    async def ask(self, **fields: Any) -> Published:
        """Sends one return and returns its outcome."""
        [outcome] = await self.take_in(RETURNS, fields)
        return outcome

    async def put(self, table: str, **row: Any) -> None:
        """Inserts a row."""
        names = ", ".join(row)
        places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
        await self.pool.execute(f"insert into {table} ({names}) values ({places})", *row.values())

    async def rules(self, program_id: str = "main", **columns: Any) -> None:
        """Changes the rules of a program."""
        for name, value in columns.items():
            statement = f"update program set {name} = $3 where org_id = $1 and program_id = $2"
            assert await self.pool.execute(statement, ORG, program_id, value) == "UPDATE 1"

    async def customer(self, customer_id: int = CUSTOMER, *identifiers: tuple[str, str], **columns: Any) -> None:
        """A customer with identifiers (type, value as it is looked up)."""
        await self.put("customer", org_id=ORG, customer_id=customer_id, **columns)
        for kind, value in identifiers:
            row = {"type": kind, "lookup": value, "value": value, "customer_id": customer_id}
            await self.put("identifier", org_id=ORG, **row)

    async def lot(self, lot_id: str, points: float, remaining: float | None = None, **columns: Any) -> None:
        """A lot of CUSTOMER in the program main, imported; it never expires, was issued 100 days ago and is full."""
        held = thousandths(points if remaining is None else remaining)
        row = {"customer_id": CUSTOMER, "program_id": "main", "issued_at": NOW - 100 * DAY, **columns}
        await self.put("lot", org_id=ORG, lot_id=lot_id, points=thousandths(points), remaining=held, **row)
        if held:
            await self._import(row, None, ["opening", "held"], [row["program_id"], lot_id], [-held, held])

    async def redemption(self, redemption_id: str, points: float, *lots: tuple[str, float], **columns: Any) -> None:
        """A redemption of CUSTOMER in the program main, imported; made 10 days ago, nothing of it given back."""
        row = {"customer_id": CUSTOMER, "program_id": "main", "type": "RAW", "redeemed_at": NOW - 10 * DAY}
        if columns.get("type") == "UNIT_BASED":
            row |= {"reversed_quantity": 0, "imported_reversed_quantity": 0}
        row |= {**columns, "lot_ids": [lot_id for lot_id, _ in lots]}
        row["lot_points"] = [thousandths(taken) for _, taken in lots]
        redeemed = thousandths(points)
        await self.put("redemption", org_id=ORG, redemption_id=redemption_id, points=redeemed, **row)
        subjects = [redemption_id, row["program_id"]]
        await self._import(row, redemption_id, ["redeemed", "opening"], subjects, [redeemed, -redeemed])

    async def _import(self, row: Data, redemption_id: str | None, accounts: Any, subjects: Any, points: Any) -> None:
        entry = {"kind": "import", "created_at": NOW - 9 * DAY, "customer_id": row["customer_id"]}
        entry |= {"redemption_id": redemption_id, "accounts": accounts, "subjects": subjects, "points": points}
        await self.put("journal", org_id=ORG, entry_id=uuid4(), **entry)

    async def bought(self, redemption_id: str, points: float, *, customer_id: int = CUSTOMER, **columns: Any) -> None:
        """A customer (made here where new) whose one lot, named after the redemption, the redemption has emptied."""
        await self.pool.execute(
            "insert into customer (org_id, customer_id) values ($1, $2) on conflict do nothing", ORG, customer_id
        )
        lot_id = f"L-{redemption_id}"
        await self.lot(lot_id, points, 0, customer_id=customer_id)
        await self.redemption(redemption_id, points, (lot_id, points), customer_id=customer_id, **columns)

    async def rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """What a query returns, as tuples."""
        return [tuple(row) for row in await self.pool.fetch(statement, *arguments)]

    async def value(self, statement: str, *arguments: Any) -> Any:
        return await self.pool.fetchval(statement, *arguments)

    async def held(self) -> dict[str, float]:
        """What each lot holds."""
        rows = await self.rows("select lot_id, remaining from lot where org_id = $1 order by 1", ORG)
        return {lot_id: remaining / 1000 for lot_id, remaining in rows}

    async def reversed(self) -> dict[str, float]:
        """What was given back of each redemption."""
        rows = await self.rows("select redemption_id, reversed from redemption where org_id = $1 order by 1", ORG)
        return {redemption_id: points / 1000 for redemption_id, points in rows}

    async def sequence(self, customer_id: int = CUSTOMER) -> int | None:
        statement = "select sequence from customer where org_id = $1 and customer_id = $2"
        sequence: int | None = await self.pool.fetchval(statement, ORG, customer_id)
        return sequence

    async def waiting(self) -> list[str]:
        """What waits, as topic@offset."""
        return [
            f"{kind}@{offset}"
            for kind, offset in await self.rows("select kind, record_offset from waiting order by 1, 2")
        ]

    async def counts(self, topic: str, number: int = 0) -> dict[str, int]:
        """What a lane counted, of its own records and by whichever lane settled them; zeros left out."""
        row = await self.pool.fetchrow(
            """select taken, l.completed + coalesce(sum(s.completed), 0) as completed,
                l.failed + coalesce(sum(s.failed), 0) as failed, l.booked + coalesce(sum(s.booked), 0) as booked,
                l.unchanged + coalesce(sum(s.unchanged), 0) as unchanged, l.repeated,
                l.dead + coalesce(sum(s.dead), 0) as dead
            from lane l left join lane_settled s using (lane_id)
            where l.topic = $1 and l.partition = $2 group by l.lane_id""",
            topic,
            number,
        )
        assert row is not None
        return {name: int(value) for name, value in row.items() if value}

    async def outbox(self) -> int:
        """How many records the outbox holds."""
        return int(await self.value("select count(*) from outbox"))

    async def ledger(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of the ledger's tables, less the customers' sequences."""
        tables = {}
        for table in LEDGER:
            columns = "org_id, customer_id, status, locked_until, updated_at" if table == "customer" else "*"
            tables[table] = await self.rows(f"select {columns} from {table} order by 1, 2, 3")
        return tables

    async def reset(self, topic: str, offset: int, number: int = 0) -> None:
        """Sets a lane's stored offset, as `lanes reset` does."""
        statement = "update lane set next_offset = $3, epoch = epoch + 1 where topic = $1 and partition = $2"
        assert await self.pool.execute(statement, topic, number, offset) == "UPDATE 1"
        for process in self.processes:
            process.lanes.pop((topic, number), None)

    async def broken(self) -> dict[str, list[Data]]:
        """The invariants that do not hold, with the rows that break them."""
        async with self.pool.acquire() as connection:
            findings = [finding async for finding in audit(connection, None, 10)]
        assert len(findings) == 8
        return {finding.check.name: finding.broken for finding in findings if finding.count}


@asynccontextmanager
async def desk_on(owner_url: str) -> AsyncIterator[Desk]:
    """A desk with one process, one org and its program main; at the end every invariant must hold."""
    async with asyncpg.create_pool(owner_url, min_size=1, max_size=6) as pool:
        desk = Desk(await run_address(owner_url), owner_url, pool)
        await desk.put("org", org_id=ORG)
        await desk.put("program", org_id=ORG, program_id="main", is_default=True)
        await desk.start()
        try:
            yield desk
            assert await desk.broken() == {}
        finally:
            for process in desk.processes:
                process.kill()


def thousandths(points: float) -> int:
    """Points as the database keeps them; for tests only, where amounts are short."""
    return round(points * 1000)

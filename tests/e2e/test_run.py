"""`run` as its users meet it: records in, outcomes out, on real Kafka and Postgres, through a real process."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from service.kafka import input_bytes
from service.metrics import Metrics
from service.migrate import migrate
from tests import stack as servers
from tests.process import Service, Site, site
from tests.stack import Record, Sending, Stack, eventually
from tests.traffic import (
    ORG,
    PHONE,
    bare,
    binary,
    headers_of,
    outcomes_of,
    read_back,
    shop,
    structured,
    verify,
)

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STOP_SECONDS = 5.0


@dataclass
class Shop:
    """A shop whose customers each belong to one test, and the process that serves it."""

    site: Site
    service: Service | None = None

    async def open(self) -> Service:
        """The process, running and ready."""
        if self.service is None or not self.service.running:
            self.service = self.site.start("shop")
            await self.service.ready()
        return self.service

    async def outcomes(self, kind: str, records: list[Sending]) -> list[Record | None]:
        """Produces, waits until all is decided and published, and reads each record's outcome."""
        await self.open()
        places = await self.site.produce(kind, records)
        await self.site.drained()
        findings = await read_back(self.site)
        return outcomes_of(findings, self.site.topic(kind), places)

    async def letters(self, kind: str, records: list[Sending]) -> list[Record]:
        """The same for records that end as dead letters."""
        await self.open()
        places = await self.site.produce(kind, records)
        await self.site.drained()
        read = await self.site.read(self.site.topics.dead_letters(self.site.topic(kind)))
        known = {(one.header("dlq.partition"), one.header("dlq.offset")): one for one in read}
        return [known[str(partition), str(offset)] for partition, offset in places]


@pytest.fixture(scope="module")
def open_shop(stack: Stack, template_database: str) -> Iterator[Shop]:
    with site(stack, template_database) as place:
        servers.run(place.load(shop(customers=20, redemptions=6)))
        yield Shop(place)


@pytest.fixture
def place(stack: Stack, template_database: str) -> Iterator[Site]:
    """A database and topics of the test's own."""
    with site(stack, template_database) as own:
        yield own


def part(customer: int, points: str, key: str, **more: object) -> dict[str, object]:
    """A return of part of the customer's first redemption."""
    names = {"orgId": ORG, "redemptionId": f"R-{customer}-1", "idempotencyKey": key}
    return {**names, "pointsToBeReversed": points, **more}


# Records in, outcomes out


async def test_a_return_in_each_form_becomes_its_outcome(open_shop: Shop) -> None:
    identifier = {"type": "PHONE", "value": PHONE.format(1)}
    records = [
        structured(part(1, "50", "a", identifier=identifier), "k", "e-1", ("traceparent", TRACE)),
        binary({"org_id": ORG, "order_id": "SO-1-1", "points_to_be_reversed": 75}, "k", "e-2", ("traceparent", TRACE)),
        bare({"orgId": ORG, "redemptionId": "R-1-1", "returnId": "RMA-1"}, "k"),
    ]
    found = await open_shop.outcomes("order.returned", records)
    for outcome, source in zip(found, records, strict=True):
        assert outcome is not None
        headers = headers_of(outcome)
        body = orjson.loads(outcome.value or b"")
        assert outcome.key == b"1"
        moment = headers.pop("ce_time")
        assert moment == body["createdAt"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", moment)
        assert len(headers.pop("ce_id")) == 36
        traced = {"traceparent": TRACE.decode()} if source is not records[2] else {}
        assert headers == {
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_source": "/points-reversal",
            "ce_type": "reversal-completed",
            "ce_subject": "R-1-1",
            "ce_orgid": str(ORG),
            **traced,
        }
    bodies = [orjson.loads(one.value or b"") for one in found if one is not None]
    assert [body["pointsReversed"] for body in bodies] == ["50", "75", "75"]
    assert [body["pointsReversedDetails"] for body in bodies] == [
        {"available": "50", "expired": "0"},
        {"available": "50", "expired": "25"},
        {"available": "0", "expired": "75"},
    ]
    assert [body["sequence"] for body in bodies] == [1, 2, 3]
    assert [body["idempotencyKey"] for body in bodies] == ["a", "event:%2Fshop#e-2", "return:RMA-1/R-1-1"]
    assert bodies[0]["identifier"] == identifier


async def test_a_refusal_tells_its_code_in_the_headers(open_shop: Shop) -> None:
    records = [
        bare(part(2, "201", "too much"), "k"),
        bare({"orgId": ORG, "redemptionId": "R-unheard-of", "idempotencyKey": "none"}, "k"),
        binary(part(2, "5", "twice"), "k", "e-1"),
        binary(part(2, "5", "twice"), "k", "e-2", ("traceparent", TRACE)),
    ]
    found = await open_shop.outcomes("order.returned", records)
    much, unknown, _, again = [outcome for outcome in found if outcome is not None]
    assert much.key == b"2"
    assert (
        headers_of(much).items()
        >= {
            "ce_type": "reversal-failed",
            "ce_errorcode": "817",
            "ce_subject": "R-2-1",
        }.items()
    )
    assert unknown.key == b"k"
    assert headers_of(unknown)["ce_errorcode"] == "887"
    assert headers_of(again).items() >= {"ce_errorcode": "902", "traceparent": TRACE.decode()}.items()
    body = orjson.loads(again.value or b"")
    assert body["failedAt"] == headers_of(again)["ce_time"]
    assert body["existing"]["idempotencyKey"] == "twice"


async def test_what_cannot_be_read_goes_to_the_dead_letters_untouched(open_shop: Shop) -> None:
    records = [
        Sending(b"\xff\x00 no JSON", None, [("h", b"1"), ("h", b"\xfe"), ("traceparent", TRACE)]),
        bare(
            {"orderId": "SO-1"},
            "k",
            [("ce_specversion", b"1.0"), ("ce_id", b"e"), ("ce_source", b"/s"), ("ce_type", b"t")],
        ),
        bare({"orgId": 1}, "k", [("ce_specversion", b"0.3")]),
        Sending(b"[1]", b"\xff"),
        Sending(None, b"k"),
    ]
    letters = await open_shop.letters("order.returned", records)
    assert [letter.header("dlq.reason") for letter in letters] == [
        "not_json",
        "no_org",
        "bad_envelope",
        "not_an_object",
        "not_json",
    ]
    for letter, record in zip(letters, records, strict=True):
        assert (letter.key, letter.value) == (record.key, record.value)
        assert [header for header in letter.headers if not header[0].startswith("dlq.")] == list(record.headers)
        assert letter.header("dlq.topic") == open_shop.site.topic("order_returned")
        assert letter.header("dlq.group") == open_shop.site.group
        assert letter.header("dlq.message")
        assert datetime.fromisoformat(letter.header("dlq.timestamp") or "").tzinfo is not None


async def test_a_record_too_large_leaves_its_coordinates_and_the_next_is_decided(open_shop: Shop) -> None:
    settings = open_shop.site.in_process()
    sizes = [settings.max_record_bytes + 1, input_bytes(settings) * 2]
    records = [Sending(b" " * size, b"k", [("h", b"1")], partition=0) for size in sizes]
    good = bare(part(3, "5", "after"), "k", partition=0)
    await open_shop.open()
    places = await open_shop.site.produce("order.returned", [*records, good])
    await open_shop.site.drained()
    letters = await open_shop.site.read(open_shop.site.topics.dead_letters(open_shop.site.topic("order_returned")))
    large = {one.header("dlq.offset"): one for one in letters if one.header("dlq.reason") == "too_large"}
    for _, offset in places[:2]:
        letter = large[str(offset)]
        assert (letter.key, letter.value) == (b"k", None)
        assert letter.header("h") == "1"
        assert letter.header("dlq.partition") == "0"
    [outcome] = outcomes_of(await read_back(open_shop.site), open_shop.site.topic("order_returned"), places[2:])
    assert outcome is not None
    assert outcome.header("ce_subject") == "R-3-1"


async def test_what_the_feeds_book_is_returned(open_shop: Shop) -> None:
    service = await open_shop.open()
    customer, names = 501, {"orgId": ORG, "customerId": 501}
    place = open_shop.site
    redemption = {**names, "redemptionId": "R-fed", "orderId": "SO-fed", "points": "30"}
    await place.produce("points.redeemed", [structured(redemption, customer, "f-1", kind="points.redeemed")])
    # Its points come only now: until then it waits.
    await eventually(lambda: place.value("select count(*) from waiting"))
    await place.produce("points.issued", [bare({**names, "lot_id": "L-fed", "points": "100.5"}, customer)])
    update = {**names, "identifiers": [{"type": "EMAIL", "value": "Fed.501@shop.example"}]}
    await place.produce("customer.updated", [binary(update, customer, "f-3", kind="customer.updated")])
    await eventually(lambda: place.value("select count(*) = 0 from waiting"))
    await place.drained()
    identifier = {"type": "EMAIL", "value": " fed.501@SHOP.example"}
    asked = {"orgId": ORG, "orderId": "SO-fed", "identifier": identifier, "pointsToBeReversed": "10"}
    [outcome] = await open_shop.outcomes("order.returned", [bare(asked, customer)])
    assert outcome is not None
    body = orjson.loads(outcome.value or b"")
    assert (body["customerId"], body["pointsReversed"], body["balance"]) == (501, "10", {"available": "80.5"})
    assert service.running


# Health, metrics, log


async def test_health_and_metrics_are_served(open_shop: Shop) -> None:
    records = [bare(part(4, "1", "m"), 4), bare(part(4, "1", "m"), 4), Sending(b"{", b"4")]
    await open_shop.outcomes("order.returned", records)
    service = await open_shop.open()
    assert service.get("/livez") == (200, "live\n")
    assert service.get("/readyz") == (200, "ready\n")
    assert service.get("/elsewhere")[0] == 404
    status, text = service.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    prefix = "points_reversal_"
    assert float(values[prefix + 'outcomes_total{code="0",name="completed"}']) >= 1
    assert float(values[prefix + 'outcomes_total{code="902",name="duplicate_reversal"}']) >= 1
    assert float(values[prefix + 'dead_letters_total{reason="not_json"}']) >= 1
    assert float(values[prefix + "batch_records_count"]) >= 1
    assert float(values[prefix + "assigned_partitions"]) == 4 * open_shop.site.partitions
    assert prefix + "rebalances_total" in values
    for stage in ("decode", "load", "decide", "write", "commit"):
        assert float(values[f'{prefix}stage_seconds_count{{stage="{stage}"}}']) >= 1
    lane = open_shop.site.topic("order_returned") + "/"
    ages = [
        value
        for name, value in values.items()
        if name.startswith(prefix + "newest_record_age_seconds") and lane in name
    ]
    assert all(0 <= float(age) < 60 for age in ages)
    assert ages
    # The outbox is measured now and then.
    await eventually(lambda: f"{prefix}outbox_rows 0.0" in service.get("/metrics")[1])
    assert f"{prefix}outbox_oldest_seconds 0.0" in service.get("/metrics")[1]
    named = {name for family in Metrics().registry.collect() if (name := family.name).startswith(prefix)}
    assert named >= {prefix + name for name in ("bookings", "outcomes", "outbox_rows", "outbox_oldest_seconds")}


async def test_one_line_of_the_log_sums_up_a_batch(open_shop: Shop) -> None:
    service = await open_shop.open()
    lane = f"{open_shop.site.topic('order_returned')}/1"
    before = len(service.said("batch.decided", lane=lane))
    identifier = {"type": "PHONE", "value": PHONE.format(5)}
    records = [part(5, "1", "l", identifier=identifier), part(5, "1", "l", identifier=identifier), part(5, "999", "n")]
    await open_shop.site.produce("order.returned", [bare(one, 5, partition=1) for one in records], linger_ms=50)
    await open_shop.site.drained()
    lines = await eventually(lambda: service.said("batch.decided", lane=lane)[before:])
    assert sum(line["records"] for line in lines) == 3
    counted = {
        word: sum(line["outcomes"].get(word, 0) for line in lines) for line in lines for word in line["outcomes"]
    }
    assert counted == {"completed": 1, "902 duplicate_reversal": 1, "817 insufficient_points": 1}
    for line in lines:
        assert line["level"] == "info"
        assert line["seconds"].keys() >= {"decode", "load", "decide", "write", "commit"}
        assert 0 <= line["lag_seconds"] < 60


async def test_a_group_whose_offsets_are_set_back_repeats_nothing(open_shop: Shop) -> None:
    place = open_shop.site
    await open_shop.outcomes("order.returned", [bare(part(6, "1", "before"), 6, partition=0)])
    service = await open_shop.open()
    assert await service.stop() < STOP_SECONDS
    before = await read_back(place)
    taken = await place.value("select sum(taken) from lane")
    partitions = [TopicPartition(topic, one) for topic in place.topics.inputs() for one in range(place.partitions)]
    async with place.consumer(place.group) as consumer:
        consumer.assign(partitions)
        await consumer.commit(dict.fromkeys(partitions, 0))
    [outcome] = await open_shop.outcomes("order.returned", [bare(part(6, "1", "after"), 6, partition=0)])
    assert outcome is not None
    assert await place.value("select sum(taken) from lane") == taken + 1
    after = await read_back(place)
    assert len(after.outcomes) == len(before.outcomes) + 1
    assert (after.repeats, after.letters.keys()) == (before.repeats, before.letters.keys())


async def test_sigterm_under_load_finishes_what_is_under_way_and_the_next_goes_on(open_shop: Shop) -> None:
    place = open_shop.site
    service = await open_shop.open()
    before = await place.value("select sum(taken) from lane")
    records = [bare(part(7, "0.001", f"s-{number}"), number) for number in range(4000)]
    await place.produce("order.returned", records)
    await eventually(lambda: place.value("select sum(taken) > $1 from lane", before))
    assert await service.stop() < STOP_SECONDS
    taken = await place.value("select sum(taken) from lane")
    assert before < taken < before + len(records), "it was to be stopped halfway"
    assert await place.value("select count(*) from outbox") == 0
    decided = await place.value("select (select count(*) from reversal) + (select count(*) from refusal)")
    assert len((await read_back(place)).outcomes) == decided
    await open_shop.open()
    await place.drained()


async def test_each_record_of_all_these_has_exactly_one_outcome(open_shop: Shop) -> None:
    """Runs last of those that share the shop: whatever they sent, the contract's guarantees hold."""
    service = await open_shop.open()
    await open_shop.outcomes("order.returned", [bare(part(8, "1", "last"), 8)])
    findings = await verify(open_shop.site)
    assert findings.repeats == 0
    assert await service.stop() < STOP_SECONDS
    assert not service.said("lane.doubt")


# What it waits for


async def test_it_waits_for_the_schema_and_the_topics_and_goes_on_by_itself(stack: Stack) -> None:
    with site(stack, None, topics=False) as place:
        service = place.start()
        line = await service.says("service.waiting", server="Postgres")
        assert "`points-reversal migrate`" in line["reason"]
        await eventually(lambda: service.get("/readyz")[0] == 503)
        assert line["reason"] in service.get("/readyz")[1]
        assert service.get("/livez")[0] == 200
        await migrate(place.owner_url)

        def ungranted() -> list[dict[str, Any]]:
            return [one for one in service.said("service.waiting") if "--grant" in one["reason"]]

        [line, *_] = await eventually(ungranted, 20)
        assert f"the role {stack.run_role} lacks select on org, " in line["reason"]
        assert f"`points-reversal migrate --grant {stack.run_role}`" in line["reason"]
        await migrate(place.owner_url, [stack.run_role])
        line = await service.says("service.waiting", server="Kafka")
        assert all(topic in line["reason"] for topic in [*place.topics.inputs(), *place.outputs])
        assert "`points-reversal topics`" in line["reason"]
        assert service.get("/readyz")[0] == 503
        await place.load(shop(customers=1))
        place.create_topics()
        await service.ready()
        await place.produce("order.returned", [bare(part(1, "5", "k"), 1)])
        await place.drained()
        findings = await verify(place)
        assert findings.by_code() == {"completed": 1}
        await service.stop()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@pytest.mark.parametrize("server", ["Postgres", "Kafka"])
@pytest.mark.parametrize("silent", [False, True], ids=["absent", "silent"])
async def test_sigterm_ends_it_also_while_it_waits(open_shop: Shop, server: str, silent: bool) -> None:
    with silent_server() as port:
        address = f"127.0.0.1:{port if silent else 1}"
        if server == "Postgres":
            service = open_shop.site.start(database_url=f"postgresql://somebody@{address}/ledger")
        else:
            service = open_shop.site.start(
                kafka__bootstrap_servers=address, kafka__group_id=f"{open_shop.site.prefix}.x"
            )
        await eventually(lambda: service.get("/livez")[0] == 200, 40)
        assert service.get("/readyz")[0] == 503
        if not silent:
            line = await service.says("service.waiting", server=server)
            assert line["seconds"] >= 0
        assert await service.stop() < STOP_SECONDS


# What it refuses to pass over


async def stopped(service: Service, place: Site) -> str:
    """Why the lane of the returns' first partition stopped: in the log, and the reason for not being ready."""
    topic = place.topic("order_returned")
    line = await service.says("lane.stopped", lane=f"{topic}/0", level="error")
    reason = str(line["reason"])
    await eventually(lambda: service.get("/readyz") == (503, f"lanes: {reason}\n"))
    assert f"`points-reversal lanes reset {topic} 0 --to start`" in reason
    return reason


async def mended(service: Service, place: Site) -> None:
    """Resets the lane as the reason says; the process goes on by itself."""
    answer = place.command("lanes", "reset", place.topic("order_returned"), "0", "--to", "start", "--yes")
    assert answer.returncode == 0, answer.stderr
    await place.drained()
    await service.ready()
    await place.audit()


async def recreate(place: Site, topic: str) -> None:
    async with place.admin() as admin:
        await admin.delete_topics([topic])

        async def gone() -> bool:
            return topic not in await admin.list_topics()

        await eventually(gone)
    place.create_topics([topic])


async def keys(place: Site) -> set[str]:
    """The keys that have a reversal."""
    async with place.database() as connection:
        return {row[0] for row in await connection.fetch("select idempotency_key from reversal")}


async def test_a_topic_that_was_recreated_stops_its_lane_until_it_is_reset(place: Site) -> None:
    await place.load(shop(customers=2))
    service = place.start()
    await place.produce("order.returned", [bare(part(1, "1", f"old-{one}"), 1, partition=0) for one in range(3)])
    await place.drained()
    await service.stop()
    old = await keys(place)
    await recreate(place, place.topic("order_returned"))
    new = {f"new-{one}" for one in range(5)}  # more than before: no offset alone tells that they are others
    await place.produce("order.returned", [bare(part(2, "1", key), 2, partition=0) for key in sorted(new)])
    service = place.start()
    await stopped(service, place)
    # The other lanes go on.
    lot = {"orgId": ORG, "customerId": 2, "lotId": "L-new", "points": "5"}
    await place.produce("points.issued", [bare(lot, 2)])
    await eventually(lambda: place.value("select count(*) from lot where lot_id = 'L-new'"))
    assert await keys(place) == old
    await mended(service, place)
    assert await keys(place) == old | new
    await service.stop()


async def test_a_topic_recreated_under_a_running_process_stops_its_lane_too(place: Site) -> None:
    await place.load(shop(customers=2))
    service = place.start()
    await place.produce("order.returned", [bare(part(1, "1", f"old-{one}"), 1, partition=0) for one in range(3)])
    await place.drained()
    await recreate(place, place.topic("order_returned"))
    await place.produce("order.returned", [bare(part(2, "1", "new"), 2, partition=0)])
    await stopped(service, place)
    assert await keys(place) == {"old-0", "old-1", "old-2"}
    await service.stop()


async def test_a_stored_offset_that_retention_has_passed_stops_its_lane_until_it_is_reset(place: Site) -> None:
    await place.load(shop(customers=2))
    service = place.start()
    await place.produce("order.returned", [bare(part(1, "1", "k-0"), 1, partition=0)])
    await place.drained()
    await service.stop()
    await place.produce("order.returned", [bare(part(1, "1", f"k-{one}"), 1, partition=0) for one in range(1, 5)])
    async with place.admin() as admin:
        await admin.delete_records({TopicPartition(place.topic("order_returned"), 0): RecordsToDelete(before_offset=4)})
    service = place.start()
    reason = await stopped(service, place)
    assert {"1", "4", "5"} <= set(re.findall(r"\d+", reason))  # where it stands, from where to where the log reaches
    assert await keys(place) == {"k-0"}
    await mended(service, place)
    assert await keys(place) == {"k-0", "k-4"}
    await service.stop()


async def test_a_new_lane_begins_where_its_log_does(place: Site) -> None:
    await place.load(shop(customers=2))
    await place.produce("order.returned", [bare(part(1, "1", f"k-{one}"), 1, partition=0) for one in range(5)])
    async with place.admin() as admin:
        await admin.delete_records({TopicPartition(place.topic("order_returned"), 0): RecordsToDelete(before_offset=3)})
    service = place.start()
    await place.drained()
    assert await keys(place) == {"k-3", "k-4"}
    await service.stop()


async def test_a_frozen_clock_decides_and_is_said_loudly(place: Site) -> None:
    moment = "2031-02-03T04:05:06.000007Z"
    await place.load(shop(customers=1))
    service = place.start(test_clock=moment)
    line = await service.says("service.test_clock")
    assert line["level"] == "warning"
    await place.produce("order.returned", [bare(part(1, "1", "k"), 1), bare(part(1, "999", "n"), 1)])
    await place.drained()
    findings = await verify(place)
    assert {one.header("ce_time") for one in findings.outcomes.values()} == {moment}
    assert {body.get("createdAt") or body.get("failedAt") for body in findings.bodies()} == {moment}
    await service.stop()

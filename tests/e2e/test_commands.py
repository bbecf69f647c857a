"""topics, lanes and dlq as their users meet them: the command line, on a real Kafka, beside a real process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from typer.testing import CliRunner, Result

from service.cli import app
from service.kafka import output_bytes
from tests.process import Site, site
from tests.stack import Sending, Stack, eventually, produce
from tests.traffic import ORG, bare, shop

Data = dict[str, Any]
RETURNS = "order.returned"


@pytest.fixture
def place(stack: Stack, template_database: str) -> Iterator[Site]:
    with site(stack, template_database) as place:
        yield place


@pytest.fixture
def bare_place(stack: Stack, template_database: str) -> Iterator[Site]:
    """Without topics."""
    with site(stack, template_database, topics=False) as place:
        yield place


async def call(place: Site, *words: str, answer: str = "", **settings: str) -> Result:
    """The command line in the place's environment; it has an event loop of its own."""
    runner = CliRunner(env={**place.environment(**settings), "COLUMNS": "200"})
    return await asyncio.to_thread(runner.invoke, app, list(words), input=answer, catch_exceptions=False)


async def good(place: Site, *words: str, **settings: str) -> str:
    result = await call(place, *words, **settings)
    assert result.exit_code == 0, result.output
    return result.stdout


async def lanes(place: Site) -> dict[tuple[str, int], Data]:
    found = json.loads(await good(place, "lanes", "list", "--json"))["lanes"]
    return {(one["topic"], one["partition"]): one for one in found}


async def letters(place: Site, *words: str) -> list[Data]:
    listed = json.loads(await good(place, "dlq", "list", "--json", *words))["deadLetters"]
    assert isinstance(listed, list)
    return listed


# topics


async def test_topics_makes_what_is_missing_and_leaves_the_rest(bare_place: Site) -> None:
    place = bare_place
    await asyncio.to_thread(place.create_topics, [place.topic(RETURNS)])
    said = await good(place, "topics", topics__partitions="3")
    assert said.count("created") == 9
    assert said.count("was there") == 1
    assert (await good(place, "topics")).count("was there") == 10
    names = [*place.topics.inputs(), *place.outputs]
    async with place.admin() as admin:
        described = {one["topic"]: len(one["partitions"]) for one in await admin.describe_topics(names)}
        sizes = {name: await max_message_bytes(admin, name) for name in names}
    made = dict.fromkeys(names, 3) | {place.topic(RETURNS): place.partitions}
    assert described == made
    assert sizes[place.topic("points.issued")] > 1024 * 1024
    assert {sizes[name] for name in place.outputs} == {output_bytes(place.in_process())}


async def max_message_bytes(admin: AIOKafkaAdminClient, topic: str) -> int:
    [answer] = await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": None})]
    )
    return int(answer.resources[0][4][0][1])


async def test_a_topic_too_small_for_what_may_come_is_told_at_the_start(bare_place: Site) -> None:
    place = bare_place
    small = place.topics.reversal_completed
    await asyncio.to_thread(place.create_topics, [small], max_message_bytes="1000000")
    await good(place, "topics")
    service = place.start()
    await service.says("partitions.assigned")
    [told] = service.said("topic.unfit")
    assert (told["topic"], told["max_message_bytes"]) == (small, 1_000_000)
    assert f"Raise its max.message.bytes to {output_bytes(place.in_process())}" in told["reason"]


async def test_topics_at_once_are_made_once(bare_place: Site) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", "topics", env=bare_place.environment(), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    said = [(await process.communicate())[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    assert sum(text.count(b"created") for text in said) == 10


# load


async def test_a_file_is_loaded_beside_a_service_at_work(place: Site) -> None:
    lines = shop(customers=20, redemptions=10)
    await place.load(lines)
    service = place.start()
    await service.ready()
    path = place.directory / "again.jsonl"
    new = [
        {"kind": "lot", "orgId": ORG, "customerId": n % 20 + 1, "lotId": f"N-{n}", "points": "1"} for n in range(200)
    ]
    await asyncio.to_thread(path.write_text, "".join(json.dumps(line) + "\n" for line in [*lines, *new]))
    asked = [
        {
            "orgId": ORG,
            "redemptionId": f"R-{n % 20 + 1}-{n % 9 + 1}",
            "pointsToBeReversed": "1",
            "idempotencyKey": f"K-{n}",
        }
        for n in range(1_000)
    ]
    producing = asyncio.create_task(place.produce(RETURNS, [bare(one, one["redemptionId"]) for one in asked]))
    for _ in range(3):
        said = json.loads(await good(place, "load", str(path), "--json", database_url=place.owner_url))
        assert said["booked"]
    await producing
    await place.drained()
    assert await place.value("select count(*) from reversal") == 1_000
    assert await place.value("select count(*) from lot") == 60 + 200
    await place.audit()


# dead letters


async def test_dead_letters_are_listed_shown_and_replayed(place: Site) -> None:
    await place.load([{"kind": "org", "orgId": ORG}])
    service = place.start(max_record_bytes="5000", feed_wait_seconds="0")
    await service.ready()
    headers = (("h", b"1"), ("odd", b"\xff"))
    await place.produce(RETURNS, [Sending(b"[\xff", b"k", headers, 1), Sending(b"x" * 5001, b"k", partition=0)])
    lot = {"orgId": ORG, "customerId": 1, "lotId": "L-1", "points": "5", "programId": "main"}
    await place.produce("points.issued", [bare(lot, "1", partition=1)])  # there is no such program yet
    await place.drained()

    everything = await letters(place)
    assert {(one["reason"], one["original"]["topic"]) for one in everything} == {
        ("not_json", place.topic(RETURNS)), ("too_large", place.topic(RETURNS)), ("not_bookable", place.topic("points.issued")),
    }  # fmt: skip
    [unreadable] = await letters(place, "--topic", place.topic(RETURNS), "--reason", "not_json")
    assert (unreadable["original"]["partition"], unreadable["key"], unreadable["bytes"]) == (1, "k", 2)
    where = ["--partition", str(unreadable["partition"]), "--offset", str(unreadable["offset"])]
    assert await letters(place, "--topic", unreadable["topic"], *where) == [unreadable]
    shown = json.loads(await good(place, "dlq", "show", "--topic", unreadable["topic"], *where, "--json"))
    assert shown["value"] == "base64:W/8="
    assert shown["headers"][:2] == [{"name": "h", "value": "1"}, {"name": "odd", "value": "base64:/w=="}]
    table = await good(place, "dlq", "show", "--topic", place.topic(RETURNS), *where)
    assert f"was {place.topic(RETURNS)}/1@0" in table

    # Replayed, an unreadable record is a dead letter again; it names the first one, for as often as that happens.
    for times in (1, 2):
        assert await good(place, "dlq", "replay", "--topic", unreadable["topic"], *where) == "1 replayed\n"
        await place.drained()
        found = await letters(place, "--topic", place.topic(RETURNS), "--reason", "not_json")
        assert len(found) == times + 1
        where = ["--partition", str(found[-1]["partition"]), "--offset", str(found[-1]["offset"])]
    sent = [one for one in await place.read(place.topic(RETURNS)) if one.value == b"[\xff"]
    assert [(one.partition, one.key, one.headers[:2]) for one in sent] == [(1, b"k", headers)] * 3
    origin = f"{place.topic(RETURNS)}/1/0@{sent[0].timestamp}"
    assert [one.header("replay-of") if len(one.headers) > 2 else None for one in sent] == [None, origin, origin]

    # What was too large has no value.
    [large] = await letters(place, "--reason", "too_large")
    where = ["--topic", large["topic"], "--partition", str(large["partition"]), "--offset", str(large["offset"])]
    result = await call(place, "dlq", "replay", *where)
    assert result.exit_code == 1
    assert "it is too_large, so that its value was not kept" in result.stderr

    # Once the cause is mended, a replay books what could not be booked; and again, it changes nothing.
    await place.load([{"kind": "program", "orgId": ORG, "programId": "main"}])
    for _ in range(2):
        said = await good(place, "dlq", "replay", "--topic", place.topic("points.issued"), "--all")
        assert said == "1 replayed\n"
        await place.drained()
        assert await place.value("select count(*) from lot where lot_id = 'L-1' and remaining = 5000") == 1
    await place.audit()


async def test_a_return_that_is_replayed_keeps_its_derived_key(place: Site) -> None:
    await place.load(shop(customers=1, redemptions=1))
    asked = json.dumps({"orgId": ORG, "redemptionId": "R-1-1", "pointsToBeReversed": "5"}).encode()
    origin = f"{place.topic(RETURNS)}/0/41@1700000000123"
    told = {
        "dlq.reason": "decision_raised", "dlq.message": "it raised", "dlq.topic": place.topic(RETURNS), "dlq.partition": "0",
        "dlq.offset": "41", "dlq.timestamp": "2023-11-14T22:13:20.123Z", "dlq.group": "g",
    }  # fmt: skip
    letter = Sending(asked, b"k", [(name, value.encode()) for name, value in told.items()])
    await produce(place.stack.bootstrap_servers, place.topics.dead_letters(place.topic(RETURNS)), [letter])
    service = place.start()
    await service.ready()
    for _ in range(2):
        await good(place, "dlq", "replay", "--all")
        await place.drained()
    assert await place.value("select array_agg(idempotency_key) from reversal") == [f"record:{origin}"]
    [refused] = await place.read(place.topics.reversal_failed)
    assert refused.header("ce_errorcode") == "902"


async def test_the_latest_dead_letters_are_listed_unless_all_are_asked_for(place: Site) -> None:
    topic = place.topics.dead_letters(place.topic(RETURNS))
    await produce(place.stack.bootstrap_servers, topic, [Sending(str(n).encode(), partition=0) for n in range(300)])
    assert len(await letters(place)) == 50
    assert [one["offset"] for one in await letters(place, "--latest", "2")] == [298, 299]
    assert [one["offset"] for one in await letters(place, "--all")] == list(range(300))
    assert await letters(place, "--topic", topic, "--partition", "0", "--offset", "300") == []
    result = await call(place, "dlq", "show", "--topic", topic, "--partition", "0", "--offset", "300")
    assert result.exit_code == 1
    assert "there is no dead letter" in result.stderr
    result = await call(place, "dlq", "replay", "--all")
    assert (result.exit_code, result.stdout) == (0, "0 replayed, 300 cannot be\n")
    assert (await call(place, "dlq", "list", "--topic", "other")).exit_code == 2


# lanes


async def test_lanes_tell_what_is_stored_beside_what_is_there(place: Site) -> None:
    await place.load(shop(customers=1, redemptions=1))
    before = await lanes(place)
    assert len(before) == 4 * place.partitions
    assert {one["laneId"] for one in before.values()} == {None}
    service = place.start()
    await service.ready()
    await place.produce(RETURNS, [bare({"orgId": ORG, "redemptionId": "R-0"}, partition=1) for _ in range(3)])
    await place.drained()
    await service.stop()
    await place.produce(RETURNS, [bare({"orgId": ORG, "redemptionId": "R-0"}, partition=1) for _ in range(2)])
    lane = (await lanes(place))[place.topic(RETURNS), 1]
    told = {
        name: lane[name] for name in ("nextOffset", "highOffset", "startOffset", "endOffset", "lag", "taken", "outbox")
    }
    assert told == {
        "nextOffset": 3,
        "highOffset": 3,
        "startOffset": 0,
        "endOffset": 5,
        "lag": 2,
        "taken": 3,
        "outbox": 0,
    }
    assert f"{place.topic(RETURNS)}/1" in await good(place, "lanes", "list")


async def test_a_lane_set_back_repeats_without_a_second_effect(place: Site) -> None:
    await place.load(shop(customers=1, redemptions=1))
    service = place.start()
    await service.ready()
    asked = [
        {"orgId": ORG, "redemptionId": "R-1-1", "pointsToBeReversed": "5", "idempotencyKey": f"K-{n}"} for n in range(3)
    ]
    await place.produce(RETURNS, [bare(one, partition=0) for one in asked])
    await place.drained()
    said = await good(place, "lanes", "reset", place.topic(RETURNS), "0", "--to", "1", "--yes")
    assert "That repeats 2 records" in said
    # Its owner, which had not to be stopped, goes on from there.
    await place.produce(RETURNS, [bare({**asked[0], "idempotencyKey": "K-3"}, partition=0)])
    await eventually(lambda: place.value("select sum(repeated) = 2 and sum(next_offset) = 4 from lane"), 30)
    await place.drained()
    assert await place.value("select count(*) from reversal") == 4
    assert len(await place.read(place.topics.reversal_completed)) == 4
    lane = (await lanes(place))[place.topic(RETURNS), 0]
    assert (lane["nextOffset"], lane["highOffset"], lane["taken"]) == (4, 4, 6)
    await place.audit()


async def test_a_lane_that_is_set_back_while_no_record_comes_repeats_by_itself(place: Site) -> None:
    await place.load(shop(customers=1, redemptions=1))
    service = place.start()
    await service.ready()
    asked = {"orgId": ORG, "redemptionId": "R-1-1", "pointsToBeReversed": "5"}
    await place.produce(RETURNS, [bare({**asked, "idempotencyKey": f"K-{n}"}, partition=0) for n in range(3)])
    await place.drained()
    await good(place, "lanes", "reset", place.topic(RETURNS), "0", "--to", "1", "--yes")
    await eventually(lambda: place.value("select sum(repeated) = 2 and sum(next_offset) = 3 from lane"), 30)
    assert len(service.said("lane.lost")) == 1
    await place.audit()


async def test_a_lane_set_forward_skips_what_it_says(place: Site) -> None:
    await place.load(shop(customers=1, redemptions=1))
    asked = [
        {"orgId": ORG, "redemptionId": "R-1-1", "pointsToBeReversed": "5", "idempotencyKey": f"K-{n}"} for n in range(4)
    ]
    await place.produce(RETURNS, [bare(one, partition=0) for one in asked])
    said = await good(place, "lanes", "reset", place.topic(RETURNS), "0", "--to", "3", "--yes")
    assert "has no stored offset" in said
    assert "That skips 3 records" in said
    service = place.start()
    await service.ready()
    await eventually(lambda: place.value("select count(*) = 1 from reversal"), 20)
    assert await place.value("select idempotency_key from reversal") == "K-3"
    await place.audit()


async def test_a_lane_whose_log_was_cut_stops_until_it_is_reset(place: Site) -> None:
    await place.load(shop(customers=1, redemptions=1))
    asked = [
        {"orgId": ORG, "redemptionId": "R-1-1", "pointsToBeReversed": "5", "idempotencyKey": f"K-{n}"} for n in range(6)
    ]
    service = place.start()
    await service.ready()
    await place.produce(RETURNS, [bare(asked[0], partition=0)])
    await place.drained()
    await service.stop()
    await place.produce(RETURNS, [bare(one, partition=0) for one in asked[1:]])
    async with place.admin() as admin:
        await admin.delete_records({TopicPartition(place.topic(RETURNS), 0): RecordsToDelete(before_offset=4)})
    assert "out of range" in await good(place, "lanes", "list")
    service = place.start()
    stopped = await service.says("lane.stopped")
    assert f"lanes reset {place.topic(RETURNS)} 0 --to start" in json.dumps(stopped)
    said = await good(place, "lanes", "reset", place.topic(RETURNS), "0", "--to", "start", "--yes")
    assert "records from 1 to 3 are gone from the log" in said
    await eventually(lambda: place.value("select count(*) = 3 from reversal"), 30)
    await place.audit()


async def test_a_reset_asks_first(place: Site) -> None:
    words = ("lanes", "reset", place.topic(RETURNS), "0", "--to", "start")
    refused = await call(place, *words, answer="n\n")
    assert refused.exit_code == 1
    assert "nothing was changed" in refused.stderr
    assert await place.value("select count(*) from lane") == 0
    assert (await call(place, *words, answer="y\n")).exit_code == 0
    assert await place.value("select count(*) from lane") == 1


async def test_what_cannot_be_reset_is_told(place: Site) -> None:
    told = {
        (place.topic(RETURNS), "7", "start"): (1, f"no partition 7 of {place.topic(RETURNS)}, but {place.partitions}"),
        (place.topics.reversal_failed, "0", "start"): (2, "is no input topic; those are"),
        (place.topic(RETURNS), "0", "1"): (2, "--to 1 lies outside the log, which is 0 to 0"),
        (place.topic(RETURNS), "0", "middle"): (2, "--to middle is neither start nor end nor an offset"),
    }
    for (topic, partition, to), (code, words) in told.items():
        result = await call(place, "lanes", "reset", topic, partition, "--to", to, "--yes")
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr

"""Lines to a real server by themselves: what connects, what ends, and whose reply is whose."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import redis
from redis.connection import PythonRespSerializer

from resilience.rate_limiter import RedisStore
from resilience.rate_limiter.lines import AsyncLine, SyncLine, packed
from resilience.rate_limiter.target import Target
from resilience.testing.servers import RedisServer
from tests.rate_limiter.trouble import PATIENT, clients_of

CALL: list[str | int] = ["", f"g {10**9} 1 {10**10} {10**10 + 1} {10**11}", "acquire", 1, "1", 1]
"""One unit of ten that drain in 10,000 seconds, for one key."""


@pytest.fixture
def target(any_redis: RedisServer) -> Target:
    return RedisStore(any_redis.url).target


def granted(reply: bytes) -> int:
    return int(reply.split()[2])


@pytest.mark.parametrize(
    "words",
    [
        ["PING"],
        ["EVALSHA", "0" * 40, 2, "a:b", "", 7, -1, 0],
        ["SET", "key with spaces", "line\r\nbreak", "\0"],
        ["SET", "héllo", "\u2603", "x" * 70_000],
    ],
)
def test_a_command_is_written_as_redis_reads_it(words: list[Any]) -> None:
    connection: Any = redis.Connection
    serializer: Any = PythonRespSerializer(6_000, connection().encoder.encode)
    assert packed(*words) == b"".join(serializer.pack(*words))


def test_a_character_that_no_text_has_can_be_written() -> None:
    assert packed("\udcff") == b"*1\r\n$3\r\n\xed\xb3\xbf\r\n"


def test_two_that_connect_at_once_connect_once(target: Target, any_redis: RedisServer) -> None:
    async def test() -> None:
        line = AsyncLine(target)
        replies = await asyncio.gather(*(line.call([f"once {number}"], CALL, PATIENT) for number in range(5)))
        assert [granted(reply) for reply in replies] == [1] * 5
        assert len(clients_of(any_redis)) == 1
        await line.close()
        assert clients_of(any_redis) == []

    asyncio.run(test())


def test_the_end_of_a_stream_does_not_end_the_next_one(target: Target) -> None:
    async def test() -> None:
        line = AsyncLine(target)
        for number in range(20):
            await line.connect(PATIENT)
            stream: Any = line._transport
            line.give_up()
            before = stream.get_protocol()
            assert not line.is_ready
            await line.connect(PATIENT)
            before.connection_lost(None)  # the loop may say so as late as it likes
            assert line.is_ready
            assert granted(await line.call([f"next {number}"], CALL, PATIENT)) == 1
            assert line.is_ready
        await line.close()

    asyncio.run(test())
    gc.collect()  # a stream that was forgotten would say so here


def test_of_two_calls_under_way_each_gets_its_own_reply(target: Target) -> None:
    line = SyncLine(target)
    for _ in range(9):
        line.call(["full"], CALL, PATIENT)
    line.send("free", ["free"], CALL, PATIENT)
    line.send("full", ["full"], CALL, PATIENT)
    line.send("over", ["full"], CALL, PATIENT)
    told = [line.receive(PATIENT) for _ in range(3)]
    assert [(tag, isinstance(reply, bytes) and granted(reply)) for tag, reply in told] == [
        ("free", 1),
        ("full", 1),
        ("over", 0),
    ]
    line.close()


def test_calls_under_way_to_a_server_that_forgot_the_script_are_made_once(
    target: Target, any_redis: RedisServer
) -> None:
    line = SyncLine(target)
    line.call(["a"], CALL, PATIENT)
    any_redis.command("SCRIPT", "FLUSH")
    for tag in ("first", "second"):
        line.send(tag, [f"forgotten {tag}"], CALL, PATIENT)
    told = dict(line.receive(PATIENT) for _ in range(2))
    assert {tag: isinstance(reply, bytes) and granted(reply) for tag, reply in told.items()} == {
        "first": 1,
        "second": 1,
    }
    line.send("again", ["forgotten first"], [*CALL[:2], "peek", 9, "", 1], PATIENT)
    _, reply = line.receive(PATIENT)
    assert isinstance(reply, bytes)
    assert granted(reply) == 1  # nine are left: it was charged once
    line.close()


def test_what_is_under_way_when_a_line_ends_has_no_reply(target: Target) -> None:
    line = SyncLine(target)
    line.send("lost", ["lost"], CALL, PATIENT)
    line.close()
    line.send("next", ["next"], CALL, PATIENT)
    tag, reply = line.receive(PATIENT)
    assert tag == "next"
    assert isinstance(reply, bytes)
    line.close()


def test_a_server_that_is_not_there_has_nothing_under_way() -> None:
    line = SyncLine(RedisStore("redis://127.0.0.1:1").target)
    with pytest.raises(redis.ConnectionError):
        line.send("lost", ["key"], CALL, PATIENT)
    assert not line.sent
    with pytest.raises(IndexError):
        line.receive(PATIENT)

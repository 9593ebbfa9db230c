"""Everything that a Redis server or the way to it can do to a limiter, on each server, in real time.

Each trouble is a story of one outage: callers before, in and after it. The stories of one server run side by side, as
each has to wait for a probe; what became of each is a test of its own.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import pytest
import redis
from anyio import to_thread

from resilience.events import CircuitStateChanged, FallbackEntered, FallbackLeft
from resilience.rate_limiter import RateLimiter, RedisStore
from resilience.testing.servers import CommandError, RedisServer, TcpProxy, find_redis_servers
from resilience.testing.servers.process import wait_until
from tests.rate_limiter.trouble import (
    LATE,
    SLOW_QUOTA,
    WAYS,
    Answer,
    Caller,
    close_and_check,
    events_of,
    immortal_keys,
    run,
)

BUDGET: Final = 0.25
SERVERS: Final = find_redis_servers()
REST: Final = 1.0
"""Seconds after the next probe within which the store must decide again."""


class Scene:
    """A server that gets into trouble, with a proxy before it."""

    def __init__(self, server: RedisServer, proxy: TcpProxy) -> None:
        self.server = server
        self.proxy = proxy
        self.at_the_end: list[Callable[[], object]] = []


class Trouble(NamedTuple):
    """What happens to a server, and what callers may notice of it."""

    begin: Callable[[Scene], object]
    end: Callable[[Scene], object]
    causes: tuple[str, ...]
    frozen: bool = False
    """Callers are on their way when it begins: they wait for a server that does not answer."""
    ambiguous: bool = False
    """The server may have done what it was asked."""
    options: dict[str, str | int] = {}  # noqa: RUF012 - never changed
    wrong_password: bool = False
    network: bool = False
    """It happens to a proxy before the server. Otherwise there is none: it passes on everything a little late."""


CONNECTION: Final = ("ConnectionError", "ConnectionRefusedError", "ConnectionResetError")


def orders(*lines: str) -> Callable[[Scene], None]:
    """Give the server some orders."""

    def give(scene: Scene) -> None:
        for line in lines:
            scene.server.command(*line.split(" "))

    return give


def cut_off(scene: Scene) -> None:
    scene.proxy.refuse()
    scene.proxy.reset_all()
    time.sleep(0.02)  # a busy system delivers a reset a little late


def reset_and_thaw(scene: Scene) -> None:
    scene.proxy.reset_all()
    scene.server.thaw()


def change_password(scene: Scene) -> None:
    scene.server.command("CONFIG", "SET", "requirepass", "new")
    scene.server.password = "new"
    scene.server.command("CLIENT", "KILL", "TYPE", "normal")


def change_password_back(scene: Scene) -> None:
    scene.server.command("CONFIG", "SET", "requirepass", "")


def accept_password(scene: Scene) -> None:
    scene.server.command("CONFIG", "SET", "requirepass", "hunter2")
    scene.server.password = "hunter2"


def make_busy(scene: Scene) -> None:
    """Run a script that never ends."""

    def block() -> None:
        with pytest.raises(CommandError, match="killed"):
            scene.server.command("EVAL", "while true do end", 0, timeout=20)

    thread = threading.Thread(target=block)
    thread.start()
    scene.at_the_end.append(thread.join)
    while True:
        try:
            scene.server.command("PING")
        except CommandError as error:
            assert error.code == "BUSY"
            return


def break_snapshots(scene: Scene) -> None:
    """Let a snapshot fail, which stops writes: the folder that it should go to is gone."""
    scene.server.command("CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(scene.server._data)
    with suppress(CommandError):
        scene.server.command("BGSAVE")
    while scene.server.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.005)


def forget_snapshots(scene: Scene) -> None:
    scene.server.command("CONFIG", "SET", "save", "")


def start_loading(scene: Scene) -> None:
    """Start a server anew that reads its data so slowly that callers meet it in the middle."""
    server = scene.server
    for number in range(150):  # a server looks after its clients once in 2 MB
        server.command("SETRANGE", f"filler:{number}", 200_000, "x")
    server.stop(save=True)
    with server._configuration.open("a", encoding="utf-8") as file:
        file.write("key-load-delay 5000\n")
    thread = threading.Thread(target=server.start)  # which waits until all is read
    thread.start()
    scene.at_the_end.append(thread.join)
    wait_until("it was reading its data", lambda: server.info("persistence")["loading"] == "1")


def finish_loading(scene: Scene) -> None:
    with suppress(CommandError):  # Redis 6.2 takes no orders while it loads; it is soon ready
        scene.server.command("CONFIG", "SET", "key-load-delay", "0")
    while scene.server.info("persistence")["loading"] == "1":
        time.sleep(0.005)


def fill_up_clients(scene: Scene) -> None:
    admin = redis.Redis(port=scene.server.port, single_connection_client=True)

    def undo() -> None:
        admin.config_set("maxclients", 10_000)
        admin.close()

    scene.at_the_end.append(undo)
    admin.config_set("maxclients", 1)
    admin.client_kill_filter(_type="normal", skipme=True)


def take_clients(scene: Scene) -> None:
    scene.at_the_end.pop()()


TROUBLES: Final = {
    "frozen in mid-call": Trouble(
        lambda _: None, lambda scene: scene.server.thaw(), ("TimeoutError",), frozen=True, ambiguous=True
    ),
    "killed in mid-call": Trouble(
        lambda scene: scene.server.kill(),
        lambda scene: scene.server.start(),
        CONNECTION,
        frozen=True,
        ambiguous=True,
    ),
    "killed while idle, restarted empty": Trouble(
        lambda scene: scene.server.kill(), lambda scene: scene.server.start(), CONNECTION
    ),
    "restarted with data": Trouble(
        lambda scene: scene.server.stop(save=True), lambda scene: scene.server.start(), CONNECTION
    ),
    "wrong password from the start": Trouble(
        lambda _: None,
        accept_password,
        ("AuthenticationError",),
        options={"requirepass": "right"},
        wrong_password=True,
    ),
    "password changed": Trouble(change_password, change_password_back, ("AuthenticationError",)),
    "read-only": Trouble(
        orders("REPLICAOF 127.0.0.1 1"),
        orders("REPLICAOF NO ONE"),
        ("ReadOnlyError", "ResponseError", "READONLY", "ERR"),
    ),
    "loading": Trouble(
        start_loading, finish_loading, ("BusyLoadingError", "LOADING", "TimeoutError"), options={"rdbcompression": "no"}
    ),
    "busy with a script": Trouble(
        make_busy, orders("SCRIPT KILL"), ("ResponseError", "BUSY"), options={"lua-time-limit": 20}
    ),
    "out of memory": Trouble(
        orders("CONFIG SET maxmemory 1"),
        orders("CONFIG SET maxmemory 0"),
        ("OutOfMemoryError", "ResponseError", "OOM", "ERR"),
        options={"maxmemory-policy": "noeviction"},
    ),
    "out of memory, all keys evicted": Trouble(
        orders("CONFIG SET maxmemory 1"),
        orders("CONFIG SET maxmemory 0"),
        ("OutOfMemoryError", "ResponseError", "OOM", "ERR"),
        options={"maxmemory-policy": "allkeys-lru"},
    ),
    "out of memory, mortal keys evicted": Trouble(
        orders("CONFIG SET maxmemory 1"),
        orders("CONFIG SET maxmemory 0"),
        ("OutOfMemoryError", "ResponseError", "OOM", "ERR"),
        options={"maxmemory-policy": "volatile-ttl"},
    ),
    "no snapshots": Trouble(break_snapshots, forget_snapshots, ("ResponseError", "MISCONF", "ERR")),
    "no replicas": Trouble(
        orders("CONFIG SET min-replicas-to-write 1"),
        orders("CONFIG SET min-replicas-to-write 0"),
        ("ResponseError", "NOREPLICAS", "ERR"),
    ),
    "too many clients": Trouble(fill_up_clients, take_clients, (*CONNECTION, "MaxConnectionsError")),
    "reset in mid-call": Trouble(reset_and_thaw, lambda _: None, CONNECTION, frozen=True, ambiguous=True, network=True),
    "refused": Trouble(cut_off, lambda scene: scene.proxy.restore(), CONNECTION, network=True),
    "black hole": Trouble(
        lambda scene: scene.proxy.black_hole(),
        lambda scene: scene.proxy.restore(),
        ("TimeoutError",),
        ambiguous=True,
        network=True,
    ),
    "slower than the budget": Trouble(
        lambda scene: setattr(scene.proxy, "latency", 0.2),
        lambda scene: setattr(scene.proxy, "latency", 0.0),
        ("TimeoutError",),
        ambiguous=True,
        network=True,
    ),
}


async def tell_story(way: str, trouble: Trouble, server: RedisServer, proxy: TcpProxy, name: str) -> None:
    """Go through one outage."""
    scene = Scene(server, proxy)
    login = ":hunter2@" if trouble.wrong_password else ""
    prefix = name.replace(" ", "-")
    store = RedisStore(
        f"redis://{login}127.0.0.1:{(proxy if trouble.network else server).port}", prefix=prefix, budget=BUDGET
    )
    share, opened, closed = (
        RateLimiter(SLOW_QUOTA, name=f"{name} {policy}", store=store, fallback=policy)
        for policy in ("share", "open", "closed")
    )
    caller = Caller(way)
    answers: list[Answer] = []
    with events_of(share.name, opened.name, closed.name, f"{prefix} store") as events:
        try:
            if not trouble.wrong_password:
                answers += await caller.ask_at_once(share, 5, "try_acquire", "key")
                assert {answer.decision.source for answer in answers} == {"redis"}, store.cause
            await go_through(trouble, scene, store, caller, (share, opened, closed), answers)
            await check_books(answers, share, caller, events)
            for limiter in (share, opened, closed):
                entered = [
                    event for event in events if isinstance(event, FallbackEntered) and event.name == limiter.name
                ]
                assert [(event.instances, event.policy) for event in entered] == [(1, limiter.name.split()[-1])]
                assert entered[0].cause.rpartition(".")[2].removeprefix("Refused ") in trouble.causes
                left = [event for event in events if isinstance(event, FallbackLeft) and event.name == limiter.name]
                assert len(left) == 1
                assert 0.5 < left[0].duration < 10
            moves = [event for event in events if isinstance(event, CircuitStateChanged)]
            assert moves[0].to_state == "open"
            assert [move.to_state for move in moves[-2:]] == ["half_open", "closed"]
            assert not await to_thread.run_sync(immortal_keys, server, f"{prefix}:*")
            await close_and_check(store, way, server)
        finally:
            with anyio.CancelScope(shield=True):
                for undo in scene.at_the_end:
                    await to_thread.run_sync(undo)
                await store.aclose()


async def go_through(  # noqa: PLR0917
    trouble: Trouble,
    scene: Scene,
    store: RedisStore,
    caller: Caller,
    limiters: tuple[RateLimiter, RateLimiter, RateLimiter],
    answers: list[Answer],
) -> None:
    share, opened, closed = limiters
    first: list[Answer] = []

    async def call() -> None:
        first.append(await caller.ask(share, "try_acquire", "key"))

    async with anyio.create_task_group() as group:
        if trouble.frozen:
            await to_thread.run_sync(scene.server.freeze)
        else:
            await to_thread.run_sync(trouble.begin, scene)
        for _ in range(20):
            group.start_soon(call)
        if trouble.frozen:
            await anyio.sleep(0.03)
            await to_thread.run_sync(trouble.begin, scene)
    assert {answer.decision.source for answer in first} == {"fallback"}
    assert max(answer.waited for answer in first) < BUDGET + LATE
    assert all(answer.decision.allowed for answer in first)
    # A server that is loading may say so too late.
    if not trouble.ambiguous and store.cause != "TimeoutError":
        assert all(answer.decision.certain for answer in first)
    if trouble.frozen:  # some were asked for, and nobody knows what came of it
        assert not all(answer.decision.certain for answer in first)
    # Nobody else pays.
    then = await caller.ask_at_once(share, 20, "try_acquire", "key")
    assert all(answer.decision.allowed and answer.decision.certain for answer in then)
    assert {answer.decision.source for answer in then} == {"fallback"}
    assert sorted(answer.waited for answer in then)[10] < 0.05
    assert store.breaker.state != "closed"
    assert "unreachable" in repr(store)
    for _ in range(2):
        assert (await caller.ask(opened, "try_acquire", "key")).decision.allowed
        no = (await caller.ask(closed, "try_acquire", "key")).decision
        assert not no.allowed
        assert no.source == "fallback"
        assert no.retry_after is not None
        assert no.retry_after <= 6.5
    answers += first + then
    # Well again.
    await to_thread.run_sync(trouble.end, scene)
    deadline = time.monotonic() + store.next_probe() + REST
    while True:
        answer = await caller.ask(share, "try_acquire", "key")
        answers.append(answer)
        assert answer.waited < BUDGET + LATE
        if answer.decision.source == "redis":
            break
        assert time.monotonic() < deadline
        await anyio.sleep(0.04)
    assert store.breaker.state == "closed"
    assert "unreachable" not in repr(store)


async def check_books(answers: list[Answer], limiter: RateLimiter, caller: Caller, events: list[Any]) -> None:
    """See that everybody who passed was charged once, except that those who may have been charged need not be."""
    certain = sum(answer.decision.granted for answer in answers if answer.decision.certain)
    uncertain = sum(answer.decision.granted for answer in answers if not answer.decision.certain)
    deadline = time.monotonic() + 1.0  # what was admitted in the very last moment of the outage is charged after it
    while True:
        standing = (await caller.ask(limiter, "peek", "key")).decision
        assert standing.source == "redis"
        charged = SLOW_QUOTA.limit - standing.remaining
        if charged >= certain or time.monotonic() > deadline:
            break
        await anyio.sleep(0.01)
    assert certain <= charged <= certain + uncertain
    told = [event.replayed for event in events if isinstance(event, FallbackLeft) and event.name == limiter.name]
    owed = sum(a.decision.granted for a in answers if a.decision.certain and a.decision.source == "fallback")
    assert len(told) == 1
    assert owed - 1 <= told[0] <= owed + uncertain


async def tell_all(way: str, names: list[str], binary: Path, directory: Path, became: dict[str, Any]) -> None:
    """Tell stories side by side, and keep what became of them."""

    async def tell(number: int, name: str) -> None:
        trouble = TROUBLES[name]
        await anyio.sleep(0.05 * number)  # not all at the same moment
        with ExitStack() as opened:
            server = RedisServer(binary, directory / str(number), options=trouble.options)
            await to_thread.run_sync(opened.enter_context, server)
            proxy = opened.enter_context(TcpProxy(server.port))
            try:
                await tell_story(way, trouble, server, proxy, name)
            except Exception as error:  # noqa: BLE001 - it is what its test raises
                became[name] = error
            else:
                became[name] = None

    with anyio.fail_after(40):
        async with anyio.create_task_group() as group:
            for number, name in enumerate(names):
                group.start_soon(tell, number, name)


@pytest.fixture(scope="module")
def told_stories() -> dict[tuple[str, str], dict[str, Any]]:
    return {}


def on_each_server() -> list[Any]:
    """Give all servers with asyncio, and all ways to call with the first server."""
    if not SERVERS:
        return [pytest.param("asyncio", "none", marks=pytest.mark.skip("no redis server here"))]
    first = next(iter(SERVERS))
    return [*(("asyncio", name) for name in SERVERS), *((way, first) for way in WAYS if way != "asyncio")]


@pytest.mark.parametrize("name", TROUBLES)
@pytest.mark.parametrize(("way", "binary"), on_each_server())
def test_an_outage_is_bounded_honest_and_made_good(  # noqa: PLR0917
    name: str,
    way: str,
    binary: str,
    told_stories: dict[tuple[str, str], dict[str, Any]],
    redis_binaries: dict[str, Path],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nobody waits beyond the budget, nothing raises, decisions and events are honest, and the books are right."""
    is_first = (way, binary) not in told_stories
    became = told_stories.setdefault((way, binary), {})
    if name not in became:
        mine = [item for item in request.session.items if item.name.startswith(f"{request.function.__name__}[")]
        chosen = [one for one in TROUBLES if any(f"-{one}]" in item.name for item in mine)] if is_first else [name]
        run(
            way,
            tell_all,
            way,
            chosen,
            redis_binaries[binary],
            tmp_path_factory.mktemp("outages"),
            became,
        )
    error = became.pop(name)  # a second attempt tells its story anew, alone
    if error is not None:
        raise error

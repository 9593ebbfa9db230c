"""Measures what the decisions about the rate limiter speak of; `measure.py` runs it.

Counts come from arithmetic on a clock that is moved by hand, or from what a server counts, and are the same on every
machine; those of the sketch change by some per cent with the hashes of the keys, which Python draws anew for each
process unless PYTHONHASHSEED is set. Servers are real ones from wheels.
"""
# ruff: noqa: INP001, PLC0415, SLF001 - a script beside the pages that cite it; it looks inside

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from resilience import MemoryStore, Quota, RateLimiter, RedisStore
from resilience.rate_limiter.batch import Batch, Request
from resilience.rate_limiter.gcra import Gcra
from resilience.rate_limiter.lines import script
from resilience.testing.servers import RedisServer, TcpProxy, find_redis_servers

ROUNDS: Final = 15
Say = Callable[[str, str, float, str], None]
Best = Callable[..., float]


def measure(say: Say, best: Best, best_async: Callable[..., float]) -> None:
    """Measure, and tell by decision."""
    _algorithms(say, best)
    _time(say, best)
    _outages(say, best)
    _coalescing(say, best_async)
    _spilling(say, best)


@contextmanager
def _server() -> Iterator[RedisServer]:
    binary = next(iter(find_redis_servers().values()))
    with tempfile.TemporaryDirectory() as directory, RedisServer(binary, directory) as server:
        yield server


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- 0009 ---


def _algorithms(say: Say, best: Best) -> None:
    for quota in (
        Quota(100, 60.0),
        Quota(100, 60.0, burst=10),
        Quota(100, 60.0, burst=1),
        Quota(100, 60.0, algorithm="sliding_log"),
        Quota(100, 60.0, algorithm="fixed_window"),
    ):
        say("0009", f"most in a trailing minute, {quota}", _most_in_a_minute(_asker(quota)), "calls")
    say("0009", "most in a trailing minute, sliding counter", _most_in_a_minute(_SlidingCounter()), "calls")
    for algorithm in ("gcra", "sliding_log"):
        quota = Quota(100, 60.0, algorithm=algorithm)
        limiter = RateLimiter(quota, name="size", clock=lambda: 0.0)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1_000):
            for _ in range(100):
                limiter.try_acquire_sync(f"client {number}")
        used = (tracemalloc.get_traced_memory()[0] - before) / 1_000
        tracemalloc.stop()
        say("0009", f"a key in memory after 100 calls, its name included, {algorithm}", used, "bytes")
    with _server() as server:
        store = RedisStore(server.url)
        for algorithm in ("gcra", "sliding_log"):
            limiter = RateLimiter(Quota(100, 60.0, algorithm=algorithm), name=algorithm, store=store)  # type: ignore[arg-type]
            for _ in range(100):
                limiter.try_acquire_sync("client")
            names = server.command("KEYS", f"resilience:{algorithm}:*")
            used = sum(server.command("MEMORY", "USAGE", name, "SAMPLES", "0") for name in names)
            say("0009", f"the same in the server, {algorithm}", used, "bytes")
        store.close()
    for algorithm in ("gcra", "sliding_log", "fixed_window"):
        limiter = RateLimiter(Quota(10_000, 60.0, algorithm=algorithm), name="speed")  # type: ignore[arg-type]
        say("0009", f"an admitted call in memory, {algorithm}", best(_calls(limiter, 500), 500), "ns")


def _calls(limiter: RateLimiter, times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            limiter.try_acquire_sync("client")

    return run


class _SlidingCounter:
    """The weighted sum of the last window and this one, as several libraries have it; 100 per minute."""

    def __init__(self) -> None:
        self.windows: dict[int, int] = {}

    def __call__(self, now: float) -> float:
        window, into = int(now // 60), (now % 60) / 60
        if self.windows.get(window - 1, 0) * (1 - into) + self.windows.get(window, 0) + 1 > 100:
            return 0.01
        self.windows[window] = self.windows.get(window, 0) + 1
        return 0.0


def _asker(quota: Quota | str) -> Callable[[float], float]:
    """Give the function that asks a limiter for a call at a moment, and gives the seconds to wait; 0 passes."""
    clock = _Clock()
    clock.now = 59.5
    limiter = RateLimiter(quota, name="greedy", clock=clock, wall_clock=clock)

    def ask(now: float) -> float:
        clock.now = now
        decision = limiter.try_acquire_sync()
        return 0.0 if decision else decision.retry_after or 0.0

    return ask


def _most_in_a_minute(ask: Callable[[float], float]) -> int:
    """Take all there is for five minutes, from half a second before a full one; `ask` gives the seconds to wait."""
    now, most = 59.5, 0
    admitted: deque[float] = deque()
    while now < 360.0:
        wait = ask(now)
        if wait:
            now += wait
            continue
        admitted.append(now)
        while admitted[0] <= now - 59.999:
            admitted.popleft()
        most = max(most, len(admitted))
    return most


# --- 0010 ---


class _FloatGcra:
    """The textbook's arithmetic, in seconds as floats."""

    def __init__(self, rate: int) -> None:
        self.interval, self.tolerance, self.arrival = 1 / rate, rate * (1 / rate), 0.0

    def ask(self, now: float) -> float:
        """Give the seconds to wait; 0 passes."""
        after = max(self.arrival, now) + self.interval
        if after - now <= self.tolerance:
            self.arrival = after
            return 0.0
        return after - now - self.tolerance


def _rounding(say: Say) -> None:
    makers = {"float seconds": lambda rate: _FloatGcra(rate).ask, "integers": lambda rate: _asker(f"{rate}/second")}
    for what, make in makers.items():
        lost = early = 0
        for rate in range(1, 301):
            now, ask = 1_000.0, make(rate)
            lost += sum(not ask(now) for _ in range(rate)) < rate
            for _ in range(5):
                while not (wait := ask(now)):
                    pass
                now += wait
                early += ask(now) > 0
        say("0010", f"of 300 rates, those whose burst loses a call, {what}", lost, "rates")
        say("0010", f"of 1,500 waits that were obeyed, those refused again, {what}", early, "waits")


def _time(say: Say, best: Best) -> None:
    _rounding(say)
    rule = Gcra.of(Quota(5, 60.0))
    admitted, _ = _by_callers_clocks(rule, (0, 61))
    _, starved = _by_callers_clocks(rule, (61, 0))
    say("0010", "5 a minute, clocks 61 s apart, admitted by the callers' clocks", admitted, "calls")
    say("0010", "the same, the wait of the one behind after the other", starved, "s")
    with _server() as server:
        limiters = [
            RateLimiter("5/minute", name="apart", store=RedisStore(server.url), clock=clock)
            for clock in (time.monotonic, lambda: time.monotonic() + 61)
        ]
        passed = sum(bool(limiter.try_acquire_sync("client")) for limiter in limiters for _ in range(5))
        for limiter in limiters:
            anyio.run(limiter.aclose)
    say("0010", "the same, admitted by the server's clock", passed, "calls")

    def integers() -> None:
        state, at, unit, ceiling, drain = 1_000_000_000_000_000, 142_857_142_857, 1_000_000, 7_000_007, 7
        for _ in range(20_000):
            level = max(0, state - at * drain) + unit
            _ = level <= ceiling

    def floats() -> None:
        state, at, unit, ceiling = 1_000.0, 1_000.5, 0.142857, 1.0
        for _ in range(20_000):
            level = max(0.0, state - at) + unit
            _ = level <= ceiling

    say("0010", "one step of the arithmetic, integers", best(integers), "ns")
    say("0010", "one step of the arithmetic, floats", best(floats), "ns")


def _by_callers_clocks(rule: Gcra, seconds_ahead: tuple[int, int]) -> tuple[int, float]:
    """Let two callers take five each by clocks of their own; give what passed, and the wait of the last one."""
    state = admitted = wait = 0
    for ahead in seconds_ahead:
        now = (1_000 + ahead) * 1_000_000
        for _ in range(5):
            wait = rule.wait(state, now, 1)
            if not wait:
                state = rule.charge(state, now, 1, now)
                admitted += 1
    return admitted, wait / 1e6


# --- 0011 ---


def _outages(say: Say, best: Best) -> None:
    away = RedisStore("redis://127.0.0.1:1/0")
    limiter = RateLimiter("1000000/second", name="away", store=away)
    limiter.try_acquire_sync("client")
    say("0011", "an admitted call, the store out of reach", best(_calls(limiter, 2_000), 2_000), "ns")
    in_memory = RateLimiter("1000000/second", name="memory")
    say("0011", "an admitted call of a limiter in memory", best(_calls(in_memory, 2_000), 2_000), "ns")
    away.close()

    def first_call(url: str) -> float:
        store = RedisStore(url)
        limiter = RateLimiter("100/second", name="first", store=store)
        began = time.perf_counter()
        limiter.try_acquire_sync("client")
        spent = time.perf_counter() - began
        store.close()
        return spent * 1e3

    say(
        "0011",
        "the call that finds out, nobody listens",
        min(first_call("redis://127.0.0.1:1/0") for _ in range(5)),
        "ms",
    )
    with _server() as server, TcpProxy(server.port) as network:
        network.black_hole()
        url = f"redis://127.0.0.1:{network.port}/0"
        say("0011", "the call that finds out, nobody answers", min(first_call(url) for _ in range(3)), "ms")


# --- 0012 ---


def _coalescing(say: Say, best_async: Callable[..., float]) -> None:
    with _server() as server:

        def limiter() -> RateLimiter:
            return RateLimiter("1000000/second", name="busy", store=RedisStore(server.url))

        for backend, tasks, times in (
            ("asyncio", 1, 500),
            ("asyncio", 10, 2_000),
            ("asyncio", 100, 5_000),
            ("trio", 1, 500),
            ("trio", 100, 5_000),
        ):
            spent = best_async(_busy(tasks, times, limiter().try_acquire), backend, times) / 1e3
            say("0012", f"a call on {backend}, {tasks} at a time, coalesced", spent, "us")
        server.command("CONFIG", "RESETSTAT")
        anyio.run(_busy(100, 10_000, limiter().try_acquire))
        say("0012", "script calls for 10,000 calls, 100 at a time", _stat(server, "calls"), "calls")
        _one_by_one(say, server, limiter())
        for size in (1, 100, 1_000):
            command = _command(limiter(), size)
            spents = []
            for _ in range(ROUNDS):
                server.command("CONFIG", "RESETSTAT")
                for _ in range(20):
                    server.command("EVALSHA", *map(str, command))
                spents.append(_stat(server, "usec") / 20)
            say("0012", f"the server's time for a script call of {size:,} keys", min(spents), "us")


def _busy(tasks: int, times: int, ask: Callable[[str], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    async def one(number: int) -> None:
        for _ in range(times // tasks):
            await ask(f"client {number}")

    async def all_tasks() -> None:
        async with anyio.create_task_group() as group:
            for number in range(tasks):
                group.start_soon(one, number)

    return all_tasks


def _command(limiter: RateLimiter, keys: int) -> list[str | int]:
    """Give the words of the script call that takes one unit of so many keys."""
    batch = Batch(0.0)
    for number in range(keys):
        batch.join(Request(limiter._remote, "acquire", f"client {number}", 1), None)
    names, arguments = batch.encode()
    return [script()[1], len(names), *names, "", *arguments]


def _one_by_one(say: Say, server: RedisServer, limiter: RateLimiter) -> None:
    from redis import asyncio as redis_asyncio

    command = _command(limiter, 1)

    async def rounds() -> float:
        pool = redis_asyncio.BlockingConnectionPool.from_url(server.url, max_connections=50, timeout=None)
        client = redis_asyncio.Redis(connection_pool=pool)
        spent = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await _busy(100, 5_000, lambda _: client.execute_command("EVALSHA", *command))()
            spent.append(time.perf_counter() - began)
        await pool.disconnect()
        return min(spent) / 5_000 * 1e6

    say("0012", "a call on asyncio, 100 at a time, a script call for each", anyio.run(rounds), "us")


def _stat(server: RedisServer, name: str) -> float:
    told = server.info("commandstats")["cmdstat_evalsha"]
    return float(dict(one.split("=") for one in told.split(","))[name])


# --- 0013 ---


def _spilling(say: Say, best: Best) -> None:
    for live in (240, 600):
        say("0013", f"{live} keys in turn, room for 200: what the limit allows", live * 70, "calls")
        for what, make in (("forget the oldest", _Oldest), ("refuse new keys", _RefuseNew), ("sketch", _Sketched)):
            admitted, honest = _crowd(live, make)
            say("0013", f"{live} keys, admitted: {what}", admitted, "calls")
            say("0013", f"{live} keys, of those that come once, admitted: {what}", honest, "%")
    for spill in (True, False):
        store = MemoryStore(1_000, spill=spill)
        limiter = RateLimiter("10/hour", name="full", store=store)
        names = iter([f"client {number}" for number in range(ROUNDS * 2_000 + 1_000)])
        for _ in range(1_000):
            limiter.try_acquire_sync(next(names))

        def run(limiter: RateLimiter = limiter, names: Iterator[str] = names) -> None:
            for _ in range(2_000):
                limiter.try_acquire_sync(next(names))

        how = "remembered in the sketch" if spill else "forgotten"
        say("0013", f"a new key in a full store, a live one {how}", best(run, 2_000), "ns")
    say("0013", "the sketch of a store of 10,000 keys", 4 * 2 * 10_000 * 8, "bytes")


def _crowd(live: int, make: Callable[[int, _Clock], Callable[[str], bool]]) -> tuple[int, float]:
    """Let `live` keys ask ten times a second for a minute, and six others in each tenth of a second, once."""
    clock = _Clock()
    ask = make(200, clock)
    admitted = honest = 0
    for tenth in range(600):
        clock.now = tenth / 10
        admitted += sum(ask(f"attacker {number}") for number in range(live))
        honest += sum(ask(f"honest {tenth} {number}") for number in range(6))
    return admitted, honest / 36


class _Sketched:
    """What `MemoryStore` does."""

    def __init__(self, cap: int, clock: Callable[[], float]) -> None:
        limiter = RateLimiter("60/minute burst 10", name="sketched", store=MemoryStore(cap), clock=clock)
        self._ask = limiter.try_acquire_sync

    def __call__(self, key: str) -> bool:
        return bool(self._ask(key))


class _Oldest:
    """A textbook's limiter for each key; when there are too many, the one that was used longest ago is forgotten."""

    def __init__(self, cap: int, clock: Callable[[], float]) -> None:
        self._cap, self._clock = cap, clock
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    def __call__(self, key: str) -> bool:
        now = self._clock()
        arrival = self._arrivals.get(key)
        if arrival is None and not self._has_room(now):
            return False
        after = max(arrival or 0.0, now) + 1.0
        passes = after - now <= 10.0 + 1e-6
        self._arrivals[key] = after if passes else arrival or now
        self._arrivals.move_to_end(key)
        return passes

    def _has_room(self, _: float) -> bool:
        if len(self._arrivals) >= self._cap:
            self._arrivals.popitem(last=False)
        return True


class _RefuseNew(_Oldest):
    """The same; a new key passes only when one that has drained can make room."""

    def _has_room(self, now: float) -> bool:
        if len(self._arrivals) < self._cap:
            return True
        drained = next((key for key, arrival in self._arrivals.items() if arrival <= now), None)
        if drained is not None:
            del self._arrivals[drained]
        return drained is not None

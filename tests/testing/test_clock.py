"""The virtual clock keeps each promise of its page, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.errors import ConfigurationError, ResilienceError
from resilience.testing.clock import Deadlock, VirtualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from resilience.clock import Clock

pytest_plugins = ["pytester"]

Backend = Literal["asyncio", "trio"]
BACKENDS: list[Backend] = ["asyncio", "trio"]
both = pytest.mark.parametrize("backend", BACKENDS)

# `anyio.run` and portals need that version on trio; `clock.run` and the pytest plugin need none.
options_reach_trio = pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("anyio").split(".")[:2])) < (4, 14),
    reason="this anyio.run forgets the options of trio",
)


@contextmanager
def real_time_below(seconds: float) -> Iterator[None]:
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < seconds


@contextmanager
def foreign_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, name="foreign")
    thread.start()
    try:
        yield thread
    finally:
        thread.join(10)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Ticker:
    """Counts virtual seconds, as long as its task lives."""

    def __init__(self) -> None:
        self.ticks = 0

    async def __call__(self) -> None:
        while True:
            await anyio.sleep(1)
            self.ticks += 1


# A clock alone, without any event loop


def test_a_clock_without_a_loop_moves_by_advance_only() -> None:
    clock = VirtualClock(autojump=False, start=10)
    as_argument: Clock = clock
    assert as_argument() == 10.0
    clock.advance(2.5)
    clock.advance(0)
    assert as_argument() == 12.5


@pytest.mark.parametrize("seconds", [-1, -1e-9, nan, inf, -inf])
def test_advance_refuses_what_is_no_step_forwards(seconds: float) -> None:
    clock = VirtualClock(autojump=False)
    with pytest.raises(ConfigurationError, match="seconds must be at least 0 and finite"):
        clock.advance(seconds)
    with pytest.raises(ConfigurationError, match="seconds must be at least 0 and finite"):
        clock.run(clock.advance_and_settle, seconds)
    assert clock() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": inf}, "start must be a finite number, got inf"),
        ({"start": nan}, "start must be a finite number, got nan"),
        ({"hold_limit": 0}, "hold_limit must be more than 0, got 0"),
        ({"hold_limit": nan}, "hold_limit must be more than 0, got nan"),
        ({"io_grace": -1}, "io_grace must be at least 0 and finite, got -1"),
        ({"io_grace": inf}, "io_grace must be at least 0 and finite, got inf"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VirtualClock(**options)  # type: ignore[arg-type]  # the values are floats, the flag keeps its default


@pytest.mark.parametrize("backend", ["uvloop", "curio", "asyncio+uvloop"])
def test_another_backend_is_refused(backend: Any) -> None:
    clock = VirtualClock()
    with pytest.raises(ConfigurationError, match="backend must be 'asyncio' or 'trio'"):
        clock.backend_options(backend)
    with pytest.raises(ConfigurationError, match="backend must be 'asyncio' or 'trio'"):
        clock.run(anyio.sleep, 1, backend=backend)


def test_repr_shows_time_mode_and_hold() -> None:
    assert repr(VirtualClock(start=12.5)) == "<VirtualClock 12.5 s, autojump>"
    manual = VirtualClock(autojump=False)
    with manual.hold():
        assert repr(manual) == "<VirtualClock 0 s, manual, held>"
    assert repr(manual) == "<VirtualClock 0 s, manual>"


def test_importing_the_clock_imports_no_trio() -> None:
    code = "import sys, resilience.testing.clock; assert 'trio' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Time follows the clock


@both
def test_every_way_to_read_time_and_to_sleep_follows_the_clock(backend: Backend) -> None:
    clock = VirtualClock(start=100)

    async def main() -> None:
        await anyio.sleep(3600)
        assert anyio.current_time() == clock() == 3700.0
        await anyio.sleep_until(5000)
        if backend == "asyncio":
            await asyncio.sleep(1000)
            assert asyncio.get_running_loop().time() == clock() == 6000.0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(30):
                    await asyncio.Event().wait()
        else:
            await trio.sleep(1000)
            assert trio.current_time() == clock() == 6000.0
            with pytest.raises(trio.TooSlowError), trio.fail_after(30):
                await trio.sleep_forever()
        assert clock() == 6030.0
        with pytest.raises(TimeoutError), anyio.fail_after(60):
            await anyio.sleep_forever()
        assert clock() == 6090.0

    with real_time_below(1):
        clock.run(main, backend=backend)


@both
def test_ten_long_sleeps_take_no_real_time_and_wake_in_order(backend: Backend) -> None:
    clock = VirtualClock()
    woken: list[tuple[int, float]] = []

    async def sleeper(seconds: int) -> None:
        await anyio.sleep(seconds)
        woken.append((seconds, anyio.current_time()))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for seconds in (3, 1, 2):
                tasks.start_soon(sleeper, seconds)
        assert woken == [(1, 1.0), (2, 2.0), (3, 3.0)]
        for seconds in range(0, 100, 10):
            await anyio.sleep(seconds)
        assert clock() == 453.0

    with real_time_below(1):
        clock.run(main, backend=backend)


@both
def test_a_minute_of_traffic_on_a_pool_of_24(backend: Backend) -> None:
    """100 calls a second, each holding one of 24 places for 0.25 s: 96 a second can be served."""
    clock = VirtualClock()
    responses: list[float] = []

    async def call(places: anyio.Semaphore, intended: float) -> None:
        async with places:
            await anyio.sleep(0.25)
        responses.append(clock() - intended)

    async def main() -> None:
        places = anyio.Semaphore(24)
        async with anyio.create_task_group() as calls:
            for number in range(6_000):
                await anyio.sleep_until(number / 100)
                calls.start_soon(call, places, number / 100)

    with real_time_below(30):
        clock.run(main, backend=backend)
    assert len(responses) == 6_000
    assert min(responses) == pytest.approx(0.25)
    assert statistics.median(responses) == pytest.approx(1.5, abs=0.01)
    assert max(responses) == pytest.approx(2.74, abs=0.001)
    assert clock() == pytest.approx(62.73)


@both
@settings(max_examples=40, deadline=None)
@given(
    start=st.sampled_from([0.0, -3.0, 1.0, 1.8e9]) | st.floats(-1e6, 1e12),
    sleeps=st.lists(st.integers(0, 20).map(lambda n: n / 4) | st.floats(0, 1e5), min_size=1, max_size=12),
)
def test_any_set_of_sleeps_wakes_in_order_at_its_exact_times(
    backend: Backend, start: float, sleeps: list[float]
) -> None:
    clock = VirtualClock(start=start)
    woken: list[tuple[float, float]] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((clock(), start + seconds))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for seconds in sleeps:
                tasks.start_soon(sleeper, seconds)

    clock.run(main, backend=backend)
    assert all(at == due for at, due in woken)
    assert [at for at, _ in woken] == sorted(start + seconds for seconds in sleeps)
    assert clock() == start + max(sleeps)


@both
def test_deadlines_closer_than_a_nanosecond_are_not_merged(backend: Backend) -> None:
    clock = VirtualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append(clock())

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper, 1.0)
            tasks.start_soon(sleeper, 1.0 + 2**-40)

    clock.run(main, backend=backend)
    assert woken == [1.0, 1.0 + 2**-40]


@both
def test_time_goes_on_from_run_to_run_and_options_serve_again(backend: Backend) -> None:
    clock = VirtualClock()
    options = clock.backend_options(backend)
    for number in range(1, 4):
        if backend == "trio":
            trio.run(anyio.sleep, 10, **options)
        else:
            anyio.run(anyio.sleep, 10, backend_options=options)
        assert clock() == 10.0 * number


@both
def test_run_gives_arguments_result_and_errors_through(backend: Backend) -> None:
    clock = VirtualClock()
    failure = LookupError("mine")

    async def echo(*args: int) -> tuple[int, ...]:
        if not args:
            raise failure
        return args

    assert clock.run(echo, 1, 2, backend=backend) == (1, 2)
    with pytest.raises(LookupError) as caught:
        clock.run(echo, backend=backend)
    assert caught.value is failure


@both
def test_a_finished_run_leaves_no_loop_behind(backend: Backend) -> None:
    clock = VirtualClock()
    alive: list[weakref.ref[object]] = []

    async def main() -> None:
        alive.append(weakref.ref(anyio.Event()))
        if backend == "asyncio":
            alive.append(weakref.ref(asyncio.get_running_loop()))
        else:
            alive.append(weakref.ref(trio.lowlevel.current_task()))
        await anyio.sleep(1)

    clock.run(main, backend=backend)
    assert not clock._loops
    gc.collect()
    assert [one() for one in alive] == [None, None]


# Threads


async def _default(work: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(work)


async def _own_limiter(work: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))


async def _abandonable(work: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


async def _asyncio_to_thread(work: Callable[[], None]) -> None:
    await asyncio.to_thread(work)


async def _trio_to_thread(work: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(work)


HOPS: list[tuple[Backend, Any]] = [
    *((backend, hop) for backend in BACKENDS for hop in (_default, _own_limiter, _abandonable)),
    ("asyncio", _asyncio_to_thread),
    ("trio", _trio_to_thread),
]


@pytest.mark.parametrize(("backend", "hop"), HOPS)
def test_time_stands_still_while_a_worker_thread_works(backend: Backend, hop: Any) -> None:
    clock = VirtualClock()
    ticker = Ticker()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ticker)
            await anyio.sleep(2.5)
            for _ in range(2):  # the second time on a thread that exists already
                await hop(partial(time.sleep, 0.05))
                assert clock() == 2.5
            assert ticker.ticks == 2
            await anyio.sleep(1)
            assert ticker.ticks == 3
            tasks.cancel_scope.cancel()

    clock.run(main, backend=backend)
    assert clock() == 3.5


@both
def test_a_thousand_thread_hops_spend_no_time(backend: Backend) -> None:
    clock = VirtualClock()
    ticker = Ticker()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ticker)
            for _ in range(1000):
                await anyio.to_thread.run_sync(int)
            tasks.cancel_scope.cancel()

    clock.run(main, backend=backend)
    assert (clock(), ticker.ticks) == (0.0, 0)


@both
def test_a_thread_that_sleeps_in_the_loop_does_not_wait_for_the_hold_limit(backend: Backend) -> None:
    clock = VirtualClock(hold_limit=60)

    def work() -> list[float]:
        seen = []
        for _ in range(5):
            anyio.from_thread.run(anyio.sleep, 10)
            time.sleep(0.002)  # work between: time must not slip
            seen.append(anyio.from_thread.run_sync(anyio.current_time))
        return seen

    async def main() -> list[float]:
        return await anyio.to_thread.run_sync(work)

    with real_time_below(10):
        assert clock.run(main, backend=backend) == [10.0, 20.0, 30.0, 40.0, 50.0]


@both
def test_a_thread_that_works_holds_time_though_another_waits_for_the_loop(backend: Backend) -> None:
    clock = VirtualClock(hold_limit=60)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, partial(anyio.from_thread.run, anyio.sleep, 10))
            await anyio.wait_all_tasks_blocked()
            before = clock()
            await anyio.to_thread.run_sync(partial(time.sleep, 0.1))
            assert clock() == before

    clock.run(main, backend=backend)
    assert clock() == pytest.approx(10, abs=0.2)


@both
def test_a_thread_that_waits_for_virtual_time_holds_it_no_longer_than_the_limit(backend: Backend) -> None:
    clock = VirtualClock(hold_limit=0.1)

    async def main() -> float:
        released = threading.Event()

        async def release() -> None:
            await anyio.sleep(60)
            released.set()

        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(release)
            assert await anyio.to_thread.run_sync(released.wait, 10)
        return time.perf_counter() - started

    assert 0.1 <= clock.run(main, backend=backend) < 5
    assert clock() == 60.0


@both
def test_an_abandoned_thread_holds_nothing(backend: Backend) -> None:
    clock = VirtualClock(hold_limit=0.2)
    release = threading.Event()

    async def main() -> None:
        with anyio.move_on_after(1):
            await anyio.to_thread.run_sync(release.wait, 30, abandon_on_cancel=True)
        try:
            for _ in range(100):
                await anyio.sleep(1)
        finally:
            release.set()

    with real_time_below(5):
        clock.run(main, backend=backend)
    assert clock() == 101.0


def test_joining_the_executor_at_the_end_of_a_run_spends_no_time() -> None:
    clock = VirtualClock()

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)

    clock.run(main)
    assert clock() == 0.0


# Holding on purpose


@both
def test_a_held_clock_waits_for_a_foreign_thread(backend: Backend) -> None:
    clock = VirtualClock()
    ticker = Ticker()

    async def main() -> None:
        called = anyio.Event()
        async with anyio.from_thread.BlockingPortal() as portal, anyio.create_task_group() as tasks:
            tasks.start_soon(ticker)

            def work() -> None:
                time.sleep(0.05)
                portal.start_task_soon(called.set)

            with clock.hold(), clock.hold():
                with clock.hold():
                    pass
                with foreign_thread(work):
                    await called.wait()
            assert clock() == 0.0
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()

    clock.run(main, backend=backend)
    assert clock() == 1.0


@both
def test_a_hold_taken_in_one_thread_ends_in_another(backend: Backend) -> None:
    clock = VirtualClock()
    holding = threading.Event()
    seen: list[float] = []

    def work() -> None:
        with clock.hold():
            holding.set()
            time.sleep(0.05)
            seen.append(clock())

    async def main() -> None:
        holding.wait(10)
        await anyio.sleep(100)

    with foreign_thread(work), real_time_below(5):
        clock.run(main, backend=backend)
    assert seen == [0.0]
    assert clock() == 100.0


@both
def test_a_held_run_is_no_deadlock(backend: Backend) -> None:
    clock = VirtualClock()

    async def main() -> None:
        called = anyio.Event()
        async with anyio.from_thread.BlockingPortal() as portal:

            def work() -> None:
                time.sleep(0.25)  # longer than one look at the clock
                portal.start_task_soon(called.set)

            busy = time.thread_time()
            with clock.hold(), foreign_thread(work):
                await called.wait()
            assert time.thread_time() - busy < 0.15  # blocked, not spinning

    clock.run(main, backend=backend)


# Real I/O, child processes, signals


@both
def test_a_slow_peer_is_waited_for(backend: Backend) -> None:
    clock = VirtualClock(io_grace=2)
    ours, theirs = socket.socketpair()

    def peer() -> None:
        with theirs:
            while question := theirs.recv(100):
                time.sleep(0.02)
                theirs.sendall(question.upper())

    async def main() -> None:
        async with await SocketStream.from_socket(ours) as stream:
            with anyio.fail_after(1):
                for _ in range(3):
                    await stream.send(b"ping")
                    assert await stream.receive() == b"PING"

    with foreign_thread(peer):
        clock.run(main, backend=backend)
    assert clock() == 0.0


@both
def test_an_echo_server_in_the_same_loop_answers_at_the_same_instant(backend: Backend) -> None:
    clock = VirtualClock()

    async def echo(stream: SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                with anyio.fail_after(1):
                    for number in range(200):
                        await stream.send(b"%d" % number)
                        assert await stream.receive() == b"%d" % number
                assert clock() == 0.0
                await anyio.sleep(3600)  # an idle connection does not stop time
            tasks.cancel_scope.cancel()

    clock.run(main, backend=backend)
    assert clock() == 3600.0


@both
def test_an_idle_listener_costs_no_grace(backend: Backend) -> None:
    clock = VirtualClock(io_grace=1)

    async def refuse(stream: SocketStream) -> None:
        await stream.aclose()

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, refuse)
            for _ in range(100):
                await anyio.sleep(1)
            tasks.cancel_scope.cancel()

    with real_time_below(10):
        clock.run(main, backend=backend)


@both
def test_an_open_connection_costs_its_grace_before_each_jump(backend: Backend) -> None:
    clock = VirtualClock(io_grace=0.05)
    ours, theirs = socket.socketpair()

    async def main() -> float:
        async with await SocketStream.from_socket(ours) as stream, anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive)
            started = time.perf_counter()
            for _ in range(4):
                await anyio.sleep(1)
            tasks.cancel_scope.cancel()
        return time.perf_counter() - started

    with theirs:
        assert 0.2 <= clock.run(main, backend=backend) < 5


@both
def test_a_closed_connection_costs_nothing_any_more(backend: Backend) -> None:
    clock = VirtualClock(io_grace=0.2)
    ours, theirs = socket.socketpair()

    async def main() -> None:
        async with await SocketStream.from_socket(ours) as stream:
            theirs.sendall(b"bye")
            assert await stream.receive() == b"bye"
        with real_time_below(5):
            for _ in range(100):
                await anyio.sleep(1)
        await wait_for_ever()

    with theirs, pytest.raises(Deadlock):
        clock.run(main, backend=backend)
    assert clock() == 100.0


@both
def test_a_child_process_is_waited_for(backend: Backend) -> None:
    clock = VirtualClock(hold_limit=30)
    quiet = [sys.executable, "-S", "-c", "import time; time.sleep(0.2)"]
    loud = [sys.executable, "-S", "-c", "import time; time.sleep(0.1); print('done')"]

    async def main() -> None:
        with anyio.fail_after(1):
            assert (await anyio.run_process(quiet, stdout=None, stderr=None)).returncode == 0
            assert (await anyio.run_process(loud)).stdout.strip() == b"done"

    clock.run(main, backend=backend)
    assert clock() == 0.0


@both
def test_a_run_that_waits_for_a_signal_is_no_deadlock(backend: Backend) -> None:
    clock = VirtualClock()
    listening = threading.Event()

    def work() -> None:
        listening.wait(10)
        time.sleep(0.15)  # longer than one look at the clock
        os.kill(os.getpid(), signal.SIGUSR1)

    async def main() -> signal.Signals:
        with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
            listening.set()
            return await anext(aiter(signals))

    with foreign_thread(work):
        assert clock.run(main, backend=backend) == signal.SIGUSR1


# Deadlocks


async def wait_for_ever() -> None:
    event = anyio.Event()
    await event.wait()


async def two_stuck_workers() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_ever, name="left")
        tasks.start_soon(wait_for_ever, name="right")


@both
def test_a_deadlock_ends_the_run_and_tells_who_waits_where(backend: Backend) -> None:
    clock = VirtualClock(start=7)
    with pytest.raises(Deadlock) as caught:
        clock.run(two_stuck_workers, backend=backend)
    error = caught.value
    assert isinstance(error, ResilienceError)
    assert isinstance(error, RuntimeError)
    assert error.at == 7.0
    line = wait_for_ever.__code__.co_firstlineno + 2
    place = f"{__file__}:{line} in wait_for_ever, inside Event.wait"
    told = dict(error.tasks)
    assert told["left"] == told["right"] == place
    assert len(told) == 3
    assert "in two_stuck_workers, inside TaskGroup.__aexit__" in str(error)
    assert str(error).startswith("at 7 virtual seconds every task is blocked, and there is no timer, worker thread")
    assert f"  'left' waits at {place}\n" in str(error)


@options_reach_trio
@both
def test_a_deadlock_comes_out_of_anyio_run(backend: Backend) -> None:
    with pytest.raises(Deadlock, match="'left' waits at"):
        anyio.run(two_stuck_workers, backend=backend, backend_options=VirtualClock().backend_options(backend))


@both
def test_no_handler_inside_the_run_swallows_a_deadlock(backend: Backend) -> None:
    clock = VirtualClock()

    async def main() -> str:
        try:
            await wait_for_ever()
        except Exception:  # noqa: BLE001 - what a retry or a fallback under test does
            return "all is well"
        return "never"

    with pytest.raises(Deadlock, match="wait_for_ever"):
        clock.run(main, backend=backend)


@both
def test_a_deadlocked_run_is_cleaned_up_on_virtual_time(backend: Backend) -> None:
    clock = VirtualClock()
    cleaned: list[str] = []

    async def worker(name: str) -> None:
        try:
            await wait_for_ever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(60)
            cleaned.append(name)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker, "one")
            tasks.start_soon(worker, "two")

    with pytest.raises(Deadlock):
        clock.run(main, backend=backend)
    assert sorted(cleaned) == ["one", "two"]
    clock.run(anyio.sleep, 1, backend=backend)
    assert clock() == 61.0


@both
def test_a_cleanup_that_is_itself_stuck_ends_too(backend: Backend) -> None:
    clock = VirtualClock()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_ever)
            with anyio.CancelScope(shield=True):
                await wait_for_ever()

    with pytest.raises(Deadlock):
        clock.run(main, backend=backend)


def test_a_shielded_worker_cannot_keep_a_deadlocked_trio_run_alive() -> None:
    clock = VirtualClock()

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await wait_for_ever()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shielded)

    with pytest.raises(Deadlock, match="shielded"):
        clock.run(main, backend="trio")


@both
def test_a_deadlock_inside_an_async_generator_names_the_generator(backend: Backend) -> None:
    async def items() -> AsyncIterator[int]:
        await wait_for_ever()
        yield 1

    async def main() -> None:
        async for _ in items():
            pass

    with pytest.raises(Deadlock, match=r"in wait_for_ever"):
        VirtualClock().run(main, backend=backend)


@both
def test_a_deadlock_of_many_tasks_is_told_in_part(backend: Backend) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(wait_for_ever)

    with pytest.raises(Deadlock) as caught:
        VirtualClock().run(main, backend=backend)
    assert len(caught.value.tasks) == 201
    assert len(str(caught.value).splitlines()) == 52
    assert str(caught.value).endswith("and 151 more")


@both
def test_a_timer_a_thread_or_a_peer_prevents_the_deadlock(backend: Backend) -> None:
    clock = VirtualClock()
    ours, theirs = socket.socketpair()

    def peer() -> None:
        time.sleep(0.15)  # longer than one look at the clock
        with theirs:
            theirs.sendall(b"hello")

    async def main() -> None:
        with anyio.move_on_after(5):
            await wait_for_ever()
        await anyio.to_thread.run_sync(partial(time.sleep, 0.15))
        async with await SocketStream.from_socket(ours) as stream:
            with foreign_thread(peer):
                assert await stream.receive() == b"hello"

    clock.run(main, backend=backend)
    assert clock() == 5.0


@both
def test_the_pytest_plugin_fails_a_deadlocked_test_and_goes_on(pytester: pytest.Pytester, backend: Backend) -> None:
    pytester.makepyfile(
        f"""
        import anyio, pytest
        from resilience.testing.clock import VirtualClock

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def clock():
            return VirtualClock()

        @pytest.fixture
        def anyio_backend(clock):
            return {backend!r}, clock.backend_options({backend!r})

        async def test_before(clock):
            await anyio.sleep(3600)
            assert clock() == 3600

        async def test_stuck():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.Event().wait, name="victim")

        async def test_stuck_and_careless():
            try:
                await anyio.Event().wait()
            except Exception:
                pass

        async def test_after(clock):
            await anyio.sleep(3600)
            assert clock() == 3600
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", timeout=60)
    result.assert_outcomes(passed=2, failed=2)
    assert "'victim' waits at" in result.stdout.str()
    assert "_call_in_runner_task" not in result.stdout.str().partition("every task is blocked")[2].partition("___")[0]
    result.stdout.fnmatch_lines(["*every task is blocked*", "*waits at *in test_stuck, inside TaskGroup.__aexit__"])


@both
def test_a_deadlock_does_not_hang_the_fixtures_of_its_test(pytester: pytest.Pytester, backend: Backend) -> None:
    pytester.makepyfile(
        f"""
        import anyio, pytest
        from resilience.testing.clock import VirtualClock

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return {backend!r}, VirtualClock().backend_options({backend!r})

        @pytest.fixture
        async def resource():
            try:
                yield
            finally:
                print("the fixture was closed")

        async def test_stuck(resource):
            await anyio.Event().wait()

        async def test_after(resource):
            await anyio.sleep(3600)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-s", timeout=60)
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["passed"]) == (1, 1)
    assert result.stdout.str().count("the fixture was closed") == 2


# A clock that moves by hand


@both
def test_a_manual_clock_moves_by_another_thread_only(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    sleeping = threading.Event()
    woken: list[float] = []

    async def main() -> None:
        sleeping.set()
        await anyio.sleep(10)
        woken.append(clock())

    def driver() -> None:
        sleeping.wait(10)
        time.sleep(0.15)  # longer than one look at the clock
        for _ in range(2):
            assert woken == []
            clock.advance(5)
        wait_until(lambda: bool(woken))

    with foreign_thread(driver):
        clock.run(main, backend=backend)
    assert woken == [10.0]


@both
def test_an_advance_from_another_thread_wakes_the_loop_at_once(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    started = threading.Event()
    woken: list[float] = []

    async def main() -> None:
        for number in range(40):
            started.set()
            await anyio.sleep_until(number + 1)
            woken.append(clock())

    def has_woken(number: int) -> bool:
        return len(woken) > number

    def driver() -> None:
        started.wait(10)
        for number in range(40):
            clock.advance(1)
            wait_until(partial(has_woken, number))

    with foreign_thread(driver), real_time_below(2):  # a loop that only looks each 0.1 s takes 4
        clock.run(main, backend=backend)
    assert woken == [float(number + 1) for number in range(40)]


@both
def test_an_advance_inside_a_task_is_noticed_at_once(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    done = threading.Event()  # the other thread lives on: without any, there would be nothing to wait for

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(anyio.sleep_until, number + 1)
                for _ in range(5):
                    await checkpoint()
                with anyio.move_on_after(1):
                    clock.advance(1)
                    await anyio.sleep_forever()
        done.set()

    with foreign_thread(partial(done.wait, 10)), real_time_below(2):  # a loop that only looks each 0.1 s takes 4
        clock.run(main, backend=backend)
    assert clock() == 40.0


@both
def test_settling_does_not_wait_for_threads(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    automatic = VirtualClock(hold_limit=1)
    release = threading.Event()

    async def settle_often(clock: VirtualClock) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, release.wait, 10)
            tasks.start_soon(anyio.sleep, 100)
            for _ in range(20):
                await clock.advance_and_settle(1)
            assert clock() == 20.0
            release.set()
            tasks.cancel_scope.cancel()

    with real_time_below(5):
        clock.run(settle_often, clock, backend=backend)
        release.clear()
        automatic.run(settle_often, automatic, backend=backend)


@both
def test_advance_inside_a_task_wakes_at_the_next_checkpoint(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    woken: list[float] = []

    async def sleeper() -> None:
        await anyio.sleep(10)
        woken.append(clock())

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper)
            await clock.advance_and_settle(0)
            clock.advance(9.5)
            await clock.advance_and_settle(0)
            assert woken == []
            clock.advance(2.5)
            assert woken == []
            for _ in range(5):
                await checkpoint()
            assert woken == [12.0]

    clock.run(main, backend=backend)


@both
@pytest.mark.parametrize("autojump", [False, True])
def test_advance_and_settle_stops_at_each_deadline(backend: Backend, autojump: bool) -> None:
    clock = VirtualClock(autojump=autojump)
    ticks: list[float] = []

    async def tick(period: float) -> None:
        while True:
            await anyio.sleep(period)
            await checkpoint()
            ticks.append(clock())

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick, 2.0)
            await clock.advance_and_settle(5)
            assert (ticks, clock()) == ([2.0, 4.0], 5.0)
            await clock.advance_and_settle(1)
            assert (ticks, clock()) == ([2.0, 4.0, 6.0], 6.0)
            tasks.cancel_scope.cancel()

    clock.run(main, backend=backend)


def test_advance_and_settle_needs_a_run_on_this_clock() -> None:
    clock = VirtualClock()
    with pytest.raises(RuntimeError, match="needs a run on this clock"):
        VirtualClock().run(clock.advance_and_settle, 1)


@both
def test_a_manual_run_that_nobody_can_advance_is_a_deadlock(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    with pytest.raises(Deadlock, match="no thread to advance this clock"):
        clock.run(anyio.sleep, 1, backend=backend)
    assert clock() == 0.0


@both
def test_a_manual_run_is_a_deadlock_once_the_last_other_thread_is_gone(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)
    with foreign_thread(partial(time.sleep, 0.2)), pytest.raises(Deadlock):
        clock.run(anyio.sleep, 1, backend=backend)


@both
def test_idle_worker_threads_are_nobody_who_could_advance(backend: Backend) -> None:
    clock = VirtualClock(autojump=False)

    async def main() -> None:
        await anyio.to_thread.run_sync(int)
        await anyio.sleep(1)

    with pytest.raises(Deadlock):
        clock.run(main, backend=backend)


@options_reach_trio
@both
@pytest.mark.parametrize("autojump", [False, True])
def test_a_run_behind_a_portal_waits_for_its_owner(backend: Backend, autojump: bool) -> None:
    clock = VirtualClock(autojump=autojump)
    options = clock.backend_options(backend)
    with anyio.from_thread.start_blocking_portal(backend, options) as portal:
        time.sleep(0.15)  # longer than one look at the clock
        sleeper = portal.start_task_soon(anyio.sleep, 30)
        if not autojump:
            portal.call(clock.advance_and_settle, 29)
            assert not sleeper.done()
            clock.advance(1)
        sleeper.result(10)
        assert clock() == 30.0


# Through the pytest plugin, as users do


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest, clock: VirtualClock) -> tuple[str, dict[str, Any]]:
    return request.param, clock.backend_options(request.param)


@pytest.fixture
async def running_ticker(anyio_backend: Any) -> AsyncIterator[Ticker]:
    ticker = Ticker()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ticker)
        yield ticker
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_an_hour_passes_in_a_test_with_async_fixtures(clock: VirtualClock, running_ticker: Ticker) -> None:
    before = clock()
    with real_time_below(2):
        await anyio.sleep(3600)
    assert clock() - before == 3600.0
    assert running_ticker.ticks in {3599, 3600}  # equal deadlines fire in no promised order
    at = clock()
    await anyio.to_thread.run_sync(partial(time.sleep, 0.02))
    assert clock() == at


@pytest.mark.anyio
async def test_waiting_until_all_tasks_are_blocked_comes_before_a_jump(clock: VirtualClock) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 10)
        await anyio.wait_all_tasks_blocked()
        assert clock() <= 0.1  # anyio polls each 0.1 s on asyncio
        await _spread(tasks)
    assert clock() == 10.0


async def _spread(tasks: TaskGroup) -> None:
    for _ in range(10):
        tasks.start_soon(anyio.sleep, 0)
        await checkpoint()

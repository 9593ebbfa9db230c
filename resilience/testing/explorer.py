"""Explores what cancellation can do to async code: at each await, at each turn of the loop, each task in turn.

A test that cancels a task once shows one moment out of hundreds, and the moment that loses a connection is one turn of
the loop long. `explore` runs a scenario without any cancellation first and counts its steps; then it runs it again for
each step and each task that is alive there, and cancels that task at that moment.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import isawaitable
from math import inf
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeAlias, TypeVar, get_args

import anyio
import anyio.abc

from resilience.checks import check_function, check_int, check_number, is_async, shown
from resilience.errors import ConfigurationError, ResilienceError
from resilience.testing._idle import Deadlock, place_of
from resilience.testing.clock import VirtualClock

__all__ = ["Exploration", "ExplorationFailed", "ExploredGroup", "ExploredRun", "Schedule", "explore"]

W = TypeVar("W")

Backend: TypeAlias = Literal["asyncio", "trio"]
Way: TypeAlias = Literal["scope", "task"]

WAYS: Final[dict[Backend, tuple[Way, ...]]] = {"asyncio": ("task", "scope"), "trio": ("scope",)}
MOST_STEPS: Final = 10_000
"""Of one run; one that takes more will not end."""
LONGEST_STEP: Final = 3.0
"""Real seconds. Looked at that often: a step is interrupted when it was seen twice."""
MOST_TASKS: Final = 1_000
"""In one run."""
MOST_RUNS: Final = 1_000_000
SPREAD: Final = 20
"""Steps beyond the end of the undisturbed run in which a second cancellation may come: cleaning up takes steps too."""


# --- what to do when ---


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run of a scenario: where, in which order, and who is cancelled when. Its text, `str(schedule)`, replays it.

    Attributes:
        backend: "asyncio" or "trio".
        way: "task": by `Task.cancel()`, once, as asyncio's own task groups and servers do; "scope": by a cancel scope,
            at every await from then on, as anyio and trio do.
        order: in which the tasks that are ready run, on trio; 0 on asyncio, which has only one.
        cancels: pairs (step, task), counted from 0; task 0 is the scenario itself.
    """

    backend: Backend
    way: Way
    order: int
    cancels: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        when = ",".join(f"{step}:{task}" for step, task in self.cancels)
        return f"{self.backend}/{self.way}/{self.order}/{when}"

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read what `str` wrote.

        Raises:
            ConfigurationError: it did not.
        """
        try:
            backend, way, order, when = text.split("/")
            pairs = [pair.split(":") for pair in when.split(",") if pair]
            cancels = tuple((int(step), int(task)) for step, task in pairs)
            read = cls(backend, way, int(order), cancels)  # type: ignore[arg-type]  # checked below
        except (AttributeError, ValueError):
            read = None
        if read is None or read.backend not in WAYS or read.way not in WAYS[read.backend]:
            raise ConfigurationError(f"a schedule must be written like asyncio/task/0/17:2, got {shown(text)}")
        return read


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored, without finding anything.

    Attributes:
        runs: of the scenario.
        steps: in all runs together; after each the invariant held.
        points: pairs of a step and a task that can be cancelled there, over all backends and ways.
        complete: whether each point had its run; if not, `limit` or `seconds` was too small.
    """

    runs: int
    steps: int
    points: int
    complete: bool


class ExplorationFailed(ResilienceError, AssertionError):  # noqa: N818 - a finding, not an error of whoever explores
    """A schedule broke the scenario.

    `__cause__` is what was raised, if something was.

    Attributes:
        schedule: what to give as `only=` to see it again.
        cancelled: a pair (task, place) for each that was cancelled: its name, and where it waited.
        found: what was found.
        runs: of the scenario, this one included.
    """

    def __init__(self, schedule: Schedule, cancelled: Sequence[tuple[str, str]], found: str, runs: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.cancelled = tuple(cancelled)
        self.found = found
        self.runs = runs

    def __str__(self) -> str:
        lines = [f"{self.found}, in run {self.runs} of the exploration"]
        steps = [step for step, _ in self.schedule.cancels]
        lines += [
            f"  after step {step} {task} was cancelled, which waited at {place}"
            for step, (task, place) in zip(steps, self.cancelled, strict=False)
        ]
        if not self.cancelled:
            lines.append("  nobody was cancelled")
        lines.append(f'  to see it again: explore(..., only="{self.schedule}")')
        return "\n".join(lines)


# --- one run ---


class _StepNeverEnds(BaseException):
    """Interrupts a step that has lasted too long; past any `except Exception` in it."""


class _Watchdog:
    """Interrupts a step that does not end, such as a loop without a real await: no event loop gets control back then.

    By the alarm signal, where there is one and nobody else uses it.
    """

    def __init__(self) -> None:
        self.run: _Run[Any] | None = None
        self._seen: tuple[object, int] = (None, 0)
        self._before: Any = None
        self._on = False

    def __enter__(self) -> Self:
        free = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) in {signal.SIG_DFL, signal.SIG_IGN}
        if free and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            self._on = True
            self._before = signal.signal(signal.SIGALRM, self._look)
            signal.setitimer(signal.ITIMER_REAL, LONGEST_STEP, LONGEST_STEP)
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def _look(self, _: int, frame: FrameType | None) -> None:
        run = self.run
        seen = (run, 0 if run is None else run.steps)
        if run is None or seen != self._seen:
            self._seen = seen
            return
        place = "an unknown place"
        if frame is not None:
            place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        run.interrupted(f"a step has not ended after {LONGEST_STEP:g} seconds of real time: it was at {place}")
        raise _StepNeverEnds


class _Victim:
    """One task that may be cancelled."""

    def __init__(self, number: int, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.number = number
        self.name = name
        self.coroutine = coroutine
        self.scope = anyio.CancelScope()
        self.task: Any = None
        self.live = True
        self.cancelled_natively = False

    def __str__(self) -> str:
        return f"task {self.number} ({self.name})"


class _Watched:
    """Awaits a coroutine, and notes each time that it lets others run."""

    cr_frame = None  # so that a walk along the chain of awaits goes through here

    def __init__(self, victim: _Victim, note: Callable[[_Victim], None]) -> None:
        self.cr_await = victim.coroutine
        self._victim = victim
        self._note = note

    def __await__(self) -> _Watched:
        return self

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        yielded = self.cr_await.send(value)
        self._note(self._victim)
        return yielded

    def throw(self, *raised: Any) -> Any:
        yielded = self.cr_await.throw(*raised)
        self._note(self._victim)
        return yielded

    def close(self) -> None:
        self.cr_await.close()


class ExploredGroup:
    """A task group whose tasks are cancelled in turn. Made by `ExploredRun.task_group`."""

    def __init__(self, run: _Run[Any]) -> None:
        self._run = run
        self._group = anyio.create_task_group()

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        """The scope of the open group, as anyio's."""
        return self._group.cancel_scope

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._group.__aexit__(kind, error, traceback)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any, name: str = "") -> None:
        """Start `function(*args)` as a task."""
        victim = self._run.enlist(function, args, name)
        self._group.start_soon(self._run.live, victim, name=victim.name)


class ExploredRun:
    """One run, as its scenario sees it."""

    def __init__(self, run: _Run[Any]) -> None:
        self._run = run

    @property
    def clock(self) -> VirtualClock:
        """The clock of this run, for `clock=`."""
        return self._run.clock

    def task_group(self) -> ExploredGroup:
        """Make a group, for `async with`. Its tasks are cancelled in turn; those that are started elsewhere are not."""
        return ExploredGroup(self._run)


class Watcher(Protocol):
    """Who follows a run step by step."""

    def after_step(self) -> None:
        """Nothing runs just now."""

    def blocked(self, deadlock: Deadlock) -> None:
        """Nothing will run any more."""


Moment: TypeAlias = tuple[int, tuple[int, ...]]
"""What can be done after one step: the task that has just begun to wait, or -1; and all that wait."""


class _Run(Generic[W]):
    """Carries out one schedule."""

    def __init__(self, scenario: _Scenario[W], schedule: Schedule) -> None:
        self.clock = VirtualClock()
        self.moments: list[Moment] = []
        self.steps = 0
        self.cancelled: list[tuple[str, str]] = []
        self.found = ""
        self.cause: BaseException | None = None
        self._scenario = scenario
        self._schedule = schedule
        self._steps: Any = import_module(f"resilience.testing._{schedule.backend}_steps")
        self._due: dict[int, list[int]] = {}
        for step, task in schedule.cancels:
            self._due.setdefault(step, []).append(task)
        self._victims: list[_Victim] = []
        self._live: dict[int, _Victim] = {}
        self._last: _Victim | None = None
        self._root: anyio.CancelScope
        self._world: W
        self._open = False

    def enlist(self, function: Callable[..., Coroutine[Any, Any, object]], args: tuple[Any, ...], name: str) -> _Victim:
        """Give a task that may be cancelled."""
        if len(self._victims) >= MOST_TASKS:
            raise ConfigurationError(f"a scenario must start at most {MOST_TASKS:,} tasks")
        told = name or str(getattr(function, "__name__", "task"))
        victim = _Victim(len(self._victims), told, function(*args))
        self._victims.append(victim)
        return victim

    async def live(self, victim: _Victim) -> None:
        """Be one of the tasks."""
        if self._schedule.way == "task":
            victim.task = self._steps.current_task()
        self._live[victim.number] = victim
        try:
            with victim.scope:
                await _Watched(victim, self._note)
                if victim.cancelled_natively:
                    self._fail(f"{victim} was cancelled, and went on as if it had not been")
        except anyio.get_cancelled_exc_class():
            if not victim.cancelled_natively:
                raise
            self._steps.absorb(victim.task)
        finally:
            del self._live[victim.number]

    def _note(self, victim: _Victim) -> None:
        self._last = victim

    def go(self) -> None:
        """Run."""
        try:
            self._steps.run_in_steps(self._main, self.clock, self, self._schedule.order)
        except Deadlock:
            pass  # found already, by `blocked`
        except (BaseExceptionGroup, _StepNeverEnds) as error:
            if not self.found or not _is_of(_StepNeverEnds, error):
                raise
        finally:
            for victim in self._victims:
                victim.coroutine.close()  # those that never began

    async def _main(self) -> None:
        self._root = anyio.CancelScope()
        self._world = self._scenario.world()  # in the run, for those whose making needs one
        self._open = True
        try:
            with self._root:
                await self.live(self.enlist(self._scenario.run, (ExploredRun(self), self._world), "the scenario"))
        except Exception as error:  # noqa: BLE001 - whatever the scenario raises is the finding
            if self._open:
                self._fail(f"the scenario raised {_told(error)}", error)
        self._open = False
        if self._scenario.at_end is None or self.found:
            return
        try:
            result = self._scenario.at_end(self._world)
            if isawaitable(result):
                await result
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(f"the check at the end raised {_told(error)}", error)

    def after_step(self) -> None:
        """Look, and cancel whose turn it is."""
        step, self.steps = self.steps, self.steps + 1
        last, self._last = self._last, None
        if not self._open:
            return
        if self._scenario.invariant is not None and not self.found:
            try:
                self._scenario.invariant(self._world)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(f"after step {step} the invariant raised {_told(error)}", error)
        if not self._schedule.cancels:
            self.moments.append((-1 if last is None or last.number not in self._live else last.number, (*self._live,)))
        for number in self._due.get(step, ()):
            self._cancel(number)
        if self.steps >= MOST_STEPS:
            waiting = "; ".join(f"{one} at {place_of(one.coroutine)}" for one in self._live.values())
            self._fail(f"the scenario has not ended after {MOST_STEPS:,} steps: {waiting}")

    def blocked(self, deadlock: Deadlock) -> None:
        """Take in that the run is over: what it raises from now on is of its being ended."""
        self._open = False
        if not self.found:
            self.found, self.cause = "every task is blocked for good", deadlock

    def interrupted(self, found: str) -> None:
        """Take in that a step had to be ended by force."""
        self._open = False
        self.found = self.found or found

    def _cancel(self, number: int) -> None:
        victim = self._live.get(number)
        if victim is None:
            return
        place = place_of(victim.coroutine)
        if self._schedule.way == "scope":
            victim.scope.cancel()
        elif not self._steps.cancel(victim.task):
            return
        else:
            victim.cancelled_natively = True
        self.cancelled.append((str(victim), place))

    def _fail(self, found: str, cause: BaseException | None = None) -> None:
        if not self.found:
            self.found, self.cause = found, cause
            self._root.cancel()


def _is_of(kind: type[BaseException], error: BaseException) -> bool:
    return isinstance(error, kind) or (isinstance(error, BaseExceptionGroup) and error.subgroup(kind) is not None)


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    text = str(error)
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__


# --- all runs ---


@dataclass(frozen=True)
class _Scenario(Generic[W]):
    run: Callable[[ExploredRun, W], Coroutine[Any, Any, object]]
    world: Callable[[], W]
    invariant: Callable[[W], object] | None
    at_end: Callable[[W], Awaitable[object] | object] | None


class _Explorer(Generic[W]):
    def __init__(self, scenario: _Scenario[W], limit: int, seconds: float) -> None:
        self._scenario = scenario
        self._limit = limit
        self._until = monotonic() + seconds
        self.runs = 0
        self.steps = 0
        self.watchdog = _Watchdog()

    @property
    def spent(self) -> bool:
        """Whether no more runs may begin."""
        return self.runs >= self._limit or monotonic() >= self._until

    def go(self, schedule: Schedule) -> list[Moment]:
        """Carry out one schedule."""
        run = _Run(self._scenario, schedule)
        self.runs += 1
        self.watchdog.run = run
        try:
            run.go()
        finally:
            self.watchdog.run = None
        self.steps += run.steps
        if run.found:
            raise ExplorationFailed(schedule, run.cancelled, run.found, self.runs) from run.cause
        return run.moments


def explore(
    scenario: Callable[[ExploredRun, W], Coroutine[Any, Any, object]],
    world: Callable[[], W],
    *,
    invariant: Callable[[W], object] | None = None,
    at_end: Callable[[W], Awaitable[object] | object] | None = None,
    backends: Sequence[Backend] = ("asyncio", "trio"),
    orders: int = 1,
    cancels: int = 1,
    limit: int = 5_000,
    seconds: float = 30.0,
    seed: int = 0,
    only: str | None = None,
) -> Exploration:
    """Run `scenario` again and again, each time with another task cancelled at another moment, on virtual time.

    The moments are those after each step of the event loop: on asyncio after each callback, so also between the moment
    at which somebody is woken and the one at which he runs; on trio after each step of a task. Each task of the
    scenario is cancelled at each of them, on asyncio in two ways (see `Schedule.way`).

    A run fails if the invariant, the check at the end or the scenario raises, if all tasks are blocked for good, if it
    does not end, or if a task that was cancelled by `Task.cancel()` goes on as if it had not been. Cancellation itself
    fails nothing.

    The scenario must do the same in each run until it is disturbed: no threads, no real I/O, chance only with a seed.

    Args:
        scenario: an async function of the run and its world. What it starts in `run.task_group()` is cancelled in turn,
            and so is the scenario itself; tasks that the tested code starts by itself are not.
        world: makes what one run works on, anew for each.
        invariant: a plain function of the world, called after each step; raises if something is wrong.
        at_end: a function of the world, plain or async, called when the scenario has ended, however it did.
        backends: where; trio is skipped if it is not installed.
        orders: in how many orders of ready tasks to explore on trio, 1 or more.
        cancels: 2 cancels a second task in the runs that are left when all single cancellations were tried; drawn by
            chance, because all pairs are too many.
        limit: runs, at most. If that is not enough, all moments at which a task has just begun to wait come first, and
            the rest is drawn by chance.
        seconds: of real time, at most; looked at before each run.
        seed: for what is drawn by chance.
        only: a schedule to be run alone, as a failure tells it.

    Raises:
        ExplorationFailed: with the schedule that breaks the scenario.
        ConfigurationError: an argument that makes no sense.
        RuntimeError: not in the main thread, or inside a running event loop.
    """
    explored = _checked(scenario, world, invariant, at_end)
    _check_bounds(backends, orders, cancels, limit, seconds)
    if threading.current_thread() is not threading.main_thread():
        # Elsewhere a run that is blocked for good is taken for one that some other thread will wake.
        raise RuntimeError("explore must be called in the main thread")
    explorer = _Explorer(explored, limit, seconds)
    grounds = _grounds(backends, orders)
    with explorer.watchdog:
        if only is None:
            return _explore_all(explorer, grounds, cancels, random.Random(seed))  # noqa: S311 - no secret
        explorer.go(Schedule.parse(only))
        return Exploration(explorer.runs, explorer.steps, 1, complete=True)


def _explore_all(
    explorer: _Explorer[Any], grounds: Sequence[Schedule], cancels: int, rng: random.Random
) -> Exploration:
    first: list[Schedule] = []
    rest: list[Schedule] = []
    lengths: dict[Schedule, int] = {}
    for ground in grounds:
        if explorer.spent:
            return Exploration(explorer.runs, explorer.steps, len(first) + len(rest), complete=False)
        moments = explorer.go(ground)
        lengths[ground] = len(moments)
        for step, (last, live) in enumerate(moments):
            for task in live:
                (first if task == last else rest).append(_with(ground, (step, task)))
    rng.shuffle(first)
    rng.shuffle(rest)
    points = [*first, *rest]
    for number, schedule in enumerate(points):
        if explorer.spent:
            return Exploration(explorer.runs, explorer.steps, len(points), complete=number == len(points))
        explorer.go(schedule)
    while cancels > 1 and points and not explorer.spent:
        explorer.go(_with_another(rng.choice(points), lengths, points, rng))
    return Exploration(explorer.runs, explorer.steps, len(points), complete=True)


def _with(ground: Schedule, *cancels: tuple[int, int]) -> Schedule:
    return Schedule(ground.backend, ground.way, ground.order, cancels)


def _with_another(
    schedule: Schedule, lengths: dict[Schedule, int], points: Sequence[Schedule], rng: random.Random
) -> Schedule:
    """Add a cancellation: of a task that lives somewhere, soon after the first or at any later moment."""
    (begun, _) = schedule.cancels[0]
    last = lengths[_with(schedule)] + SPREAD
    step = rng.randint(begun, min(begun + 3, last)) if rng.random() < 0.5 else rng.randint(begun, last)
    return _with(schedule, *schedule.cancels, (step, rng.choice(points).cancels[0][1]))


def _grounds(backends: Sequence[Backend], orders: int) -> list[Schedule]:
    return [*_undisturbed(backends, orders)]


def _undisturbed(backends: Sequence[Backend], orders: int) -> Iterator[Schedule]:
    for backend in backends:
        VirtualClock().backend_options(backend)  # raises if it is not installed
        for way in WAYS[backend]:
            for order in range(orders if backend == "trio" else 1):
                yield Schedule(backend, way, order)


def _checked(scenario: Any, world: Any, invariant: Any, at_end: Any) -> _Scenario[Any]:
    if not is_async(scenario):
        raise ConfigurationError(f"scenario must be an async function, got {shown(scenario)}")
    check_function("world", world)
    if invariant is not None:
        check_function("invariant", invariant)
    if at_end is not None and not callable(at_end):
        raise ConfigurationError(f"at_end must be a function of the world, got {shown(at_end)}")
    return _Scenario(scenario, world, invariant, at_end)


def _check_bounds(backends: Sequence[Backend], orders: int, cancels: int, limit: int, seconds: float) -> None:
    if not backends or isinstance(backends, str) or not set(backends) <= set(get_args(Backend)):
        raise ConfigurationError(f"backends must be some of {', '.join(get_args(Backend))}, got {shown(backends)}")
    check_int("orders", orders, most=MOST_RUNS)
    check_int("cancels", cancels, most=2)
    check_int("limit", limit, most=MOST_RUNS)
    check_number("seconds", seconds, above=0, most=inf)

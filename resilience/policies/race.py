"""The attempts of one hedged call: side by side in tasks, or one after the other in the caller's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from types import TracebackType
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from resilience.clock import Clock
from resilience.events import HedgeLaunched, HedgeWon, RetrySuppressed, emit

from .budget import RetryBudget
from .calls import seconds_left
from .course import leaves
from .discard import discard_all
from .unchanged import raise_unchanged


class Attempts:
    """The attempts of one call, and what they gave. Number 0 is the first attempt.

    Args:
        call: makes one attempt.
        name: in events.
        most: attempts after the first.
        budget: that these are taken from.
        clock: for what is told.
        note: is told how many seconds a successful call took; None does not want to know.

    Attributes:
        number: of the attempt that was begun last, -1 before the first.
        running: how many are under way.
        unanswered: failures after which no further attempt was begun yet.
        winner: the number of the attempt that succeeded first.
        fatal: what ends the call at once: a KeyboardInterrupt and the like.
    """

    def __init__(
        self,
        call: Callable[[], Awaitable[Any]],
        name: str,
        *,
        most: int,
        budget: RetryBudget | None,
        clock: Clock,
        note: Callable[[float], None] | None,
    ) -> None:
        self._call = call
        self._name = name
        self._most = most
        self._budget = budget
        self._clock = clock
        self._note = note
        self.number = -1
        self.running = 0
        self.unanswered = 0
        self.winner: int | None = None
        self.fatal: BaseException | None = None
        self._began: list[float] = []  # when each attempt began, if somebody wants to know
        self._error: Exception | None = None  # of the first attempt
        self._traceback: TracebackType | None = None
        self._results: list[Any] = []  # the winner's comes first
        self._made = 0
        self._taken = 0  # from the budget, and not given back yet
        self._denied = False
        self._news: anyio.Event | None = None

    @property
    def is_decided(self) -> bool:
        """Whether no attempt is needed any more."""
        return self.winner is not None or self.fatal is not None

    def begin(self) -> bool:
        """Count another attempt in, if there may be one; `make` must follow then."""
        if self.number >= self._most:
            return False
        if self.number >= 0 and self._budget is not None:
            if not self._budget.take():
                self._tell_denied()
                return False
            self._taken += 1
        self.number += 1
        self.running += 1
        if self._note is not None:
            self._began.append(self._clock())
        if self.number and HedgeLaunched.sinks:
            emit(HedgeLaunched(self._name, self._clock(), number=self.number))
        return True

    def _tell_denied(self) -> None:
        if not self._denied and RetrySuppressed.sinks:
            emit(RetrySuppressed(self._name, self._clock(), reason="budget"))
        self._denied = True  # told once per call: after each failure it is asked anew

    async def make(self) -> None:
        """Make an attempt and keep what it gives; only a cancellation is raised, perhaps in a group."""
        # Numbered as they come to run: trio starts tasks in any order.
        number, self._made = self._made, self._made + 1
        try:
            result = await self._call()
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001 - of all attempts one may succeed
            self._failed(number, error)
        except BaseException as error:
            if not self._is_kept(number, error):
                raise
        else:
            self._results.append(result)
            if self.winner is None:
                self.winner = number
                self._note_latency(number)
        finally:
            self.running -= 1
            if number:
                self._give_back()
            if self._news is not None:
                self._news.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until an attempt ends; False if none did for so long."""
        self._news = news = anyio.Event()
        with anyio.move_on_after(seconds):
            await news.wait()
        if not news.is_set():
            await anyio.lowlevel.checkpoint()  # one that ends at the very same time is not late
        return news.is_set()

    async def end(self) -> Any:
        """Close what is left over; give the answer, or raise the error of the first attempt."""
        if not self._results or self.fatal is not None:
            await self.close_results()
            if self._error is None and self.fatal is None:
                # All were cancelled from outside, and this task is about to be. Where it is not, the task group took
                # the cancellation for its own, as anyio's does when one of its scopes ends in the same turn.
                await anyio.lowlevel.checkpoint()
                raise anyio.get_cancelled_exc_class()
            self._raise()
        answer = self._results[0]
        try:
            await self.close_results(but=answer)
        except GeneratorExit:
            raise
        except BaseException:  # asyncio's own cancellation comes through any shield: nobody gets the answer
            await discard_all([answer])
            raise
        if self.winner and HedgeWon.sinks:
            emit(HedgeWon(self._name, self._clock(), number=self.winner))
        return answer

    async def close_results(self, but: object = None) -> None:
        """Close the results that nobody gets, each object once: attempts may well give the same one."""
        left: list[Any] = []
        for result in self._results:
            if not any(result is one for one in (but, *left)):
                left.append(result)
        self._results.clear()
        await discard_all(left)

    def settle(self) -> None:
        """Give back for attempts that were never made, as the loop came to its end."""
        while self._taken:
            self._give_back()

    def _failed(self, number: int, error: Exception) -> None:
        self.unanswered += 1
        if not number:
            self._error, self._traceback = error, error.__traceback__

    def _is_kept(self, number: int, error: BaseException) -> bool:
        """Keep what ends the call, lest the task group wraps it; of a group with a cancellation in it the rest."""
        if seconds_left() == -inf:  # else nobody here asked for it: with asyncio a future may be cancelled by itself
            cancelled = anyio.get_cancelled_exc_class()
            if isinstance(error, cancelled):
                return False
            cancellations, rest = error.split(cancelled) if isinstance(error, BaseExceptionGroup) else (None, None)
            if cancellations is not None:
                if isinstance(rest, Exception):
                    self._failed(number, rest)
                else:
                    self.fatal = rest
                return False
        self.fatal = error
        return True

    def _note_latency(self, number: int) -> None:
        if self._note is not None:
            # While the first attempt is still under way, it is the slow one whose time counts.
            self._note(self._clock() - self._began[0 if self._error is None else number])

    def _give_back(self) -> None:
        if self._taken and self._budget is not None:
            self._taken -= 1
            self._budget.give_back()

    def _raise(self) -> NoReturn:
        error: Any = self._error  # there is one, if none is fatal
        traceback = self._traceback
        if self.fatal is not None:
            error, traceback = self.fatal, self.fatal.__traceback__
        # It holds the frames of the attempts, and these hold this object.
        self._error = self._traceback = self.fatal = None
        try:
            raise_unchanged(error, traceback)
        finally:
            del error, traceback


async def race(attempts: Attempts, delay: float) -> Any:
    """Make the attempts side by side: the next when none succeeded for so many seconds, or one failed."""
    try:
        try:
            async with anyio.create_task_group() as group:
                await _run(attempts, group, delay)
                if attempts.running:
                    group.cancel_scope.cancel()
        except BaseExceptionGroup as exits:
            # Attempts raise nothing: it came from outside, as KeyboardInterrupt does, and was wrapped by the group.
            cancelled = anyio.get_cancelled_exc_class()
            attempts.fatal = next((leaf for leaf in leaves(exits) if not isinstance(leaf, cancelled)), exits)
    except GeneratorExit:
        raise  # nothing can be awaited any more
    except BaseException:
        await attempts.close_results()
        raise
    finally:
        attempts.settle()
    return await attempts.end()


async def _run(attempts: Attempts, group: TaskGroup, delay: float) -> None:
    async def make() -> None:
        # The task ends here, so that nothing has to know of the cancellation; what comes with it would reach the group.
        with suppress(anyio.get_cancelled_exc_class(), BaseExceptionGroup):
            await attempts.make()

    def launch() -> bool:
        if not attempts.begin():
            return False
        group.start_soon(make)
        return True

    launch()
    patience = delay
    if not delay:
        while launch():
            pass
        patience = inf
    while not attempts.is_decided:
        if attempts.unanswered:
            attempts.unanswered = attempts.unanswered - 1 if launch() else 0
        elif not attempts.running:
            return
        elif not await attempts.wait(patience) and not launch():
            patience = inf  # all were launched, or the budget denies it: ask once only


async def take_turns(attempts: Attempts) -> Any:
    """Make the attempts one after the other, each after a failure."""
    try:
        while not attempts.is_decided and attempts.begin():
            if attempts.number:
                await anyio.lowlevel.checkpoint()  # a cancellation is noticed, however the callee fails
            await attempts.make()
    except GeneratorExit:
        raise  # nothing can be awaited any more
    except BaseException:
        await attempts.close_results()
        raise
    finally:
        attempts.settle()
    return await attempts.end()

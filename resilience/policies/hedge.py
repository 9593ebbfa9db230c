"""A second attempt beside a slow one: what matters is that one of them answers soon."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from math import ceil, inf
from typing import Any, ClassVar, Final

import anyio
import anyio.lowlevel

from resilience.checks import check_function, check_int, check_number, is_async, shown
from resilience.clock import Clock
from resilience.errors import ConfigurationError
from resilience.events import HedgeLaunched, HedgeWon, RetrySuppressed, emit

from .budget import RetryBudget
from .discard import discard_async
from .policy import Policy, Site
from .writes import refuse_write

_REMEMBERED: Final = 100  # latencies


class Quantile:
    """A delay that follows what calls usually take: that quantile of the latest successful ones.

    Args:
        share: of calls that take no longer, above 0 and below 1. Default 0.95: one call in twenty is hedged.
        warmup: successful calls before the first hedge, 1 to 100. Default 20. The latest 100 are remembered.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(self, share: float = 0.95, *, warmup: int = 20) -> None:
        check_number("share", share, above=0)
        if share >= 1:
            raise ConfigurationError(f"share must be below 1, got {shown(share)}")
        check_int("warmup", warmup, most=_REMEMBERED)
        self.share = share
        self.warmup = warmup
        self._latest: deque[float] = deque(maxlen=_REMEMBERED)

    def __repr__(self) -> str:
        return f"<Quantile {self.share:g}, {len(self._latest)} calls remembered>"

    def note(self, seconds: float) -> None:
        """Remember what a successful attempt took."""
        self._latest.append(seconds)

    def delay(self) -> float:
        """Give the seconds after which an attempt is slow; infinity while too few are known."""
        known = sorted(self._latest.copy())
        return known[ceil(self.share * len(known)) - 1] if len(known) >= self.warmup else inf


class Hedge(Policy):
    """Starts another attempt beside one that is slow, and takes the first answer.

    For calls that may be made twice: reads, and writes with an idempotency key. The attempts that lost are cancelled
    and waited for, and results that come too late are closed by their `aclose` or `close`. An attempt that fails starts
    the next at once. When all have failed, the error of the first comes out.

        @Hedge(Quantile(0.95), idempotent=True, budget=budget)
        async def read(key: str) -> bytes: ...

    Args:
        delay: seconds >= 0 until the next attempt: 0 starts all at once, `math.inf` the next only when one has failed;
            or a `Quantile`.
        max_hedges: attempts besides the first, >= 1. Default 1.
        idempotent: must be True: the work may be done several times.
        budget: a `RetryBudget` that each further attempt is taken from, best the one of the retry around it. Without a
            right to it the call goes on with what is under way.
        clock: monotonic seconds, for the times that are told and remembered.
        name: in events; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value that makes no sense; put around a plain function, or one that is marked as `writes`.

    Cancellation: all attempts are cancelled and waited for.

    Cost: about 30 us for the tasks of a call, none with a delay of `math.inf`.
    """

    kind: ClassVar[str] = "hedge"
    title: ClassVar[str] = "a hedge"

    def __init__(
        self,
        delay: float | Quantile,
        *,
        max_hedges: int = 1,
        idempotent: bool,
        budget: RetryBudget | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        if not isinstance(delay, Quantile) and delay != inf:
            check_number("delay", delay, least=0)
        check_int("max_hedges", max_hedges)
        if idempotent is not True:
            raise ConfigurationError(
                f"idempotent must be True, got {shown(idempotent)}: a hedge does the work several times at once"
            )
        if budget is not None and not isinstance(budget, RetryBudget):
            raise ConfigurationError(f"budget must be a RetryBudget, got {shown(budget)}")
        check_function("clock", clock)
        self.delay = delay
        self.max_hedges = max_hedges
        self.budget = budget
        self._clock = clock

    def __repr__(self) -> str:
        when = repr(self.delay) if isinstance(self.delay, Quantile) else f"{self.delay:g} s"
        return f"<Hedge after {when}, at most {self.max_hedges} more>"

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that asks again when it takes long.

        Raises:
            ConfigurationError: a plain function, or one that is marked as a write.
        """
        refuse_write(site.origin, self.title)
        if not is_async(function):
            raise ConfigurationError(f"a hedge needs an async function, {site.name} is a plain one")
        hedged = self._in_turn(function, site) if self.delay == inf else self._beside(function, site)
        budget = self.budget
        if budget is None:
            return hedged

        async def counted(*args: Any, **kwargs: Any) -> Any:
            budget.begin_call()
            try:
                return await hedged(*args, **kwargs)
            finally:
                budget.end_call()

        return counted

    def _in_turn(self, function: Callable[..., Awaitable[Any]], site: Site) -> Callable[..., Awaitable[Any]]:
        """Ask again when an attempt has failed only: no task is needed."""

        async def hedged(*args: Any, **kwargs: Any) -> Any:
            first: Exception | None = None
            number = 0
            try:
                while True:
                    try:
                        result = await function(*args, **kwargs)
                    except Exception as error:  # noqa: BLE001 - that of the first comes out when all have failed
                        first = first or error
                    else:
                        if number:
                            self._tell(HedgeWon, site, number)
                        return result
                    finally:
                        self._give_back(number)
                    number += 1
                    if number > self.max_hedges or not self._may_launch(site, number):
                        raise first
            finally:
                first = None  # it holds this frame

        return hedged

    def _beside(self, function: Callable[..., Awaitable[Any]], site: Site) -> Callable[..., Awaitable[Any]]:
        async def hedged(*args: Any, **kwargs: Any) -> Any:
            race = _Race(self, site, lambda: function(*args, **kwargs))
            try:
                await race.run()
                return race.outcome()
            finally:
                race.errors.clear()  # they hold this frame

        return hedged

    def _may_launch(self, site: Site, number: int) -> bool:
        if self.budget is not None and not self.budget.take():
            if RetrySuppressed.sinks:
                emit(RetrySuppressed(site.name, self._clock(), reason="budget"))
            return False
        self._tell(HedgeLaunched, site, number)
        return True

    def _give_back(self, number: int) -> None:
        if number and self.budget is not None:
            self.budget.give_back()

    def _tell(self, event: type[HedgeLaunched | HedgeWon], site: Site, number: int) -> None:
        if event.sinks:
            emit(event(site.name, self._clock(), number=number))


class _Race:
    """The attempts of one call."""

    def __init__(self, hedge: Hedge, site: Site, attempt: Callable[[], Awaitable[Any]]) -> None:
        self.errors: dict[int, Exception] = {}
        self._hedge = hedge
        self._site = site
        self._attempt = attempt
        self._winner: int | None = None
        self._result: Any = None
        self._moved = anyio.Event()
        self._owed: set[int] = set()

    async def run(self) -> None:
        """Have attempts made until one succeeds, or all have failed."""
        delay = self._hedge.delay
        seconds = delay.delay() if isinstance(delay, Quantile) else delay
        try:
            # What the attempts raise stays in them: nothing but a cancellation comes out of this group, or what ends
            # programs.
            async with anyio.create_task_group() as group:
                launched, most = 1, 1 + self._hedge.max_hedges
                group.start_soon(self._run, 0)
                while not self._is_won() and len(self.errors) < launched:
                    with anyio.move_on_after(seconds if launched < most else None):
                        await self._moved.wait()
                    # An answer that comes at this very moment is in time.
                    await anyio.lowlevel.checkpoint()
                    self._moved = anyio.Event()
                    if self._is_won() or launched == most:
                        continue
                    if self._hedge._may_launch(self._site, launched):  # noqa: SLF001 - a part of the hedge
                        self._owed.add(launched)
                        group.start_soon(self._run, launched)
                        launched += 1
                    else:
                        most = launched
                group.cancel_scope.cancel()
        except BaseException as error:
            if self._winner is not None:
                await discard_async(self._result)
            if isinstance(error, BaseExceptionGroup):  # of what ends programs: one is enough
                raise error.exceptions[0] from None
            raise
        finally:
            for number in list(self._owed):  # of tasks that were cancelled before they began
                self._settle(number)

    def _is_won(self) -> bool:
        return self._winner is not None

    def outcome(self) -> Any:
        """Give the result of the winner, or raise the error of the first attempt."""
        if self._winner is None:
            raise self.errors[0]
        if self._winner:
            self._hedge._tell(HedgeWon, self._site, self._winner)  # noqa: SLF001 - a part of the hedge
        return self._result

    async def _run(self, number: int) -> None:
        hedge = self._hedge
        began = hedge._clock()  # noqa: SLF001 - as above
        try:
            result = await self._attempt()
        except Exception as error:  # noqa: BLE001 - kept until it is known whether another succeeds
            self.errors[number] = error
        else:
            if self._winner is None:
                self._winner, self._result = number, result
                if isinstance(hedge.delay, Quantile):
                    hedge.delay.note(hedge._clock() - began)  # noqa: SLF001 - as above
            else:
                await discard_async(result)
        finally:
            self._settle(number)
            self._moved.set()

    def _settle(self, number: int) -> None:
        if number in self._owed:
            self._owed.remove(number)
            self._hedge._give_back(number)  # noqa: SLF001 - as above

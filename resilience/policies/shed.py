"""Refusing calls while this process has more to do than it can."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from math import inf, isnan
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import anyio
import anyio.abc

from resilience.checks import check_function, check_number, is_async
from resilience.clock import Clock
from resilience.errors import ConfigurationError, RejectedError, type_name
from resilience.events import PolicyHookFailed, ShedRejected, emit

from .policy import Policy, Site, refuse_awaitable

_INTERVAL: Final = 0.02  # seconds between two looks
_HALF_LIFE: Final = 0.5  # seconds in which an old lag counts half


class LoadShed(Policy):
    """Refuses calls while the event loop of this process lags, or another measure of load is too high.

    The lag is how late the wake-ups of a task of its own come: what every other task waits as well. It looks each 20
    ms, takes the worst, and lets that fade with a half-life of 0.5 s, so that one long step is not forgotten in the
    next moment. The task lives as long as the block:

        async with LoadShed(0.1) as shed:
            protected = Pipeline(shed, ...)

    Args:
        max_lag: seconds, > 0. Default 0.1.
        load: another measure, a plain function that gives a number; asked with each call. Then no block is needed.
        max_load: calls are refused above it; with `load` only.
        clock: monotonic seconds.
        name: in events and errors; None is the name of the pipeline, or of the function.

    Raises:
        ConfigurationError: a value out of its range; from the function, if the block was not entered.
        RejectedError: from the function, `policy` "load_shed", `reason` "shed". The function was not called.

    Cancellation: ends the block, and its task.
    """

    kind: ClassVar[str] = "shed"
    title: ClassVar[str] = "load shedding"

    def __init__(
        self,
        max_lag: float = 0.1,
        *,
        load: Callable[[], float] | None = None,
        max_load: float | None = None,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        check_number("max_lag", max_lag, above=0)
        if (load is None) is not (max_load is None):
            raise ConfigurationError("load and max_load must be given together")
        if load is not None:
            check_function("load", load)
            check_number("max_load", max_load)
        check_function("clock", clock)
        self.max_lag = max_lag
        self._load = load
        self._most = max_lag if max_load is None else max_load
        self._clock = clock
        self._lag = 0.0
        self._looked_at = 0.0
        self._due: float | None = None  # the next look; None outside of the block
        self._group: anyio.abc.TaskGroup | None = None

    @property
    def lag(self) -> float:
        """Seconds by which the event loop lags; 0 outside of the block."""
        if self._due is None:
            return 0.0
        now = self._clock()
        # A look that is overdue tells of the lag before it has come.
        return max(now - self._due, self._faded(now))

    def __repr__(self) -> str:
        if self._load is not None:
            return f"<LoadShed above a load of {self._most:g}>"
        return f"<LoadShed above {self.max_lag:g} s, lag {self.lag:.3g} s>"

    async def __aenter__(self) -> Self:
        """Begin to measure.

        Raises:
            ConfigurationError: it measures already.
        """
        if self._group is not None:
            raise ConfigurationError(f"{self!r} was entered twice: it measures one event loop")
        self._lag = 0.0
        self._looked_at = self._clock()
        self._due = self._looked_at + _INTERVAL
        self._group = await anyio.create_task_group().__aenter__()
        # In a context of its own: what the block's caller has bound, such as a request's id, is not the task's.
        contextvars.Context().run(self._group.start_soon, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._group is None:
            return
        self._group.cancel_scope.cancel()
        try:
            # Without the block's error: its task raises nothing, and the group would wrap what is not its own.
            await self._group.__aexit__(None, None, None)
        finally:
            self._group = self._due = None  # not before: the task may be about to look, once more or for the first time

    def around(self, function: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """Give a function that is called only while there is time for it."""
        if is_async(function):

            async def shed(*args: Any, **kwargs: Any) -> Any:
                self._let_in(site)
                return await function(*args, **kwargs)

            return shed

        def shed_sync(*args: Any, **kwargs: Any) -> Any:
            self._let_in(site)
            result = function(*args, **kwargs)
            refuse_awaitable(result, self.title)
            return result

        return shed_sync

    async def _look(self) -> None:
        while True:
            now = self._clock()
            self._due = now + _INTERVAL
            await anyio.sleep(_INTERVAL)
            now = self._clock()
            self._lag, self._looked_at = max(now - self._due, self._faded(now)), now

    def _faded(self, now: float) -> float:
        return float(self._lag * 0.5 ** ((now - self._looked_at) / _HALF_LIFE))

    def _let_in(self, site: Site) -> None:
        load = self._measured(site)
        if load <= self._most:
            return
        if ShedRejected.sinks:
            emit(ShedRejected(site.name, self._clock(), load=load))
        raise RejectedError(site.name, "load_shed", "shed")

    def _measured(self, site: Site) -> float:
        if self._load is None:
            if self._due is None:
                raise ConfigurationError(f"{self!r} must be entered before it is used: async with it")
            return self.lag
        try:
            load = float(self._load())
            if not isnan(load):
                return load
            raise ValueError  # noqa: TRY301 - as any other that is of no use
        except Exception as error:  # noqa: BLE001 - a measure that fails must not refuse everybody
            if PolicyHookFailed.sinks:
                emit(PolicyHookFailed(site.name, self._clock(), hook="load", error_type=type_name(error)))
            return -inf

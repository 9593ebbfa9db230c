"""A callee that does as it is told, and the two ways to call it through a retry: in async and in sync code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resilience.events import RetryStopped
from resilience.policies import Retry


class Callee:
    """Gives or raises, call by call, what it was told; the last for ever."""

    def __init__(self, *ends: Any) -> None:
        self.ends = ends
        self.calls = 0

    def __call__(self) -> Any:
        end = self.ends[min(self.calls, len(self.ends) - 1)]
        self.calls += 1
        if isinstance(end, BaseException):
            raise end
        return end


class World:
    """Makes calls, and tells the seconds that passed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    async def call(self, callee: Callable[[], Any], attempts: int | None = 3, **options: Any) -> Any:
        raise NotImplementedError


class Async(World):
    async def call(self, callee: Callable[[], Any], attempts: int | None = 3, **options: Any) -> Any:
        async def run() -> Any:
            return callee()

        return await Retry(attempts, clock=self.clock, name="search", **{"wait": 1.0} | options)(run)()


class Sync(World):
    async def call(self, callee: Callable[[], Any], attempts: int | None = 3, **options: Any) -> Any:
        clock: Any = self.clock

        def run() -> Any:
            return callee()

        return Retry(attempts, clock=clock, sleep=clock.advance, name="search", **{"wait": 1.0} | options)(run)()


async def raised(world: World, callee: Callable[[], Any], *args: Any, **options: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each test looks at what it is
        await world.call(callee, *args, **options)
    error: BaseException = caught.value
    return error


def reasons(told: list[Any]) -> list[str]:
    return [event.stop_reason for event in told if isinstance(event, RetryStopped)]

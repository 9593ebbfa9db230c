"""Whether an event loop runs in this thread."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from resilience.runs import is_in_event_loop


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_event_loop_runs_in_its_own_thread_only(backend: str) -> None:
    async def main() -> tuple[bool, bool, bool]:
        def asked_from_thread() -> bool:
            return anyio.from_thread.run_sync(is_in_event_loop)

        threads = [await anyio.to_thread.run_sync(ask) for ask in (is_in_event_loop, asked_from_thread)]
        return is_in_event_loop(), threads[0], threads[1]

    assert anyio.run(main, backend=backend) == (True, False, True)
    assert not is_in_event_loop()


def test_it_runs_in_its_callbacks_too() -> None:
    async def main() -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.set_result(is_in_event_loop()))
        return await future

    assert asyncio.run(main())


@pytest.mark.parametrize("lowlevel", [None, ModuleType("trio.lowlevel")])
def test_trio_may_be_absent_or_be_imported_just_now(
    monkeypatch: pytest.MonkeyPatch, lowlevel: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "trio.lowlevel", lowlevel)
    assert not is_in_event_loop()

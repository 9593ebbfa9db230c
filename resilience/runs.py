"""The event loop that a task runs in: having something done there, from any thread; and whether there is one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module

Caller = Callable[[Callable[[], object]], object]


def caller_of_this_run() -> Caller:
    """Give a function by which any thread has something done in the run of this task; it raises when the run is over.

    Raises, when it is called:
        RuntimeError: the run is over (trio's `RunFinishedError` is one).
    """
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        token = import_module("trio").lowlevel.current_trio_token()
        call: Caller = token.run_sync_soon
        return call


def is_in_event_loop() -> bool:
    """Tell whether an event loop runs in this thread: whoever waits here without an await holds up all its tasks."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - public, and what asks for one raises when there is none
        return True
    # Not there at all, or only half of it, while another thread imports trio.
    in_trio_run = getattr(sys.modules.get("trio.lowlevel"), "in_trio_run", None)
    return in_trio_run is not None and in_trio_run()

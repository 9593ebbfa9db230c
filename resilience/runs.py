"""Having something done in the event loop that a task runs in, from any thread."""

from __future__ import annotations

import asyncio
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

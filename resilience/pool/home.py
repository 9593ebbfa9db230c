"""The run that a pool belongs to: the event loop in which it was entered, and the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any


class Home:
    """The event loop that runs now, asyncio's or trio's; recognised at the price of one look.

    Raises:
        RuntimeError: none runs.
    """

    __slots__ = ("current_task", "find_run", "run")

    def __init__(self) -> None:
        find: Callable[[], Any]
        task: Callable[[], Any]
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            import trio  # noqa: PLC0415 - only a program that runs on trio has it

            find, task = trio.lowlevel.current_trio_token, trio.lowlevel.current_task
        else:
            loop = asyncio.get_running_loop()
            # Given the loop it need not look for it.
            find, task = asyncio.get_running_loop, partial(asyncio.current_task, loop)
        self.find_run = find
        self.run = find()
        self.current_task: Callable[[], Any] = task
        """Gives the task that runs now."""

    def is_here(self) -> bool:
        """Tell whether the caller is in this run."""
        try:
            return self.find_run() is self.run
        except RuntimeError:
            return False

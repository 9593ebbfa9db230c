"""Closing results that nobody gets: of retries on a result, and of hedges that lost."""

from __future__ import annotations

from contextlib import suppress
from inspect import isawaitable, iscoroutine
from typing import Any, Final

import anyio

_LONGEST: Final = 5.0  # seconds for a result to close


def discard(result: object) -> None:
    """Close a result by its `close`, if it has one; what that raises is nobody's business."""
    with suppress(Exception):  # also of the attribute itself
        close = getattr(result, "close", None)
        answer = close() if callable(close) else None
        if iscoroutine(answer):  # nobody can wait for it here
            answer.close()


async def discard_async(result: object) -> None:
    """Close a result by its `aclose`, else its `close`; whatever cancels the caller, but in 5 s."""
    await discard_all([result])


async def discard_all(results: list[Any]) -> None:
    """Close results as `discard_async` does one, in turn and all together in 5 s: who waits for it is the caller.

    What strikes through the shield, as asyncio's own cancellation does, is raised when all have been asked to close.
    """
    ends = anyio.current_time() + _LONGEST
    struck: BaseException | None = None
    for result in results:
        try:
            with anyio.move_on_after(max(0.0, ends - anyio.current_time()), shield=True):
                await _close(result)
        except GeneratorExit:
            raise  # nothing can be awaited any more
        except BaseException as error:  # noqa: BLE001 - raised below
            struck = error
    if struck is not None:
        raise struck


async def _close(result: Any) -> None:
    with suppress(Exception):  # also of the attribute itself
        close = getattr(result, "aclose", None) or getattr(result, "close", None)
        answer = close() if callable(close) else None
        if isawaitable(answer):
            await answer

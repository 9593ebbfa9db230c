"""Closing results that nobody gets: of retries on a result, and of hedges that lost."""

from __future__ import annotations

from contextlib import suppress
from inspect import isawaitable, iscoroutine
from typing import Final

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
    with suppress(Exception):
        close = getattr(result, "aclose", None) or getattr(result, "close", None)
        answer = close() if callable(close) else None
        if isawaitable(answer):
            with anyio.move_on_after(_LONGEST, shield=True):
                await answer

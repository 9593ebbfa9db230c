"""Closing results that nobody gets: of retries on a result, and of hedges that lost."""

from __future__ import annotations

from contextlib import suppress
from inspect import isawaitable
from typing import Final

import anyio

_LONGEST: Final = 5.0  # seconds for a result to close


def discard(result: object) -> None:
    """Close a result by its `close`, if it has one; what that raises is nobody's business."""
    close = getattr(result, "close", None)
    if callable(close):
        with suppress(Exception):
            close()


async def discard_async(result: object) -> None:
    """Close a result by its `aclose`, else its `close`; whatever cancels the caller, but in 5 s."""
    close = getattr(result, "aclose", None) or getattr(result, "close", None)
    if not callable(close):
        return
    with suppress(Exception), anyio.move_on_after(_LONGEST, shield=True):
        answer = close()
        if isawaitable(answer):
            await answer

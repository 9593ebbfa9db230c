"""Raising an error again, later and elsewhere, as it was."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn


def raise_unchanged(error: BaseException, traceback: TracebackType | None) -> NoReturn:
    """Raise `error` with its context, and `traceback` below the frames that it passes from here on.

    A plain `raise` would do two things to an error that was kept: in somebody's except block replace its context by
    what is handled there, and add this way's frames to those of all the ways before.
    """
    context = error.__context__
    try:
        raise error.with_traceback(traceback)
    finally:
        # Past a `__setattr__` of its own: a frozen error would raise another one here.
        BaseException.__setattr__(error, "__context__", context)
        del error, traceback, context

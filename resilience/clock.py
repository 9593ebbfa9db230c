"""The clock that everything here measures by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
"""A callable that gives seconds since some fixed moment and never runs backwards.

Every object that measures time takes one as `clock=` and reads it once per operation. The default is
`time.monotonic`. Pass `anyio.current_time` or a `resilience.testing.VirtualClock` in tests, so that decisions and
waits share one time. Never pass `time.time`: NTP, a suspend or an operator may set the wall clock back, and that
would keep a circuit open, or a window full, for as long as the step was. Wall time appears in events
only.
"""

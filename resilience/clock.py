"""What time is, here: seconds from a callable that never runs backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
"""A callable that gives seconds since some fixed moment and never runs backwards.

Every object that measures time takes one as `clock=` and reads it once per operation. The default is
`time.monotonic`. Pass `anyio.current_time` or a `resilience.testing.VirtualClock` in tests, so that decisions and
waits share one time. Never pass `time.time`: the wall clock is stepped by NTP, by suspended machines and by hand, and
a backward step would keep a circuit open, or a window full, for as long as the step was. Wall time appears in events
only.
"""

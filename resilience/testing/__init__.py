"""What tests of code that uses `resilience` need, ours included."""

from __future__ import annotations

from .clock import Deadlock, VirtualClock

__all__ = ["Deadlock", "VirtualClock"]

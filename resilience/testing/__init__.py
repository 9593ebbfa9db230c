"""What tests of code that uses `resilience` need, ours included."""

from __future__ import annotations

from .clock import Deadlock, VirtualClock
from .explorer import Exploration, ExplorationFailed, ExploredGroup, ExploredRun, Schedule, explore

__all__ = [
    "Deadlock",
    "Exploration",
    "ExplorationFailed",
    "ExploredGroup",
    "ExploredRun",
    "Schedule",
    "VirtualClock",
    "explore",
]

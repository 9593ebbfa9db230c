"""The worlds that retries are called in; and each story is told twice, on asyncio and on trio, in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from resilience.events import Event, capture
from resilience.testing import VirtualClock

from .callees import Async, Sync, World

_told: dict[str, list[tuple[object, ...]]] = {}
"""What the tests told on the loop that came first, by their names without the loop's."""


@pytest.fixture(params=["async", "sync"])
def world(request: pytest.FixtureRequest) -> World:
    return Async(anyio.current_time) if request.param == "async" else Sync(VirtualClock(autojump=False))


@pytest.fixture(autouse=True)
def same_events_on_both_loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare what a test makes the library tell on one loop with what it told on the other: scenario 37."""
    loop = getattr(request.node, "callspec", None) and request.node.callspec.params.get("anyio_backend")
    if loop not in {"asyncio", "trio"} or request.node.get_closest_marker("tells_by_chance"):
        yield
        return
    with capture() as events:
        yield
    told = [_words(event) for event in events]
    name = request.node.nodeid.replace(loop, "*")
    assert _told.setdefault(name, told) == told


def _words(event: Event) -> tuple[object, ...]:
    """Give what an event says, without what no two runs have in common: times, and numbers of calls."""
    facts: dict[str, Any] = event.as_dict()
    told = [value for field, value in facts.items() if field not in {"seq", "call_id"} and not isinstance(value, float)]
    return tuple(told)

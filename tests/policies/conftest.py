from __future__ import annotations

import anyio
import pytest

from resilience.testing import VirtualClock

from .callees import Async, Sync, World


@pytest.fixture(params=["async", "sync"])
def world(request: pytest.FixtureRequest) -> World:
    return Async(anyio.current_time) if request.param == "async" else Sync(VirtualClock(autojump=False))

"""What every test starts from: no log lines, and a clock that stands still until it is told to move."""

from __future__ import annotations

import pytest

from resilience.events import disable_logging
from resilience.testing import VirtualClock

disable_logging()


@pytest.fixture
def clock() -> VirtualClock:
    """A clock for tests without a loop: `clock.advance(seconds)`."""
    return VirtualClock(autojump=False)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Both backends, on virtual time."""
    return request.param, VirtualClock().backend_options(request.param)

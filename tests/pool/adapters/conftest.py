"""What tests of adapters share."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel

from resilience.pool import ConnectionPool


async def until_idle(pool: ConnectionPool[Any]) -> None:
    """Wait until a connection has come back to the end: its reset may take a round trip after the release."""
    with anyio.fail_after(5):
        while not pool.stats().idle:
            await anyio.lowlevel.checkpoint()

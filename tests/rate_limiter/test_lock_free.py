"""The quick way to admit from memory takes no lock: what that stands on, and that no call is lost by it."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Iterator

import pytest

from resilience import MemoryStore, RateLimiter
from resilience.rate_limiter.memory import Space

CHANGES_THREADS = ("CALL", "PRECALL", "JUMP_BACKWARD", "RESUME", "YIELD", "SEND", "FOR_ITER", "POP_JUMP_BACKWARD")
"""Instructions at which the interpreter may let another thread run."""


def test_no_thread_can_come_between_reading_a_state_and_changing_it() -> None:
    instructions = list(dis.get_instructions(Space.acquire))
    asked = next(index for index, one in enumerate(instructions) if one.argval == "busy")
    changed = next(index for index, one in enumerate(instructions) if one.opname == "STORE_SUBSCR")
    assert 0 < asked < changed
    between = [one.opname for one in instructions[asked:changed]]
    assert not [name for name in between if name.startswith(CHANGES_THREADS)]


@pytest.fixture
def hasty() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_threads_at_one_key_get_exactly_what_the_limit_allows() -> None:
    """Beside others that take it back, look, and bring new keys, all of which take the lock."""
    limiter = RateLimiter("20000/hour", name="storm", store=MemoryStore(64), clock=lambda: 0.0)
    admitted: list[int] = []
    given_back: list[int] = []
    start = threading.Barrier(6)

    def take() -> None:
        start.wait()
        admitted.append(sum(limiter.try_acquire_sync("key").allowed for _ in range(3_000)))

    def disturb() -> None:
        start.wait()
        for number in range(300):
            limiter.peek_sync("key")
            limiter.try_acquire_sync(f"other {number}")
            if number % 3 == 0 and limiter.try_acquire_sync("key"):
                limiter.refund_sync("key")
                given_back.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)] + [threading.Thread(target=disturb) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while limiter.try_acquire_sync("key"):
        admitted.append(1)
    assert sum(admitted) == 20_000
    assert given_back

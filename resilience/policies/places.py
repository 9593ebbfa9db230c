"""Places for calls: so many at once, and a line of those who wait for one; for tasks of any loop and for threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from math import inf

import anyio

from resilience.deadline import seconds_left
from resilience.forks import renew_locks_in_child
from resilience.runs import caller_of_this_run


class _Waiter:
    """One who waits. `served` is set under the lock: from then on the place is the waiter's, awake or not.

    `lost` is who could not be woken, because the event loop is over: the place has gone to the next.
    """

    __slots__ = ("lost", "served", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.served = self.lost = False


class Places:
    """Counts who is in, and serves those who wait in the order of their arrival.

    Args:
        limit: calls at once; may be changed by `move`.
        most_waiting: calls in line.

    Attributes:
        limit: as it is now.
        taken: calls that are in.
    """

    def __init__(self, limit: int, most_waiting: int) -> None:
        self.limit = limit
        self.most_waiting = most_waiting
        self.taken = 0
        self._line: OrderedDict[_Waiter, None] = OrderedDict()
        # Guards all of these. Held around arithmetic only: no await, no waking, no code of users.
        self._lock = threading.Lock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked child: those who are in, or wait, are the parent's."""
        self._lock = threading.Lock()
        self.taken = 0
        self._line = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._line)

    @property
    def is_full(self) -> bool:
        """Whether who comes now is refused."""
        return self.taken >= self.limit and len(self._line) >= self.most_waiting

    def take(self) -> bool:
        """Take a place if one is free; `give_back` must follow then. While one is free nobody waits."""
        with self._lock:
            if self.taken >= self.limit:
                return False
            self.taken += 1
            return True

    def give_back(self) -> None:
        """Give a place back: to the first in line, if there is one."""
        with self._lock:
            self.taken = max(0, self.taken - 1)  # a forked child may end what its parent began
            served = self._serve()
        self._wake(served)

    def move(self, limit: int) -> None:
        """Change the limit. Who is in stays in; who waits is served if there is more room now."""
        with self._lock:
            self.limit = limit
            served = self._serve()
        self._wake(served)

    async def wait(self, timeout: float | None) -> str:  # noqa: ASYNC109 - many wait, each for so long
        """Wait in line for a place.

        Args:
            timeout: seconds; None waits as long as it takes.

        Returns:
            Why there is none: "full" or "timeout"; empty if there is, and `give_back` must follow.

        Cancellation: who was served meanwhile passes the place on.
        """
        event = anyio.Event()
        call = caller_of_this_run()
        waiter = _Waiter(lambda: call(event.set))
        if not self._enter(waiter):
            return "full"
        if waiter.served:
            return ""
        try:
            with anyio.move_on_after(timeout):
                await event.wait()
        except BaseException:
            if not self._leave(waiter):
                self.give_back()
            raise
        return "timeout" if self._leave(waiter) else ""

    def wait_sync(self, timeout: float | None) -> str:
        """Do the same in sync code; a `Deadline` around it ends the wait as well."""
        event = threading.Event()
        waiter = _Waiter(event.set)
        if not self._enter(waiter):
            return "full"
        if waiter.served:
            return ""
        longest = min(inf if timeout is None else timeout, seconds_left())
        try:
            event.wait(None if longest == inf else max(0.0, longest))
        except BaseException:
            if not self._leave(waiter):
                self.give_back()
            raise
        return "timeout" if self._leave(waiter) else ""

    def _enter(self, waiter: _Waiter) -> bool:
        with self._lock:
            if self.taken < self.limit:  # it became free just now
                self.taken += 1
                waiter.served = True
                return True
            if len(self._line) >= self.most_waiting:
                return False
            self._line[waiter] = None
            return True

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the line; False if the waiter has a place already."""
        with self._lock:
            if waiter.served:
                return waiter.lost
            del self._line[waiter]
            return True

    def _serve(self) -> list[_Waiter]:
        served = []
        while self._line and self.taken < self.limit:
            waiter, _ = self._line.popitem(last=False)
            waiter.served = True
            self.taken += 1
            served.append(waiter)
        return served

    def _wake(self, served: list[_Waiter]) -> None:
        """Wake those who were served; a place whose taker's event loop is over goes to the next."""
        for waiter in served:
            try:
                waiter.wake()
            except RuntimeError:
                waiter.lost = True
                self.give_back()

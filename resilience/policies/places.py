"""Places for calls: so many at once, and a line of those who wait for one; for tasks of any loop and for threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import anyio

from resilience.deadline import seconds_left
from resilience.forks import renew_locks_in_child
from resilience.runs import caller_of_this_run, is_in_event_loop


class _Waiter:
    """One who waits.

    Attributes:
        wake: ends the wait, from any thread.
        served: whether it has a place, awake or not.
        gone: whether it wants none any more.
    """

    __slots__ = ("gone", "served", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.served = self.gone = False


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
        # Guards all of these. Held around arithmetic only: no await, no waking, no code of users. The garbage collector
        # may end a call under it, though, wherever the thread that holds it calls something. Hence it is reentrant, and
        # the books are right at each of these moments: a place is counted before it is given to somebody.
        self._lock = threading.RLock()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked child: those who are in, or wait, are the parent's."""
        self._lock = threading.RLock()
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
            if self.taken:  # a forked child may end what its parent began
                self.taken -= 1
            if not self._line:
                return
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
        try:
            with anyio.move_on_after(timeout):
                await event.wait()
        except BaseException:
            if self._leave(waiter):
                self.give_back()
            raise
        return "" if self._leave(waiter) else "timeout"

    def wait_sync(self, timeout: float | None) -> str:
        """Do the same in sync code; a `Deadline` around it ends the wait as well.

        Returns:
            Also "event_loop": one runs in this thread, and would stand still, as would who is to give a place back.
        """
        if self.most_waiting and is_in_event_loop():
            return "event_loop"
        # Not an Event, whose lock the collector may find held when it has this thread woken.
        gate = threading.Lock()
        gate.acquire()
        waiter = _Waiter(gate.release)
        longest = min(threading.TIMEOUT_MAX if timeout is None else timeout, seconds_left(), threading.TIMEOUT_MAX)
        if not self._enter(waiter):
            return "full"
        try:
            gate.acquire(timeout=max(0.0, longest))
        except BaseException:
            if self._leave(waiter):
                self.give_back()
            raise
        return "" if self._leave(waiter) else "timeout"

    def _enter(self, waiter: _Waiter) -> bool:
        """Stand in line, if there is room."""
        with self._lock:
            if len(self._line) >= self.most_waiting:
                return False
            self._line[waiter] = None
            served = self._serve()  # a place became free just now
        self._wake(served)
        return True

    def _leave(self, waiter: _Waiter) -> bool:
        """Leave the line; True if the waiter has a place, which is the caller's from then on: one is told so."""
        with self._lock:
            waiter.gone = True
            served, waiter.served = waiter.served, False
            self._line.pop(waiter, None)
            return served

    def _serve(self) -> list[_Waiter]:
        served: list[_Waiter] = []
        while True:
            # Written so that nothing comes between the look and the count: no call, and no turn of the loop.
            if not self._line or self.taken >= self.limit:
                return served
            self.taken += 1
            waiter, _ = self._line.popitem(last=False)
            if waiter.gone:  # the collector took it just now
                self.taken -= 1
            else:
                waiter.served = True
                served.append(waiter)

    def _wake(self, served: list[_Waiter]) -> None:
        """Wake those who were served; the place of one whose event loop is over goes to the next."""
        for waiter in served:  # which grows meanwhile
            try:
                waiter.wake()
            except RuntimeError:
                with self._lock:
                    if self._leave(waiter):
                        self.taken -= 1
                        served += self._serve()

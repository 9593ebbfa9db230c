"""Which computation waits for which: two that ask for each other must not both wait."""

from __future__ import annotations

import threading
from typing import TypeAlias

from resilience.forks import renew_locks_in_child

Marks: TypeAlias = "tuple[Mark, ...]"


class Mark:
    """Stands for a computation in contexts, which may live long: they must not keep its result alive."""

    __slots__ = ("awaited",)

    def __init__(self) -> None:
        self.awaited: list[Mark] = []  # by code that is part of this computation

    def await_by(self, leading: Marks) -> bool:
        """Note that code which is part of computations waits for this one; False, and nothing noted, if it is in vain.

        That is so where this one waits for one of them, directly or through others: then all would wait for ever.
        `leave` must follow.
        """
        if not leading:
            return True
        with _graph.lock:
            seen: list[Mark] = []
            pending = [self]
            while pending:
                mark = pending.pop()
                if any(mark is one for one in leading):
                    return False
                if not any(mark is one for one in seen):
                    seen.append(mark)
                    pending.extend(mark.awaited)
            for one in leading:
                one.awaited.append(self)
        return True

    def leave(self, leading: Marks) -> None:
        """Note that the wait is over."""
        if leading:
            with _graph.lock:
                for one in leading:
                    if self in one.awaited:
                        one.awaited.remove(self)


class _Graph:
    """The lock of all that wait, whatever their cache: what two caches know of each other is one circle."""

    def __init__(self) -> None:
        self.renew_locks()
        renew_locks_in_child(self)

    def renew_locks(self) -> None:
        self.lock = threading.RLock()


_graph = _Graph()

"""How many connections several pools may have together: a server's limit, shared by those who use it."""

from __future__ import annotations

from math import inf
from typing import Protocol

from resilience.checks import check_int
from resilience.errors import PoolUsageError

from .config import MAX_SIZE


class Member(Protocol):
    """A pool, as its budget knows it."""

    def is_here(self) -> bool:
        """Tell whether it belongs to the event loop that runs now."""

    def waiting_since(self) -> float:
        """Give the moment since which it would open a connection, on the clock of all members; inf if it would not."""

    def grow(self) -> bool:
        """Open what is wanted and allowed now; tell whether that was anything."""

    def idle_since(self) -> float:
        """Give since when the connection is idle that it can spare first; inf if it can spare none."""

    def give_up_one(self) -> None:
        """Close that one."""


class Budget:
    """Connections that several pools may have together, those that are being opened and closed included.

        budget = Budget(90)  # max_connections of the server, less those that it keeps for administrators
        shop = create_pool(SHOP, max_size=60, budget=budget)
        mail = create_pool(MAIL, max_size=60, budget=budget)

    Each pool stays within its own `max_size`. Where nothing is left, a pool whose callers wait gets the next connection
    that another one closes, the one whose caller has waited longest first; and a pool that has idle connections above
    its `min_size` gives up the one that has been idle for longest. The pools must be of one event loop.

    Args:
        connections: at least 1.

    Raises:
        ConfigurationError: not a number of connections.
    """

    def __init__(self, connections: int) -> None:
        check_int("connections", connections, most=MAX_SIZE)
        self._connections = connections
        self._used = 0
        self._closing = 0
        self._members: list[Member] = []
        self._settling = False

    def __repr__(self) -> str:
        return f"<Budget {self._used} of {self._connections} connections, {len(self._members)} pools>"

    @property
    def connections(self) -> int:
        """The pools may have so many."""
        return self._connections

    @property
    def left(self) -> int:
        """So many may be opened now."""
        return self._connections - self._used

    def take(self, connections: int) -> None:
        """Note that so many are being opened."""
        self._used += connections

    def note_closing(self) -> None:
        """Note that one is being closed."""
        self._closing += 1

    def note_closed(self) -> None:
        """Note that one is closed."""
        self._closing -= 1
        self.give_back()

    def give_back(self) -> None:
        """Note that one is gone, or was never there."""
        self._used -= 1

    def join(self, member: Member) -> None:
        """Take in a pool that opens.

        Raises:
            PoolUsageError: the others are of another event loop.
        """
        if not all(one.is_here() for one in self._members):
            raise PoolUsageError("a budget must be shared by pools of one event loop: make one for each")
        self._members.append(member)

    def leave(self, member: Member) -> None:
        """Let a pool go that has closed."""
        self._members.remove(member)
        self.settle()

    def settle(self) -> None:
        """Give what is left to those who want it, one by one."""
        if self._settling:  # what a pool does here ends here again
            return
        self._settling = True
        try:
            starved = list(self._members)
            while starved:
                first = min(starved, key=lambda member: member.waiting_since())
                if first.waiting_since() == inf or (self.left <= 0 and not self._reclaim(first)):
                    break
                if not first.grow():
                    starved.remove(first)
        finally:
            self._settling = False

    def _reclaim(self, wanting: Member) -> bool:
        """Have another pool give up an idle connection; tell whether one is to be had at once."""
        if self._closing:  # it will be there in a moment
            return False
        others = [member for member in self._members if member is not wanting]
        donor = min(others, key=lambda member: member.idle_since(), default=None)
        if donor is None or donor.idle_since() == inf:
            return False
        donor.give_up_one()
        return self.left > 0

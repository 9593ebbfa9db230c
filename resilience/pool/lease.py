"""What a borrower holds: a lease, and the request that becomes one."""

from __future__ import annotations

import sys
from collections.abc import Generator
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from resilience.errors import PoolUsageError

from .core import Slot

if TYPE_CHECKING:
    from .pool import ConnectionPool

C = TypeVar("C")

Site = tuple[CodeType, int]
"""Where something was asked for: the code and the offset in it, which become file and line when somebody reads them."""


def site_of_caller(depth: int) -> Site:
    """Give the place that called the function that calls this one, `depth` frames further out."""
    frame = sys._getframe(depth + 2)  # noqa: SLF001 - documented; one frame costs a fifth of a microsecond, a stack forty
    return frame.f_code, frame.f_lasti


def told(site: Site) -> str:
    """Write a site down, as "file:line function"."""
    code, offset = site
    line = next((line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno)
    return f"{code.co_filename}:{line} {code.co_qualname}"


class Lease(Generic[C]):
    """A borrowed connection. Releasing or discarding it ends the lease; after that it refuses everything.

    Given by `await pool.acquire()`; `async with pool.acquire()` has one of its own inside.
    """

    __slots__ = ("_pool", "_slot", "last_slot", "owner", "since", "site")

    def __init__(self, pool: ConnectionPool[C], slot: Slot, site: Site, owner: object) -> None:
        self._pool = pool
        self._slot: Slot | None = slot
        self.last_slot = slot
        self.since = slot.leased_at
        self.site = site
        self.owner = owner

    @property
    def connection(self) -> C:
        """The connection.

        Raises:
            PoolUsageError: the lease is over.
        """
        connection: C = self._live().connection
        return connection

    @property
    def id(self) -> int:
        """The connection's number in its pool."""
        return self._live().id

    @property
    def age(self) -> float:
        """Seconds since the connection was opened."""
        return self._pool._now() - self._live().opened_at  # noqa: SLF001 - a lease is a part of its pool

    @property
    def uses(self) -> int:
        """How often the connection was borrowed, this time included."""
        return self._live().uses

    def release(self) -> None:
        """Give the connection back. Synchronous: if it has to be reset, the pool does that by itself.

        Raises:
            PoolUsageError: the lease is over.
        """
        self._pool._release(self, self._end())  # noqa: SLF001 - as above

    def discard(self) -> None:
        """Give the connection back as broken: it is closed, and replaced if it is needed.

        Raises:
            PoolUsageError: the lease is over.
        """
        self._pool._discard(self, self._end())  # noqa: SLF001 - as above

    def _live(self) -> Slot:
        if self._slot is None:
            raise PoolUsageError(f"a lease of pool {self._pool.name!r} was used after its end")
        return self._slot

    def _end(self) -> Slot:
        slot = self._live()
        self._slot = None
        return slot

    def __repr__(self) -> str:
        what = "over" if self._slot is None else f"of connection {self._slot.id}"
        return f"<Lease {what}, pool {self._pool.name!r}>"


class Acquire(Generic[C]):
    """A request for a connection: `await` it for a lease, or enter it for the connection itself. Once."""

    __slots__ = ("_pool", "_slot", "avoid", "owner", "priority", "since", "site", "timeout")

    def __init__(
        self, pool: ConnectionPool[C], timeout: float | None, priority: int, avoid: Slot | None, site: Site
    ) -> None:
        self._pool = pool
        self._slot: Slot | None = None
        self.timeout = timeout
        self.priority = priority
        self.avoid = avoid
        self.site = site
        self.owner: object = None
        self.since = 0.0

    def __await__(self) -> Generator[Any, Any, Lease[C]]:
        return self._pool._lend(self).__await__()  # noqa: SLF001 - a request is a part of its pool

    async def __aenter__(self) -> C:
        if self._slot is not None:
            raise PoolUsageError(f"a request of pool {self._pool.name!r} was entered twice: call acquire() for each")
        slot = self._pool._take_plain(self)  # noqa: SLF001 - as above
        if slot is None:
            self.owner = self._pool._current_task()  # noqa: SLF001 - as above
            slot = await self._pool._wait(self)  # noqa: SLF001 - as above
        self._slot = slot
        connection: C = slot.connection
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._pool._release(self, slot, error)  # noqa: SLF001 - as above

"""What a borrower holds: a lease, and the request that becomes one."""

from __future__ import annotations

from collections.abc import Generator
from threading import get_ident
from types import CodeType, TracebackType
from typing import Any, Generic, TypeVar

from resilience.errors import PoolUsageError

from .home import Site
from .lending import Lender, Request, Wish
from .slots import IDLE, LEASED, Slot

C = TypeVar("C")


class Lease(Generic[C]):
    """A borrowed connection. Releasing or discarding it ends the lease; after that it refuses everything.

    Given by `await pool.acquire()`; `async with pool.acquire()` has one of its own inside.
    """

    __slots__ = ("_lender", "_slot", "last_slot", "site")

    owner: None = None
    """A lease may be passed on: nobody can tell who has it."""

    def __init__(self, lender: Lender, slot: Slot, site: Site) -> None:
        self._lender = lender
        self._slot: Slot | None = slot
        self.last_slot = slot
        self.site = site

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
        return self._lender.now() - self._live().opened_at

    @property
    def uses(self) -> int:
        """How often the connection was borrowed, this time included."""
        return self._live().uses

    def release(self) -> None:
        """Give the connection back. Synchronous: if it has to be reset, the pool does that by itself.

        Raises:
            PoolUsageError: the lease is over, or this is not the pool's event loop.
        """
        self._lender.take_back(self, self._end())

    def discard(self) -> None:
        """Give the connection back as broken: it is closed, and replaced if it is needed.

        Raises:
            PoolUsageError: as `release`.
        """
        self._lender.take_back_broken(self, self._end())

    def is_of(self, lender: Lender) -> bool:
        """Tell whether this is a lease of the pool of `lender`."""
        return self._lender is lender

    def _live(self) -> Slot:
        if self._slot is None:
            raise PoolUsageError(f"a lease of pool {self._lender.name!r} was used after its end")
        return self._slot

    def _end(self) -> Slot:
        slot = self._live()
        self._lender.check_home()
        self._slot = None
        return slot

    def __repr__(self) -> str:
        what = "over" if self._slot is None else f"of connection {self._slot.id}"
        return f"<Lease {what}, pool {self._lender.name!r}>"


class Acquire(Request, Generic[C]):
    """A request for a connection: `await` it for a lease, or enter it for the connection itself. Once."""

    __slots__ = ("_code", "_lender", "_offset")

    def __init__(self, lender: Lender, wish: Wish, code: CodeType, offset: int) -> None:
        self._lender = lender
        self._code = code
        self._offset = offset
        self.owner = self.slot = None  # the rest of a ticket is set by `begin`, for who is not served in the short way
        self.wish = wish

    @property
    def site(self) -> Site:
        """Where it was asked for."""
        return self._code, self._offset

    def __await__(self) -> Generator[Any, Any, Lease[C]]:
        return self._lease().__await__()

    async def _lease(self) -> Lease[C]:
        await self.__aenter__()
        slot = self._held
        self.slot = None
        lease: Lease[C] = Lease(self._lender, slot, self.site)
        slot.borrower = lease
        return lease

    @property
    def _held(self) -> Slot:
        if self.slot is None:
            raise AssertionError("a bug: who was served has no connection")
        return self.slot

    # The short ways serve most callers: an idle connection that needs nothing, and back to the idle ones or to the next
    # who waits. They do what the lender does, written out: a call is a twentieth of it all.

    async def __aenter__(self) -> C:
        if self.owner is not None:
            raise PoolUsageError(f"a request of pool {self._lender.name!r} was entered twice: call acquire() for each")
        lender = self._lender
        core = lender.core
        self.owner = task = lender.current_task()
        if task is None or get_ident() != lender.thread:  # of a pool that cannot be used there is none
            lender.check_usable()
        if core.idle and not lender.crowd and self.wish is lender.plain:
            now = lender.now()
            slot = lender.pop()
            is_closed = lender.is_closed
            if (
                now < slot.retire_at
                and now - slot.alive_at < core.fresh_for
                and (is_closed is None or not is_closed(slot.connection))
            ):
                slot.place = LEASED
                slot.asked_at = slot.leased_at = now
                slot.uses += 1
                slot.borrower = self
                self.slot = slot
                return slot.connection  # type: ignore[no-any-return]  # a name for it would cost as much as a check
            lender.unpop(slot)
        lender.ask(self)
        while True:
            if self.live:
                try:
                    await self.seat
                except BaseException:
                    lender.abandon(self)
                    raise
            if lender.collect(self) or await lender.prove(self):
                break
            lender.ask_again(self)
        return self._held.connection  # type: ignore[no-any-return]  # as above

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        slot = self.slot
        if slot is None:
            return
        self.slot = None
        lender = self._lender
        core, now = lender.core, lender.now()
        slot.borrower = None
        lender.used += now - slot.leased_at
        if now >= lender.notes_at:
            lender.note(self, slot, now)
        if error is not None or core.special or now >= slot.retire_at:
            lender.find_place(slot, now, failed=error is not None)
            return
        uses = slot.uses
        if uses < 32 or not uses & 15:  # later a sample will do: it changes slowly
            core.note_hold(now - slot.leased_at)
        slot.idle_since = slot.alive_at = now
        if lender.crowd:
            ticket = core.hand_over(slot, now)
            if ticket is None:
                lender.find_place(slot, now, failed=False)
                return
            lender.wake(ticket.seat)
        else:
            slot.place = IDLE
            core.idle.append(slot)
        if lender.debug:
            core.check()

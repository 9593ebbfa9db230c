"""One connection, as the books of a pool know it. Pure."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Any, Final

DISCARDED: Final = "discarded"
"""Why a connection is closed that its borrower calls broken."""


class Place(Enum):
    """Where a connection is."""

    IDLE = "idle"
    RESERVED = "reserved"
    """Out of service for a moment: being checked, or reset after use."""
    LEASED = "leased"
    GONE = "gone"
    """No longer the pool's: being closed, or closed."""


IDLE, RESERVED, LEASED, GONE = Place  # a member costs two look-ups, a global one


class Slot:
    """One connection and what the pool knows of it.

    Attributes:
        id: number of the connection in its pool, from 1.
        connection: what the driver gave.
        place: where it is.
        opened_at, retire_at: when it was opened, and when it goes; -inf: as soon as it comes back.
        idle_since: when it last came back; a check does not change it.
        alive_at: when it was last known to be alive; -inf: it may well be broken.
        uses: borrowings so far.
        asked_at, leased_at: when its borrower asked for one, and was lent it.
        borrower: who has it; the shell's.
        ordinary: whether it counts as lent to a caller who may not use the headroom.
        expiring: whether it will go soon, and is replaced before if the pool needs it.
        doomed: why it is closed when it comes back; empty if it is not.
    """

    __slots__ = (
        "alive_at",
        "asked_at",
        "borrower",
        "connection",
        "doomed",
        "expiring",
        "id",
        "idle_since",
        "leased_at",
        "opened_at",
        "ordinary",
        "place",
        "retire_at",
        "uses",
    )

    def __init__(self, number: int, connection: Any, now: float, retire_at: float) -> None:
        self.id = number
        self.connection = connection
        self.place = RESERVED
        self.opened_at = self.idle_since = self.alive_at = self.asked_at = self.leased_at = now
        self.retire_at = retire_at
        self.uses = 0
        self.borrower: Any = None
        self.ordinary = self.expiring = False
        self.doomed = ""

    def needs_nothing(self, now: float, fresh_for: float) -> bool:
        """Tell whether it can be lent as it is: not too old, and seen alive less than `fresh_for` seconds ago."""
        return now < self.retire_at and now - self.alive_at < fresh_for

    def doom(self, reason: str) -> None:
        """Have it closed when it comes back."""
        self.doomed = self.doomed or reason
        self.retire_at = -inf

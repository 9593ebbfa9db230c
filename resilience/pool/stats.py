"""What a pool tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment. Connections and callers now; the rest since it was made.

    Attributes:
        size: connections that the pool has: idle + leased + reserved.
        idle, leased, reserved: free; borrowed; being checked or reset.
        connecting: attempts to connect under way.
        waiting: callers who wait.
        min_size, max_size: the bounds.
        acquired, timed_out: callers who got a connection, and whose time was over before they did.
        rejected: callers who were refused for any other reason, at once or while they waited; of a pool that was closed
            already they are not counted.
        opened, closed: connections.
        connect_failures, check_failures, reset_failures: what went wrong.
        waited_seconds: total of the waits that ended with a connection or when their time was over, checks included;
            not of those that were refused or cancelled.
        used_seconds: total of all borrowings that ended.
    """

    size: int
    idle: int
    leased: int
    reserved: int
    connecting: int
    waiting: int
    min_size: int
    max_size: int
    acquired: int
    timed_out: int
    rejected: int
    opened: int
    closed: int
    connect_failures: int
    check_failures: int
    reset_failures: int
    waited_seconds: float
    used_seconds: float


Health: TypeAlias = Literal["up", "degraded", "down"]


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """How a pool is.

    "up" means that nothing is known to be wrong: a pool that opened nothing yet knows nothing. Where a service must not
    begin without its database, set `min_size` and `await pool.wait_ready(...)`.

    Attributes:
        status: "up"; "degraded": there are connections, but no new ones can be opened; "down": there are none either.
        cause: the type of the last connect error while it is not up, else None.
        failing_for: seconds since connecting began to fail; 0 while it is up.
    """

    status: Health
    cause: str | None
    failing_for: float

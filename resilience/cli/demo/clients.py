"""The two clients of the demo, and the load that both get."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from resilience.breaker import CircuitBreaker, CircuitBreakerConfig
from resilience.errors import RejectedError
from resilience.policies import Pipeline
from resilience.pool import create_pool
from resilience.windows import TimeWindow

from .ledger import Call, Ledger, Outcome
from .script import time_scale
from .service import HOST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream, TaskGroup

    from resilience.pool import ConnectionPool

__all__ = [
    "BREAKER_NAME",
    "RATE",
    "SLOTS",
    "Client",
    "ErrorAnswer",
    "Limits",
    "connections",
    "naked",
    "protected",
    "protection",
]

BREAKER_NAME = POOL_NAME = PIPELINE_NAME = "demo service"
RATE = 60
"""Requests a second, for each client."""
SLOTS = 64
"""Calls that one client may have in flight. As with the threads or connections of a real program, a request that finds
all of them busy is dropped."""


class ErrorAnswer(Exception):  # noqa: N818 - an answer of the service, as the protocol calls it
    """The service answered with an error."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The time limits of both clients, in seconds.

    Attributes:
        patience: the naked client's timeout: generous, as people set it who do not want to lose an answer.
        attempt: the protected client's timeout; an answer that takes longer counts as late for either client.
        window: how far back the breaker looks.
        slow: from here on a call counts as slow to the breaker.
        first_open: how long the breaker stays open before its first probes.
        longest_open: how long it stays open at most, after probes that failed.
    """

    patience: float
    attempt: float
    window: float
    slow: float
    first_open: float
    longest_open: float

    @classmethod
    def for_run(cls, seconds: float) -> Limits:
        """Give limits that let a run of `seconds` show the breaker open, probe and close again."""
        scale = time_scale(seconds)
        return cls(
            patience=2.0 * scale,
            attempt=0.5 * scale,
            window=1.0 * scale,
            slow=0.25 * scale,
            first_open=0.5 * scale,
            longest_open=1.0 * scale,
        )

    def breaker_config(self) -> CircuitBreakerConfig:
        """Give the configuration of the protected client's breaker."""
        return CircuitBreakerConfig(
            window=TimeWindow(self.window),
            minimum_calls=10,
            failure_rate_threshold=0.5,
            slow_call_duration=self.slow,
            slow_call_rate_threshold=0.5,
            open_duration=self.first_open,
            max_open_duration=self.longest_open,
            half_open_calls=3,
        )


class Client:
    """Sends requests when they are due, each in a task of its own, and books what becomes of them.

    Args:
        name: what the views call it.
        call: makes one call: returns on an answer, raises otherwise.
        late_after: seconds after which an answer counts as late.
    """

    def __init__(self, name: str, call: Callable[[int], Awaitable[None]], late_after: float) -> None:
        self.name = name
        self.ledger = Ledger()
        self.in_flight = 0
        self._call = call
        self._late_after = late_after

    def send(self, tasks: TaskGroup, number: int, *, phase: int, intended: float, began: float) -> None:
        """Start request `number`, or drop it when all slots are busy."""
        if self.in_flight >= SLOTS:
            ended = time.monotonic() - began
            self.ledger.record(Call(number, phase, intended, ended, Outcome.DROPPED))
            return
        self.in_flight += 1
        tasks.start_soon(self._make, number, phase, intended, began)

    async def _make(self, number: int, phase: int, intended: float, began: float) -> None:
        try:
            outcome, reason = await self._attempt(number)
        finally:
            self.in_flight -= 1
        ended = time.monotonic() - began
        if outcome is Outcome.IN_TIME and ended - intended > self._late_after:
            outcome = Outcome.LATE
        self.ledger.record(Call(number, phase, intended, ended, outcome, reason))

    async def _attempt(self, number: int) -> tuple[Outcome, str]:
        try:
            await self._call(number)
        except RejectedError:
            return Outcome.REJECTED, ""
        except Exception as error:  # noqa: BLE001 - whatever went wrong is this client's failure, to be counted
            return Outcome.FAILED, explain(error)
        return Outcome.IN_TIME, ""


def naked(port: int, limits: Limits) -> Client:
    """Give the client that has nothing but a timeout."""

    async def call(number: int) -> None:
        with anyio.fail_after(limits.patience):
            await ask(port, number)

    return Client("naked", call, limits.attempt)


def connections(port: int, limits: Limits) -> ConnectionPool[ByteStream]:
    """Give the pool of the protected client: who finds the service's port closed shall know at once, not wait."""
    return create_pool(
        f"tcp://{HOST}:{port}",
        name=POOL_NAME,
        max_size=SLOTS,
        max_connecting=SLOTS,
        connect_timeout=limits.attempt,
        permanent_errors=OSError,
    )


def protection(limits: Limits, breaker: CircuitBreaker, pool: ConnectionPool[ByteStream]) -> Pipeline:
    """Give what stands around the calls of the protected client, in the usual order."""
    return Pipeline.standard(
        name=PIPELINE_NAME, deadline=2 * limits.attempt, breaker=breaker, pool=pool, timeout=limits.attempt
    )


def protected(limits: Limits, pipeline: Pipeline) -> Client:
    """Give the client whose calls go through a pipeline: short, behind a circuit breaker, on pooled connections."""
    ask_it = pipeline(ask_on)

    async def call(number: int) -> None:
        await ask_it(number)  # type: ignore[call-arg, arg-type]  # the pool adds the connection

    return Client("protected", call, limits.attempt)


async def ask(port: int, number: int) -> None:
    """Put one request to the service over a connection of its own.

    Raises:
        ErrorAnswer: the service answered with an error.
        OSError, anyio.IncompleteRead, anyio.BrokenResourceError: there was no answer.
    """
    async with await anyio.connect_tcp(HOST, port) as stream:
        await ask_on(stream, number)


async def ask_on(stream: ByteStream, number: int) -> None:
    """Put one request to the service. Errors as in `ask`."""
    await stream.send(f"GET {number}\n".encode())
    answer = await BufferedByteReceiveStream(stream).receive_until(b"\n", 256)
    if answer.decode() != f"OK {number}":
        raise ErrorAnswer(answer.decode(errors="replace"))


def explain(error: Exception) -> str:
    """Name the kind of a failed call in words."""
    if isinstance(error, ErrorAnswer):
        return "error answer"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError) or isinstance(error.__cause__, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError | anyio.IncompleteRead | anyio.BrokenResourceError | anyio.EndOfStream):
        return "connection lost"
    return type(error).__name__

"""One run of the demo: the service's process, the load, and everything that is known about both while it goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from resilience.breaker import CircuitBreaker
from resilience.events import CircuitStateChanged, subscribe

from .clients import BREAKER_NAME, RATE, Client, Limits, connections, naked, protected, protection
from .ledger import LAST, StateChange, duration
from .script import Phase, Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from anyio.abc import Process

    from .shared_limit import SharedLimit

__all__ = ["Run", "ServiceEndedError", "ServiceProcess"]

FAREWELL_SECONDS = 2.0


class ServiceEndedError(Exception):
    """The service's process ended in the middle of the demo."""


class ServiceProcess:
    """The service, seen from outside: a process that tells where it listens and which phase it is in."""

    def __init__(self, process: Process) -> None:
        self._process = process
        assert process.stdout is not None  # noqa: S101 - asked for below; tells the type checker
        self._lines = BufferedByteReceiveStream(process.stdout)
        self.pid = process.pid
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def started(cls, *, seconds: float, seed: int) -> AsyncIterator[ServiceProcess]:
        """Start the process; it has ended when this scope is left, whatever the reason."""
        module = f"{__package__}.service"
        command = [sys.executable, "-m", module, "--seconds", str(seconds), "--seed", str(seed)]
        process = await anyio.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A session of its own: the terminal's Ctrl-C must not end the service before the clients are done with it.
            start_new_session=True,
        )
        try:
            service = cls(process)
            service.port = int(await service._next_line("port"))
            yield service
        finally:
            # Closing its standard input asks it to end; when the time is up it is killed.
            with anyio.move_on_after(FAREWELL_SECONDS, shield=True):
                await process.aclose()

    async def start_script(self) -> None:
        """Let the script begin."""
        assert self._process.stdin is not None  # noqa: S101 - as above
        await self._process.stdin.send(b"start\n")

    async def next_phase(self) -> int:
        """Wait until the service has entered its next phase; gives the index of the phase."""
        return int(await self._next_line("phase"))

    async def _next_line(self, word: str) -> str:
        try:
            line = (await self._lines.receive_until(b"\n", 256)).decode()
        except (anyio.EndOfStream, anyio.IncompleteRead):
            raise ServiceEndedError(await self._last_words()) from None
        said, _, value = line.strip().partition(" ")
        if said != word:
            raise ServiceEndedError(f"the service said {line!r} instead of {word!r}")
        return value

    async def _last_words(self) -> str:
        assert self._process.stderr is not None  # noqa: S101 - as above
        told = b"".join([part async for part in self._process.stderr]).decode(errors="replace").strip()
        status = await self._process.wait()
        return f"the service's process ended by itself with status {status}{': ' if told else ''}{told}"


class Run:
    """What is known about a run: read by the views while it goes on, and by the reports when it is over.

    Args:
        service: the started process.
        seconds: planned length.
        seed: of the service.
        shared: the instances that share a limit; None where no Redis server is installed.
    """

    def __init__(
        self, service: ServiceProcess, *, seconds: float, seed: int, shared: SharedLimit | None = None
    ) -> None:
        self.pid, self.port = service.pid, service.port
        self.seconds, self.seed = seconds, seed
        self.shared = shared
        self.script = Script(seconds)
        self.limits = Limits.for_run(seconds)
        self.breaker = CircuitBreaker(BREAKER_NAME, self.limits.breaker_config())
        self.naked: Client = naked(service.port, self.limits)
        self.pool = connections(service.port, self.limits)
        self.pipeline = protection(self.limits, self.breaker, self.pool)
        self.protected: Client = protected(self.limits, self.pipeline)
        self.changes: list[StateChange] = []
        self.phase_starts: list[float] = []
        """When each phase began, in seconds since the load began: as the service told, not as the script says."""
        self.due = 0
        """Requests per client that were due so far."""
        self.ended_at: float | None = None
        self.stopped_by: int | None = None
        """The signal that ended the run early."""
        self._service = service
        self._began = 0.0

    @property
    def clients(self) -> tuple[Client, Client]:
        """Both clients, the naked one first."""
        return self.naked, self.protected

    @property
    def planned(self) -> int:
        """Requests per client over the whole length."""
        return int(self.seconds * RATE)

    @property
    def elapsed(self) -> float:
        """Seconds since the load began; after the end, until the end."""
        if self.ended_at is not None:
            return self.ended_at
        return time.monotonic() - self._began if self._began else 0.0

    @property
    def phase_number(self) -> int:
        """Index of the phase that the service is in."""
        return max(0, len(self.phase_starts) - 1)

    @property
    def phase(self) -> Phase:
        """The phase that the service is in."""
        return self.script.phases[self.phase_number]

    @property
    def healed_at(self) -> float | None:
        """When the service told that it is healthy again; None if it did not get that far."""
        return self.phase_starts[LAST] if len(self.phase_starts) > LAST else None

    @contextmanager
    def note_changes(self) -> Iterator[None]:
        """Write down what the breaker and the limiters tell of themselves."""
        with (
            subscribe(self._note, CircuitStateChanged, name=BREAKER_NAME),
            nullcontext() if self.shared is None else self.shared.note_switches(),
        ):
            yield

    def _note(self, event: CircuitStateChanged) -> None:
        self.changes.append(StateChange(event.at - self._began, event.from_state, event.to_state, reason_of(event)))

    async def perform(self) -> None:
        """Let the service begin, send the load, and wait until every request has its outcome."""
        await self._service.start_script()
        await self._service.next_phase()
        self._began = time.monotonic()
        self.phase_starts.append(0.0)
        try:
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._follow_service)
                async with self.pool, anyio.create_task_group() as loads:
                    if self.shared is not None:
                        loads.start_soon(self.shared.perform, self._began)
                    await self._send_load()
                watching.cancel_scope.cancel()
        finally:
            self.ended_at = self.elapsed

    async def _follow_service(self) -> None:
        while True:
            await self._service.next_phase()
            self.phase_starts.append(self.elapsed)

    async def _send_load(self) -> None:
        async with anyio.create_task_group() as calls:
            for number in range(self.planned):
                intended = number / RATE
                await anyio.sleep(max(0.0, intended - self.elapsed))
                for client in self.clients:
                    client.send(calls, number, phase=self.phase_number, intended=intended, began=self._began)
                self.due = number + 1


def reason_of(event: CircuitStateChanged) -> str:
    """Tell in words why the breaker moved."""
    reason = event.reason.replace("_", " ")
    if event.to_state == "half_open":
        return reason
    rates = {"failed": event.failure_rate, "slow": event.slow_call_rate}
    told = ", ".join(f"{rate:.0%} {what}" for what, rate in rates.items() if rate)
    wait = "" if event.open_for is None else f", next probes in {duration(event.open_for)}"
    return f"{reason} ({told or 'none failed or slow'} of {event.calls} calls){wait}"

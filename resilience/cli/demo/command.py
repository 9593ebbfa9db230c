"""`resilience demo`: a sick service and its clients, a dying Redis and the instances that share a limit on it."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import anyio

from resilience.errors import ConfigurationError
from resilience.events import CircuitStateChanged, disable_logging, enable_logging

from .run import Run, ServiceEndedError, ServiceProcess
from .shared_limit import SharedLimit
from .view import PlainView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .view import View

__all__ = ["DemoOptions", "run_demo"]

SHORTEST_SECONDS = 3.0
LONGEST_SECONDS = 600.0
REFRESH_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the command line says. Checked on creation.

    Args:
        seconds: length of the run, 3 to 600.
        seed: decides the service's delays and errors.
        plain: lines instead of a live picture, also on a terminal.
        report: file for an HTML report; its folder exists.

    Raises:
        ConfigurationError: names the option, the value and the rule.
    """

    seconds: float = 20.0
    seed: int = 1
    plain: bool = False
    report: Path | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.seconds) or not SHORTEST_SECONDS <= self.seconds <= LONGEST_SECONDS:
            raise ConfigurationError(
                f"seconds must be between {SHORTEST_SECONDS:g} and {LONGEST_SECONDS:g}, got {self.seconds:g}"
            )
        # Said now, not when twenty seconds of somebody's time are over.
        if self.report is not None and self.report.is_dir():
            raise ConfigurationError(f"report must be a file, got the folder {str(self.report)!r}")
        if self.report is not None and not os.access(self.report.parent, os.W_OK):
            raise ConfigurationError(f"report must lie in a folder that can be written to, got {str(self.report)!r}")


def run_demo(options: DemoOptions, stream: TextIO) -> int:
    """Run the demo to its end and show what came out; no process is left behind.

    Args:
        options: length, seed and ways of showing.
        stream: where it is shown.

    Returns:
        The exit status: 0; 1 when the service's process failed, the report could not be written or nobody reads the
        stream any more; 128 plus the signal's number when SIGINT or SIGTERM ended the run early, in which case the
        tables show what there was until then.
    """
    demo = _Demo(options, stream)
    status = 0
    heard = True
    with _quiet_log():
        try:
            anyio.run(demo.show)
        except* BrokenPipeError:
            heard = False
        except* ServiceEndedError as errors:
            sys.stderr.write(f"resilience demo: {_first(errors)}\n")
            status = 1
        except* KeyboardInterrupt:
            # Where signals cannot be received as below (Windows), or Ctrl-C came before the run began.
            status = 128 + signal.SIGINT
    try:
        if heard:
            return demo.conclude() or status
    except BrokenPipeError:
        pass
    # As in `resilience demo | head`. Python would complain at its end about lines that it cannot write any more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 1


class _Demo:
    def __init__(self, options: DemoOptions, stream: TextIO) -> None:
        self._options = options
        self._stream = stream
        self._run: Run | None = None
        self._view: View | None = None

    async def show(self) -> None:
        """Start the servers, send the load, show what happens; a signal ends it early."""
        options = self._options
        async with (
            SharedLimit.started(seconds=options.seconds) as shared,
            ServiceProcess.started(seconds=options.seconds, seed=options.seed) as service,
        ):
            self._run = run = Run(service, seconds=options.seconds, seed=options.seed, shared=shared)
            self._view = view = _choose_view(run, self._stream, plain=options.plain)
            with run.note_changes(), view:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_stop_on_signal, run, tasks.cancel_scope)
                    tasks.start_soon(_keep_updating, view)
                    await run.perform()
                    tasks.cancel_scope.cancel()

    def conclude(self) -> int:
        """Show what came out; gives the exit status of an early end."""
        run, view = self._run, self._view
        if run is None or view is None:
            return 0
        view.conclude()
        if self._options.report is not None:
            from .report import write_report  # noqa: PLC0415 - only those who ask for a page pay for its code

            try:
                write_report(run, self._options.report)
            except OSError as error:
                sys.stderr.write(f"resilience demo: no report: {error}\n")
                return 1
            self._stream.write(f"\nreport: {self._options.report}\n")
        return 0 if run.stopped_by is None else 128 + run.stopped_by


def _first(error: BaseException) -> BaseException:
    """Give the first error that is no group, out of groups within groups: one per task group it went through."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _stop_on_signal(run: Run, scope: anyio.CancelScope) -> None:
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                run.stopped_by = number
                scope.cancel()
                return
    except NotImplementedError:
        return  # Windows: KeyboardInterrupt does it there


async def _keep_updating(view: View) -> None:
    while True:
        view.update()
        await anyio.sleep(REFRESH_SECONDS)


def _choose_view(run: Run, stream: TextIO, *, plain: bool) -> View:
    if not plain and stream.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console  # noqa: PLC0415 - optional

        from .live import LiveView  # noqa: PLC0415 - needs rich

        console = Console(file=stream)
        # The picture moves the cursor and is drawn with signs outside of ASCII.
        if console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf"):
            return LiveView(run, console)
    return PlainView(run, stream)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep the library's log lines out of the picture: the demo shows the same events itself."""
    listening = CircuitStateChanged.sinks
    disable_logging()
    was_on = CircuitStateChanged.sinks != listening
    try:
        yield
    finally:
        if was_on:
            enable_logging()

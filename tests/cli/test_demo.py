"""The demo as its user meets it: real runs of `python -m resilience demo`, as short as they may be."""

import errno
import importlib.util
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from resilience.cli import main
from resilience.cli.demo.command import DemoOptions, _choose_view, _quiet_log
from resilience.cli.demo.run import Run, ServiceProcess
from resilience.cli.demo.view import PlainView
from resilience.errors import ConfigurationError
from resilience.events import CircuitStateChanged, disable_logging, enable_logging

OUTCOMES = ("answered within", "answered later", "failed", "rejected at once", "dropped", "cut off")
COMMAND = (sys.executable, "-m", "resilience", "demo")
ENVIRONMENT = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", "COLUMNS": "100", "LINES": "40"}


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    errors: str
    report: Path | None = None

    @property
    def table(self) -> dict[str, tuple[str, str]]:
        clients = self.output.partition("\nRedis ")[0]
        return {label: (naked, protected) for label, naked, protected in re.findall(ROW, clients, re.MULTILINE)}

    @property
    def stages(self) -> dict[str, list[str]]:
        """Give the table of the shared limit: the cells of each stage, from the calls to the longest wait."""
        rows = self.output.partition("\nRedis ")[2].partition("\n\n")[0].splitlines()[1:]
        cells = [re.split(" {2,}", row) for row in rows]
        return {stage: numbers for stage, *numbers in cells}

    def numbers(self, label: str) -> tuple[float, float]:
        """Give the two numbers of the row that begins with `label`; zeros if there is no such row."""
        naked, protected = next((cells for row, cells in self.table.items() if row.startswith(label)), ("0", "0"))
        return float(naked.removesuffix(" s")), float(protected.removesuffix(" s"))


ROW = r"^(\S.*?) {3,}(\S.*?) {3,}(\S.*?)$"


def service_pid(output: str) -> int:
    found = re.search(r"the service is process (\d+)", output)
    assert found, output
    return int(found[1])


def pids(output: str) -> set[int]:
    """Give the processes that the demo told of: the service, and Redis in each of its lives."""
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    found = set(map(int, re.findall(r"process\s+(\d+)", words)))
    assert len(found) >= 2, output
    return found


def is_running(pid: int) -> bool:
    try:
        # Field 3, behind the name in brackets. A zombie has ended; whether it is collected is up to the machine's init.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_ended(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    report = tmp_path_factory.mktemp("demo") / "report.html"
    options = ("--seconds", "3", "--plain", "--report", str(report))
    done = subprocess.run(
        (*COMMAND, *options), capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr, report)


@contextmanager
def running(
    *options: str, until: str = "HEALTHY", folder: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the demo; gives it, and what it wrote up to the line that tells of the phase `until`.

    Its files go into `folder`, if one is given: a demo that is killed does not take them away.
    """
    environment = ENVIRONMENT if folder is None else {**ENVIRONMENT, "TMPDIR": str(folder)}
    with subprocess.Popen(
        (*COMMAND, "--plain", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as demo:
        try:
            assert demo.stdout is not None
            begun = ""
            while f"--- {until}:" not in begun:
                line = demo.stdout.readline()
                assert line, begun
                begun += line
            yield demo, begun
        finally:
            demo.kill()


def test_a_run_ends_well_and_leaves_no_process(whole_run: Finished) -> None:
    assert (whole_run.status, whole_run.errors) == (0, "")
    assert len(pids(whole_run.output)) == 3
    assert not any(map(is_running, pids(whole_run.output)))


def test_every_planned_request_of_either_client_has_one_outcome(whole_run: Finished) -> None:
    assert whole_run.numbers("requests due") == (180, 180)
    counts = [whole_run.numbers(label) for label in OUTCOMES]
    assert tuple(map(sum, zip(*counts, strict=True))) == (180, 180)


def test_every_phase_is_announced_and_the_breaker_is_seen_to_open_probe_and_close(whole_run: Finished) -> None:
    for told in ("HEALTHY:", "SLOW:", "FAILING:", "HANGING:", "DEAD:", "HEALTHY AGAIN:"):
        assert f"--- {told}" in whole_run.output
    for change in ("closed -> open", "open -> half-open", "half-open -> closed"):
        assert f"breaker {change}" in whole_run.output


def test_the_protected_client_keeps_its_connections(whole_run: Finished) -> None:
    told = re.search(r"made its (\d+) calls over (\d+) connections", " ".join(whole_run.output.split()))
    assert told is not None
    assert int(told[1]) > 3 * int(told[2]) > 0


def test_the_breaker_keeps_calls_from_a_dead_service_and_time_from_being_lost(whole_run: Finished) -> None:
    naked, protected = whole_run.numbers("of these to the closed port")
    assert naked >= 20
    assert protected <= naked / 2
    naked, protected = whole_run.numbers("time lost waiting")
    assert protected < naked
    naked, protected = whole_run.numbers("rejected at once")
    assert naked == 0
    assert protected >= 20


def test_redis_dies_and_returns_and_the_instances_keep_to_the_limit_by_themselves_meanwhile(
    whole_run: Finished,
) -> None:
    for told in ("REDIS UP:", "REDIS GONE:", "REDIS BACK:"):
        assert f"--- {told}" in whole_run.output
    stages = whole_run.stages
    assert list(stages) == ["up", "gone", "back", "in all"]
    numbers = {stage: list(map(int, cells[:3] + cells[4:7])) for stage, cells in stages.items()}
    in_all = numbers.pop("in all")
    assert [sum(column) for column in zip(*numbers.values(), strict=True)] == in_all
    assert in_all[0] == 360
    assert all(sum(row[3:]) == row[0] for row in numbers.values())
    _, admitted, legal, by_redis, by_fallback, _ = numbers["gone"]
    assert by_redis <= 4  # answers on their way when it died
    assert by_fallback > 20
    # How exact it is, other tests show; here a busy machine may hold a probe up.
    assert legal * 0.5 <= admitted <= legal * 1.5
    assert in_all[2] * 0.7 <= in_all[1] <= in_all[2] * 1.3
    assert "an instance decides alone with 1/" in whole_run.output


def test_the_log_of_the_library_does_not_appear(whole_run: Finished) -> None:
    for kind in ("circuit_breaker.state_changed", "rate_limiter.fallback"):
        assert kind not in whole_run.output + whole_run.errors


def test_plain_output_is_ascii_and_has_no_control_characters(whole_run: Finished) -> None:
    assert whole_run.output.isascii()
    assert "\x1b" not in whole_run.output


def test_plain_output_is_for_80_columns(whole_run: Finished) -> None:
    lines = [line for line in whole_run.output.splitlines() if not line.startswith("report: ")]
    assert max(map(len, lines)) <= 80


def test_the_report_tells_the_same_numbers(whole_run: Finished) -> None:
    assert whole_run.report is not None
    page = whole_run.report.read_text(encoding="utf-8")
    for label, cells in whole_run.table.items():
        assert all(f">{cell}<" in page for cell in (label, *cells))
    for label, numbers in whole_run.stages.items():
        assert all(f">{cell}<" in page for cell in (label, *numbers))


def test_on_a_terminal_the_picture_is_live_and_the_cursor_comes_back() -> None:
    pytest.importorskip("rich")
    terminal, its_end = pty.openpty()
    with subprocess.Popen((*COMMAND, "--seconds", "3"), stdout=its_end, stderr=its_end, env=ENVIRONMENT) as demo:
        os.close(its_end)
        output = drain(terminal).decode()
    os.close(terminal)
    assert demo.returncode == 0, output
    assert "answered within" in output
    assert output.count("the service is ") > 10
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert all(map(wait_until_ended, pids(output)))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "plain", "missing"),
    [(Terminal(), True, "nothing"), (Terminal(), False, "rich"), (io.StringIO(), False, "nothing")],
)
def test_lines_are_shown_when_asked_for_without_rich_and_without_a_terminal(
    stream: io.StringIO, plain: bool, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    service = cast("ServiceProcess", SimpleNamespace(pid=1, port=1))
    assert isinstance(_choose_view(Run(service, seconds=20, seed=1), stream, plain=plain), PlainView)


def drain(terminal: int) -> bytes:
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError as error:
        if error.errno != errno.EIO:  # Linux says so when the other side is closed
            raise
    return b"".join(parts)


@pytest.mark.parametrize(("number", "until"), [(signal.SIGINT, "REDIS GONE"), (signal.SIGTERM, "REDIS BACK")])
def test_a_signal_ends_the_run_with_a_partial_table_and_without_a_process_left(
    number: signal.Signals, until: str
) -> None:
    with running("--seconds", "4", until=until) as (demo, begun):
        demo.send_signal(number)
        output, errors = demo.communicate(timeout=20)
    finished = Finished(demo.returncode, begun + output, errors)
    assert (finished.status, finished.errors) == (128 + number, "")
    assert not any(map(is_running, pids(finished.output)))
    assert list(finished.stages)[-2:] == [until.removeprefix("REDIS ").lower(), "in all"]
    due = finished.numbers("requests due")
    assert 0 < due[0] < 4 * 60
    counts = [finished.numbers(label) for label in OUTCOMES]
    assert tuple(map(sum, zip(*counts, strict=True))) == due


def test_service_and_redis_end_by_themselves_when_the_demo_is_killed(tmp_path: Path) -> None:
    with running("--seconds", "60", folder=tmp_path) as (demo, begun):
        assert all(map(is_running, pids(begun)))
        demo.kill()
        demo.wait(timeout=20)
        assert all(map(wait_until_ended, pids(begun)))


def test_the_end_of_the_service_is_told_as_an_error() -> None:
    with running("--seconds", "60") as (demo, begun):
        os.kill(service_pid(begun), signal.SIGKILL)
        output, errors = demo.communicate(timeout=20)
    assert demo.returncode == 1
    assert "the service's process ended by itself" in errors
    assert "Traceback" not in errors
    assert "requests due" in output
    assert all(map(wait_until_ended, pids(begun)))


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    with running("--seconds", "60") as (demo, begun):
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.close()
        assert demo.wait(timeout=20) == 1
        assert demo.stderr.read() == ""
        assert all(map(wait_until_ended, pids(begun)))


@pytest.mark.parametrize("seconds", ["0", "2.9", "600.1", "nan", "inf", "-5"])
def test_a_length_that_makes_no_sense_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", f"--seconds={seconds}"])
    assert ended.value.code == 2
    assert f"seconds must be between 3 and 600, got {seconds}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--seconds", "soon"], ["demo", "--seed", "1.5"]])
def test_a_command_line_that_makes_no_sense_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: resilience" in capsys.readouterr().err


def test_the_module_passes_the_status_of_the_command_on() -> None:
    done = subprocess.run((*COMMAND, "--seconds", "0"), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "seconds must be between 3 and 600, got 0" in done.stderr


def test_a_report_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="report must be a file"):
        DemoOptions(report=tmp_path)
    with pytest.raises(ConfigurationError, match="report must lie in a folder"):
        DemoOptions(report=tmp_path / "missing" / "report.html")


@pytest.mark.parametrize(("switch", "sinks"), [(enable_logging, 1), (disable_logging, 0)])
def test_the_log_is_off_during_the_demo_and_afterwards_as_before(switch: Callable[[], None], sinks: int) -> None:
    found = CircuitStateChanged.sinks
    disable_logging()
    others = CircuitStateChanged.sinks
    switch()
    try:
        with _quiet_log():
            assert others == CircuitStateChanged.sinks
        assert len(CircuitStateChanged.sinks) == len(others) + sinks
    finally:
        (disable_logging if found == others else enable_logging)()

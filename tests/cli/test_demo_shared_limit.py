"""The shared limit's server where there is none, or one that does not start, and its picture."""

import io
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from resilience.cli.demo import shared_limit
from resilience.cli.demo.run import Run, ServiceProcess
from resilience.cli.demo.shared_limit import SharedLimit, kind_of
from resilience.cli.demo.tally import Answer, Entered, Left
from resilience.cli.demo.view import PlainView
from resilience.testing.servers import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


async def test_without_a_server_the_demo_says_so_in_one_line_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limit, "find_redis_servers", dict)
    async with SharedLimit.started(seconds=3) as shared:
        assert shared is None
    stream = io.StringIO()
    service = cast("ServiceProcess", SimpleNamespace(pid=1, port=1))
    with PlainView(Run(service, seconds=3, seed=1), stream) as view:
        view.conclude()
    assert stream.getvalue().count("No Redis or Valkey server is installed") == 1
    assert "legal" not in stream.getvalue()


async def test_a_server_that_does_not_start_is_told_and_the_demo_goes_on(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = shutil.which("false")
    assert nothing is not None
    monkeypatch.setattr(shared_limit, "find_redis_servers", lambda: {"broken": Path(nothing)})
    async with SharedLimit.started(seconds=3) as shared:
        assert shared is None
    assert "resilience demo: no Redis: " in capsys.readouterr().err
    assert is_empty(temporary)


async def test_the_server_ends_and_its_files_go_whatever_happens(temporary: Path) -> None:
    async def fail() -> None:
        async with SharedLimit.started(seconds=3) as shared:
            assert shared is not None
            servers.append(shared._server)
            assert shared._server.is_running
            raise RuntimeError("on purpose")

    servers: list[RedisServer] = []
    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()
    assert not servers[0].is_running
    assert is_empty(temporary)


def test_a_server_has_the_name_that_it_gives_itself() -> None:
    assert kind_of({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == "Valkey 9.1.2"
    assert kind_of({"redis_version": "6.2.14"}) == "Redis 6.2.14"


def run_with_limit(stages: int) -> Run:
    server = cast("RedisServer", SimpleNamespace(pid=2, port=2, url="redis://127.0.0.1:2/0"))
    shared = SharedLimit(server, "Valkey 9.9", seconds=600)
    shared.stage_starts.extend(200.0 * stage for stage in range(stages))
    shared.ended_at = 200.0 * stages
    for stage in range(stages):
        for number in range(1000):
            shared.tally.record(Answer(200.0 * stage, stage, 0.123, number % 3 == 0, "redis"))
    shared.switches += [Entered(200.0, "a.SomeError", 4), Left(405.0, 205.0, 3)] * (stages > 1)
    run = Run(cast("ServiceProcess", SimpleNamespace(pid=1, port=1)), seconds=600, seed=1, shared=shared)
    run.phase_starts.append(0.0)
    run.ended_at = 200.0 * stages
    return run


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (110, 40), (60, 24)])
def test_the_live_picture_fits_the_terminal(stages: int, width: int, height: int) -> None:
    rich = pytest.importorskip("rich.console")
    from resilience.cli.demo.live import LiveView

    console = rich.Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    view = LiveView(run_with_limit(stages), console)
    lines = console.render_lines(view._picture(), pad=False)
    drawn = ["".join(part.text for part in line) for line in lines]
    assert len(drawn) < height
    assert max(map(len, drawn)) <= width
    assert any("admitted" in line for line in drawn) == (width >= 80)
    assert any(line.startswith("Redis") and "up" in line for line in drawn) == (stages > 0)

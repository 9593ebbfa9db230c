"""The breaker benchmark runs, measures everybody who is there, and names everybody who is not."""

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from .conftest import is_installed, runner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
run = runner("bench_circuit_breaker.py")
PEERS = {
    "aiobreaker",
    "circuitbreaker",
    "fluxgate",
    "hyx",
    "interlock-cb",
    "purgatory",
    "pybreaker",
    "pyresilience",
}
ROWS = [
    "success",
    "time-window",
    "rejected",
    "unheard",
    "import",
    "mixed",
    "sync",
    "heard",
    "block",
    "window-1000",
    "threads",
]


def test_quick_run_answers_every_row(quick: dict[str, Any]) -> None:
    assert [row["key"] for row in quick["rows"]] == ROWS


def test_report_tells_machine_date_versions_and_settings(quick: dict[str, Any]) -> None:
    assert quick["benchmark"] == "circuit_breaker"
    assert quick["date"].endswith("+00:00")
    assert quick["machine"]["platform"]
    assert quick["machine"]["cores"] >= 1
    assert quick["python"].split()[1] == sys.version.split()[0]
    assert quick["config"] == {"backend": "asyncio", "quick": True, "rounds": 3, "sample_seconds": 0.002}
    assert set(quick["versions"]) == PEERS | {"anyio", "anyio-resilience"}
    assert quick["versions"]["anyio-resilience"] == version("anyio-resilience")


def test_everybody_installed_is_measured_in_every_round(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        for contender in row["contenders"]:
            where = (row["key"], contender["name"], contender["reason"])
            if contender["distribution"] is None or is_installed(contender["distribution"]):
                assert contender["status"] == "measured", where
                assert len(contender["rounds"]) == 3, where
                assert all(value > 0 for value in contender["rounds"]), where
                low, high = contender["quartiles"]
                assert low <= contender["median"] <= high, where
                assert math.isfinite(contender["median"]), where


def test_a_peer_that_is_not_installed_is_reported_as_missing(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        for contender in row["contenders"]:
            if contender["distribution"] is not None and not is_installed(contender["distribution"]):
                assert contender["status"] == "missing"
                assert contender["version"] is None
                assert f"{contender['distribution']} is not installed" in quick["printed"]


def test_all_peers_stand_in_the_rows_they_belong_to(quick: dict[str, Any]) -> None:
    standing = {row["key"]: {contender["distribution"] for contender in row["contenders"]} for row in quick["rows"]}
    assert standing["success"] == standing["mixed"] == standing["rejected"] == PEERS | {"anyio-resilience"}
    assert standing["sync"] == PEERS - {"hyx"} | {"anyio-resilience"}
    assert all("anyio-resilience" in there for key, there in standing.items() if key != "unheard")


def test_bars_are_judged_by_the_medians(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        medians = {contender["name"]: contender["median"] for contender in row["contenders"]}
        for bar in row["bars"]:
            reference = medians[bar["against"]] if bar["against"] else 1.0
            if reference is None:
                assert bar["verdict"] == "not measured"
            else:
                assert bar["value"] == medians[bar["name"]] / reference
                assert bar["verdict"] == ("pass" if bar["value"] <= bar["at_most"] else "MISS")


def test_import_brings_no_heavy_library(quick: dict[str, Any]) -> None:
    assert quick["heavy_imports"] == []


def test_only_the_named_rows_run_on_trio(tmp_path: Path) -> None:
    done = run("--quick", "--backend", "trio", "--only", "rejected", "success", "--json", str(tmp_path / "trio.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "trio.json").read_text(encoding="utf-8"))
    assert [row["key"] for row in report["rows"]] == ["success", "rejected"]
    assert report["config"]["backend"] == "trio"
    ours = next(one for one in report["rows"][0]["contenders"] if one["distribution"] == "anyio-resilience")
    assert ours["status"] == "measured", ours["reason"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rounds", "2"], "--rounds must be at least 3, got 2"),
        (["--only", "nonsense"], "invalid choice: 'nonsense'"),
        (["--json", str(BENCHMARKS)], "--json must name a file"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], told: str) -> None:
    done = run("--quick", *arguments)
    assert done.returncode == 2
    assert told in done.stderr

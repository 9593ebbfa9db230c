"""The breaker benchmark runs, measures everybody who is there, and names everybody who is not."""

import importlib.util
import json
import math
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "bench_circuit_breaker.py"
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


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "new" / "quick.json"
    done = run("--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    report["printed"] = done.stdout
    return report


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


# --- the harness, with samples that only claim to have taken time ---


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_harness", BENCHMARKS / "harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def claiming(harness: ModuleType, name: str, ns_per_round: list[float], ran: list[str] | None = None) -> Any:
    """Return a contender whose rounds take what the list says."""
    pending = iter(ns_per_round)

    async def sample(calls: int) -> float:
        if ran is not None:
            ran.append(name)
        return next(pending) * 1e-9 * calls

    async def build() -> Any:
        return sample

    return harness.Contender(name=name, build=build)


def measured(harness: ModuleType, rounds: int, **row: Any) -> Any:
    row = {"key": "row", "title": "row", "calls": 1000} | row
    return anyio.run(harness.measure, harness.Row(**row), harness.Plan(rounds=rounds, sample_seconds=0.001))


def test_added_time_is_the_median_of_differences_within_rounds(harness: ModuleType) -> None:
    row = measured(
        harness,
        3,
        baseline=claiming(harness, "bare", [100, 900, 100]),
        contenders=[claiming(harness, "guarded", [400, 1100, 390])],
        bars=[harness.Bar(name="guarded", at_most=289.0)],
    )
    assert row["contenders"][0]["median"] == pytest.approx(290)
    assert row["contenders"][0]["rounds"] == pytest.approx([400, 1100, 390])
    assert row["bars"][0]["verdict"] == "MISS"


def test_contenders_take_turns_in_a_rotating_order(harness: ModuleType) -> None:
    ran: list[str] = []
    measured(harness, 3, contenders=[claiming(harness, name, [1, 1, 1], ran) for name in "abc"])
    assert ran == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_contender_that_breaks_is_reported_and_the_others_go_on(harness: ModuleType) -> None:
    row = measured(
        harness,
        3,
        contenders=[claiming(harness, "breaks", []), claiming(harness, "works", [5, 5, 5])],
        bars=[harness.Bar(name="works", at_most=1.0, against="breaks")],
    )
    broken, works = row["contenders"]
    assert broken["status"] == "failed"
    assert broken["median"] is None
    assert works["median"] == pytest.approx(5)
    assert row["bars"][0]["verdict"] == "not measured"


def test_a_missing_distribution_is_told_without_building(harness: ModuleType) -> None:
    def build() -> None:
        raise AssertionError("nothing of a missing distribution can be built")

    absent = harness.Contender(name="absent", distribution="no-such-distribution", build=build)
    row = measured(harness, 3, contenders=[absent])
    assert row["contenders"][0]["status"] == "missing"
    assert row["contenders"][0]["reason"] == "no-such-distribution is not installed"

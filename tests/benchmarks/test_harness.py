"""The harness of the benchmarks, with samples that only claim to have taken time."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


def measured(harness: ModuleType, rounds: int, /, **row: Any) -> Any:
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


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        ({"at_most": 2.1, "against": "b"}, "pass"),
        ({"at_most": 1.9, "against": "b"}, "MISS"),
        ({"at_least": 1.9, "against": "b"}, "pass"),
        ({"at_least": 2.1, "against": "b"}, "MISS"),
        ({"at_most": 401.0}, "pass"),
        ({"at_least": 401.0}, "MISS"),
    ],
)
def test_a_bar_holds_at_most_or_at_least(
    harness: ModuleType, capsys: pytest.CaptureFixture[str], bar: dict[str, Any], verdict: str
) -> None:
    contenders = [claiming(harness, "a", [400] * 3), claiming(harness, "b", [200] * 3)]
    row = measured(harness, 3, contenders=contenders, bars=[harness.Bar(name="a", **bar)])
    assert row["bars"][0]["verdict"] == verdict
    harness.print_row(row, "a")
    assert f"{verdict}: a {'<=' if 'at_most' in bar else '>='} " in capsys.readouterr().out


def test_a_row_may_have_fewer_rounds_than_the_plan(harness: ModuleType) -> None:
    row = measured(harness, 9, rounds=2, contenders=[claiming(harness, "a", [1, 2])])
    assert row["contenders"][0]["rounds"] == pytest.approx([1, 2])


def test_a_row_may_stretch_its_samples(harness: ModuleType) -> None:
    async def build() -> Any:
        async def sample(calls: int) -> float:
            return calls * 1e-6

        return sample

    contender = harness.Contender(name="a", build=build)
    row = measured(harness, 3, calls=None, stretch=5.0, contenders=[contender])
    assert row["contenders"][0]["calls_per_round"] == 5_000


@pytest.mark.parametrize(("unit", "value"), [("ns", 2e9), ("us", 2e6), ("ms", 2e3), ("calls/s", 0.5), ("bytes", 2.0)])
def test_units(harness: ModuleType, unit: str, value: float) -> None:
    row = measured(harness, 3, unit=unit, calls=1, contenders=[claiming(harness, "a", [2e9] * 3)])
    assert row["contenders"][0]["median"] == pytest.approx(value)


def test_an_import_is_timed_in_a_fresh_interpreter_and_what_it_brings_is_told(harness: ModuleType) -> None:
    row = measured(harness, 3, unit="ms", calls=1, contenders=[harness.importing("json.tool", "anyio")])
    assert row["contenders"][0]["status"] == "measured"
    assert row["contenders"][0]["name"] == "import json.tool"
    assert harness.brought_by("json.tool", ["json", "antigravity"]) == ["json"]

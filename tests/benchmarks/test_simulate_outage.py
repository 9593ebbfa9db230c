"""The simulation of outages: the same by its seed, our policy within its bound, and what is kept is what it says."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import fakeredis
import pytest

from resilience import Quota
from resilience.rate_limiter.gcra import Gcra
from resilience.rate_limiter.lines import script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "simulate_outage.py"
AGAIN = "run: python benchmarks/simulate_outage.py --keep"


def run(path: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--json", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    report["printed"] = done.stdout
    return report


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("outage") / "new" / "quick.json", "--quick")


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))  # scripts import each other by their names
    try:
        return importlib.import_module("simulate_outage")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def kept(simulation: ModuleType) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(simulation.KEPT.read_text("utf-8"))
    return report


def stories(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {record["key"]: record for record in report["scenarios"]}


def test_quick_run_tells_every_story_under_every_policy(quick: dict[str, Any], simulation: ModuleType) -> None:
    assert list(stories(quick)) == [scenario.key for scenario in simulation.SCENARIOS]
    for record in quick["scenarios"]:
        assert list(record["policies"]) == ["open", "closed", "full", "empty", "seeded", "ours"]
        assert f"{record['key']}: {record['title']}" in quick["printed"]


def test_a_run_is_the_same_by_its_seed_and_another_by_another(tmp_path: Path, quick: dict[str, Any]) -> None:
    only = ["--quick", "--only", "long", "flapping", "frozen"]
    again, other = run(tmp_path / "1.json", *only), run(tmp_path / "2.json", *only, "--seed", "2")
    assert [stories(again)[key] == stories(quick)[key] for key in stories(again)] == [True] * 3
    assert [stories(other)[key] == stories(quick)[key] for key in stories(other)] == [False] * 3


@pytest.mark.parametrize("which", ["quick", "kept"])
def test_ours_is_within_its_bound_in_every_story(which: str, request: pytest.FixtureRequest) -> None:
    for record in request.getfixturevalue(which)["scenarios"]:
        assert record["policies"]["ours"]["excess"] <= record["bound"], record["key"]


def test_a_limit_that_all_know_is_held_through_a_long_outage(kept: dict[str, Any]) -> None:
    held = "long long-lost short short-lost uneven costs too-large frozen born-told flapping slow 100 1000"
    for key in held.split():
        record = stories(kept)[key]
        ours = record["policies"]["ours"]
        assert ours["peak"] <= record["legal"], key
        assert 0.9 <= ours["ratio"] <= 1.02, key


def test_without_the_share_the_limit_is_lost(kept: dict[str, Any]) -> None:
    record = stories(kept)["long"]
    policies, legal = record["policies"], record["legal"]
    assert policies["open"]["peak"] > 10 * legal
    assert policies["open"]["admitted"] > record["offered"] / 3  # a third of the time there was no limit at all
    assert 0.95 * 8 <= policies["full"]["peak"] / legal <= 8
    assert policies["closed"]["ratio"] < 0.8
    assert policies["closed"]["excess"] == 0


def test_without_seed_or_replay_a_burst_is_granted_again(kept: dict[str, Any]) -> None:
    policies = stories(kept)["long"]["policies"]
    assert policies["empty"]["excess"] > 1.5 * 40
    assert 0.5 * 40 < policies["seeded"]["excess"] < 1.5 * 40
    assert policies["ours"]["excess"] < 0.1 * 40


def test_a_burst_smaller_than_the_number_of_instances_is_exceeded_by_the_rest_at_most(kept: dict[str, Any]) -> None:
    assert stories(kept)["small-burst"]["policies"]["ours"]["excess"] <= 100 - 10


def test_ended_instances_leave_their_share_unused(kept: dict[str, Any]) -> None:
    assert stories(kept)["halved"]["policies"]["ours"]["ratio"] < 0.95


def test_the_kept_run_is_that_of_the_library_as_it_is(kept: dict[str, Any], simulation: ModuleType) -> None:
    for scenario in simulation.SCENARIOS:
        if scenario.key in ("long", "short-lost", "crowds"):
            now, then = simulation.told(scenario, kept["seed"]), stories(kept)[scenario.key]
            assert now["ideal"] == pytest.approx(then["ideal"], abs=2), AGAIN
            for key, row in now["policies"].items():  # other machines may round another last bit
                assert row["ratio"] == pytest.approx(then["policies"][key]["ratio"], abs=0.01), (key, AGAIN)


def test_the_picture_and_the_tables_are_those_of_the_kept_run(kept: dict[str, Any], simulation: ModuleType) -> None:
    assert simulation.PICTURE.read_text("utf-8") == simulation.draw(kept), AGAIN
    page = simulation.PAGE.read_text("utf-8")
    assert page == simulation.with_tables(page, kept), AGAIN


def test_only_a_full_run_is_kept(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--keep"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "--keep needs the full run" in done.stderr


def test_excess_is_that_of_the_worst_window_of_any_length(simulation: ModuleType) -> None:
    # burst 2, one per second: 3 at once is one too many; 5 in two seconds too.
    assert simulation.excess([(0.0, 3)], 1.0, 2.0) == 1.0
    assert simulation.excess([(0.0, 2), (1.0, 2), (2.0, 1)], 1.0, 2.0) == 1.0
    assert simulation.excess([(0.0, 2), (1.0, 1), (2.0, 1)], 1.0, 2.0) == 0.0


def test_peak_is_the_most_in_a_trailing_window(simulation: ModuleType) -> None:
    assert simulation.peak([(0.0, 2), (5.0, 3), (10.0, 1), (16.0, 1)], 10.0) == 5


def test_the_simulated_server_does_what_the_script_does(simulation: ModuleType) -> None:
    world = sys.modules["outage_world"]
    quota = Quota(7, 86_400.0, burst=40)  # so slow that the script's own clock makes no difference
    spec = Gcra.of(quota).spec(0)
    clock = world.VirtualTime()
    simulated = world.Redis(quota, clock, [], loses_data=False, freezes=False)
    server = fakeredis.FakeStrictRedis()
    source, _ = script()
    rng = Random(7)
    unit = Gcra.of(quota).unit
    for number in range(300):
        keys = [f"key-{rng.randrange(3)}" for _ in range(rng.randint(1, 3))]
        operation, cost, extra = rng.choice([("acquire", rng.randint(1, 9), str(rng.randint(1, 4))), ("replay", 0, "")])
        if operation == "replay":
            extra = str(rng.randrange(50) * unit)
        arguments: list[str | int] = [f"i{number % 5} 30000", spec, operation, cost, extra, len(keys)]
        mine = simulated.call([*keys, "instances"], arguments).split()
        theirs = bytes(server.eval(source, len(keys) + 1, *keys, "instances", *arguments)).split()
        assert mine[1] == theirs[1]  # the instances that live
        assert mine[2::3] == theirs[2::3]  # what was given
        assert [int(one) for one in mine[4::3]] == pytest.approx([int(one) for one in theirs[4::3]], abs=unit * 0.01)
        if number % 40 == 39:
            server.delete("key-0", "key-1", "key-2")
            simulated = world.Redis(quota, clock, [], loses_data=False, freezes=False)
            server.delete("instances")

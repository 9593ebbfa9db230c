"""The pool benchmark runs, measures everybody who is there, and names everybody who is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .conftest import is_installed, runner

run = runner("bench_pool.py")
PEERS = {"asyncio-connection-pool", "asyncpg", "psycopg-pool", "redis", "SQLAlchemy"}
Distributions = frozenset[str | None]
OURS: Distributions = frozenset({"anyio-resilience"})
ALL = OURS | PEERS
ROWS: dict[str, Distributions] = {
    "alone": ALL,
    "crowd": ALL | {None},
    "waiters": OURS | {None},
    "spike-2ms": ALL,
    "spike-2ms-opened": ALL,
    "spike-200ms": ALL,
    "spike-200ms-opened": ALL,
}


def test_quick_run_answers_every_row(quick: dict[str, Any]) -> None:
    assert [row["key"] for row in quick["rows"]] == list(ROWS)
    assert quick["benchmark"] == "pool"
    assert set(quick["versions"]) == ALL


def test_all_stand_in_the_rows_they_belong_to(quick: dict[str, Any]) -> None:
    assert {row["key"]: {one["distribution"] for one in row["contenders"]} for row in quick["rows"]} == ROWS


def test_everybody_installed_is_measured(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        for contender in row["contenders"]:
            where = (row["key"], contender["name"], contender["reason"])
            if contender["distribution"] is None or is_installed(contender["distribution"]):
                assert contender["status"] == "measured", where
                assert len(contender["rounds"]) >= 2, where
                assert all(value >= 0 for value in contender["rounds"]), where
                assert math.isfinite(contender["median"]), where
            else:
                assert contender["status"] == "missing", where
                assert f"{contender['distribution']} is not installed" in quick["printed"]


def test_nobody_opens_more_than_allowed_in_a_spike(quick: dict[str, Any]) -> None:
    for row in quick["rows"]:
        if row["unit"] == "connects":
            assert all(0 <= opened <= 45 for one in row["contenders"] for opened in one["rounds"])


def test_what_was_promised_is_judged(quick: dict[str, Any]) -> None:
    judged = {row["key"] for row in quick["rows"] if row["bars"]}
    assert judged == set(ROWS) - {"spike-200ms-opened"}


def test_on_trio_ours_runs(tmp_path: Path) -> None:
    path = tmp_path / "trio.json"
    done = run("--quick", "--backend", "trio", "--only", "waiters", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    ours = [one for one in row["contenders"] if one["name"].startswith("resilience")]
    assert {one["status"] for one in ours} == {"measured"}

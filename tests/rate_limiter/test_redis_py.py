"""Which versions of redis-py the limiter supports: those that pyproject.toml says, of which CI tests the oldest too."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lowest() -> str:
    """Give the oldest version that pyproject.toml allows."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (found,) = (re.fullmatch(r"redis>=([\d.]+)", one) for one in dependencies if one.startswith("redis"))
    assert found is not None, "one number, and nothing beside it: newer versions are not kept out"
    return found[1]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def test_what_is_installed_is_allowed() -> None:
    assert numbers(version("redis")) >= numbers(lowest())


def test_what_is_installed_says_the_same() -> None:
    assert f"redis>={lowest()}" in (requires("anyio-resilience") or [])


def test_ci_reads_the_oldest_version_from_the_same_place() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (line,) = (line for line in script.splitlines() if line.startswith("oldest() "))
    told = subprocess.run(["bash", "-c", f"{line}; oldest redis"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == lowest()


@pytest.mark.skipif("LOWEST_REDIS_PY" not in os.environ, reason="set by the run on the oldest redis-py")
def test_this_run_is_on_the_oldest_version() -> None:
    assert numbers(version("redis"))[: len(numbers(lowest()))] == numbers(lowest())

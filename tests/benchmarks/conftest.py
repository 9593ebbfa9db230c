"""What the tests of all benchmarks share: running one as a user does, and its quick run's report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def runner(script: str) -> Run:
    """Give the function that runs a benchmark with some arguments."""
    path = Path(__file__).parents[2] / "benchmarks" / script

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(path), *arguments], capture_output=True, text=True, check=False, timeout=120
        )

    return run


def is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def quick(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a quick run by the module's own `run`, with what it printed."""
    path = tmp_path_factory.mktemp("benchmark") / "new" / "quick.json"
    done = request.module.run("--quick", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    report["printed"] = done.stdout
    return report

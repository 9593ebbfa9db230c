"""The public API gives type checkers what they need: right types, and errors where users would go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_the_typed_files_hold_under_strict_mypy(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    files = sorted(HERE.glob("typed_*.py"))
    assert files
    monkeypatch.chdir(ROOT)  # where the configuration's relative paths begin
    # A cache of its own, kept between runs: the second run takes a tenth of the first one's time, and no other mypy
    # that runs at the same time gets in the way.
    cache = pytestconfig.cache
    assert cache is not None
    report, problems, status = api.run(
        [f"--cache-dir={cache.mkdir('mypy')}", "--config-file=pyproject.toml", *map(str, files)]
    )
    assert (status, problems) == (0, ""), report

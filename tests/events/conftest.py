"""Nobody may be left listening from the tests before these."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_before() -> None:
    """Collect pipelines that other modules have left behind in cycles: while one lives, its memory listens."""
    gc.collect()

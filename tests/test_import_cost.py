"""What importing the package loads: third parties come with the first use of what needs them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("redis", "structlog", "tenacity", "rich", "trio")


def loaded_by(script: str) -> list[str]:
    """Run `script` in a fresh interpreter and give the modules that it has loaded."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{script}\nimport sys\nprint(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={key: value for key, value in os.environ.items() if key != "RESILIENCE_LOG"},
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "script",
    [
        "import resilience",
        "from resilience import CircuitBreaker",
        "from resilience import ConfigurationError, ResilienceError, TimeWindow",
        "from resilience import subscribe",
        "from resilience import *",
        "import resilience.events, resilience.breaker, resilience.windows, resilience.errors, resilience.clock",
        "from resilience import CircuitBreaker; CircuitBreaker('used').call(int)",
    ],
)
def test_importing_loads_no_third_party_but_anyio(script: str) -> None:
    assert set(HEAVY) & set(loaded_by(script)) == set()


def test_the_bare_import_loads_no_room_at_all() -> None:
    assert [name for name in loaded_by("import resilience") if name.startswith(("resilience.", "anyio"))] == []


def test_errors_can_be_imported_without_the_rooms_that_raise_them() -> None:
    loaded = loaded_by("from resilience import CircuitOpenError")
    assert [name for name in loaded if name.startswith("resilience")] == ["resilience", "resilience.errors"]


def test_events_load_anyio_with_the_queue_and_not_before() -> None:
    assert "anyio" not in loaded_by("from resilience.events import capture, subscribe")
    assert "anyio" in loaded_by("from resilience.events import QueueSink")

"""The runner of the examples: a page that lies is found out. The pages themselves run when README.md and docs do."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest
from sybil import Sybil
from sybil.example import SybilFailure

ROOT = Path(__file__).parents[2]
RUNNER = run_path(str(ROOT / "conftest.py"))


def play(tmp_path: Path, text: str) -> None:
    """Run the examples of a page as pytest does, setup and teardown included."""
    sybil: Sybil = RUNNER["examples"]
    page = tmp_path / "page.md"
    page.write_text(text)
    document = sybil.parse(page)
    assert sybil.setup is not None
    assert sybil.teardown is not None
    sybil.setup(document.namespace)
    for example in document.examples():
        example.evaluate()
    sybil.teardown(document.namespace)


def test_an_example_that_fails_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        play(tmp_path, "```python\nassert 1 == 2\n```\n")


def test_an_example_whose_output_is_another_is_found_out(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, SybilFailure)):
        play(tmp_path, "```python\nprint('owl')\n```\n\n```output\nowls\n```\n")


@pytest.mark.parametrize("after", ["", "```python\nx = 1\n```\n\n```output\n```\n"])
def test_output_that_the_page_does_not_show_is_found_out(tmp_path: Path, after: str) -> None:
    with pytest.raises((AssertionError, SybilFailure)):
        play(tmp_path, f"```python\nprint('owl')\n```\n\n{after}")


def test_an_honest_page_passes(tmp_path: Path) -> None:
    play(tmp_path, "```python\nowl = 'owl'\n```\n\n```python\nprint(owl)\n```\n\n```output\nowl\n```\n")


def test_the_pages_are_full_of_examples() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert sum(len(list(RUNNER["examples"].parse(page).examples())) for page in pages) > 60

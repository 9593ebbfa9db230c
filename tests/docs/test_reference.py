"""The reference has every public name, and what it tells of events is what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from functools import reduce
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import pytest

import resilience
from resilience import events
from resilience.cli import main
from resilience.events import Event
from resilience.testing import servers

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DIRECTIVES = [
    name
    for page in sorted(REFERENCE.glob("*.md"))
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
]


def rooms() -> Iterator[ModuleType]:
    """The package, and each room in it that says what is public."""
    for one in (
        resilience,
        *(import_module(f"resilience.{found.name}") for found in iter_modules(resilience.__path__)),
        servers,  # a room inside a room, which that one does not import
    ):
        if one.__name__ != "resilience.__main__" and hasattr(one, "__all__"):
            yield one


def find(path: str) -> object:
    room = next(one for one in sorted(rooms(), key=lambda room: -len(room.__name__)) if path.startswith(one.__name__))
    rest = path.removeprefix(f"{room.__name__}.").split(".")
    if not hasattr(room, rest[0]):  # a module without `__all__`, such as resilience.clock
        room, rest = import_module(path.rpartition(".")[0]), rest[-1:]
    return reduce(getattr, rest, room)


PUBLIC = [f"{room.__name__}.{name}" for room in rooms() for name in room.__all__]


def test_there_is_something_to_compare() -> None:
    assert {"resilience", "resilience.breaker", "resilience.events", "resilience.testing"} <= {
        room.__name__ for room in rooms()
    }
    assert len(PUBLIC) > 80


@pytest.mark.parametrize("path", PUBLIC)
def test_every_public_name_is_in_the_reference(path: str) -> None:
    name = path.rpartition(".")[2]
    same = [one for one in DIRECTIVES if one.rpartition(".")[2] == name and find(one) is find(path)]
    assert same, f"add '::: {path}' to a page of docs/reference"


def test_everything_in_the_reference_exists() -> None:
    for path in DIRECTIVES:
        find(path)


def test_nothing_is_in_the_reference_twice() -> None:
    assert sorted(set(DIRECTIVES)) == sorted(DIRECTIVES)


def test_every_page_of_the_reference_is_on_its_first_page() -> None:
    index = (REFERENCE / "index.md").read_text("utf-8")
    for page in REFERENCE.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index


RECORDS = [
    one
    for one in (getattr(events, name) for name in events.__all__)
    if isinstance(one, type) and issubclass(one, Event) and one is not Event
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_table_of_events_tells_kind_fields_and_severity(record: type[Event]) -> None:
    page = (REFERENCE / "event-records.md").read_text("utf-8")
    link = f"[`{record.__name__}`](#resilience.events.{record.__name__})"
    row = next(line for line in page.splitlines() if link in line)
    kind, _, told, severity = (cell.strip() for cell in row.strip("|").split("|"))
    own = [one.name for one in fields(record) if one.name not in {field.name for field in fields(Event)}]
    assert kind == f"`{record.kind}`"
    assert re.findall(r"`(\w+)`", told) == own
    assert record.default_severity in re.findall(r"\w+", severity)
    judges_itself = "severity" in vars(record)
    assert judges_itself == (severity != record.default_severity)


def test_the_options_of_the_demo_are_on_the_page_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REFERENCE / "command-line.md").read_text("utf-8")
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    offered = {option for option in re.findall(r"--[a-z]+", capsys.readouterr().out) if option != "--help"}
    assert offered == set(re.findall(r"^\| `(--[a-z]+)", page, re.MULTILINE))

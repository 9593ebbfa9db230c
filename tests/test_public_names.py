"""The public surface: a changed line in `public_names.txt` is the moment to talk about the API."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import resilience

NAMES_FILE = Path(__file__).with_name("public_names.txt")

ROOMS = [
    "resilience",
    "resilience.breaker",
    "resilience.clock",
    "resilience.errors",
    "resilience.events",
    "resilience.policies",
    "resilience.pool",
    "resilience.rate_limiter",
    "resilience.testing",
    "resilience.testing.servers",
    "resilience.windows",
]

HOW_TO_UPDATE = (
    "The public names differ from tests/public_names.txt. If that is meant, and told in the changelog, write the file "
    "anew: python tests/test_public_names.py"
)


def public_names(room: str) -> list[str]:
    """Give what `room` offers: its `__all__`; a module without one offers what it defines without an underscore."""
    module = import_module(room)
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    assert module.__file__ is not None
    return sorted(name for name in defined_names(Path(module.__file__)) if not name.startswith("_"))


def defined_names(path: Path) -> set[str]:
    """Give what a file defines at its top level: what it imports belongs to others."""
    names: set[str] = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def surface() -> str:
    """Write all rooms down, one name per line."""
    return "".join(f"{room}.{name}\n" for room in ROOMS for name in public_names(room))


def test_the_public_names_are_those_of_the_file() -> None:
    listed = NAMES_FILE.read_text(encoding="utf-8").splitlines()
    found = surface().splitlines()
    added, missing = sorted(set(found) - set(listed)), sorted(set(listed) - set(found))
    assert not added and not missing, f"{HOW_TO_UPDATE}\nnew: {added}\ngone: {missing}"  # noqa: PT018 - one message
    assert found == listed, HOW_TO_UPDATE


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_resolves_and_stands_once(room: str) -> None:
    module = import_module(room)
    names = public_names(room)
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("room", [room for room in ROOMS if hasattr(import_module(room), "__all__")])
def test_a_star_import_gives_all_public_names(room: str) -> None:
    script = f"from {room} import *\nprint(*sorted(set(globals()) - set(dir(__builtins__))))"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60).stdout
    assert set(public_names(room)) <= set(told.split())


def test_no_public_name_of_the_top_level_is_private() -> None:
    assert not [name for name in resilience.__all__ if name.startswith("_")]


def test_dir_shows_the_lazy_names() -> None:
    # Without loading them: in a fresh interpreter nothing has been used yet.
    script = "import resilience, sys; print(*dir(resilience)); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60).stdout
    shown, loaded = (line.split() for line in told.splitlines())
    assert set(resilience.__all__) <= set(shown)
    assert shown == sorted(shown)
    assert "resilience.events" not in loaded


def test_a_name_is_looked_up_once() -> None:
    assert resilience.CircuitBreaker is resilience.CircuitBreaker
    assert "CircuitBreaker" in vars(resilience)


def test_a_name_at_the_top_is_the_object_of_its_room() -> None:
    for name, room in resilience._ROOM_OF.items():
        assert getattr(resilience, name) is getattr(import_module(f"resilience.{room}"), name)


def test_an_unknown_name_is_an_attribute_error_with_module_and_name() -> None:
    with pytest.raises(AttributeError, match=r"^module 'resilience' has no attribute 'CircuitBraker'$"):
        resilience.CircuitBraker  # noqa: B018 - the look-up is the test
    with pytest.raises(ImportError, match="cannot import name 'CircuitBraker' from 'resilience'"):
        exec("from resilience import CircuitBraker")
    events = import_module("resilience.events")
    with pytest.raises(AttributeError, match=r"^module 'resilience\.events' has no attribute 'QueueSnik'$"):
        events.QueueSnik  # noqa: B018 - as above


# A room inside a room (the test servers) is for those who import it.
@pytest.mark.parametrize("room", [room.removeprefix("resilience.") for room in ROOMS if room.count(".") == 1])
def test_a_room_can_be_reached_as_an_attribute_of_the_package(room: str) -> None:
    # Whether `resilience.events.capture()` works must not depend on what happened to be loaded before.
    script = f"import resilience; print(resilience.{room}.__name__)"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"resilience.{room}", done.stderr


def names_for_type_checkers() -> dict[str, str]:
    """Read which room each name comes from in the `if TYPE_CHECKING:` block."""
    assert resilience.__file__ is not None
    tree = ast.parse(Path(resilience.__file__).read_text(encoding="utf-8"))
    (block,) = [
        statement
        for statement in tree.body
        if isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Name)
        and statement.test.id == "TYPE_CHECKING"
    ]
    imports = [statement for statement in block.body if isinstance(statement, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    return {alias.name: str(one.module) for one in imports for alias in one.names}


def test_type_checkers_the_lazy_table_and_all_agree() -> None:
    assert names_for_type_checkers() == resilience._ROOM_OF
    assert resilience.__all__ == sorted(resilience._ROOM_OF)


if __name__ == "__main__":
    NAMES_FILE.write_text(surface(), encoding="utf-8")

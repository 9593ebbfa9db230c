"""The picture of the state machine is the transition table."""

from __future__ import annotations

import re
from pathlib import Path
from runpy import run_path
from xml.etree import ElementTree as ET

import pytest

from resilience.breaker import CircuitState
from resilience.breaker.core import TRANSITIONS, Trigger

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = run_path(str(DOCS / "state_diagram.py"))
draw, PICTURE = SCRIPT["draw"], SCRIPT["PICTURE"]

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def arrows(svg: str) -> int:
    return len(re.findall(r'<path class="arrow', svg)) - 1  # one is the legend's


def test_the_kept_picture_is_what_the_table_draws() -> None:
    assert PICTURE.read_bytes() == draw().encode(), "run: python docs/state_diagram.py"


def test_every_state_and_every_trigger_of_the_table_is_written_in_the_picture_once() -> None:
    written = texts(draw())
    orders = {"trip", "force_open", "disable", "metrics_only", "reset"}
    for state in CircuitState:
        assert written.count(state.name) == 1
    for trigger in Trigger:
        assert written.count(f"{trigger}()" if trigger in orders else trigger.value) == 1


def test_the_description_for_those_who_do_not_see_the_picture_tells_every_row() -> None:
    told = draw()
    for (start, trigger), end in TRANSITIONS.items():
        sentences = re.findall(rf"(?:{start}|Every state) to {end}: ([a-z_, ]+)\.", told)
        assert any(trigger.value in sentence.split(", ") for sentence in sentences), (start, trigger, end)


def test_a_way_that_has_no_place_in_the_picture_is_an_error() -> None:
    with pytest.raises(LookupError):
        draw({**TRANSITIONS, (OPEN, Trigger.PROBES_SUCCEEDED): CLOSED})


def test_an_order_that_has_no_place_in_the_picture_is_an_error() -> None:
    to_half_open = {(state, Trigger.OPEN_TIME_OVER): HALF_OPEN for state in CircuitState}
    with pytest.raises(LookupError):
        draw({**TRANSITIONS, **to_half_open})


def test_an_order_that_not_every_state_obeys_is_no_order() -> None:
    table = {row: end for row, end in TRANSITIONS.items() if row != (OPEN, Trigger.DISABLE)}
    with pytest.raises(LookupError):  # it would need arrows of its own
        draw(table)


def test_a_row_that_is_taken_away_takes_its_arrow_along() -> None:
    table = {row: end for row, end in TRANSITIONS.items() if row != (OPEN, Trigger.OPEN_TIME_OVER)}
    assert "open_time_over" not in draw(table)
    assert arrows(draw(table)) == arrows(draw()) - 1

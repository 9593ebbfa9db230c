import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import cast
from xml.etree import ElementTree as ET

import pytest

from resilience.cli.demo.charts import outcome_chart, response_chart, state_spans
from resilience.cli.demo.findings import findings, phase_rows, rows
from resilience.cli.demo.ledger import Call, Outcome, StateChange
from resilience.cli.demo.report import page
from resilience.cli.demo.run import Run, ServiceProcess

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
VOID = {"meta", "br", "link", "img", "hr"}


def run_until(phases: int, *, per_phase: int = 10) -> Run:
    """Give a run of 20 s that reached the first `phases` phases, one second each, with every outcome in each."""
    run = Run(cast("ServiceProcess", SimpleNamespace(pid=4711, port=40001)), seconds=20, seed=1)
    run.phase_starts.extend(float(number) for number in range(phases))
    run.ended_at = float(phases)
    run.due = phases * per_phase
    kinds = {run.naked: (Outcome.IN_TIME, Outcome.LATE, Outcome.FAILED, Outcome.DROPPED), run.protected: tuple(Outcome)}
    for client, outcomes in kinds.items():
        for number in range(phases * per_phase):
            due = number / per_phase
            outcome = outcomes[number % len(outcomes)]
            took = 2.0 if outcome is Outcome.FAILED and client is run.naked else 0.01
            client.ledger.record(Call(number, int(due), due, due + took, outcome))
    if phases > 1:
        run.changes.append(StateChange(1.2, "closed", "open", "failure rate (<60%> failed)"))
    return run


@pytest.fixture(params=[0, 1, 4, 6])
def run(request: pytest.FixtureRequest) -> Run:
    return run_until(request.param)


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    return checker


def test_the_page_is_closed_in_itself_however_far_the_run_got(run: Run) -> None:
    html = page(run, when=WHEN)
    checker = checked(html)
    assert checker.open == []
    assert "script" not in checker.tags
    assert not {"src", "href", "srcset"} & {name for name, _ in checker.attributes}
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_every_chart_is_well_formed_labelled_and_within_its_frame(run: Run) -> None:
    for chart in (response_chart(run), outcome_chart(run)):
        svg = ET.fromstring(chart)
        assert svg.get("role") == "img"
        named = {element.get("id") for element in svg if element.tag in {"title", "desc"}}
        assert set(str(svg.get("aria-labelledby")).split()) == named
        _, _, width, height = map(float, str(svg.get("viewBox")).split())
        for rect in svg.iter("rect"):
            x, y, wide, high = (float(str(rect.get(name))) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + wide <= width + 0.1
            assert 0 <= y <= y + high <= height
        for path in svg.iter("path"):
            for x, y in re.findall(r"M([-\d.]+) ([-\d.]+)", str(path.get("d"))):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height


def test_every_class_in_the_page_is_known_to_its_style_sheet() -> None:
    html = page(run_until(6), when=WHEN)
    style = html[html.index("<style>") : html.index("</style>")]
    used = {name for names in re.findall(r'class="([^"]+)"', html) for name in names.split()} - {"number"}
    assert {name for name in used if f".{name}" not in style} == set()


def test_every_request_has_a_mark_and_each_place_one(run: Run) -> None:
    marks = ET.fromstring(response_chart(run)).findall("path[@class]")
    drawn = sum(str(path.get("d")).count("M") for path in marks if str(path.get("class")).startswith("mark"))
    assert drawn == sum(len(client.ledger.calls) for client in run.clients)


def test_bars_of_a_steady_load_are_equally_high() -> None:
    run = run_until(6, per_phase=60)
    columns: dict[str, float] = {}
    for bar in ET.fromstring(outcome_chart(run)).iter("path"):
        if str(bar.get("class")).startswith("bar"):
            for x, _, height in re.findall(r"M([\d.]+) ([\d.]+)H[\d.]+v([\d.]+)", str(bar.get("d"))):
                columns[x] = columns.get(x, 0.0) + float(height)
    assert len(columns) == 12
    assert max(columns.values()) - min(columns.values()) < 1  # rounded to a tenth, per outcome


def test_text_from_the_run_is_escaped() -> None:
    html = page(run_until(6), when=WHEN)
    assert "<60%>" not in html
    assert "<60%> failed" in checked(html).text


def test_the_counts_of_the_phases_add_up_to_those_of_the_run() -> None:
    run = run_until(6)
    for client in run.clients:
        own = [row for row in phase_rows(run) if row.client == client.name]
        assert [row.phase for row in own] == [phase.name for phase in run.script.phases]
        counted = sum(row.answered + row.failed + row.rejected + row.dropped for row in own)
        assert counted == run.due
        assert sum(row.lost for row in own) == pytest.approx(client.ledger.seconds_lost())


def test_a_run_that_met_no_trouble_claims_nothing() -> None:
    assert findings(run_until(1)) == ["The run ended before the service fell sick: there is nothing to compare."]


def test_savings_are_claimed_only_where_the_numbers_show_them() -> None:
    run = run_until(6)
    assert "saved" in findings(run)[0]
    for number in range(100):
        run.protected.ledger.record(Call(number, 1, 1.0, 11.0, Outcome.FAILED))
    assert "saved" not in " ".join(findings(run))


def test_the_price_is_told_where_the_naked_client_got_more_answers() -> None:
    run = run_until(6)
    fewer = run.naked.ledger.answered - run.protected.ledger.answered
    assert fewer > 0
    assert f"The price: {fewer} answers fewer" in findings(run)[2]
    for number in range(fewer):
        run.protected.ledger.record(Call(number, 1, 1.0, 1.1, Outcome.IN_TIME))
    assert "price" not in findings(run)[2]


def test_requests_without_an_outcome_are_told_as_cut_off() -> None:
    run = run_until(4)
    assert "cut off when stopped" not in {row.label for row in rows(run)}
    run.due += 3
    assert next(row for row in rows(run) if row.label == "cut off when stopped").naked == "3"


def test_a_healing_that_was_not_reached_has_no_figure() -> None:
    assert rows(run_until(4))[-1].naked == "-"


def test_states_follow_each_other_and_probing_is_drawn_on_top() -> None:
    changes = [
        StateChange(1.0, "closed", "open", ""),
        StateChange(2.0, "open", "half_open", ""),
        StateChange(2.5, "half_open", "closed", ""),
    ]
    assert state_spans(changes, 4.0) == [
        ("closed", 0.0, 1.0),
        ("open", 1.0, 2.0),
        ("closed", 2.5, 4.0),
        ("half_open", 2.0, 2.5),
    ]


def test_a_breaker_that_never_moved_is_closed_throughout() -> None:
    assert state_spans([], 4.0) == [("closed", 0.0, 4.0)]

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
from resilience.cli.demo.limit_chart import limit_chart
from resilience.cli.demo.limit_findings import limit_findings, limit_told, stage_rows
from resilience.cli.demo.report import page
from resilience.cli.demo.run import Run, ServiceProcess
from resilience.cli.demo.shared_limit import ALLOWED, INSTANCES, SharedLimit
from resilience.cli.demo.tally import ALL_STAGES, BACK, GONE, Answer, Entered, Left
from resilience.testing.servers import RedisServer

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
VOID = {"meta", "br", "link", "img", "hr"}


def shared_until(stages: int) -> SharedLimit:
    """Give a shared limit that reached the first `stages` stages, of two seconds each, at three times its limit."""
    server = SimpleNamespace(pid=4712, port=40002, url="redis://127.0.0.1:40002/0")
    shared = SharedLimit(cast("RedisServer", server), "Valkey 9.9", seconds=20)
    shared.stage_starts.extend(2.0 * stage for stage in range(stages))
    shared.ended_at = 2.0 * stages
    for number in range(stages * 240):
        at = number / 120
        stage = int(at / 2)
        source = "fallback" if stage == GONE else "redis"
        shared.tally.record(Answer(at, stage, 0.001 * (stage + 1), number % 3 == 0 or number < 60, source))
    if stages > GONE:
        shared.switches += [Entered(2.0 + 0.01 * number, "a.b.SomeError", INSTANCES) for number in range(INSTANCES)]
    if stages > BACK:
        shared.switches += [Left(4.2 + 0.1 * number, 2.2, 3) for number in range(INSTANCES)]
    return shared


def run_until(phases: int, *, per_phase: int = 10) -> Run:
    """Give a run of 20 s that reached the first `phases` phases, one second each, with every outcome in each."""
    run = Run(cast("ServiceProcess", SimpleNamespace(pid=4711, port=40001)), seconds=20, seed=1)
    # The stages of Redis go with the phases of the service here: one, two, three.
    run.shared = shared_until(min(phases, len(ALL_STAGES)))
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
    assert run.shared is not None
    for chart in (response_chart(run), outcome_chart(run), limit_chart(run.shared)):
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
            for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", str(path.get("d"))):
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


def test_without_a_server_the_page_says_so_and_has_all_but_the_limit() -> None:
    run = run_until(6)
    run.shared = None
    html = page(run, when=WHEN)
    assert "No Redis or Valkey server is installed" in html
    assert "<h2>One limit" not in html
    assert limit_findings(None) == []
    assert "\n" not in limit_told(None)


def test_the_stages_of_the_limit_add_up_to_the_whole_and_are_counted_in_calls() -> None:
    *stages, whole = stage_rows(shared_until(3))
    assert [row.stage for row in stages] == ["up", "gone", "back"]
    assert whole.calls == sum(row.calls for row in stages) == 720
    assert whole.admitted == sum(row.admitted for row in stages)
    assert whole.legal == sum(row.legal for row in stages) == ALLOWED.until(6)
    assert [row.decided for row in stages] == [(240, 0, 0), (0, 240, 0), (240, 0, 0)]
    assert stages[GONE].ratio == 1
    assert whole.longest == pytest.approx(0.003)


def test_what_passed_while_redis_was_gone_is_told_beside_what_is_legal_and_what_failing_open_gives() -> None:
    told = limit_findings(shared_until(3))[0]
    assert "While Redis was gone for 2 s, 4 instances admitted 80 calls, 1.00 of the 80" in told
    assert "failing open would have admitted all 240" in told
    assert "280 calls passed where 280 are legal (1.00)" in told
    assert "was 3.0 ms; the budget is 250 ms" in told


@pytest.mark.parametrize(
    ("stages", "told"),
    [(0, "before Redis was killed"), (1, "before Redis was killed"), (2, "ended while Redis was gone")],
)
def test_an_outage_that_was_not_seen_to_its_end_is_not_claimed(stages: int, told: str) -> None:
    assert told in limit_findings(shared_until(stages))[-1]


def test_a_return_is_told_with_its_delay_its_replays_and_what_passed_beyond_the_limit() -> None:
    shared = shared_until(3)
    told = limit_findings(shared)[1]
    assert "found it 200 ms to 500 ms later" in told
    assert "12 calls of the outage" in told
    assert "more passed" not in told
    for _ in range(10):
        shared.tally.record(Answer(4.3, BACK, 0.0, True, "redis"))
    assert "10 calls more passed than the limit allows" in limit_findings(shared)[1]


def test_a_recovery_that_did_not_fit_into_the_run_is_told_as_such() -> None:
    shared = shared_until(3)
    del shared.switches[-3:]
    assert "back for the last 2 s, too short for 3 of 4 instances" in limit_findings(shared)[1]


def test_a_later_trouble_of_an_instance_is_not_taken_for_a_recovery_that_failed() -> None:
    shared = shared_until(3)
    shared.switches.append(Entered(5.9, "a.b.SomeError", INSTANCES))
    assert "found it 200 ms to 500 ms later" in limit_findings(shared)[1]
    del shared.switches[:]
    assert "no instance had noticed" in limit_findings(shared)[1]


def test_a_return_that_failed_is_told() -> None:
    shared = shared_until(2)
    shared.trouble = "the port is taken"
    assert limit_findings(shared)[1] == "Redis could not be started again: the port is taken."

import pytest

from resilience.cli.demo.script import DEAD, PHASES, Script, time_scale


def test_the_phases_fill_the_run_without_gap_or_overlap() -> None:
    script = Script(12)
    assert script.starts[0] == 0
    assert script.starts[1:] == script.ends[:-1]
    assert script.ends[-1] == pytest.approx(12)
    assert all(start < end for start, end in zip(script.starts, script.ends, strict=True))


def test_the_script_goes_from_healthy_through_every_trouble_to_healthy() -> None:
    assert [phase.healthy for phase in PHASES] == [True, False, False, False, False, True]
    assert [number for number, phase in enumerate(PHASES) if not phase.listens] == [DEAD]


def test_every_phase_says_something_else_except_the_two_healthy_ones() -> None:
    told = [phase.describe() for phase in Script(20).phases]
    assert told[0] == told[-1]
    assert len(set(told)) == len(told) - 1


@pytest.mark.parametrize(("seconds", "scale"), [(3, 0.3), (10, 0.5), (20, 1.0), (600, 1.0)])
def test_short_runs_shrink_and_long_runs_keep_the_natural_times(seconds: float, scale: float) -> None:
    assert time_scale(seconds) == pytest.approx(scale)


def test_only_what_is_slow_shrinks_with_the_run() -> None:
    short, natural = Script(10).phases, Script(20).phases
    shrunk = [one.name for one, other in zip(short, natural, strict=True) if one.delay != other.delay]
    assert shrunk == ["slow"]

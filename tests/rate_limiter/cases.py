"""What limiters answer: one table for the arithmetic in Python and for the script.

A step is a moment in seconds, a question, and the answer. Questions: "acquire 3", "most 3", "peek 3", "refund 3",
"block 10" (seconds), "reset", "reserve 3 in 10" (seconds at most), "requeue 1 for 2,3" (gives 1 back and lets 2 and 3
move up); "@name" asks for another key. Answers: "ok" or "X" (refused), then pairs: "left 3" (remaining), "retry 0.5",
"reset 0.5", "granted 3", "of 10" (the limit of the quota that matters), "wait 0.5" (of a reservation, or waits "1,2"),
"never". A refusal always has "retry" or "never"; what is granted is the cost where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resilience.rate_limiter import Quota, parse_quotas

Step = tuple[float, str, str]


@dataclass(frozen=True)
class Case:
    """A story."""

    name: str
    quotas: str | Sequence[Quota]
    steps: Iterable[Step]

    def parsed(self) -> tuple[Quota, ...]:
        return parse_quotas(self.quotas) if isinstance(self.quotas, str) else tuple(self.quotas)


def log(limit: int, per: float) -> Quota:
    return Quota(limit, per, algorithm="sliding_log")


def window(limit: int, per: float, timezone: str = "UTC") -> Quota:
    return Quota(limit, per, algorithm="fixed_window", timezone=timezone)


def times(count: int, at: float, question: str, answer: str) -> list[Step]:
    return [(at, question, answer)] * count


def everywhere(name: str, limit: int, per: float, steps: Sequence[Step]) -> list[Case]:
    """Give a case for each algorithm, where they agree."""
    quotas = {"gcra": Quota(limit, per), "log": log(limit, per), "window": window(limit, per)}
    return [Case(f"{name} ({kind})", [quota], steps) for kind, quota in quotas.items()]


GCRA = [
    Case(
        "2: a reset makes the key as new; a cost above the burst can never pass",
        "10/s",
        [
            (0, "acquire 1", "ok left 9 reset 0.1 of 10"),
            (0, "reset", ""),
            (0, "acquire 1", "ok left 9 reset 0.1"),
            (0, "acquire 2", "ok left 7 reset 0.3"),
            (0, "acquire 7", "ok left 0 reset 1"),
            (0, "acquire 1000", "X left 0 never reset 1"),
            (0, "acquire 1", "X left 0 retry 0.1 reset 1"),
        ],
    ),
    Case(
        "3: as much as there is is granted, charged, and no more",
        "10/s",
        [
            (0, "acquire 1", "ok left 9"),
            (0, "most 2", "ok left 7 granted 2 reset 0.3"),
            (0, "most 10", "ok left 0 granted 7 reset 1"),
            (0, "most 1000", "X left 0 granted 0 retry 0.1 reset 1"),
            (0.65, "most 100", "ok left 0 granted 6 reset 0.95"),
            (0.65, "acquire 1", "X left 0 retry 0.05 reset 0.95"),
            (0.7, "acquire 1", "ok left 0 reset 1"),
        ],
    ),
    Case(
        "4: every denial of a fast caller has a short time to wait",
        "1/ms",
        [
            (0, "acquire 1", "ok left 0 reset 0.001"),
            *((at / 1e6, "acquire 1", f"X left 0 retry {(1_000 - at) / 1e6}") for at in range(10, 1_000, 10)),
            (0.001, "acquire 1", "ok left 0 reset 0.001"),
        ],
    ),
    Case(
        "6: too many are refused, and later ones are not",
        "2/s",
        [
            (0, "acquire 1", "ok left 1"),
            (0.001, "acquire 1", "ok left 0 reset 0.999"),
            (0.002, "acquire 1", "X left 0 retry 0.498 reset 0.998"),
            (1.002, "acquire 1", "ok left 1 reset 0.5"),
            (1.003, "acquire 1", "ok left 0 reset 0.999"),
            (1.004, "acquire 1", "X left 0 retry 0.498"),
        ],
    ),
    Case(
        "16: a refused call takes nothing of what is left",
        "60/min burst 10",
        [
            (0, "acquire 0", "ok left 10 reset 0 of 60"),
            (0, "acquire 1", "ok left 9 reset 1"),
            (0, "acquire 10", "X left 9 retry 1 reset 1"),
            (1, "acquire 5", "ok left 5 reset 5"),
            (1, "acquire 8", "X left 5 retry 3 reset 5"),
            (1, "acquire 5", "ok left 0 reset 10"),
            (1, "acquire 1", "X left 0 retry 1"),
            (1, "acquire 0", "ok left 0 reset 10"),
        ],
    ),
    Case(
        "19: fractions of a unit are not lost, nor given away",
        [Quota(10, 1e-4)],
        [
            (0, "acquire 10", "ok left 0 reset 0.0001"),
            *((97e-6, "acquire 1", f"ok left {left}") for left in range(8, -1, -1)),
            (97e-6, "acquire 1", "X left 0 retry 0.000003"),
            (100e-6, "acquire 1", "ok left 0 reset 0.0001"),
            (100e-6, "acquire 1", "X left 0 retry 0.00001"),
        ],
    ),
    Case(
        "20: the wait is as long as the cost needs",
        "1/s burst 4",
        [
            (0, "acquire 4", "ok left 0 reset 4"),
            (0.2, "acquire 1", "X left 0 retry 0.8 reset 3.8"),
            (0.2, "acquire 3", "X left 0 retry 2.8"),
            (0.2, "acquire 4", "X left 0 retry 3.8"),
            (0.2, "acquire 5", "X left 0 never"),
            (3, "acquire 3", "ok left 0 reset 4"),
        ],
    ),
    Case(
        "22: what was not used can be given back, and no more than that",
        "10/30s",
        [
            (0, "acquire 1", "ok left 9 reset 3"),
            (0, "refund 1", "ok left 10 reset 0"),
            (0, "acquire 10", "ok left 0 reset 30"),
            (0, "refund 1", "ok left 1 reset 27"),
            (0, "refund 20", "ok left 10 reset 0"),
            (0, "acquire 10", "ok left 0"),
            (0, "acquire 1", "X left 0 retry 3"),
            (30, "refund 5", "ok left 10 reset 0"),
            (30, "acquire 10", "ok left 0 reset 30"),
        ],
    ),
    Case(
        "23: what is left can be drained at once",
        "10/30s",
        [
            (0, "peek 1", "ok left 10"),
            (0, "acquire 1", "ok left 9"),
            (0, "acquire 100", "X left 9 never"),
            (0, "most 100", "ok left 0 granted 9"),
            (0, "peek 1", "X left 0 retry 3"),
        ],
    ),
    Case(
        "a burst larger than the limit may come at once, and drains at the same rate",
        "10/s burst 20",
        [
            (0, "acquire 20", "ok left 0 reset 2 of 10"),
            (0.1, "acquire 1", "ok left 0 reset 2"),
            (1.1, "acquire 11", "X left 10 retry 0.1"),
            (1.1, "acquire 10", "ok left 0"),
        ],
    ),
    Case(
        "a burst of one is a pace",
        "100/min burst 1",
        [
            (0, "acquire 1", "ok left 0 reset 0.6"),
            (0.599, "acquire 1", "X left 0 retry 0.001"),
            (0.6, "acquire 1", "ok left 0 reset 0.6"),
            (0.6, "acquire 2", "X left 0 never"),
            (0.6, "reserve 1 in 10", "ok wait 0.6 left 0 reset 1.2"),
            (1.9, "acquire 1", "ok left 0 reset 0.6"),
        ],
    ),
    Case(
        "a rate that has no whole number of microseconds loses no call of its burst",
        "7/s",
        [
            *((0, "acquire 1", f"ok left {left}") for left in range(6, -1, -1)),
            (0, "acquire 1", "X left 0 retry 0.142858 reset 1"),
            (0.142858, "acquire 1", "ok left 0"),
            (1.142858, "acquire 7", "ok left 0"),
        ],
    ),
    Case(
        "a slot that is no whole microsecond is rounded up",
        "7/s",
        [(0, "acquire 7", "ok left 0"), (0, "reserve 1 in 1", "ok wait 0.142858 left 0")],
    ),
    Case(
        "a microsecond too early is let pass, two are not",
        "1/s",
        [
            (0, "acquire 1", "ok left 0"),
            (0.999998, "acquire 1", "X left 0 retry 0.000002"),
            (0.999999, "peek 1", "ok left 1"),
            (0.999999, "acquire 1", "ok left 0 reset 1.000001"),
            (1.999999, "acquire 1", "ok left 0 reset 1.000001"),
            (2.999997, "acquire 1", "X left 0 retry 0.000003"),
        ],
    ),
    Case(
        "each reservation has a slot of its own behind the last",
        "1/s",
        [
            (0, "acquire 1", "ok left 0"),
            (0, "reserve 1 in 10", "ok wait 1 left 0 reset 2"),
            (0, "reserve 1 in 2", "ok wait 2 left 0 reset 3"),
            (0, "reserve 1 in 2.9", "X left 0 retry 3 reset 3"),
            (0, "acquire 1", "X left 0 retry 3"),
            (0, "acquire 0", "ok left 0"),
            (0, "peek 0", "ok left 0"),
            (0, "most 1", "X left 0 retry 3"),
            (2.5, "acquire 1", "X left 0 retry 0.5"),
            (3, "acquire 1", "ok left 0 reset 1"),
        ],
    ),
    Case(
        "reservations of several units wait for all of them",
        "2/s burst 4",
        [
            (0, "acquire 4", "ok left 0 reset 2"),
            (0, "reserve 3 in 10", "ok wait 1.5 left 0 reset 3.5"),
            (0, "reserve 1 in 10", "ok wait 2 left 0 reset 4"),
            (0, "reserve 5 in 10", "X left 0 never reset 4"),
            (0, "requeue 3 for 1", "wait 0.5"),
            (0, "peek 1", "X left 0 retry 1 reset 2.5"),
        ],
    ),
    Case(
        "those behind one who leaves move up",
        "1/s",
        [
            (0, "acquire 1", "ok left 0"),
            *((0, "reserve 1 in 10", f"ok wait {wait} left 0") for wait in (1, 2, 3)),
            (0.5, "requeue 1 for 1,1", "wait 0.5,1.5"),
            (0.5, "acquire 1", "X left 0 retry 2.5"),
            (0.5, "requeue 1 for 1", "wait 0.5"),
            (0.5, "requeue 1 for ", "wait "),
            (0.5, "acquire 1", "X left 0 retry 0.5 reset 0.5"),
        ],
    ),
    Case(
        "the longest periods and the largest limits are counted exactly",
        [Quota(999_999_937, 86_400)],
        [
            (0, "acquire 999999936", "ok left 1"),
            (0, "acquire 2", "X left 1 retry 0.000087"),
            (0, "acquire 1", "ok left 0"),
            (0, "acquire 1", "X left 0 retry 0.000087"),
            (0.00005, "acquire 1", "X left 0 retry 0.000037"),
        ],
    ),
]

LOG = [
    Case(
        "10: never more than the limit in any trailing period, whatever a call costs",
        [log(10, 2)],
        [
            (0, "acquire 11", "X left 10 never"),
            (0.1, "acquire 5", "ok left 5 reset 2"),
            *((1.9, "acquire 1", f"ok left {left} reset 2") for left in (4, 3, 2, 1)),
            (1.9, "peek 2", "X left 1 retry 0.2"),
            (1.9, "acquire 2", "X left 1 retry 0.2 reset 2"),
            (1.9, "acquire 1", "ok left 0"),
            *((2.2, "acquire 1", f"ok left {left}") for left in (4, 3, 2, 1, 0)),
            (2.2, "acquire 2", "X left 0 retry 1.7 reset 2"),
            (2.2, "acquire 6", "X left 0 retry 2"),
            (2.2, "acquire 1 @other", "ok left 9"),
        ],
    ),
    Case(
        "an entry leaves the log when it is exactly a period old",
        [log(2, 1)],
        [
            (0, "acquire 1", "ok left 1 reset 1"),
            (0.5, "acquire 1", "ok left 0 reset 1"),
            (0.999999, "acquire 1", "X left 0 retry 0.000001"),
            (1, "acquire 1", "ok left 0 reset 1"),
            (1.499999, "acquire 1", "X left 0 retry 0.000001"),
            (1.5, "acquire 2", "X left 1 retry 0.5"),
            (2, "acquire 2", "ok left 0"),
        ],
    ),
    Case(
        "as much as there is is granted by a log",
        [log(10, 2)],
        [
            (0, "most 4", "ok left 6 granted 4"),
            (1, "most 100", "ok left 0 granted 6 reset 2"),
            (1, "most 5", "X left 0 granted 0 retry 1"),
            (2, "most 5", "ok left 0 granted 4"),
        ],
    ),
    Case(
        "what is given back to a log was used first, so that nothing passes too early",
        [log(3, 10)],
        [
            (0, "acquire 1", "ok left 2"),
            (5, "acquire 2", "ok left 0 reset 10"),
            (6, "refund 1", "ok left 1 reset 9"),
            (6, "acquire 1", "ok left 0 reset 10"),
            (10, "acquire 1", "X left 0 retry 5"),
            (10, "refund 1", "ok left 1 reset 6"),
            (10, "acquire 2", "X left 1 retry 5"),
            (10, "refund 9", "ok left 3 reset 0"),
            (10, "acquire 3", "ok left 0 reset 10"),
            (25, "refund 1", "ok left 3 reset 0"),
        ],
    ),
    Case(
        "each reservation waits for the entries that it needs",
        [log(2, 10)],
        [
            (0, "acquire 1", "ok left 1"),
            (4, "acquire 1", "ok left 0 reset 10"),
            (5, "reserve 1 in 60", "ok wait 5 left 0 reset 15"),
            (5, "reserve 1 in 60", "ok wait 9 left 0 reset 19"),
            (5, "reserve 2 in 60", "ok wait 19 left 0 reset 29"),
            (5, "reserve 1 in 28", "X left 0 retry 29"),
            (5, "acquire 1", "X left 0 retry 29 reset 29"),
            (25, "acquire 1", "X left 0 retry 9"),
            (34, "acquire 2", "ok left 0 reset 10"),
        ],
    ),
    Case(
        "a larger cost waits longer in a log",
        [log(10, 60)],
        [
            (0, "acquire 5", "ok left 5"),
            (30, "acquire 5", "ok left 0"),
            (31, "acquire 1", "X left 0 retry 29"),
            (31, "acquire 6", "X left 0 retry 59"),
            (31, "acquire 5", "X left 0 retry 29"),
        ],
    ),
    Case(
        "a log of many entries waits for exactly as many as it needs",
        [log(250, 10)],
        [
            *((number / 1_000, "acquire 1", f"ok left {249 - number}") for number in range(250)),
            (1, "peek 1", "X left 0 retry 9"),
            (1, "peek 100", "X left 0 retry 9.099"),
            (1, "peek 101", "X left 0 retry 9.1"),
            (1, "peek 230", "X left 0 retry 9.229"),
            (1, "reserve 205 in 10", "ok wait 9.204 left 0"),
        ],
    ),
    Case(
        "part of a reservation in a log can be given back",
        [log(5, 10)],
        [
            (0, "acquire 5", "ok left 0"),
            (0, "reserve 3 in 60", "ok wait 10 left 0"),
            (1, "requeue 1 for ", "wait "),
            (1, "peek 3", "X left 0 retry 9"),
            (10, "acquire 3", "ok left 0"),
        ],
    ),
    Case(
        "those behind one who leaves a log move up",
        [log(2, 10)],
        [
            (0, "acquire 2", "ok left 0"),
            (1, "reserve 1 in 60", "ok wait 9 left 0"),
            (1, "reserve 1 in 60", "ok wait 9 left 0"),
            (1, "reserve 1 in 60", "ok wait 19 left 0"),
            (2, "requeue 1 for 1,1", "wait 8,8"),
            (2, "reserve 1 in 60", "ok wait 18 left 0"),
        ],
    ),
]

WINDOW = [
    Case(
        "12: a cost above the limit takes nothing of the window",
        [window(10, 60)],
        [(0, "acquire 11", "X left 10 never reset 0"), (0, "acquire 1", "ok left 9 reset 60 of 10")],
    ),
    Case(
        "15: a window counts what passed, and neither looks nor refusals",
        [window(5, 60)],
        [
            (0, "acquire 0", "ok left 5 reset 0"),
            (0, "acquire 1", "ok left 4 reset 60"),
            (0, "acquire 4", "ok left 0 reset 60"),
            (0, "acquire 4", "X left 0 retry 60 reset 60"),
            (0, "acquire 0", "ok left 0"),
            (0, "refund 5", "ok left 5 reset 0"),
            (0, "acquire 5", "ok left 0"),
        ],
    ),
    Case(
        "windows begin where the wall clock says, and two that meet may admit twice the limit",
        [window(5, 60)],
        [
            (59.9, "acquire 5", "ok left 0 reset 0.1"),
            (59.999999, "acquire 1", "X left 0 retry 0.000001"),
            (60, "acquire 5", "ok left 0 reset 60"),
            (60, "acquire 1", "X left 0 retry 60"),
            (150, "acquire 1", "ok left 4 reset 30"),
        ],
    ),
    Case(
        "as much as there is is granted by a window",
        [window(10, 60)],
        [
            (15, "most 4", "ok left 6 granted 4 reset 45"),
            (15, "most 100", "ok left 0 granted 6"),
            (15, "most 1", "X left 0 granted 0 retry 45"),
        ],
    ),
    Case(
        "reservations fill the windows to come; a call is never split between two",
        [window(10, 60)],
        [
            (30, "acquire 8", "ok left 2 reset 30"),
            (30, "reserve 5 in 30", "ok wait 30 left 0 reset 90"),
            (30, "reserve 5 in 30", "ok wait 30 left 0 reset 90"),
            (30, "reserve 1 in 89", "X left 0 retry 90 reset 90"),
            (30, "reserve 1 in 90", "ok wait 90 left 0 reset 150"),
            (60, "acquire 1", "X left 0 retry 60 reset 120"),
            (120, "acquire 9", "ok left 0 reset 60"),
        ],
    ),
    Case(
        "those behind one who leaves a window move up",
        [window(2, 60)],
        [
            (10, "acquire 2", "ok left 0"),
            (10, "reserve 1 in 600", "ok wait 50 left 0"),
            (10, "reserve 1 in 600", "ok wait 50 left 0"),
            (10, "reserve 1 in 600", "ok wait 110 left 0"),
            (20, "requeue 1 for 1,1", "wait 40,40"),
            (20, "requeue 2 for ", "wait "),
            (20, "acquire 1", "X left 0 retry 40 reset 40"),
        ],
    ),
    Case(
        "those behind one who leaves a window keep the gap that it left by its size",
        [window(10, 60)],
        [
            (0, "acquire 10", "ok left 0"),
            (0, "reserve 5 in 600", "ok wait 60 left 0"),
            (0, "reserve 6 in 600", "ok wait 120 left 0"),
            # The room that a call left because it was not split is not given back with it: too late, never too early.
            (0, "requeue 5 for 6", "wait 120"),
        ],
    ),
]

ALL = [
    *everywhere(
        "7: a cost above the capacity is told apart from a full limit",
        5,
        1,
        [
            *((0, f"acquire {cost}", "X left 5 never reset 0 of 5") for cost in (15, 7, 6)),
            (0, "acquire 5", "ok left 0 reset 1"),
            (0, "acquire 6", "X left 0 never"),
            (0, "peek 6", "X left 0 never"),
            (0, "reserve 6 in 100", "X left 0 never"),
            (0, "most 6", "X left 0 granted 0 retry {}"),
        ],
    ),
    *everywhere(
        "11: what a refused call wanted is still there",
        2_000,
        1,
        [
            (0, "acquire 1000", "ok left 1000"),
            (0, "acquire 1500", "X left 1000 retry {}"),
            (0, "acquire 500", "ok left 500"),
            (0, "acquire 400", "ok left 100"),
            (0, "acquire 100", "ok left 0 reset 1"),
            (0, "acquire 1", "X left 0 retry {} reset 1"),
        ],
    ),
    *everywhere(
        "26: no more is reserved ahead than a caller waits for, and cycles that were not used are lost",
        1,
        1,
        [
            (1, "acquire 1", "ok left 0 reset 1"),
            (1, "reserve 1 in 1", "ok wait 1 left 0 reset 2"),
            (1, "reserve 1 in 1", "X left 0 retry 2 reset 2"),
            (1, "reserve 1 in 1", "X left 0 retry 2 reset 2"),
            (6.00001, "peek 1", "ok left 1 reset 0"),
        ],
    ),
    *everywhere(
        "a cost of zero takes nothing",
        2,
        1,
        [
            (0, "acquire 0", "ok left 2 reset 0"),
            (0, "most 0", "ok left 2 granted 0"),
            (0, "peek 0", "ok left 2"),
            (0, "reserve 0 in 5", "ok wait 0 left 2 granted 0"),
            (0, "refund 0", "ok left 2 reset 0"),
            (0, "acquire 2", "ok left 0"),
            (0, "acquire 0", "ok left 0 reset 1"),
            (0, "most 0", "ok left 0 granted 0"),
            (0, "refund 0", "ok left 0 reset 1"),
        ],
    ),
    *everywhere(
        "keys have limits of their own",
        2,
        10,
        [
            (0, "acquire 2", "ok left 0"),
            (0, "acquire 2 @other", "ok left 0"),
            (0, "acquire 1 @third", "ok left 1"),
            (0, "reset @other", ""),
            (0, "acquire 1", "X left 0 retry {}"),
            (0, "peek 2 @other", "ok left 2 reset 0"),
            (0, "refund 1 @third", "ok left 2"),
            (0, "peek 1", "X left 0 retry {}"),
        ],
    ),
    *everywhere(
        "a look takes nothing",
        3,
        10,
        [
            *times(5, 0, "peek 3", "ok left 3 reset 0"),
            (0, "acquire 2", "ok left 1"),
            *times(5, 0, "peek 1", "ok left 1"),
            (0, "peek 2", "X left 1 retry {}"),
            (0, "acquire 1", "ok left 0"),
        ],
    ),
    *everywhere(
        "a reset makes a key as new, reservations included",
        2,
        10,
        [
            (0, "reset", ""),
            (0, "acquire 2", "ok left 0"),
            (0, "reserve 1 in 100", "ok wait {} left 0"),
            (0, "reset", ""),
            (0, "peek 2", "ok left 2 reset 0"),
            (0, "acquire 2", "ok left 0 reset 10"),
        ],
    ),
    *everywhere(
        "reserving what is there waits for nothing",
        2,
        10,
        [
            (0, "reserve 1 in 0", "ok wait 0 left 1"),
            (0, "reserve 1 in 0", "ok wait 0 left 0"),
            (0, "reserve 1 in 0", "X left 0 retry {}"),
            (0, "requeue 1 for ", "wait "),
            (0, "peek 1", "ok left 1"),
        ],
    ),
]
BLOCKS = [
    *everywhere(
        "a blocked key is refused whatever its limit has left, until the block ends",
        5,
        10,
        [
            (0, "acquire 1", "ok left 4"),
            (0, "block 20", ""),
            (0, "acquire 1", "X left 4 retry 20"),
            (0, "acquire 0", "X left 4 retry 20"),
            (1, "peek 1", "X left 4 retry 19"),
            (1, "most 3", "X left 4 granted 0 retry 19"),
            (1, "reserve 1 in 100", "X left 4 retry 19"),
            (1, "acquire 6", "X left 4 never"),
            (1, "acquire 1 @other", "ok left 4"),
            (19.999999, "acquire 1", "X left 5 retry 0.000001"),
            (20, "acquire 5", "ok left 0"),
        ],
    ),
    *everywhere(
        "a block can be replaced and taken back",
        5,
        10,
        [
            (0, "block 20", ""),
            (0, "block 5", ""),
            (0, "acquire 1", "X left 5 retry 5"),
            (1, "block 10", ""),
            (1, "acquire 1", "X left 5 retry 10"),
            (1, "block 0", ""),
            (1, "acquire 1", "ok left 4"),
            (1, "block 0", ""),
            (1, "block 30", ""),
            (1, "reset", ""),
            (1, "acquire 5", "ok left 0"),
        ],
    ),
    *everywhere(
        "of a block and a limit the longer one matters",
        1,
        10,
        [
            (0, "acquire 1", "ok left 0"),
            (0, "block 5", ""),
            (0, "acquire 1", "X left 0 retry 10"),
            (6, "acquire 1", "X left 0 retry 4"),
            (6, "block 50", ""),
            (6, "acquire 1", "X left 0 retry 50"),
            (11, "peek 1", "X left 1 retry 45"),
        ],
    ),
]

SEVERAL = [
    Case(
        "a log that is full for long does not make a short wait long",
        [Quota(4, 1), log(8, 100)],
        [
            (0, "acquire 2", "ok left 2 of 4"),
            (98, "acquire 2", "ok left 2 of 4"),
            (99, "acquire 4", "ok left 0"),
            (99, "acquire 1", "X left 0 retry 1 of 8"),
            (100, "acquire 2", "ok left 0 of 8"),
        ],
    ),
    Case(
        "all rules admit, or nothing is charged; the one that matters is told",
        "10/s; 15/min",
        [
            (0, "acquire 4", "ok left 6 of 10 reset 0.4"),
            (0, "acquire 6", "ok left 0 of 10 reset 1"),
            (0, "acquire 1", "X left 0 retry 0.1 of 10"),
            (1, "acquire 6", "X left 5 retry 3 of 15 reset 39"),
            (1, "peek 5", "ok left 5 of 15"),
            (1, "acquire 5", "ok left 0 of 15 reset 59"),
            (1, "acquire 1", "X left 0 retry 3 of 15"),
            *times(3, 1, "acquire 5", "X left 0 retry 19 of 15"),
            (4, "acquire 1", "ok left 0 of 15 reset 60"),
            (4, "peek 10", "X left 0 retry 40 of 15"),
        ],
    ),
    Case(
        "under several rules a microsecond too early is let pass too",
        "1/s; 100/hour",
        [
            (0, "acquire 1", "ok left 0 of 1"),
            (0.999998, "most 1", "X left 0 granted 0 retry 0.000002"),
            (0.999999, "most 1", "ok left 0 granted 1"),
            (1.999999, "acquire 1", "ok left 0 reset 1.000001"),
        ],
    ),
    Case(
        "a cost that one rule can never admit is never admitted",
        "5/s; 100/min",
        [
            (0, "acquire 6", "X left 5 never of 5"),
            (0, "acquire 101", "X left 5 never of 5"),
            (0, "acquire 5", "ok left 0"),
        ],
    ),
    Case(
        "as much as all rules have is granted",
        "10/s; 15/min",
        [
            (0, "most 12", "ok left 0 granted 10 of 10"),
            (1, "most 12", "ok left 0 granted 5 of 15"),
            (1, "most 12", "X left 0 granted 0 retry 3 of 15"),
        ],
    ),
    Case(
        "three arithmetics hold at once",
        [Quota(3, 1), log(5, 10), window(6, 60)],
        [
            (0, "acquire 3", "ok left 0 of 3 reset 1"),
            (0, "acquire 1", "X left 0 retry 0.333334 of 3"),
            (1, "acquire 2", "ok left 0 of 5 reset 10"),
            (1, "acquire 1", "X left 0 retry 9 of 5 reset 10"),
            (10, "acquire 1", "ok left 0 of 6 reset 50"),
            (10, "acquire 1", "X left 0 retry 50 of 6"),
            (10, "refund 1", "ok left 1 of 6"),
            (59, "acquire 1", "ok left 0 of 6 reset 1"),
            (60, "acquire 3", "ok left 0 of 3"),
            (60, "reset", ""),
            (60, "acquire 3", "ok left 0 of 3 reset 1"),
        ],
    ),
    Case(
        "a reservation waits for the slowest rule, and counts in all",
        "2/s; 4/min",
        [
            (0, "acquire 2", "ok left 0 of 2"),
            (0, "reserve 2 in 60", "ok wait 1 left 0 reset {}"),
            (0, "reserve 1 in 14", "X left 0 retry 15 of 4"),
            (0, "reserve 1 in 15", "ok wait 15 left 0"),
            (15, "acquire 1", "X left 0 retry 15 of 4"),
            (30, "acquire 1", "ok left 0 of 4"),
        ],
    ),
    Case(
        "a rule that another one makes wait is not used up meanwhile",
        [Quota(10, 1), log(2, 60)],
        [
            (0, "acquire 2", "ok left 0 of 2"),
            (0, "reserve 1 in 60", "ok wait 60 left 0"),
            (0, "reserve 1 in 60", "ok wait 60 left 0"),
            (0, "reserve 1 in 60", "X left 0 retry 120 of 2"),
            (60, "peek 1", "X left 0 retry 60 of 2"),
        ],
    ),
    Case(
        "a window that another rule makes wait is that of the slot",
        [window(2, 1), window(3, 60)],
        [
            (0, "acquire 2", "ok left 0 of 2"),
            (1, "acquire 1", "ok left 0 of 3"),
            (1, "reserve 1 in 60", "ok wait 59 left 0"),
            (1, "reserve 1 in 60", "ok wait 59 left 0"),
            (1, "reserve 1 in 60", "ok wait 60 left 0"),
            (61.5, "acquire 1", "X left 0 retry 58.5 of 3"),
        ],
    ),
    Case(
        "a pace that another rule makes wait goes on from the slot",
        [Quota(1, 1), window(2, 60)],
        [
            (0, "acquire 1", "ok left 0 of 1"),
            (1, "acquire 1", "ok left 0"),
            (1, "reserve 1 in 60", "ok wait 59 left 0"),
            (1, "reserve 1 in 60", "ok wait 60 left 0"),
            (61, "acquire 1", "X left 0 retry 59 of 2"),
        ],
    ),
    Case(
        "a log stays in order when calls pass before what was reserved",
        [log(2, 10), window(2, 60)],
        [
            (0, "acquire 2", "ok left 0 of 2"),
            (0, "reserve 1 in 60", "ok wait 60 left 0"),
            (0, "refund 2", "ok left 1 of 2"),
            (0, "acquire 1", "ok left 0 reset 70"),
            (1, "acquire 1", "X left 0 retry 69 reset 69"),
        ],
    ),
    Case(
        "two logs and two windows each count for themselves",
        [log(2, 1), log(3, 10), window(4, 60), window(5, 3_600)],
        [
            (0, "acquire 2", "ok left 0 of 2"),
            (1, "acquire 1", "ok left 0 of 3"),
            (1, "acquire 1", "X left 0 retry 9 of 3"),
            (10, "acquire 1", "ok left 0 of 4"),
            (11, "acquire 1", "X left 0 retry 49 of 4"),
            (60, "acquire 1", "ok left 0 of 5 reset 3540"),
            (60, "acquire 1", "X left 0 retry 3540 of 5"),
            (60, "refund 1", "ok left 1"),
        ],
    ),
]

CASES = [*GCRA, *LOG, *WINDOW, *ALL, *BLOCKS, *SEVERAL]

KINDS = ("gcra", "log", "window")
"""Which stories fail, on which machines ("memory", "server", "remembering", "all"), and why."""

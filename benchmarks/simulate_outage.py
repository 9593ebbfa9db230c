"""What a limit is worth while Redis is out of reach: instances of a program live through outages, in virtual time.

    python benchmarks/simulate_outage.py [--quick] [--only SCENARIO ...] [--seed N] [--json PATH] [--keep]

How to read the table: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import accumulate
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Final

from outage_plot import draw
from outage_world import POLICIES, Balance, Outage, Policy, Redis, VirtualTime, World, routed

from resilience import Quota
from resilience.events import disable_logging
from resilience.rate_limiter.gcra import Gcra

ROOT: Final = Path(__file__).parents[1]
KEPT: Final = ROOT / "benchmarks" / "results" / "outage.json"
PICTURE: Final = ROOT / "docs" / "explanation" / "outage.svg"
PAGE: Final = ROOT / "docs" / "explanation" / "when-redis-dies.md"
DRAWN: Final = "long"
"""The story of which the picture and the table of policies tell."""

SEED: Final = 1
PROBE_AT_MOST: Final = 5.0
"""Seconds after which an instance has noticed that Redis is back, at most;"""
PROBE_OF_FROZEN: Final = 2.0
"""so many more if it was just trying one that hangs."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One story: a program, a limit, what is asked of it, and what befalls Redis.

    Args:
        limit, per, burst: the quota.
        offered: what is asked for, as a multiple of the limit's rate.
        phases: seconds healthy, without Redis, and healthy again, and so on.
        evens_out: whether the balance is even from the moment on at which Redis is lost.
        costs: of the calls, equally often.
        scaled: how many instances there are from the middle of the outage on.
        every: seconds between two moments at which calls come; 0 is at any moment.
        begins: the second of the first call for the limited key.
        busy_before: whether the instances serve other keys until then.
        keys: how many are limited and asked for equally often, each by its own quota.
        unheard: whether no instance has reached Redis before it is lost.
        assumed: how many instances there are in the eyes of one that Redis has never told.
    """

    key: str
    title: str
    instances: int = 8
    limit: int = 4
    per: float = 1.0
    burst: int = 40
    offered: float = 20.0
    phases: tuple[float, ...] = (60.0, 60.0, 60.0)
    loses_data: bool = False
    freezes: bool = False
    balance: Balance = "even"
    evens_out: bool = False
    costs: tuple[int, ...] = (1,)
    scaled: int | None = None
    every: float = 0.0
    begins: float = 0.0
    busy_before: bool = False
    keys: int = 1
    unheard: bool = False
    assumed: int = 1

    @property
    def quota(self) -> Quota:
        """The limit."""
        return Quota(self.limit, self.per, burst=self.burst)

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.limit / self.per

    @property
    def window(self) -> float:
        """Tau: the seconds in which a full burst drains."""
        return self.burst / self.rate

    @property
    def seconds(self) -> float:
        """How long the story is."""
        return sum(self.phases)

    @property
    def outages(self) -> tuple[Outage, ...]:
        """From when to when Redis is out of reach."""
        edges = list(accumulate(self.phases))
        return tuple(zip(edges[::2], edges[1::2], strict=False))

    def shares(self) -> float:
        """Give the sum of what the instances take for their share in an outage, 1 at least."""
        knowing = 0 if self.unheard else self.instances
        unknowing = max(self.scaled or 0, self.instances) - knowing
        return max(1.0, bool(knowing) + unknowing / self.assumed)

    def bound(self) -> float:
        """Give the units above burst + rate x W that a window of any length W may hold at most, as documented."""
        lasts = max(end - begin for begin, end in self.outages)
        noticing = PROBE_AT_MOST + PROBE_OF_FROZEN * self.freezes
        # The limit once more when Redis is lost and once more when it is back, and both at a time until all noticed.
        each = 2 * self.burst + self.rate * noticing
        each += max(0, self.instances - self.burst)  # a share is one unit at least
        each += (self.shares() - 1) * (self.burst + self.rate * (lasts + noticing))
        return len(self.outages) * each


SCENARIOS: Final = (
    Scenario(key="long", title="saturated; an outage of 6 tau; Redis keeps its data"),
    Scenario(key="long-lost", title="the same; Redis loses its data", loses_data=True),
    Scenario(key="short", title="saturated; an outage of tau / 2; Redis keeps its data", phases=(60.0, 5.0, 60.0)),
    Scenario(key="short-lost", title="the same; Redis loses its data", phases=(60.0, 5.0, 60.0), loses_data=True),
    Scenario(key="moderate", title="0.8 of the limit is asked for; 6 tau", offered=0.8),
    Scenario(
        key="moderate-lost",
        title="the same; tau / 2; Redis loses its data",
        offered=0.8,
        phases=(60.0, 5.0, 60.0),
        loses_data=True,
    ),
    Scenario(
        key="crowds",
        title="18 calls at once every 5 s; Redis loses its data",
        offered=0.9,
        every=5.0,
        phases=(58.0, 5.0, 57.0),
        loses_data=True,
    ),
    Scenario(key="uneven", title="saturated; one of 8 instances gets 80 % of the calls", balance="uneven"),
    Scenario(key="uneven-moderate", title="the same; 0.8 of the limit is asked for", balance="uneven", offered=0.8),
    Scenario(
        key="uneven-keys",
        title="the same; 16 keys, each mostly asked for at another instance; tau / 2; Redis loses its data",
        balance="uneven",
        offered=0.8,
        keys=16,
        phases=(60.0, 5.0, 60.0),
        loses_data=True,
    ),
    Scenario(
        key="evened-out",
        title="saturated; 4 keys, each mostly asked for at another instance until Redis is lost, then evenly",
        balance="uneven",
        evens_out=True,
        keys=4,
    ),
    Scenario(key="costs", title="calls cost 1, 2 or 5", costs=(1, 2, 5), offered=40.0),
    Scenario(key="too-large", title="calls cost 1 or 10; a share holds 5", costs=(1, 10), offered=40.0),
    Scenario(key="frozen", title="Redis hangs instead of refusing, and does what it is told", freezes=True),
    Scenario(key="new-key", title="a key is first used 5 s before Redis is back", begins=115.0, busy_before=True),
    Scenario(key="halved", title="8 instances become 4 in mid-outage", scaled=4),
    Scenario(key="doubled", title="8 instances become 16 in mid-outage", scaled=16),
    Scenario(key="doubled-told", title="the same; the new ones are told instances=16", scaled=16, assumed=16),
    Scenario(key="born", title="all 8 instances are started in mid-outage", begins=90.0, unheard=True),
    Scenario(key="born-told", title="the same; they are told instances=8", begins=90.0, unheard=True, assumed=8),
    Scenario(
        key="flapping",
        title="Redis comes back for 4 s, then for 8 s, without data",
        phases=(60.0, 60.0, 4.0, 30.0, 8.0, 30.0, 60.0),
        loses_data=True,
    ),
    Scenario(
        key="blip",
        title="Redis comes back for 2 s, without data",
        phases=(60.0, 60.0, 2.0, 30.0, 60.0),
        loses_data=True,
    ),
    Scenario(
        key="slow",
        title="1 per minute, burst 8",
        limit=1,
        per=60.0,
        burst=8,
        phases=(3_600.0, 3_600.0, 3_600.0),
    ),
    Scenario(
        key="small-burst", title="a burst of 10 for 100 instances", instances=100, limit=2, burst=10, offered=120.0
    ),
    Scenario(
        key="100",
        title="100 instances",
        instances=100,
        limit=10,
        burst=100,
        offered=120.0,
        phases=(30.0, 30.0, 30.0),
    ),
    Scenario(
        key="1000",
        title="1,000 instances",
        instances=1_000,
        limit=100,
        burst=1_000,
        offered=10.0,
        phases=(30.0, 30.0, 30.0),
    ),
)


def quick(scenario: Scenario) -> Scenario:
    """Give the same story with a sixth of the time, and a tenth of many instances."""
    shrunk = replace(
        scenario,
        phases=tuple(seconds / 6 for seconds in scenario.phases),
        begins=scenario.begins / 6,
        every=scenario.every / 6,
        offered=scenario.offered if scenario.offered <= 1 else max(10.0, scenario.offered / 10),
    )
    if scenario.instances <= 8:
        return shrunk
    return replace(
        shrunk, instances=scenario.instances // 10, limit=max(1, scenario.limit // 10), burst=scenario.burst // 10
    )


# --- one run ---


OTHERS: Final = -1
"""The key of calls that serve only to keep instances busy."""

Call = tuple[float, int, float, int]
"""When, for which key, to which instance (0 up to 1), and its cost."""


def calls_of(scenario: Scenario, seed: int) -> Iterator[Call]:
    """Give the calls of a story, at random moments."""
    rng = Random(f"{seed} {scenario.key}")
    mean_cost = sum(scenario.costs) / len(scenario.costs)
    per_second = scenario.offered * scenario.rate * scenario.keys / mean_cost
    at = 0.0 if scenario.busy_before else scenario.begins
    while (at := at + rng.expovariate(per_second)) < scenario.seconds:
        moment = at - at % scenario.every if scenario.every else at
        pick, cost = rng.random(), rng.choice(scenario.costs)
        key = rng.randrange(scenario.keys) if scenario.keys > 1 else 0
        yield moment, OTHERS if at < scenario.begins else key, pick, cost


Admitted = list[tuple[float, int]]
"""When, and the cost: what was admitted of one key."""


def simulate(scenario: Scenario, policy: Policy, calls: Iterable[Call], seed: int) -> list[Admitted]:
    """Let one program live through one story; give what it admitted of each key."""
    clock = VirtualTime()
    start = clock()
    outages = [(start + begin, start + end) for begin, end in scenario.outages]
    redis = Redis(scenario.quota, clock, outages, loses_data=scenario.loses_data, freezes=scenario.freezes)
    scaling_at = sum(scenario.outages[0]) / 2 if scenario.scaled is not None else inf
    admitted: list[Admitted] = [[] for _ in range(scenario.keys)]
    world = World(
        policy,
        scenario.quota,
        instances=scenario.instances,
        assumed=scenario.assumed,
        clock=clock,
        redis=redis,
        rng=Random(f"{seed} jitter"),
    )
    for at, key, pick, cost in calls:
        world.advance(start + at)
        if at >= scaling_at and scenario.scaled is not None:
            world.scale(scenario.scaled)
            scaling_at = inf
        balance = "even" if scenario.evens_out and at >= scenario.outages[0][0] else scenario.balance
        instance = world.instances[routed(pick, len(world.instances), balance, key)]
        if instance.allows(f"key {key}", cost) and key != OTHERS:
            admitted[key].append((at, cost))
    return admitted


def ideal(scenario: Scenario, calls: Iterable[Call]) -> int:
    """Give the units that one limiter admits that all share and that never fails."""
    rule = Gcra.of(scenario.quota)
    states = [rule.empty] * scenario.keys
    admitted = 0
    for at, key, _, cost in calls:
        now = int(at * 1e6)
        if key != OTHERS and rule.wait(states[key], now, cost) == 0:
            states[key] = rule.charge(states[key], now, cost, now)
            admitted += cost
    return admitted


# --- what came of it ---


def peak(admitted: Admitted, window: float) -> int:
    """Give the most units in any trailing `window` of seconds."""
    inside: deque[tuple[float, int]] = deque()
    most = held = 0
    for at, cost in admitted:
        inside.append((at, cost))
        held += cost
        while inside[0][0] <= at - window:
            held -= inside.popleft()[1]
        most = max(most, held)
    return most


def excess(admitted: Admitted, rate: float, burst: float) -> float:
    """Give the units above burst + rate x W in the worst window of any length W; 0 if the limit held.

    A bucket that everything admitted is poured into, and that leaks at the limit's rate, is fullest at the end of the
    worst window.
    """
    level = last = worst = 0.0
    for at, cost in admitted:
        level = max(0.0, level - (at - last) * rate) + cost
        last = at
        worst = max(worst, level)
    return max(0.0, worst - burst)


def trailing(admitted: Admitted, window: float, seconds: float) -> list[int]:
    """Give the units in the trailing `window` at each full second."""
    sums = [0, *accumulate(cost for _, cost in admitted)]
    moments = [at for at, _ in admitted]
    return [
        sums[bisect_right(moments, second)] - sums[bisect_right(moments, second - window)]
        for second in range(round(seconds) + 1)
    ]


def told(scenario: Scenario, seed: int) -> dict[str, Any]:
    """Run one story under every policy; give its record as it goes into the JSON file."""
    calls = list(calls_of(scenario, seed))
    best = ideal(scenario, calls)
    return {
        "key": scenario.key,
        "title": scenario.title,
        "instances": scenario.instances,
        "quota": str(scenario.quota),
        "window": scenario.window,
        "seconds": scenario.seconds,
        "outages": scenario.outages,
        "offered": sum(cost for _, key, _, cost in calls if key != OTHERS),
        "ideal": best,
        "legal": scenario.burst + round(scenario.rate * scenario.window),
        "bound": round(scenario.bound(), 3),
        "policies": {
            policy.key: judged(scenario, simulate(scenario, policy, calls, seed), best) | {"name": policy.name}
            for policy in POLICIES
        },
    }


def judged(scenario: Scenario, admitted: Sequence[Admitted], best: int) -> dict[str, Any]:
    """Give what came of one policy: in all, and of the key that fared worst."""
    units = sum(cost for key in admitted for _, cost in key)
    found: dict[str, Any] = {
        "admitted": units,
        "ratio": round(units / best, 4),
        "peak": max(peak(key, scenario.window) for key in admitted),
        "excess": round(max(excess(key, scenario.rate, scenario.burst) for key in admitted), 3),
    }
    if scenario.key == DRAWN:
        found["trailing"] = trailing(admitted[0], scenario.window, scenario.seconds)
    return found


# --- what is shown of it ---


def print_scenario(record: dict[str, Any]) -> None:
    """Print one story as a table."""
    print(f"\n{record['key']}: {record['title']}")
    print(f"  {record['instances']} instances, {record['quota']}: in all {record['ideal']:,} of {record['offered']:,}")
    print(f"  {'policy':<36}{'admitted':>10}{'of ideal':>10}{'peak':>8}{'of legal':>10}{'excess':>11}")
    for key, row in record["policies"].items():
        of_legal = row["peak"] / record["legal"]
        numbers = (
            f"{row['admitted']:>10,}{row['ratio']:>9.2f}x{row['peak']:>8,}{of_legal:>9.2f}x{row['excess']:>11,.1f}"
        )
        bound = f"  (at most {record['bound']:,.0f})" if key == "ours" else ""
        print(f"  {row['name']:<36}{numbers}{bound}")


def tables(report: dict[str, Any]) -> tuple[str, str]:
    """Give the two tables of the page: the policies in one story, and ours in all of them."""
    records = report["scenarios"]
    drawn = next(record for record in records if record["key"] == DRAWN)
    window, legal = drawn["window"], drawn["legal"]
    policies = [
        f"| policy | admitted | of the ideal {drawn['ideal']:,} | most in any {window:g} s | of the legal {legal:,} |",
        "|---|---|---|---|---|",
    ]
    for row in drawn["policies"].values():
        numbers = f"{row['admitted']:,} | {row['ratio']:.2f}x | {row['peak']:,} | {row['peak'] / legal:.2f}x"
        policies.append(f"| {row['name']} | {numbers} |")
    stories = [
        "| story | full limit in each | ours: of the ideal | ours: peak of the legal one | ours: excess | bound |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        full, ours = record["policies"]["full"], record["policies"]["ours"]
        stories.append(
            f"| {record['title']} | {full['ratio']:.2f}x | {ours['ratio']:.2f}x "
            f"| {ours['peak'] / record['legal']:.2f}x | {ours['excess']:,.1f} | {record['bound']:,.0f} |"
        )
    return "\n".join(policies), "\n".join(stories)


def with_tables(page: str, report: dict[str, Any]) -> str:
    """Give the page with the tables of `report` in the places that are marked for them."""
    for name, table in zip(("policies", "stories"), tables(report), strict=True):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return page


def run(scenarios: Sequence[Scenario], seed: int) -> dict[str, Any]:
    """Run the stories, print each as it is done, and give the report."""
    report: dict[str, Any] = {
        "simulation": "outage",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {"anyio-resilience": version("anyio-resilience")},
        "seed": seed,
        "scenarios": [],
    }
    for scenario in scenarios:
        report["scenarios"].append(told(scenario, seed))
        print_scenario(report["scenarios"][-1])
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    keys = [scenario.key for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(description="Instances of a program live through outages of Redis.")
    parser.add_argument("--quick", action="store_true", help="a smaller run of a few seconds")
    parser.add_argument("--only", nargs="+", choices=keys, metavar="SCENARIO", help=f"of {', '.join(keys)}")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of calls and probes (default {SEED})")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers")
    parser.add_argument("--keep", action="store_true", help="keep the numbers, the picture and the page's tables")
    options = parser.parse_args(argv)
    if options.keep and (options.quick or options.only or options.seed != SEED):
        parser.error("--keep needs the full run, with the default seed")
    disable_logging()
    chosen = [scenario for scenario in SCENARIOS if options.only is None or scenario.key in options.only]
    report = run([quick(scenario) for scenario in chosen] if options.quick else chosen, options.seed)
    paths = [path for path in (options.json, KEPT if options.keep else None) if path is not None]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.keep:
        PICTURE.write_text(draw(report), encoding="utf-8")
        PAGE.write_text(with_tables(PAGE.read_text("utf-8"), report), encoding="utf-8")


if __name__ == "__main__":
    main()

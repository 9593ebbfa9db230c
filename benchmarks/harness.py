"""Compares contenders by turns, so that a noisy minute of a shared machine meets all of them alike.

A benchmark is a list of rows. In every round of a row each contender runs once, the order rotating from round to
round. What a contender adds is the median over the rounds of its time minus that of the row's baseline in the same
round; ratios and verdicts are made of these medians. Nothing here knows what is measured.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from types import FunctionType
from typing import Any, Literal

import anyio

RESULTS = Path(__file__).parent / "results"
SCRATCH = RESULTS / "scratch"

Sample = Callable[[int], Awaitable[float]]
"""Makes so many calls and tells the seconds they took together; in a row of bytes or connects, how many there were."""

Unit = Literal["ns", "us", "ms", "calls/s", "bytes", "connects"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One thing to be measured.

    Args:
        name: unique in its row.
        distribution: whose version is told; where it is not installed the contender is reported as missing.
            None for what needs nothing but Python.
        build: makes the sample; runs after all imports that `distribution` needs are known to be possible.
        note: what a reader must know to compare fairly.
    """

    name: str
    build: Callable[[], Awaitable[Sample]]
    distribution: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A promise: the median of `name` is at most `at_most` times that of `against`, or units where that is None.

    Where more is better, `at_least` takes the place of `at_most`.
    """

    name: str
    at_most: float | None = None
    at_least: float | None = None
    against: str | None = None

    def holds(self, value: float) -> bool:
        """Tell whether this is what was promised."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question: these contenders, this baseline, these promises.

    Args:
        key: what `--only` takes.
        baseline: measured in the same rounds and subtracted; None where the whole time is the answer.
        unit: of every number printed and kept; "calls/s" cannot have a baseline.
        calls: per sample; None calibrates each contender to the seconds that a sample may take.
        stretch: how many times longer than others its samples are, where a sample needs time to get going.
        rounds: at most so many, where one takes seconds or says all there is to say.
    """

    key: str
    title: str
    contenders: Sequence[Contender]
    baseline: Contender | None = None
    bars: Sequence[Bar] = ()
    unit: Unit = "ns"
    calls: int | None = None
    stretch: float = 1.0
    rounds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure: rounds per row, and seconds that one sample of one contender should take."""

    rounds: int
    sample_seconds: float


@dataclass(kw_only=True)
class Runner:
    """A contender in its row: what it runs, how often, and what came of it."""

    contender: Contender
    status: Literal["measured", "missing", "failed"] = "measured"
    reason: str = ""
    sample: Sample | None = None
    calls: int = 0
    seconds_per_call: list[float] = field(default_factory=list)

    async def prepare(self, row: Row, plan: Plan) -> None:
        """Build, warm up and calibrate; a contender that is not there or does not work is told, not raised."""
        distribution = self.contender.distribution
        if distribution is not None and version_of(distribution) is None:
            self.status, self.reason = "missing", f"{distribution} is not installed"
            return
        try:
            self.sample = await self.contender.build()
            self.calls = row.calls or await calibrated(self.sample, plan.sample_seconds * row.stretch)
        except Exception as error:  # noqa: BLE001 - a peer that breaks is a finding; the others go on
            self.fail(error)

    async def turn(self) -> None:
        """Take this round's sample."""
        if self.sample is None:
            return
        try:
            self.seconds_per_call.append(await self.sample(self.calls) / self.calls)
        except Exception as error:  # noqa: BLE001 - as above
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Take no further part in this row."""
        self.status, self.reason = "failed", f"{type(error).__name__}: {error}"
        self.sample = None


async def calibrated(sample: Sample, seconds: float) -> int:
    """Return how many calls make one sample last about so long.

    The doubling run is the warm-up as well: caches are filled and bytecode is specialised when the rounds begin.
    """
    calls = 8
    while (taken := await sample(calls)) < seconds / 4:
        calls *= 2
    return max(1, round(calls * seconds / taken))


async def measure(row: Row, plan: Plan) -> dict[str, Any]:
    """Run the rounds of one row; return its record as it goes into the JSON file."""
    runners = [Runner(contender=contender) for contender in row.contenders]
    baseline = Runner(contender=row.baseline) if row.baseline else None
    everyone = [*runners, baseline] if baseline else runners
    for runner in everyone:
        await runner.prepare(row, plan)
    for turn in range(min(plan.rounds, row.rounds or plan.rounds)):
        first = turn % len(everyone)
        # A collection in the middle of one contender's sample would be booked to it, whoever left the garbage.
        gc.collect()
        gc.disable()
        try:
            for runner in everyone[first:] + everyone[:first]:
                await runner.turn()
        finally:
            gc.enable()
    if baseline and baseline.status != "measured":
        message = f"the baseline of {row.key} did not run: {baseline.reason}"
        raise RuntimeError(message)
    records = [record(runner, baseline, row.unit) for runner in runners]
    return {
        "key": row.key,
        "title": row.title,
        "unit": row.unit,
        "baseline": record(baseline, None, row.unit) if baseline else None,
        "contenders": records,
        "bars": [judged(bar, {r["name"]: r["median"] for r in records}) for bar in row.bars],
    }


def record(runner: Runner, baseline: Runner | None, unit: Unit) -> dict[str, Any]:
    """Return what is kept of one contender: raw rounds, and the median and quartiles of what it adds."""
    contender = runner.contender
    kept: dict[str, Any] = {
        "name": contender.name,
        "distribution": contender.distribution,
        "version": contender.distribution and version_of(contender.distribution),
        "note": contender.note,
        "status": runner.status,
        "reason": runner.reason,
        "calls_per_round": runner.calls,
        "rounds": [in_unit(seconds, unit) for seconds in runner.seconds_per_call],
        "median": None,
        "quartiles": None,
    }
    if runner.status == "measured":
        added = [
            in_unit(seconds - without, unit)
            for seconds, without in zip(
                runner.seconds_per_call,
                baseline.seconds_per_call if baseline else [0.0] * len(runner.seconds_per_call),
                strict=True,
            )
        ]
        low, middle, high = statistics.quantiles(added, n=4, method="inclusive")
        kept |= {"median": middle, "quartiles": [low, high]}
    return kept


def in_unit(seconds_per_call: float, unit: Unit) -> float:
    """Convert seconds per call."""
    if unit == "calls/s":
        return 1 / seconds_per_call
    return seconds_per_call * {"ns": 1e9, "us": 1e6, "ms": 1e3, "bytes": 1.0, "connects": 1.0}[unit]


def judged(bar: Bar, medians: dict[str, float | None]) -> dict[str, Any]:
    """Hold one promise against the medians; "not measured" where a side is missing."""
    ours, theirs = medians[bar.name], 1.0 if bar.against is None else medians[bar.against]
    value = None if ours is None or not theirs else ours / theirs
    verdict = "not measured" if value is None else "pass" if bar.holds(value) else "MISS"
    return {**vars(bar), "value": value, "verdict": verdict}


def version_of(distribution: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def repeated(call: Callable[[], Awaitable[object]], catching: type[BaseException] | tuple[()] = ()) -> Sample:
    """Return the sample that awaits `call` over and over, and goes on after errors of the type `catching`."""

    async def sample(calls: int) -> float:
        started = perf_counter()
        for _ in range(calls):
            try:  # noqa: SIM105 - contextlib.suppress would be measured, a try costs nothing
                await call()
            except catching:
                pass
        return perf_counter() - started

    return with_own_code(sample)


def repeated_sync(call: Callable[[], object]) -> Sample:
    """Return the sample that calls `call` over and over."""

    async def sample(calls: int) -> float:
        started = perf_counter()
        for _ in range(calls):
            call()
        return perf_counter() - started

    return with_own_code(sample)


def importing(module: str, distribution: str) -> Contender:
    """Return the contender that imports `module` in a fresh interpreter, which tells how long that took."""
    code = f"from time import perf_counter as now; start = now(); import {module}; print(now() - start)"

    async def build() -> Sample:
        async def sample(calls: int) -> float:
            seconds = 0.0
            for _ in range(calls):
                done = await anyio.run_process([sys.executable, "-c", code])
                seconds += float(done.stdout)
            return seconds

        await sample(1)  # the first import of all compiles, and reads from a cold disk
        return sample

    return Contender(name=f"import {module}", distribution=distribution, build=build)


def brought_by(module: str, others: Sequence[str]) -> list[str]:
    """Return which of the `others` are imported with `module`."""
    code = f"import json, sys, {module}; print(json.dumps([name for name in {list(others)!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # noqa: S603 - our own line
    found: list[str] = json.loads(done.stdout)
    return found


def with_own_code(sample: Sample) -> Sample:
    """Give this loop a code object of its own.

    The interpreter specialises a call site to what it calls. Loops that share one code object would despecialise it for
    each other, and the first calls of every sample would be slower than those of a real program.
    """
    if isinstance(sample, FunctionType):
        sample.__code__ = sample.__code__.replace()
    return sample


def machine() -> dict[str, Any]:
    """Return what tells this machine, and how busy it is, from another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": platform.platform(),
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def print_row(row: dict[str, Any], yardstick: str) -> None:
    """Print one row as a table; ratios are to the contender named `yardstick`, where it was measured."""
    reference = next((c["median"] for c in row["contenders"] if c["name"] == yardstick), None)
    baseline = row["baseline"]
    above = f", added to {baseline['name']} ({baseline['median']:,.1f})" if baseline else ""
    print(f"\n{row['key']}: {row['title']}\n  {row['unit']}{above}")
    for contender in row["contenders"]:
        name = f"{contender['name']} {contender['version'] or ''}".strip()
        if contender["status"] != "measured":
            print(f"  {name:<34} {contender['status']}: {contender['reason']}")
            continue
        low, high = contender["quartiles"]
        ratio = f"{contender['median'] / reference:8.2f}x" if reference else " " * 9
        numbers = f"{contender['median']:>12,.1f}  [{low:>12,.1f} .. {high:>12,.1f}] {ratio}"
        print(f"  {name:<34} {numbers}  {contender['note']}".rstrip())
    for bar in row["bars"]:
        against = f"x {bar['against']}" if bar["against"] else row["unit"]
        found = "" if bar["value"] is None else f" (is {bar['value']:.3g})"
        limit = f"<= {bar['at_most']:.3g}" if bar["at_least"] is None else f">= {bar['at_least']:.3g}"
        print(f"  {bar['verdict']:>12}: {bar['name']} {limit} {against}{found}")


def arguments(description: str, keys: Sequence[str], argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds; its numbers mean nothing")
    parser.add_argument("--rounds", type=int, help="rounds per row, at least 3 (default 21, with --quick 3)")
    parser.add_argument("--only", nargs="+", choices=keys, metavar="ROW", help=f"these rows only: {', '.join(keys)}")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio", help="the event loop")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write (default: results/scratch/)")
    options = parser.parse_args(argv)
    if options.rounds is None:
        options.rounds = 3 if options.quick else 21
    if options.rounds < 3:
        parser.error(f"--rounds must be at least 3, got {options.rounds}")
    if find_spec(options.backend) is None:
        parser.error(f"--backend {options.backend}: not installed")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json must name a file, got the folder {options.json}")
    return options


def run(name: str, rows: Sequence[Row], options: argparse.Namespace, *, yardstick: str) -> dict[str, Any]:
    """Measure the rows asked for, print each as it is done, and return the report."""
    plan = Plan(rounds=options.rounds, sample_seconds=0.002 if options.quick else 0.03)
    report: dict[str, Any] = {
        "benchmark": name,
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {c.distribution: version_of(c.distribution) for r in rows for c in r.contenders if c.distribution},
        "config": {"backend": options.backend, "quick": options.quick, **vars(plan)},
        "rows": [],
    }
    print(f"{name}: {report['python']}, {options.backend}, {report['machine']['cpu']}, {plan.rounds} rounds")
    for row in rows:
        if options.only is None or row.key in options.only:
            report["rows"].append(anyio.run(measure, row, plan, backend=options.backend))
            print_row(report["rows"][-1], yardstick)
    return report


def write(report: dict[str, Any], path: Path | None) -> None:
    """Keep the report at `path`; without one in the scratch folder, under a name that tells what it is."""
    if path is None:
        stamp = report["date"].replace(":", "").replace("-", "").partition("+")[0]
        python = f"py{sys.version_info.major}{sys.version_info.minor}"
        path = SCRATCH / f"{report['benchmark']}-{stamp}-{python}-{report['config']['backend']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")

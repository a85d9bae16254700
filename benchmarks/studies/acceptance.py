"""Accept a GPU: `python -m benchmarks.studies.acceptance`, repeated until nothing is left.

The tests of tests/gpu, then the runs of `STAGES`, then a table of measured beside simulated peaks. A call
starts nothing that it knows not to end within `--minutes`, and stops what does not end, as Ctrl-C would;
what is finished is not done again. Records stay under `<results>/<machine>/<suite>`, the rest under
`<results>/<machine>/acceptance`. Exits with 1 when a test failed or a run ended in `error`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.studies.acceptance_table import Forecasts, pairs, rows, show, tests_line
from harness import record as records
from harness import suite as suites
from harness.config import Run
from harness.engine import runner
from harness.errors import EXIT_BAD_INPUT, UserError
from harness.files import ROOT, replace, sha256
from harness.record import Record

CAP = "LOREBENCH_CUDA_GIB"  # what harness/engine/run/environment.py reads in the worker
CODE = ("harness", "methods")
GRACE_S = 20.0
LEAST_S = 20.0  # a process needs as long to start


@dataclass(frozen=True)
class Stage:
    """Runs of a suite that belong together; `only` selects them, `cap_gib` holds each under that size."""

    suite: str
    only: tuple[str, ...] = ()
    cap_gib: float | None = None


#: What matters most comes first; a run that an earlier stage has is not in a later one.
STAGES = (
    Stage("headlines_24gib", cap_gib=24),
    Stage("headlines", ("model.name=1b", "model.name=7b")),
    Stage("shapes", ("model.name=1b",)),
    Stage("shapes", ("model.name=7b",)),
    Stage("headlines", ("model.name=llama-2-7b",)),
    Stage("shapes", ("model.name=llama-2-7b",)),
    Stage("shapes"),
)


@dataclass(frozen=True)
class Chosen:
    """What is accepted: files of tests, stages, and where."""

    results: Path
    device: str = "cuda"
    tests: tuple[Path, ...] = ()
    stages: tuple[Stage, ...] = STAGES
    retry: bool = False


class Clock:
    """How much is left of the time of a call, in seconds."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())


@dataclass
class Work:
    """The resolved runs of each stage, and the folder of the machine that they are for."""

    folder: Path
    runs: list[tuple[Stage, list[Run]]] = field(default_factory=list)

    def record(self, suite: str, run: Run) -> Record | None:
        """The finished record of a run, or None."""
        with suppress(UserError):
            found = records.read(self.folder / suite / f"{run.run_id}.json")
            return found if found.finished else None
        return None

    def to_do(self, stage: Stage, runs: Iterable[Run], retry: bool = False) -> list[Run]:
        """The runs that have no finished record; with `retry`, also those that did not end well."""
        name = suites.load(stage.suite).name
        found = ((run, self.record(name, run)) for run in runs)
        return [run for run, r in found if r is None or (retry and r.outcome.status != "ok")]


# ------------------------------------------------------------------------------------------ the parts
def prepare(chosen: Chosen) -> Work:
    """Resolve all runs on the device; UserError where there is none."""
    seen: set[tuple[str, str]] = set()
    wanted: list[tuple[Stage, str, list[Run]]] = []
    for stage in chosen.stages:
        suite = suites.load(stage.suite)
        with suppress(UserError):  # a suite need not have a model of that name
            wanted.append((stage, suite.name, list(suite.only(stage.only).runs)))
    plan = runner.resolve([run for _, _, runs in wanted for run in runs], chosen.device)
    resolved = iter(plan.runs)
    work = Work(chosen.results.absolute() / plan.machine)
    for stage, name, runs in wanted:
        mine = []
        for run in (next(resolved) for _ in runs):
            if (name, run.run_id) not in seen:
                seen.add((name, run.run_id))
                mine.append(run)
        work.runs.append((stage, mine))
    return work


def call(command: Sequence[str], limit_s: float, **variables: str) -> int | None:
    """Run a command and return its exit code, or None when it was stopped at its limit."""
    process = subprocess.Popen(command, env={**os.environ, **variables})
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def carry_out(work: Work, chosen: Chosen, clock: Clock) -> int:
    """Let `lorebench run` do what is left of each stage; the number of runs that are left then."""
    for stage, runs in work.runs:
        if not work.to_do(stage, runs, chosen.retry) or clock.left_s < LEAST_S:
            continue
        print(f"\n== {stage.suite} {' '.join(stage.only)}: {len(runs)} runs", flush=True)
        options = [f"--only={condition}" for condition in stage.only]
        options += [f"--device={chosen.device}", f"--results={chosen.results}"]
        options += [f"--budget={clock.left_s:.0f}s", *(["--retry"] if chosen.retry else [])]
        cap = {} if stage.cap_gib is None else {CAP: f"{stage.cap_gib:g}"}
        command = [sys.executable, "-m", "harness.cli", "run", stage.suite, *options]
        if call(command, clock.left_s, **cap) == EXIT_BAD_INPUT:
            print(
                f"acceptance: lorebench refused some of {stage.suite}, see above; going on", file=sys.stderr
            )
    return sum(len(work.to_do(stage, runs)) for stage, runs in work.runs)


# ------------------------------------------------------------------------------------------ the tests
def gpu_tests() -> tuple[Path, ...]:
    """The files of tests that need a GPU."""
    return tuple(sorted((ROOT / "tests" / "gpu").glob("test_*.py")))


def sources(files: Iterable[Path]) -> str:
    """A SHA-256 over what the outcome of tests depends on: these files, those beside them, our code."""
    beside = {other for file in files for other in file.parent.glob("*.py")}
    code = {other for name in CODE for other in (ROOT / name).rglob("*.py")}
    content = [f"{file.name} {sha256(file)}" for file in sorted(beside | code)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def try_out(folder: Path, chosen: Chosen, clock: Clock) -> dict[str, Any]:
    """Run each file of tests that has not ended with today's code; all outcomes by file."""
    kept, code = folder / "tests.json", sources(chosen.tests)
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if done.get("sources_sha256") != code:
        done = {"sources_sha256": code, "files": {}}
    for file in chosen.tests:
        before = done["files"].get(file.name)
        again = before is None or (chosen.retry and before["failed"])
        if not again or clock.left_s < LEAST_S:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch, "report.xml")
            options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(file)]
            print(f"\n== {file.name}", flush=True)
            code_of_pytest = call([sys.executable, "-m", "pytest", *options], clock.left_s)
            if code_of_pytest is not None and report.exists():
                done["files"][file.name] = outcomes(report)
                replace(kept, json.dumps(done, indent=1) + "\n")
    return dict(done["files"])


def outcomes(report: Path) -> dict[str, Any]:
    """What pytest's XML says: counts, and each case with its outcome and the numbers that it noted."""
    cases = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        ends = [(child.tag, child.get("message", "")) for child in case if child.tag in ENDS]
        tag, message = ends[0] if ends else ("passed", "")
        noted = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        ended = {
            "name": case.get("name"),
            "outcome": ENDS.get(tag, tag),
            "seconds": float(case.get("time", 0)),
        }
        cases.append(
            ended | ({"message": message[:500]} if message else {}) | ({"noted": noted} if noted else {})
        )
    counts = {end: sum(case["outcome"] == end for case in cases) for end in ("passed", "failed", "skipped")}
    return {**counts, "cases": cases}


ENDS = {"failure": "failed", "error": "failed", "skipped": "skipped"}


# ------------------------------------------------------------------------------------- the whole of it
def accept(chosen: Chosen, minutes: float) -> int:
    """Do what fits into some minutes and say how far it went; the exit code."""
    clock = Clock(minutes)
    work = prepare(chosen)
    folder = work.folder / "acceptance"
    tested = try_out(folder, chosen, clock)
    left = carry_out(work, chosen, clock)
    found = {
        (suites.load(stage.suite).name, run.run_id): record
        for stage, runs in work.runs
        for run in runs
        if (record := work.record(suites.load(stage.suite).name, run))
    }
    forecasts = Forecasts(folder / "simulated.json")
    missing = forecasts.fill(found.values(), lambda: clock.left_s > LEAST_S)
    show(rows(found.values(), forecasts), pairs(found.values(), _baselines(work)), folder)
    print(tests_line(tested))
    untested = len(chosen.tests) - len(tested)
    if left or untested or missing:
        print(
            f"left: {left} runs, {untested} files of tests, {missing} simulations; run the same command again"
        )
    failed = any(file["failed"] for file in tested.values())
    return 1 if failed or any(r.outcome.status == "error" for r in found.values()) else 0


def _baselines(work: Work) -> Mapping[str, str | None]:
    loaded = [suites.load(stage.suite) for stage, _ in work.runs]
    return {suite.name: suite.baseline for suite in loaded}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; a mistake, or a machine without a GPU, is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="how long this call may take (default 9)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="folder of the records")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--retry", action="store_true", help="repeat failed tests and runs that are not ok")
    given = parser.parse_args(arguments)
    try:
        if not 0 < given.minutes <= 24 * 60:
            raise UserError(f"--minutes {given.minutes:g}: give more than 0 and at most a day")
        return accept(Chosen(given.results, given.device, gpu_tests(), STAGES, given.retry), given.minutes)
    except UserError as error:
        print(f"acceptance: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("acceptance: stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

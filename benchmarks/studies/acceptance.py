"""Accept a GPU: `nox -s gpu`, repeated until nothing is left.

Run the tests of tests/gpu, then the runs of `STAGES`, then print a table of measured beside simulated peaks.
A call starts nothing that is expected to exceed `--minutes`, and interrupts what does; finished work is not
repeated. Records are in `<results>/<machine>/<suite>`, the rest in `<results>/<machine>/acceptance`. Exit
code 1 when a test failed or a run ended in `error`.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.acceptance_table import pairs, rows, show, simulated_peaks, tests_line
from harness import imports, strict_json
from harness import record as records
from harness import suite as suites
from harness.config import Run
from harness.engine.sweep import resolution
from harness.errors import EXIT_BAD_INPUT, UserError, counted
from harness.files import ROOT, cache_folder, replace, sha256
from harness.record import Record

CAP = "LOREBENCH_CUDA_GIB"  # what harness/engine/run/environment.py reads in the worker
CODE = ("harness", "methods")
GRACE_S = 20.0
LEAST_S = 20.0  # a process needs as long to start


@dataclass(frozen=True)
class Stage:
    """Runs of a suite; `only` selects them, `cap_gib` limits the memory of each."""

    suite: str
    only: tuple[str, ...] = ()
    cap_gib: float | None = None


#: The most important come first; a run that an earlier stage has done is skipped.
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
    """What to accept: files of tests and stages, the device, and the folder of results."""

    results: Path
    device: str = "cuda"
    tests: tuple[Path, ...] = ()
    stages: tuple[Stage, ...] = STAGES
    retry: bool = False


#: Seconds until the time of a call is over.
Left = Callable[[], float]
#: The resolved runs of each stage, each with the name of its suite.
Stages = dict[Stage, list[tuple[str, Run]]]


# ------------------------------------------------------------------------------------------- the runs
def prepare(chosen: Chosen) -> tuple[Path, Stages]:
    """Resolve all runs on the device; return the machine's folder and the runs."""
    wanted: list[tuple[Stage, str, Run]] = []
    for stage in chosen.stages:
        suite = suites.load(stage.suite)
        with suppress(UserError):  # a suite need not have a model of that name
            wanted += [(stage, suite.name, run) for run in suite.only(stage.only).runs]
    plan = resolution.resolve([run for _, _, run in wanted], chosen.device)
    stages: Stages = {}
    for (stage, name, _), run in zip(wanted, plan.runs, strict=True):
        stages.setdefault(stage, []).append((name, run))
    return chosen.results.absolute() / plan.machine, stages


def finished(folder: Path, runs: Iterable[tuple[str, Run]]) -> dict[tuple[str, str], Record]:
    """Read the finished records of runs, by suite and run id."""
    found = {}
    for suite, run in runs:
        with suppress(UserError):
            record = records.read(folder / suite / f"{run.run_id}.json")
            if record.finished:
                found[suite, run.run_id] = record
    return found


def call(command: Sequence[str], limit_s: float, **variables: str) -> int | None:
    """Run a command and return its exit code, or None if it was interrupted at its limit."""
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


def carry_out(folder: Path, stages: Stages, chosen: Chosen, left_s: Left) -> None:
    """Let `lorebench run` do what is left of each stage; a stage without work costs no process."""
    for stage, runs in stages.items():
        found = finished(folder, runs).values()
        done = [record for record in found if record.outcome.status == "ok" or not chosen.retry]
        if len(done) == len(runs) or left_s() < LEAST_S:
            continue
        print(f"\n== {stage.suite} {' '.join(stage.only)}: {counted(len(runs), 'run')}", flush=True)
        options = [f"--only={condition}" for condition in stage.only]
        options += [f"--device={chosen.device}", f"--results={chosen.results}"]
        options += [f"--budget={left_s():.0f}s", *(["--retry"] if chosen.retry else [])]
        cap = {} if stage.cap_gib is None else {CAP: f"{stage.cap_gib:g}"}
        command = [*imports.command("harness.cli"), "run", stage.suite, *options]
        if call(command, left_s(), **cap) == EXIT_BAD_INPUT:
            print(
                f"acceptance: some runs of {stage.suite} were refused, see above; continuing", file=sys.stderr
            )


# ------------------------------------------------------------------------------------------ the tests
def gpu_tests() -> tuple[Path, ...]:
    """Return the files of tests that need a GPU."""
    return tuple(sorted((ROOT / "tests" / "gpu").glob("test_*.py")))


def sources(files: Iterable[Path]) -> str:
    """Return a SHA-256 of what the outcome of tests depends on: these files, those beside them, our code."""
    beside = {other for file in files for other in file.parent.glob("*.py")}
    code = {other for name in CODE for other in (ROOT / name).rglob("*.py")}
    content = [f"{file.name} {sha256(file)}" for file in sorted(beside | code)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def try_out(folder: Path, chosen: Chosen, left_s: Left) -> dict[str, Any]:
    """Run each file of tests that has not ended with today's code; return all outcomes by file."""
    kept, code = folder / "tests.json", sources(chosen.tests)
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if done.get("sources_sha256") != code:
        done = {"sources_sha256": code, "files": {}}
    for file in chosen.tests:
        before = done["files"].get(file.name)
        again = before is None or (chosen.retry and before["failed"])
        if not again or left_s() < LEAST_S:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch, "report.xml")
            options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(file)]
            print(f"\n== {file.name}", flush=True)
            code_of_pytest = call([sys.executable, "-m", "pytest", *options], left_s())
            if code_of_pytest is not None and report.exists():
                done["files"][file.name] = outcomes(report)
                replace(kept, strict_json.text(done, indent=1))
    return dict(done["files"])


def outcomes(report: Path) -> dict[str, Any]:
    """Read pytest's XML: counts, and each case with its outcome and its recorded properties."""
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
    """Do what fits into some minutes, print how far it went, and return the exit code."""
    end = time.monotonic() + 60 * minutes

    def left_s() -> float:
        return max(0.0, end - time.monotonic())

    machine, stages = prepare(chosen)
    folder = machine / "acceptance"
    tested = try_out(folder, chosen, left_s)
    carry_out(machine, stages, chosen, left_s)
    everything = [run for runs in stages.values() for run in runs]
    found = finished(machine, everything)
    left = {(suite, run.run_id) for suite, run in everything} - set(found)
    peaks, missing = simulated_peaks(found.values(), cache_folder(), lambda: left_s() > LEAST_S)
    loaded = [suites.load(stage.suite) for stage in stages]
    baselines = {suite.name: suite.baseline for suite in loaded}
    show(rows(found.values(), peaks), pairs(found.values(), baselines), folder)
    print(tests_line(tested))
    untested = len(chosen.tests) - len(tested)
    if left or untested or missing:
        print(
            f"left: {counted(len(left), 'run')}, {counted(untested, 'file')} of tests, "
            f"{counted(missing, 'simulation')}; "
            "run the same command again"
        )
    failed = any(file["failed"] for file in tested.values())
    return 1 if failed or any(r.outcome.status == "error" for r in found.values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; a mistake, or a machine without a GPU, is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time budget of this call (default 9)")
    parser.add_argument("--results", type=Path, default=Path("results/raw"), help="folder of the records")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--retry", action="store_true", help="re-run failed tests and runs")
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

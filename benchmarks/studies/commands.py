"""How long do the commands take beside ten thousand records? Wall and processor seconds, cold and warm.

`python -m benchmarks.studies.commands` writes made-up records (`many_records.py`) into a folder that it
removes afterwards, runs each command in a process of its own, first with an empty folder of caches and then
with what that left there, and prints a table. Nothing is trained. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.studies import many_records
from harness import suite as suites
from harness.engine.sweep import resolution
from harness.errors import UserError
from harness.files import ROOT
from harness.record_index import GRANULARITY_NS

SUITE = "many"
RATES = 20
METHODS = ("full", "lora", "galore", "welore", "velora")
#: Records of one seed: each method at each rate.
OF_SEED = RATES * len(METHODS)
RUNS_OF_COMMIT = 50
#: Commands with their arguments and the exit code that each must end with. SUITE, BASE, CAND, HISTORY and RUN
#: stand for what is written, OUT and FILE for a new folder and file. The weights of RUN were not kept.
COMMANDS = {
    "run": ("run SUITE --results BASE --device cpu", 0),
    "report": ("report SUITE --results BASE --out OUT", 0),
    "plan": ("plan SUITE --results BASE --device cpu", 0),
    "export": ("export RUN OUT --results BASE", 2),
    "paper": ("paper all --results BASE", 0),
    "gate": ("gate BASE CAND --out FILE", 0),
    "history": (f"history {SUITE} --results HISTORY", 0),
}


def prepare(folder: Path, count: int) -> dict[str, str]:
    """Write a suite, two sides of records and a history of `count` each; return what the words stand for."""
    suite = folder / f"{SUITE}.yaml"
    content = {
        "suite": SUITE,
        "question": "How long do commands take?",
        "base": {"train": {"steps": 400}},
        "baseline": METHODS[0],
        "matrix": {
            "seed": list(range(count // OF_SEED)),
            "train.lr": [round(1e-4 * (number + 1), 6) for number in range(RATES)],
        },
        "rows": [{"label": name, "method": name} for name in METHODS],
    }
    suite.write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = resolution.resolve(suites.load(str(suite)).runs, "cpu")
    runs = list(plan.runs)
    commits = count // RUNS_OF_COMMIT
    some = [runs[number // commits] for number in range(count)]
    for name, chosen, several in (("BASE", runs, 1), ("CAND", runs, 1), ("HISTORY", some, commits)):
        for _ in many_records.write(folder / name, SUITE, chosen, several, plan.machine):
            pass
    time.sleep(GRANULARITY_NS / 1e9)  # an index leaves out files that may still change unseen
    names = {name: str(folder / name) for name in ("BASE", "CAND", "HISTORY")}
    return {**names, "SUITE": str(suite), "RUN": runs[-1].run_id}


def measure(command: str, expected: int, words: dict[str, str], folder: Path) -> list[tuple[float, float]]:
    """Return wall and processor seconds, cold and then warm; UserError where the command ends otherwise."""
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for turn in ("cold", "warm"):
            new = str(Path(cache) / f"out-{turn}")
            out = {"OUT": new, "FILE": f"{new}.md"}
            arguments = [(words | out).get(word, word) for word in command.split()]
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "harness.cli", *arguments],
                cwd=folder,
                env={**os.environ, "LOREBENCH_CACHE": cache, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            if ended.returncode != expected:
                said = ended.stderr.strip().splitlines()[-1:]
                raise UserError(f"{command}: exit code {ended.returncode}, not {expected}: {''.join(said)}")
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found.append((wall, used))
    return found


def main() -> None:
    """Measure the commands that were asked for, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, help=f"a multiple of {OF_SEED}")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    options = parser.parse_args()
    if options.records < OF_SEED or options.records % OF_SEED:
        parser.error(f"--records {options.records}: give a multiple of {OF_SEED}")
    print(f"{options.records:,} records (gate: of each side), seconds")
    print(f"{'command':<10}{'cold wall':>12}{'cold CPU':>12}{'warm wall':>12}{'warm CPU':>12}")
    with tempfile.TemporaryDirectory() as name:
        words = prepare(Path(name), options.records)
        for command in options.only:
            seconds = measure(*COMMANDS[command], words, Path(name))
            cells = "".join(f"{value:12.2f}" for pair in seconds for value in pair)
            print(f"{command:<10}{cells}", flush=True)


if __name__ == "__main__":
    main()

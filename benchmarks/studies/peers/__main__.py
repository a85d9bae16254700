"""Time the methods beside the code that one would otherwise run: `nox -s bench-peers`.

Each finished case is written at once to `results/peers/<machine>.json`, beside those of earlier calls; the
page `results/tables/peers.md` follows from these files. Times are CPU times.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.studies.peers.bench import Case, PeerMissingError, alternate
from benchmarks.studies.peers.table import (
    Environment,
    Measured,
    Result,
    label,
    milliseconds,
    page,
    ratio_text,
)
from harness import files
from harness.engine.run.environment import cpu_model, machine_slug
from harness.tables import generated

#: Modules of this package with a function `cases(quick)`, in the order of the table.
MODULES = (
    "galore",
    "adarankgrad",
    "apollo",
    "sltrain",
    "velora",
    "plain",
    "quantised",
    "sampled",
    "whitening",
)
PACKAGES = ("torch", "galore-torch", "apollo-torch", "peft", "bitsandbytes")
ROUNDS, HEAVY_ROUNDS = 7, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cases; 1 when a case failed, 2 when none was chosen."""
    asked = _asked(arguments)
    out = asked.out or Path("runs/quick-peers" if asked.quick else "results")
    everything = collect(asked.quick)
    labels = [case_label(case) for case in everything]
    if not any(asked.only.lower() in name.lower() for name in labels):
        print(f"no case contains {asked.only!r}; without --only all {len(labels)} run", file=sys.stderr)
        return 2
    file = out / "peers" / f"{machine_slug('cpu')}.json"
    measured = begin(file)
    deadline = time.monotonic() + 60 * asked.budget
    failed = False
    for name, case in zip(labels, everything, strict=True):
        if asked.only.lower() not in name.lower():
            continue
        if time.monotonic() > deadline:
            print(f"{name}: skipped, the time budget is spent", flush=True)
            continue
        result = measure(case, asked.rounds)
        failed |= result.error is not None
        print(line(result), flush=True)
        known = {old.label: old for old in measured.results if old.label in labels} | {name: result}
        measured.results = sorted(known.values(), key=lambda each: labels.index(each.label))
        files.replace(file, measured.model_dump_json(indent=1) + "\n")
        generated.write([(out / "tables" / "peers.md", page(out / "peers"))])
    return int(failed)


def collect(quick: bool) -> list[Case]:
    """Return the cases of all modules; those of tiny shapes have no target."""
    modules = [importlib.import_module(f"benchmarks.studies.peers.{name}") for name in MODULES]
    found = [case for module in modules for case in module.cases(quick)]
    return [replace(case, target=None) for case in found] if quick else found


def case_label(case: Case) -> str:
    """Return the unique name of a case."""
    return label(case.method, case.work, case.shape, case.peer)


def measure(case: Case, rounds: int | None) -> Result:
    """Set a case up and time it; an error becomes its result."""
    result = Result(method=case.method, work=case.work, shape=case.shape, peer=case.peer, target=case.target)
    gc.collect()
    try:
        duel = case.set_up()
        times = alternate(duel, rounds or (HEAVY_ROUNDS if case.heavy else ROUNDS))
    except PeerMissingError as error:
        result.missing = str(error)
    except Exception as error:  # one case that fails must not take the others along
        result.error = f"failed: {type(error).__name__}: {error}"
    else:
        result.facts, result.ours_s, result.peer_s = duel.facts, times.ours, times.peer
    return result


def line(result: Result) -> str:
    """Render a result for the terminal."""
    if result.problem:
        return f"{result.label}: {result.problem}"
    target = {None: "", True: f", target {result.target} met", False: f", target {result.target} missed"}
    times = f"{milliseconds(result.ours_s)} ms against {milliseconds(result.peer_s)} ms"
    facts = "".join(f"; {key}: {value}" for key, value in result.facts.items())
    return f"{result.label}: {times}, ratio {ratio_text(result)}{target[result.met]}{facts}"


def begin(file: Path) -> Measured:
    """Read earlier results, unless they are of another processor or of other packages."""
    packages = {name: version for name in PACKAGES if (version := files.installed(name)) != files.ABSENT}
    here = Environment(
        cpu=cpu_model(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        packages={**packages, "torch": str(torch.__version__)},
    )
    if file.exists():
        found = Measured.model_validate_json(file.read_text(encoding="utf-8"))
        if found.environment == here:
            return found
        print(f"{file} is of other packages or another processor; starting over", flush=True)
    return Measured(environment=here)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes; write to runs/quick-peers")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="run only cases whose name contains this text"
    )
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, {HEAVY_ROUNDS} for the largest shapes")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), help="time budget in minutes; no case starts later"
    )
    parser.add_argument("--out", type=Path, help="folder for peers/ and tables/; default results")
    asked = parser.parse_args(arguments)
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds} measures nothing; give at least 1")
    return asked


if __name__ == "__main__":
    sys.exit(main())

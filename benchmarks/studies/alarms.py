"""Measure how often `lorebench ab` raises false alarms or misses regressions: `nox -s alarms`.

Revisions are made in a scratch clone: some change only a comment, in one a method sleeps for a tenth of each
of its updates, in one its optimizer holds a MiB more. `lorebench ab` compares each with the commit that it
was made from: suite `alarms`, five interleaved runs a side, with an untouched control row. Finished runs are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import files, imports, strict_json
from harness.errors import UserError
from harness.files import ROOT
from harness.git import LOCAL, git
from harness.tables import generated

OUTCOMES = Path("results", "alarms.json")
TOUCHED = Path("methods", "galore.py")
ROW, CONTROL = "galore", "full"
#: The planted sleep as a share of an update's time.
SLEEP = 0.10
SLOWER = f"""

def _planted() -> None:
    import time

    plain, last = GaLore.stepper, [time.thread_time()]  # what waits for its turn does not count

    def stepper(self, model, optim):
        made = plain(self, model, optim)
        step = made.step

        def slow():
            info = step()
            time.sleep({SLEEP} * (time.thread_time() - last[0]))
            last[0] = time.thread_time()
            return info

        made.step = slow
        return made

    GaLore.stepper = stepper


_planted()
"""
LARGER = """

def _planted() -> None:
    import torch

    plain, tensors = GaLoreStepper.__init__, GaLoreStepper.state_tensors

    def init(self, *arguments):
        plain(self, *arguments)
        self.hoard = torch.zeros(1 << 20, dtype=torch.uint8)

    def state_tensors(self):
        yield "hoard", self.hoard
        yield from tensors(self)

    GaLoreStepper.__init__, GaLoreStepper.state_tensors = init, state_tensors


_planted()
"""
#: Runs of each row and side, the same for revisions with a sleep and without any change.
REPEATS = 5
#: Planted regressions by name: the text that goes below the method, and the repeats that it takes to see it.
PLANTED = {"slower": (SLOWER, REPEATS), "larger": (LARGER, 1)}
IDENTITY = {
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
       (("NAME", "alarms"), ("EMAIL", "alarms@localhost"), ("DATE", "2026-01-01T00:00:00Z"))}
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cases; 1 when an alarm was false or a regression was not found, 2 for wrong input."""
    asked = _asked(arguments)
    try:
        return _run(asked, _chosen(asked))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _chosen(asked: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Return the cases chosen by `--only`; UserError for a name that none has."""
    cases = list(_cases(asked.tries))
    if asked.only is None:
        return cases
    if asked.write:
        raise UserError(
            "--only with --write: a part must not replace the whole evidence; drop one of the two"
        )
    unknown = sorted(set(asked.only) - {name for name, _, _ in cases})
    if unknown:
        known = ", ".join(name for name, _, _ in cases)
        raise UserError(f"--only {', '.join(unknown)}: no such revision; known: {known}")
    return [case for case in cases if case[0] in asked.only]


def _run(asked: argparse.Namespace, cases: Sequence[tuple[str, str, int]]) -> int:
    """Compare each case with its base and print the verdicts; return 1 if any was not as expected."""
    clone = _clone(asked.folder.absolute())
    outcomes = []
    for name, text, repeats in cases:
        outcomes.append(_outcome(name, clone, _revision(clone, name, text), repeats))
        print(_line(outcomes[-1]), flush=True)
    if asked.write:
        content = {"stand": _environment(clone), "outcomes": outcomes}
        files.replace(ROOT / OUTCOMES, strict_json.text(content, indent=1))
        generated.write(pages(ROOT))
    return 0 if all(map(as_expected, outcomes)) else 1


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.alarms", description=__doc__)
    parser.add_argument("--tries", type=int, default=20, help="number of unchanged revisions")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="run only this case; repeatable, not with --write"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/alarms"), help="folder of the clone and the records"
    )
    parser.add_argument("--write", action="store_true", help="write the outcomes and their page to results/")
    return parser.parse_args(arguments)


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the page that follows from the recorded outcomes."""
    text = page(json.loads((root / OUTCOMES).read_text(encoding="utf-8")))
    yield root / "results" / "tables" / "alarms.md", text


def _environment(clone: Path) -> dict[str, str]:
    """Return what the outcomes depend on beside the code."""
    import torch

    from harness.engine.run.environment import cpu_model

    commit = _git(clone, "rev-parse", "--short=9", "base")
    threads = str(torch.get_num_threads())
    return {"CPU": cpu_model(), "threads": threads, "torch": str(torch.__version__), "commit": commit}


def _cases(tries: int) -> Iterable[tuple[str, str, int]]:
    for name, (text, repeats) in PLANTED.items():
        yield name, text, repeats
    for number in range(1, tries + 1):
        yield f"unchanged {number}", f"\n# The same method, for the {number}. time.\n", REPEATS


# ------------------------------------------------------------------------------------- revisions
def _clone(folder: Path) -> Path:
    """Clone this repository at its commit, unless an earlier call did."""
    commit = _git(ROOT, "rev-parse", "HEAD")
    clone = folder / "clone"
    if not clone.exists():
        clone.parent.mkdir(parents=True, exist_ok=True)
        _git(ROOT, "clone", "--quiet", "--no-local", str(ROOT), str(clone))
        _git(clone, "tag", "base", commit)
    return clone


def _revision(clone: Path, name: str, text: str) -> str:
    """Commit a text below the method; the same text always makes the same commit."""
    _git(clone, "checkout", "--quiet", "--force", "--detach", "base")
    file = clone / TOUCHED
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")
    _git(clone, "commit", "--quiet", "--all", "--no-verify", "--message", name)
    return _git(clone, "rev-parse", "HEAD")


def _git(place: Path, *arguments: str) -> str:
    return git(place, *arguments, variables={**LOCAL, **IDENTITY})


# --------------------------------------------------------------------------------------- outcomes
def _outcome(name: str, clone: Path, revision: str, repeats: int) -> dict[str, Any]:
    """Compare a revision with its base; UserError where the command gives no verdict."""
    out = clone.parent / f"{name.replace(' ', '-')}.json"
    out.unlink(missing_ok=True)
    command = [*imports.command("harness.cli"), "ab", "base", revision, "alarms"]
    command += [f"--repository={clone}", f"--results={clone.parent / 'records'}"]
    command += [f"--repeats={repeats}", f"--out={out}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=imports.environment())
    if not out.exists():
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{name}: no verdict, exit code {ended.returncode}: {last}")
    content = json.loads(out.read_text(encoding="utf-8"))
    cells = [{key: cell[key] for key in ("row", "quantity", "verdict", "cause")} for cell in content["cells"]]
    return {"name": name, "exit_code": ended.returncode, "cells": cells}


def as_expected(outcome: dict[str, Any]) -> bool:
    """Return whether exactly the planted regression was found, in its row, and no improvement."""
    changes = "regression", "improvement"
    found = {(cell["row"], cell["quantity"], cell["verdict"]) for cell in outcome["cells"]}
    alarms = {alarm for alarm in found if alarm[-1] in changes}
    expected = {"slower": {(ROW, "throughput", changes[0])}, "larger": {(ROW, "peak memory", changes[0])}}
    return alarms == expected.get(outcome["name"], set())


def _cell(outcome: dict[str, Any], row: str, quantity: str) -> dict[str, str]:
    return next(c for c in outcome["cells"] if (c["row"], c["quantity"]) == (row, quantity))


def _line(outcome: dict[str, Any]) -> str:
    quantity = "peak memory" if outcome["name"] == "larger" else "throughput"
    found, control = (_cell(outcome, row, quantity) for row in (ROW, CONTROL))
    return f"| {outcome['name']} | {found['verdict']} | {found['cause']} | {control['cause']} |"


def page(content: dict[str, Any]) -> str:
    """Render all outcomes as Markdown."""
    outcomes: list[dict[str, Any]] = content["outcomes"]
    environment = ", ".join(f"{name} {value}" for name, value in content["stand"].items())
    unchanged = [outcome for outcome in outcomes if outcome["name"] not in PLANTED]
    verdicts = [_cell(outcome, ROW, "throughput")["verdict"] for outcome in unchanged]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    false = sum(not as_expected(outcome) for outcome in unchanged)
    found = [outcome["name"] for outcome in outcomes if outcome["name"] in PLANTED and as_expected(outcome)]
    lines = [
        "<!-- generated by `nox -s tables`; do not edit -->",
        "",
        "# What `lorebench ab` detects",
        "",
        "Revisions made by `nox -s alarms -- --write`, each compared with the commit that it was made",
        f"from: suite `alarms`, interleaved runs, control row `{CONTROL}`, the change in row `{ROW}`.",
        f"`slower` sleeps {100 * SLEEP:.0f} % of each update, `larger` keeps a MiB more in its optimizer,",
        f"others change only a comment. {REPEATS} runs of each row and side, one for `larger`.",
        "",
        f"False alarms: {false} in {len(unchanged)} tries ({counts or 'none was made'}).",
        f"Found: {', '.join(found) or 'nothing'}. Environment: {environment}.",
        "",
        f"| revision | verdict | {ROW} | control |",
        "| --- | --- | --- | --- |",
    ]
    remarks = [f"* {remark}" for remark in content.get("remarks", ())]
    return "\n".join([*lines, *map(_line, outcomes), *([""] if remarks else []), *remarks]) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""The command `lorebench ab`: two revisions of the code run a suite in turns, and are compared."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import arguments, gating, options, questions
from harness import suite as suites
from harness.config import Run
from harness.errors import UserError
from harness.record import VARIABLES
from harness.suite import Suite

if TYPE_CHECKING:
    from harness.engine.runner import Plan
    from harness.revisions import Revision
    from harness.tables.compare.cells import Comparison
    from harness.tables.compare.loading import Loaded, Side
    from harness.turns import Request

#: Runs of a side that a verdict about throughput needs, and what is asked for unless a person says otherwise.
REPEATS = 5
MOST_REPEATS = 1000
#: Settings without which a run costs less and is as large and as fast.
COST_ALONE = ("evaluate.perplexity=[]", "evaluate.tasks=[]", "save_weights=false")


Repeats = Annotated[int, typer.Option(help="Runs of each row and side; a verdict needs 5.")]
Control = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL",
        help="The row whose throughput must be stable before another's is judged; runs even when --only "
        "leaves it out. [default: the suite's baseline]",
    ),
]
Quality = Annotated[
    bool, typer.Option("--quality", help="Also score perplexity and accuracy, and compare them.")
]
Repository = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A clone of lorebench. [default: the one around here]")
]
Apart = Annotated[
    bool,
    typer.Option(
        "--apart",
        help="One run after the other, as on a GPU and with --quality. On a CPU both revisions are there at "
        "once, and their updates take turns.",
    ),
]
PythonA = Annotated[
    str | None, typer.Option("--python-a", metavar="FILE", help="An interpreter that runs REV_A.")
]
PythonB = Annotated[
    str | None, typer.Option("--python-b", metavar="FILE", help="An interpreter that runs REV_B.")
]


def ab(
    first: Annotated[str, typer.Argument(metavar="REV_A", help="A commit, branch or tag: the base.")],
    second: Annotated[str, typer.Argument(metavar="REV_B", help="Against it; `.` is the working tree.")],
    suite: arguments.SuiteName,
    repeats: Repeats = REPEATS,
    control: Control = None,
    quality: Quality = False,
    model: arguments.ModelOption = None,
    data: arguments.DataOption = None,
    settings: arguments.SetOption = None,
    only: arguments.OnlyOption = None,
    seed: arguments.Seeds = None,
    device: arguments.Device = "auto",
    deadline: Annotated[str, typer.Option(help="Longest time for one run.")] = "6h",
    results: arguments.Results = Path("runs/ab"),
    repository: Repository = None,
    apart: Apart = False,
    python_a: PythonA = None,
    python_b: PythonB = None,
    form: gating.FormOption = "text",
    out: gating.OutOption = None,
) -> None:
    """Run two revisions in turns on this machine and say what got larger or slower; exit codes as of gate."""
    from harness.engine import runner

    if not 1 <= repeats <= MOST_REPEATS:
        raise UserError(f"--repeats {repeats}: give a number from 1 to {MOST_REPEATS}")
    options.seconds(deadline)
    questions.check_settings(settings or ())
    changed = [*(settings or ()), *(() if quality else COST_ALONE)]
    everything = options.load(suite, model, data, changed, None, seed)
    control = questions.control_row(everything, control)
    chosen = questions.rows(everything, only, control, quality, bool(seed))
    plan = runner.resolve(chosen.runs, device)  # refuses what cannot be read before anything is checked out
    sides = _sides(repository, (first, second), (python_a, python_b))
    given = [f"--device={plan.device}", f"--deadline={deadline}", *(f"--set={item}" for item in changed)]
    given += [f"--model={model}"] if model else []
    given += [f"--data={item}" for item in data or ()]
    request = _request(suite, chosen, given, results, sides, plan, apart or quality)
    _take(request, chosen, repeats, sides, plan.device)
    gating.publish(_compared(request, chosen.runs, repeats, control), form, out)


def _request(
    suite: str,
    chosen: Suite,
    given: Sequence[str],
    results: Path,
    sides: Sequence[Revision],
    plan: Plan,
    apart: bool,
) -> Request:
    from harness import arbiter, turns

    together = not apart and turns.can_be_together(sides, plan.device)
    if together and arbiter.socket_folder() is None:
        typer.echo("one run follows the other: this machine has no folder for sockets, as /tmp is", err=True)
        together = False
    file = _file(suite)
    stand = [plan.machine, together, *(f"{name}={os.environ.get(name)}" for name in VARIABLES)]
    asked = [suite, hashlib.sha256(file.read_bytes()).hexdigest(), *given, *stand]
    selectors = {run.run_id: chosen.selector(run) for run in chosen.runs}
    folder = _folder(results, sides, asked)
    return turns.Request(file, chosen.name, tuple(given), selectors, folder, together)


def _take(request: Request, chosen: Suite, repeats: int, sides: Sequence[Revision], device: str) -> None:
    """Carry out all turns, with the device held against other sweeps."""
    from harness import turns
    from harness.engine import progress, runner

    display = progress.choose()
    with runner.device_lock(device, arguments.cache_folder(), display):
        turns.take(turns.turns(chosen.runs, repeats), sides, request, display)


def _file(suite: str) -> Path:
    """The suite's file: this program's, for both sides, since a question that moved cannot be compared."""
    return suites.find(Path(suite)).absolute()


def _sides(
    repository: Path | None, asked: tuple[str, str], pythons: tuple[str | None, str | None]
) -> list[Revision]:
    """Both revisions, checked out; environments of their own where they ask for different dependencies."""
    from dataclasses import replace

    from harness import revisions

    source = revisions.repository(repository)
    for python in filter(None, pythons):
        _check_interpreter(python)
    cache = _made(arguments.cache_folder() / "revisions")
    found = [revisions.checkout(source, name, cache) for name in asked]
    wanted = [revisions.dependencies(revision.tree) for revision in found]
    own = wanted[0] != wanted[1]
    sides = []
    for revision, needed, given in zip(found, wanted, pythons, strict=True):
        if given is not None:
            revision = replace(revision, python=str(Path(given).absolute()))
        elif own:
            typer.echo(f"{revision.asked}: an environment with its own dependencies", err=True)
            python = revisions.environment(needed, arguments.cache_folder() / "environments")
            revision = replace(revision, python=python)
        sides.append(revision)
    return sides


def _check_interpreter(python: str) -> None:
    """Refuse what cannot be started, before the other side has run."""
    if not Path(python).is_file():
        raise UserError(f"{python}: no such interpreter; give the path of a python")
    try:
        subprocess.run([Path(python).absolute(), "--version"], capture_output=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(
            f"{python}: cannot be started: {error.strerror}; give the path of a python"
        ) from error


def _folder(results: Path, sides: Sequence[Revision], asked: Sequence[object]) -> Path:
    """A folder for these revisions, interpreters and what is asked, so that the same command goes on in it.

    An answer is for one question: another text of the suite or another machine has a folder of its own.
    """
    text = json.dumps([*asked, *(side.python for side in sides)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return _made(results.absolute() / f"{sides[0].name}-{sides[1].name}-{digest}")


def _made(folder: Path) -> Path:
    """The folder, which is there now and can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written to; choose another folder")
    return folder


# -------------------------------------------------------------------------------------- comparison
def _compared(request: Request, runs: Sequence[Run], repeats: int, control: str | None) -> Comparison:
    """The records of both sides held against each other; those of rows that are not asked for rest."""
    from harness import turns
    from harness.tables.compare import turns as compare_turns
    from harness.tables.compare.loading import load

    wanted = {(run.name, run.seed) for run in runs}
    sides = []
    for number in range(len(turns.SIDES)):
        places = dict.fromkeys(request.place(number, run) for run in runs)
        sides.append(compare_turns.select(_joined([load(place) for place in places]), wanted, repeats))
    return compare_turns.compare(sides[0], sides[1], {} if control is None else {request.name: control})


def _joined(parts: Sequence[Side]) -> Side:
    """The records of several rows as one side; two spellings of one run count once."""
    from harness.tables.compare.loading import Side

    found: dict[tuple[str, str], Loaded] = {}
    for part in parts:
        for item in part.records:
            found.setdefault((item.record.suite, item.record.run_id), item)
    return Side(tuple(found.values()), tuple(line for part in parts for line in part.set_aside))

"""One call of `lorebench ab`: choose rows, check out both sides, describe their runs, compare records."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness import suite as suites
from harness.config import Run
from harness.errors import UserError, listed
from harness.files import cache_folder, sha256, writable_folder
from harness.record import VARIABLES
from harness.suite import Suite, parse_override

if TYPE_CHECKING:
    from harness.ab.checkouts import Revision
    from harness.ab.schedule import Request
    from harness.engine.sweep.resolution import Plan
    from harness.tables.compare.comparison import Comparison
    from harness.tables.compare.pairing import Loaded, Side


def check_settings(settings: Sequence[str]) -> None:
    """Refuse an override of `repeat`, which numbers the runs of a row, and of their seeds."""
    for text in settings:
        key = parse_override(text).key
        if key == "repeat":
            raise UserError(f"--set {text}: the runs of a row are numbered here; set how many by --repeats")
        if key == "seed":
            raise UserError(f"--set {text}: give seeds by --seed")


def control_row(suite: Suite, control: str | None) -> str | None:
    """Return the label of the control row, by default the suite's baseline; UserError for an unknown one."""
    labels = {run.name for run in suite.runs}
    if control is not None and control not in labels:
        raise UserError(f"--control {control}: no row has this label; known: {listed(sorted(labels))}")
    return control if control is not None else suite.baseline if suite.baseline in labels else None


def rows(suite: Suite, only: Sequence[str] | None, control: str | None, quality: bool, seeds: bool) -> Suite:
    """Return the selected rows and the control row, one seed each unless `seeds` were given.

    UserError where no row trains, or two rows cannot be told apart.
    """
    selected = suite.only(only or ()).runs
    added = control if all(run.name != control for run in selected) else None
    runs = [run for run in suite.runs if run in selected or run.name == added]
    if not quality:
        runs = [run for run in runs if run.train.stage != "compress"]
    if not runs:
        raise UserError("none of these rows trains, so nothing can be timed; add --quality to compare it")
    replace(suite, runs=tuple(runs)).checked()
    if not seeds:
        runs = list({run.config_id: run for run in reversed(runs)}.values())[::-1]
    unique = {run.run_id: run for run in (run.model_copy(update={"repeat": 0}) for run in runs)}
    axes = tuple(key for key in suite.axes if key != "repeat")
    chosen = replace(suite, runs=tuple(unique.values()), axes=axes)
    known: dict[str, Run] = {}
    for run in chosen.runs:  # a condition must tell any two rows apart
        if known.setdefault(json.dumps(chosen.selector(run)), run) is not run:
            raise UserError(f"{suite.name}: two rows are called {run.name!r}; give each a label of its own")
    return chosen


def request_for(
    suite: str,
    chosen: Suite,
    options: Sequence[str],
    results: Path,
    sides: Sequence[Revision],
    plan: Plan,
    apart: bool,
) -> Request:
    """Return what both sides run, and the folder in which the same command continues."""
    from harness.ab import lockstep, schedule

    together = not apart and schedule.can_be_together(sides, plan.device)
    if together and lockstep.socket_folder() is None:
        typer.echo("one run follows the other: no folder can hold sockets, as /tmp usually can", err=True)
        together = False
    # This program's file of the suite, for both sides: revisions that run different suites do not compare.
    file = suites.find(Path(suite)).absolute()
    environment = [plan.machine, together, *(f"{name}={os.environ.get(name)}" for name in VARIABLES)]
    environment += sorted(plan.inputs.items())
    folder = _folder(results, sides, [suite, sha256(file), *options, *environment])
    selectors = {run.run_id: chosen.selector(run) for run in chosen.runs}
    return schedule.Request(file, chosen.name, tuple(options), selectors, folder, together)


def sides_of(
    repository: Path | None,
    specs: tuple[str, str],
    pythons: tuple[str | None, str | None],
    runs: Sequence[Run],
) -> list[Revision]:
    """Check out both revisions; of lorebench, those with other dependencies get their own environments."""
    from harness.ab import checkouts, plugins

    source = checkouts.repository(repository)
    ours = checkouts.is_ours(source)
    if not ours:
        plugins.check(source, runs)
    for python in filter(None, pythons):
        _check_interpreter(python)
    cache = writable_folder(cache_folder() / "revisions")
    found = [checkouts.checkout(source, spec, cache) for spec in specs]
    if not ours:
        found = [plugins.placed(revision, source) for revision in found]
        return [
            replace(revision, python=str(Path(given).absolute())) if given else revision
            for revision, given in zip(found, pythons, strict=True)
        ]
    wanted = [checkouts.dependencies(revision.tree) for revision in found]
    sides = []
    for revision, needed, given in zip(found, wanted, pythons, strict=True):
        if given is not None:
            revision = replace(revision, python=str(Path(given).absolute()))
        elif wanted[0] != wanted[1]:
            typer.echo(f"{revision.spec}: an environment with its own dependencies", err=True)
            python = checkouts.environment(needed, cache_folder() / "environments")
            revision = replace(revision, python=python)
        sides.append(revision)
    return sides


def _check_interpreter(python: str) -> None:
    """Raise UserError for an interpreter that cannot be started, before anything runs."""
    if not Path(python).is_file():
        raise UserError(f"{python}: no such interpreter; give the path of a python")
    try:
        subprocess.run([Path(python).absolute(), "--version"], capture_output=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(
            f"{python}: cannot be started: {error.strerror}; give the path of a python"
        ) from error


def _folder(results: Path, sides: Sequence[Revision], identity: Sequence[object]) -> Path:
    """Make the folder of these revisions, interpreters and settings: the same command continues in it.

    Another text of the suite, other content of what its runs read or another machine has a folder of its own.
    """
    text = json.dumps([*identity, *(side.python for side in sides)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return writable_folder(results.absolute() / f"{sides[0].name}-{sides[1].name}-{digest}")


def compare(request: Request, runs: Sequence[Run], repeats: int, control: str | None) -> Comparison:
    """Compare the records of both sides, those of other rows left out."""
    from harness.ab import schedule
    from harness.tables.compare import interleaved
    from harness.tables.compare.pairing import load

    wanted = {(run.name, run.seed) for run in runs}
    sides = []
    for number in range(len(schedule.SIDES)):
        places = dict.fromkeys(request.place(number, run) for run in runs)
        sides.append(interleaved.select(_joined([load(place) for place in places]), wanted, repeats))
    return interleaved.compare(sides[0], sides[1], {} if control is None else {request.name: control})


def _joined(parts: Sequence[Side]) -> Side:
    """Return the records of several rows as one side; two spellings of one run count once."""
    from harness.tables.compare.pairing import Side

    found: dict[tuple[str, str], Loaded] = {}
    for part in parts:
        for item in part.records:
            found.setdefault((item.record.suite, item.record.run_id), item)
    return Side(tuple(found.values()), tuple(line for part in parts for line in part.skipped))

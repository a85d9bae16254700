"""One call of `ab`: check out both sides, say what they are asked, compare their records."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness import suite as suites
from harness.config import Run
from harness.errors import UserError
from harness.files import cache_folder, sha256
from harness.record import VARIABLES
from harness.suite import Suite

if TYPE_CHECKING:
    from harness.ab.checkouts import Revision
    from harness.ab.schedule import Request
    from harness.engine.runner import Plan
    from harness.tables.compare.comparison import Comparison
    from harness.tables.compare.pairing import Loaded, Side


def request_for(
    suite: str,
    chosen: Suite,
    given: Sequence[str],
    results: Path,
    sides: Sequence[Revision],
    plan: Plan,
    apart: bool,
) -> Request:
    """Return what both sides are asked, and the folder that the same command goes on in."""
    from harness.ab import lockstep, schedule

    together = not apart and schedule.can_be_together(sides, plan.device)
    if together and lockstep.socket_folder() is None:
        typer.echo("one run follows the other: this machine has no folder for sockets, as /tmp is", err=True)
        together = False
    file = _file(suite)
    stand = [plan.machine, together, *(f"{name}={os.environ.get(name)}" for name in VARIABLES)]
    asked = [suite, sha256(file), *given, *stand]
    selectors = {run.run_id: chosen.selector(run) for run in chosen.runs}
    folder = _folder(results, sides, asked)
    return schedule.Request(file, chosen.name, tuple(given), selectors, folder, together)


def take(request: Request, chosen: Suite, repeats: int, sides: Sequence[Revision], device: str) -> None:
    """Carry out all turns, with the device held against other sweeps."""
    from harness.ab import schedule
    from harness.engine import runner
    from harness.engine.process import progress

    display = progress.choose()
    with runner.device_lock(device, cache_folder(), display):
        schedule.take(schedule.turns(chosen.runs, repeats), sides, request, display)


def _file(suite: str) -> Path:
    """The suite's file: this program's, for both sides, since a question that moved cannot be compared."""
    return suites.find(Path(suite)).absolute()


def sides_of(
    repository: Path | None, asked: tuple[str, str], pythons: tuple[str | None, str | None]
) -> list[Revision]:
    """Both revisions, checked out; environments of their own where they ask for different dependencies."""
    from dataclasses import replace

    from harness.ab import checkouts

    source = checkouts.repository(repository)
    for python in filter(None, pythons):
        _check_interpreter(python)
    cache = _made(cache_folder() / "revisions")
    found = [checkouts.checkout(source, name, cache) for name in asked]
    wanted = [checkouts.dependencies(revision.tree) for revision in found]
    own = wanted[0] != wanted[1]
    sides = []
    for revision, needed, given in zip(found, wanted, pythons, strict=True):
        if given is not None:
            revision = replace(revision, python=str(Path(given).absolute()))
        elif own:
            typer.echo(f"{revision.asked}: an environment with its own dependencies", err=True)
            python = checkouts.environment(needed, cache_folder() / "environments")
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


def compared(request: Request, runs: Sequence[Run], repeats: int, control: str | None) -> Comparison:
    """The records of both sides held against each other; those of rows that are not asked for rest."""
    from harness.ab import schedule
    from harness.tables.compare import interleaved as compare_turns
    from harness.tables.compare.pairing import load

    wanted = {(run.name, run.seed) for run in runs}
    sides = []
    for number in range(len(schedule.SIDES)):
        places = dict.fromkeys(request.place(number, run) for run in runs)
        sides.append(compare_turns.select(_joined([load(place) for place in places]), wanted, repeats))
    return compare_turns.compare(sides[0], sides[1], {} if control is None else {request.name: control})


def _joined(parts: Sequence[Side]) -> Side:
    """The records of several rows as one side; two spellings of one run count once."""
    from harness.tables.compare.pairing import Side

    found: dict[tuple[str, str], Loaded] = {}
    for part in parts:
        for item in part.records:
            found.setdefault((item.record.suite, item.record.run_id), item)
    return Side(tuple(found.values()), tuple(line for part in parts for line in part.skipped))

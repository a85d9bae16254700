"""Runs of two revisions in turns on one device: A B, B A, A B, … by the command line of each revision.

What a run is belongs to its revision: here is only who runs when, and whether the right code ran.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import record as records
from harness.config import Run
from harness.engine.progress import Display
from harness.errors import UserError
from harness.record import Record
from harness.revisions import SHORT, Revision

SIDES = ("a", "b")
#: Exit codes of `lorebench run` after which there are records: all is well, or a run ended in an error.
RECORDED = (0, 1)


@dataclass(frozen=True)
class Request:
    """What both sides are asked alike: a suite's file, options of `lorebench run`, and where records go.

    `selectors` has the conditions that single out a run, by its run id without repeats.
    """

    suite: Path
    name: str
    options: tuple[str, ...]
    selectors: dict[str, list[str]]
    folder: Path


@dataclass(frozen=True)
class Turn:
    """One run of one side."""

    side: int
    run: Run


def turns(runs: Sequence[Run], repeats: int) -> list[Turn]:
    """Repeats outermost; the side that begins changes with every repeat, so that drift meets both alike."""
    return [
        Turn(side, run.model_copy(update={"repeat": repeat}))
        for repeat in range(repeats)
        for run in runs
        for side in ((0, 1) if repeat % 2 == 0 else (1, 0))
    ]


def take(todo: Sequence[Turn], sides: Sequence[Revision], request: Request, display: Display) -> None:
    """Carry out all turns; what has a finished record already is left alone."""
    with display:
        display.begin(len(todo), 0)
        for turn in todo:
            shown = turn.run.model_copy(update={"label": f"{SIDES[turn.side]}: {turn.run.name}"})
            display.start(shown, None)
            began = time.monotonic()
            record = _take(turn, sides[turn.side], request)
            display.end(shown, record, time.monotonic() - began)


def folder_of(side: int, request: Request) -> Path:
    """Where the records of a side are, below a folder for each machine and suite."""
    return request.folder / SIDES[side]


def _take(turn: Turn, revision: Revision, request: Request) -> Record:
    folder = folder_of(turn.side, request)
    done = next(_records(folder, turn, request.name), None)
    if done is not None and done.finished:
        return _proven(done, revision, request)
    selected = request.selectors[turn.run.model_copy(update={"repeat": 0}).run_id]
    options = [*request.options, f"--set=repeat={turn.run.repeat}", f"--seed={turn.run.seed}"]
    options += [f"--only={condition}" for condition in selected]
    command = [revision.python, "-m", "harness.cli", "run", str(request.suite), f"--results={folder}"]
    code, said = _call([*command, *options], revision, request.folder / f"cache-{SIDES[turn.side]}")
    found = next(_records(folder, turn, request.name), None)
    if code not in RECORDED or found is None:
        last = next(iter(said.strip().splitlines()[::-1]), f"exit code {code}").removeprefix("lorebench: ")
        raise UserError(f"{revision.asked} ({revision.name}): {last}")
    return _proven(found, revision, request)


def _proven(found: Record, revision: Revision, request: Request) -> Record:
    """The record, if the code of this revision made it."""
    ran = found.environment.git_sha if found.environment else None
    if ran is not None and ran != revision.sha:
        raise UserError(
            f"{revision.asked}: its run was made by the code of {ran[:SHORT]}, not of {revision.name}; "
            f"remove {request.folder} and what else is called `harness` on PYTHONPATH, and run again"
        )
    return found


def _records(folder: Path, turn: Turn, suite: str) -> Iterator[Record]:
    """The record of a turn, wherever the side has put it; one that cannot be read is none."""
    for path in sorted(folder.glob(f"*/{suite}/*-s{turn.run.seed}-r{turn.run.repeat}.json")):
        record = records.read(path)
        if record.label == turn.run.name:
            yield record


def _call(command: Sequence[str], revision: Revision, cache: Path) -> tuple[int, str]:
    """Exit code and standard error; a stop is passed on, so that the record of the run says so."""
    cache.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        env=revision.environment(cache),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        _, said = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    return process.returncode, said

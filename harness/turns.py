"""Runs of two revisions in turns on one device: A B, B A, A B, … by the command line of each revision.

What a run is belongs to its revision: here is only who runs when, and whether the right code ran.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from harness import record as records
from harness.arbiter import Arbiter
from harness.config import Run
from harness.engine.progress import Display
from harness.engine.turn import VARIABLE
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


def take(
    todo: Sequence[Turn],
    sides: Sequence[Revision],
    request: Request,
    display: Display,
    together: bool = False,
) -> None:
    """Carry out all turns; what has a finished record already is left alone.

    With `together` both runs of a pair are there at once, and each of their updates waits for its turn: what
    a machine does to one it does to the other.
    """
    with display:
        display.begin(len(todo), 0)
        for pair in zip(todo[::2], todo[1::2], strict=True):
            missing = [turn for turn in pair if not _done(turn, request)]
            for turn in pair:
                if turn not in missing:
                    display.end(_shown(turn), _proven(turn, sides[turn.side], request), 0.0)
            for group in [missing] if together and len(missing) > 1 else [[turn] for turn in missing]:
                display.start(_shown(group[0], *group[1:]), None)
                began = time.monotonic()
                _carry_out(group, sides, request)
                for turn in group:
                    record = _proven(turn, sides[turn.side], request)
                    display.end(_shown(turn), record, time.monotonic() - began)


def can_be_together(sides: Sequence[Revision], device: str) -> bool:
    """Whether updates can wait for their turns: on a CPU, where both revisions know how."""
    known = all((side.tree / "harness" / "engine" / "turn.py").is_file() for side in sides)
    return known and device == "cpu" and hasattr(socket, "AF_UNIX")


def _shown(turn: Turn, *others: Turn) -> Run:
    names = " and ".join(SIDES[each.side] for each in (turn, *others))
    return turn.run.model_copy(update={"label": f"{names}: {turn.run.name}"})


def folder_of(side: int, request: Request) -> Path:
    """Where the records of a side are, below a folder for each machine and suite."""
    return request.folder / SIDES[side]


def _carry_out(group: Sequence[Turn], sides: Sequence[Revision], request: Request) -> None:
    """Run one turn, or several at once; UserError for what a revision refuses."""
    with tempfile.TemporaryDirectory(prefix="turns-") as scratch, ExitStack() as stack:
        arbiter = stack.enter_context(closing(Arbiter(Path(scratch), len(group)))) if len(group) > 1 else None
        places = arbiter.places if arbiter else [None]
        calls = [
            _start(turn, sides[turn.side], request, place, Path(scratch, f"{number}.log"))
            for number, (turn, place) in enumerate(zip(group, places, strict=True))
        ]
        try:
            if arbiter:
                arbiter.follow([lambda call=call: call.poll() is not None for call in calls])  # type: ignore[misc]
            for call in calls:
                call.wait()
        except BaseException:  # a stop is passed on, so that the record of the run says so
            for call in calls:
                call.send_signal(signal.SIGINT)
            if arbiter:
                arbiter.close()
            for call in calls:
                call.wait()
            raise
        for number, (turn, call) in enumerate(zip(group, calls, strict=True)):
            revision = sides[turn.side]
            if call.returncode not in RECORDED or next(_records(turn, request), None) is None:
                said = Path(scratch, f"{number}.log").read_text(encoding="utf-8", errors="replace")
                last = next(iter(said.strip().splitlines()[::-1]), f"exit code {call.returncode}")
                raise UserError(f"{revision.asked} ({revision.name}): {last.removeprefix('lorebench: ')}")


def _start(
    turn: Turn, revision: Revision, request: Request, place: str | None, log: Path
) -> subprocess.Popen[bytes]:
    """Start the run of a turn by the command line of its revision; `log` gets its standard error."""
    selected = request.selectors[turn.run.model_copy(update={"repeat": 0}).run_id]
    options = [*request.options, f"--set=repeat={turn.run.repeat}", f"--seed={turn.run.seed}"]
    options += [f"--only={condition}" for condition in selected]
    command = [revision.python, "-m", "harness.cli", "run", str(request.suite)]
    command += [f"--results={folder_of(turn.side, request)}", *options]
    cache = request.folder / f"cache-{SIDES[turn.side]}"
    cache.mkdir(parents=True, exist_ok=True)
    env = revision.environment(cache) | ({VARIABLE: place} if place else {})
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
        )


def _done(turn: Turn, request: Request) -> bool:
    found = next(_records(turn, request), None)
    return found is not None and found.finished


def _proven(turn: Turn, revision: Revision, request: Request) -> Record:
    """The record of a turn, if the code of its revision made it."""
    found = next(_records(turn, request))
    ran = found.environment.git_sha if found.environment else None
    if ran is not None and ran != revision.sha:
        raise UserError(
            f"{revision.asked}: its run was made by the code of {ran[:SHORT]}, not of {revision.name}; "
            f"remove {request.folder} and what else is called `harness` on PYTHONPATH, and run again"
        )
    return found


def _records(turn: Turn, request: Request) -> Iterator[Record]:
    """The record of a turn, wherever the side has put it; UserError for one that cannot be read."""
    folder = folder_of(turn.side, request)
    for path in sorted(folder.glob(f"*/{request.name}/*-s{turn.run.seed}-r{turn.run.repeat}.json")):
        record = records.read(path)
        if record.label == turn.run.name:
            yield record

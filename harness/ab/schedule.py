"""Runs of two revisions in turns on one device: A B, B A, A B, … by the command line of each revision.

What a run is belongs to its revision: here is only who runs when, and whether the right code ran.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from harness import record as records
from harness.ab import lockstep, subprocesses
from harness.ab.checkouts import SHORT, Revision
from harness.ab.lockstep import Arbiter
from harness.ab.subprocesses import Call
from harness.config import Run
from harness.engine.measure.lockstep import FLAG, VARIABLE
from harness.engine.process.progress import Display
from harness.errors import UserError
from harness.record import Record

SIDES = ("a", "b")
#: Exit codes of `lorebench run` after which there are records: all is well, or a run ended in an error.
RECORDED = (0, 1)
NAME_LENGTH = 40


@dataclass(frozen=True)
class Request:
    """What both sides are asked alike: a suite's file, options of `lorebench run`, and where records go.

    `selectors` has the conditions that single out a run, by its run id without repeats. With `together` both
    runs of a pair are there at once, and each of their updates waits for its turn: what a machine does to one
    it does to the other.
    """

    suite: Path
    name: str
    options: tuple[str, ...]
    selectors: dict[str, list[str]]
    folder: Path
    together: bool = False

    def selector(self, run: Run) -> list[str]:
        """The conditions that single out a run and its repeats."""
        return self.selectors[run.model_copy(update={"repeat": 0}).run_id]

    def place(self, side: int, run: Run) -> Path:
        """Where the records of a row are, below a folder for each machine and suite.

        Each row has a place of its own: a record does not say which of several rows with one label it is,
        since defaults may move between revisions.
        """
        asked = json.dumps([each for each in self.selector(run) if not each.startswith("seed=")])
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.name).strip("-.")[:NAME_LENGTH]
        return self.folder / SIDES[side] / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:6]}"


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
    with display, subprocesses.terminated_like_interrupted():
        display.begin(len(todo), 0)
        for pair in zip(todo[::2], todo[1::2], strict=True):
            missing = _missing(pair, request)
            for turn in pair:
                if turn not in missing:
                    display.end(_shown(turn), _proven(turn, sides[turn.side], request), 0.0)
            for group in [missing] if request.together and missing else [[turn] for turn in missing]:
                display.start(_shown(group[0], *group[1:]), None)
                began = time.monotonic()
                _carry_out(group, sides, request)
                for turn in group:
                    record = _proven(turn, sides[turn.side], request)
                    display.end(_shown(turn), record, time.monotonic() - began)


def can_be_together(sides: Sequence[Revision], device: str) -> bool:
    """Whether updates can wait for their turns: on a CPU, where both revisions know how."""
    clients = "measure/lockstep.py", "turn.py"  # today's place, and the place before engine had folders
    return device == "cpu" and all(
        any((side.tree / "harness" / "engine" / client).is_file() for client in clients) for side in sides
    )


def _shown(turn: Turn, *others: Turn) -> Run:
    names = " and ".join(SIDES[each.side] for each in (turn, *others))
    return turn.run.model_copy(update={"label": f"{names}: {turn.run.name}"})


def _missing(pair: Sequence[Turn], request: Request) -> list[Turn]:
    """What of a pair is left to do; both where its updates should have taken turns and one's did not."""
    found = [next(_records(turn, request), None) for turn in pair]
    missing = [turn for turn, at in zip(pair, found, strict=True) if at is None or not at[1].finished]
    if not request.together or (not missing and all(at and _took_turns(at[1]) for at in found)):
        return missing
    for at in filter(None, found):  # or the revision would leave them alone
        at[0].unlink()
    return list(pair)


def _took_turns(record: Record) -> bool:
    """Whether nobody else worked while a run was timed, as far as it was."""
    if record.outcome.status != "ok" or record.time is None or record.time.tokens_per_s is None:
        return True
    return record.environment is not None and record.environment.flags.get(FLAG) is True


def _carry_out(group: Sequence[Turn], sides: Sequence[Revision], request: Request) -> None:
    """Run one turn, or several at once; UserError for what a revision refuses."""
    with tempfile.TemporaryDirectory(prefix="turns-") as scratch, ExitStack() as stack:
        referee = None
        if len(group) > 1:
            sockets = tempfile.TemporaryDirectory(prefix=lockstep.PREFIX, dir=lockstep.socket_folder())
            referee = stack.enter_context(closing(Arbiter(Path(stack.enter_context(sockets)), len(group))))
        places = referee.places if referee else [None]
        under_way: list[Call] = []
        try:
            for number, (turn, place) in enumerate(zip(group, places, strict=True)):
                log = Path(scratch, f"{number}.log")
                under_way.append(_start(turn, sides[turn.side], request, place, log))
            if referee:
                referee.follow([call.over for call in under_way])
            codes = [call.wait() for call in under_way]
        except BaseException:  # a stop is passed on, so that the record of the run says so
            for call in under_way:
                call.stop()
            if referee:
                referee.close()
            for call in under_way:
                call.wait()
            raise
        for turn, call, code in zip(group, under_way, codes, strict=True):
            if code not in RECORDED or next(_records(turn, request), None) is None:
                revision = sides[turn.side]
                raise UserError(f"{revision.asked} ({revision.name}): {call.last_words()}")


def _start(turn: Turn, revision: Revision, request: Request, place: str | None, log: Path) -> Call:
    """Start the run of a turn by the command line of its revision; `log` gets its standard error."""
    options = [*request.options, f"--set=repeat={turn.run.repeat}", f"--seed={turn.run.seed}"]
    options += [f"--only={condition}" for condition in request.selector(turn.run)]
    command = [revision.python, "-m", "harness.cli", "run", str(request.suite)]
    command += [f"--results={request.place(turn.side, turn.run)}", *options]
    cache = request.folder / f"cache-{SIDES[turn.side]}"
    cache.mkdir(parents=True, exist_ok=True)
    return Call(command, revision.environment(cache) | ({VARIABLE: place} if place else {}), log)


def _proven(turn: Turn, revision: Revision, request: Request) -> Record:
    """The record of a turn, if the code of its revision made it, and in turns where it should."""
    _, found = next(_records(turn, request))
    ran = found.environment.git_sha if found.environment else None
    if ran is not None and ran != revision.sha:
        raise UserError(
            f"{revision.asked}: its run was made by the code of {ran[:SHORT]}, not of {revision.name}; "
            f"remove {request.folder} and what else is called `harness` on PYTHONPATH, and run again"
        )
    if request.together and not _took_turns(found):
        raise UserError(
            f"{revision.asked} ({revision.name}): {turn.run.name} did not wait for its turns, so both sides "
            "were timed at once; run again, or with --apart"
        )
    return found


def _records(turn: Turn, request: Request) -> Iterator[tuple[Path, Record]]:
    """The record of a turn with its file, wherever the side has put it; UserError where it cannot be read."""
    folder = request.place(turn.side, turn.run)
    for path in sorted(folder.glob(f"*/{request.name}/*-s{turn.run.seed}-r{turn.run.repeat}.json")):
        record = records.read(path)
        if record.label == turn.run.name:
            yield path, record

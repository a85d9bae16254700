"""Runs of two revisions, interleaved on one device: A B, B A, A B, … by the command line of each revision.

A run belongs to its revision: this module decides which runs when, and checks that the right code ran.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from harness import record as records
from harness import series
from harness.ab import lockstep
from harness.ab.checkouts import SHORT, Revision
from harness.ab.lockstep import Lockstep
from harness.config import Run
from harness.engine.measure.lockstep import FLAG, VARIABLE
from harness.engine.process import interrupts, parent_watch, progress
from harness.engine.sweep import resolution
from harness.engine.sweep.device_lock import device_lock
from harness.errors import UserError
from harness.files import cache_folder, visible
from harness.record import Record

SIDES = ("a", "b")
#: Exit codes of `lorebench run` after which there are records: all is well, or a run ended in an error.
RECORDED = (0, 1)
NAME_LENGTH = 40
#: Where the client of lockstep is, below harness/engine: now, and before the engine had folders.
LOCKSTEP_CLIENTS = ("measure/lockstep.py", "turn.py")


@dataclass(frozen=True)
class Request:
    """What both sides run: a suite's file, options of `lorebench run`, and the folder of the records.

    `selectors` has the conditions that single out a run, by its run id without repeats. With `lockstep` both
    runs of a pair exist at once and update alternately: what a machine does to one it does to the other.
    """

    suite: Path
    name: str
    options: tuple[str, ...]
    selectors: dict[str, list[str]]
    folder: Path
    lockstep: bool = False

    def selector(self, run: Run) -> list[str]:
        """Return the conditions that single out a run and its repeats."""
        return self.selectors[run.model_copy(update={"repeat": 0}).run_id]

    def place(self, side: int, run: Run) -> Path:
        """Return the folder of a row's records; below it is a folder for each machine and suite.

        Each row has a folder of its own: a record does not show which of several rows with one label it is,
        since defaults may move between revisions.
        """
        conditions = json.dumps([each for each in self.selector(run) if not each.startswith("seed=")])
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.name).strip("-.")[:NAME_LENGTH] or "row"
        return self.folder / SIDES[side] / f"{name}-{hashlib.sha256(conditions.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class SideRun:
    """One run of one side."""

    side: int
    run: Run


def interleave(runs: Sequence[Run], repeats: int) -> list[SideRun]:
    """Return the runs of both sides in order, repeats outermost.

    The side that begins changes with every repeat, so that drift meets both alike.
    """
    return [
        SideRun(side, run.model_copy(update={"repeat": repeat}))
        for repeat in range(repeats)
        for run in runs
        for side in ((0, 1) if repeat % 2 == 0 else (1, 0))
    ]


def carry_out(
    todo: Sequence[SideRun], sides: Sequence[Revision], request: Request, plan: resolution.Plan
) -> None:
    """Carry out all runs but those with a finished record, while no other sweep uses the plan's device.

    UserError for what a revision refuses; KeyboardInterrupt, also on SIGTERM and SIGHUP, after what runs is
    stopped.
    """
    display = progress.choose()
    locked = device_lock(plan.device, cache_folder(), display, plan.device_id)
    with interrupts.raised(), locked, display:
        groups, finished = _groups(todo, request)
        for each in finished:
            _verified(each, sides[each.side], request)
        # What is done at once counts as one: both runs of a pair in lockstep.
        done = len(finished) // 2 if request.lockstep else len(finished)
        display.begin(done + len(groups), done)
        for group in groups:
            display.start(_shown(group[0], *group[1:]), None)
            began = time.monotonic()
            _run(group, sides, request)
            seconds = time.monotonic() - began
            *others, last = ((_shown(each), _verified(each, sides[each.side], request)) for each in group)
            for run, record in others:
                display.note(progress.verdict(display.title(run), record, seconds))
            display.end(*last, seconds)


def _groups(todo: Sequence[SideRun], request: Request) -> tuple[list[list[SideRun]], list[SideRun]]:
    """Return what is left to do, as groups of runs that exist at once, and the runs that are finished."""
    groups: list[list[SideRun]] = []
    finished: list[SideRun] = []
    for pair in zip(todo[::2], todo[1::2], strict=True):
        missing = _missing(pair, request)
        finished += [each for each in pair if each not in missing]
        groups += [missing] if request.lockstep and missing else [[each] for each in missing]
    return groups, finished


def can_be_together(sides: Sequence[Revision], device: str) -> bool:
    """Return whether both sides can update in lockstep: on a CPU, where both revisions have the client."""
    return device == "cpu" and all(
        any((side.code / "harness" / "engine" / client).is_file() for client in LOCKSTEP_CLIENTS)
        for side in sides
    )


def _shown(first: SideRun, *others: SideRun) -> Run:
    names = " and ".join(SIDES[each.side] for each in (first, *others))
    return first.run.model_copy(update={"label": f"{names}: {first.run.name}"})


def _missing(pair: Sequence[SideRun], request: Request) -> list[SideRun]:
    """Return the unfinished runs of a pair; both where they should have been in lockstep and one was not."""
    found = [next(_records(each, request), None) for each in pair]
    missing = [each for each, at in zip(pair, found, strict=True) if at is None or not at[1].finished]
    if not request.lockstep or (not missing and all(at and _was_timed_alone(at[1]) for at in found)):
        return missing
    for at in filter(None, found):  # or the revision would skip them
        at[0].unlink()
        series.remove(at[0])
    return list(pair)


def _was_timed_alone(record: Record) -> bool:
    """Return whether no other process worked while a run was timed, as far as it was timed."""
    if record.outcome.status != "ok" or record.time is None or record.time.tokens_per_s is None:
        return True
    return record.environment is not None and record.environment.flags.get(FLAG) is True


def _run(group: Sequence[SideRun], sides: Sequence[Revision], request: Request) -> None:
    """Carry out one run, or several in lockstep; UserError for what a revision refuses."""
    with tempfile.TemporaryDirectory(prefix="turns-") as scratch, ExitStack() as stack:
        server = None
        if len(group) > 1:
            sockets = tempfile.TemporaryDirectory(prefix=lockstep.PREFIX, dir=lockstep.socket_folder())
            server = stack.enter_context(closing(Lockstep(Path(stack.enter_context(sockets)), len(group))))
        started: list[Subprocess] = []
        try:
            for number, (each, place) in enumerate(
                zip(group, server.sockets if server else [None], strict=True)
            ):
                log = Path(scratch, f"{number}.log")
                started.append(_start(each, sides[each.side], request, place, log))
            if server:
                server.run([process.ended for process in started])
            codes = [process.wait() for process in started]
        except BaseException:  # passed on, so that the records note the interruption
            for process in started:
                process.stop()
            if server:
                server.close()
            for process in started:
                process.wait()
            raise
        for each, process, code in zip(group, started, codes, strict=True):
            if code not in RECORDED or next(_records(each, request), None) is None:
                revision = sides[each.side]
                raise UserError(f"{revision.spec} ({revision.name}): {process.last_line()}")


def _start(each: SideRun, revision: Revision, request: Request, place: str | None, log: Path) -> Subprocess:
    """Start a run by the command line of its revision; `place` is its socket of lockstep."""
    options = [*request.options, f"--set=repeat={each.run.repeat}", f"--seed={each.run.seed}"]
    options += [f"--only={condition}" for condition in request.selector(each.run)]
    command = [*revision.command, "run", str(request.suite)]
    command += [f"--results={request.place(each.side, each.run)}", *options]
    cache = request.folder / f"cache-{SIDES[each.side]}"
    cache.mkdir(parents=True, exist_ok=True)
    return Subprocess(command, revision.environment(cache) | ({VARIABLE: place} if place else {}), log)


def _verified(each: SideRun, revision: Revision, request: Request) -> Record:
    """Return the record of a run; UserError where other code made it, or it should have been in lockstep."""
    _, found = next(_records(each, request))
    ran = found.environment.git_sha if found.environment else None
    if revision.plugins is None and ran is not None and ran != revision.sha:
        raise UserError(
            f"{revision.spec}: its run was made by the code of {ran[:SHORT]}, not of {revision.name}; "
            f"remove {request.folder} and any other `harness` on PYTHONPATH, and run again"
        )
    if request.lockstep and not _was_timed_alone(found):
        raise UserError(
            f"{revision.spec} ({revision.name}): {each.run.name} did not wait between its updates, so both "
            "sides were timed at once; run again, or with --apart"
        )
    return found


def _records(each: SideRun, request: Request) -> Iterator[tuple[Path, Record]]:
    """Yield the record of a run with its file, in any machine's folder; UserError where it is unreadable."""
    folder = request.place(each.side, each.run)
    for path in visible(folder, f"*/{request.name}/*-s{each.run.seed}-r{each.run.repeat}.json"):
        record = records.read(path)
        if record.label == each.run.name:
            yield path, record


class Subprocess:
    """A running command whose standard error goes to `log`; it gets SIGINT when this process is gone."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        watched = [sys.executable, "-I", parent_watch.__file__, *command]
        with log.open("wb") as file:
            # A session of its own: Ctrl-C at the terminal reaches it once, through `stop`.
            self._process = subprocess.Popen(
                watched,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Return whether the command has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Interrupt the command as Ctrl-C would, so that its record notes it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self._process.wait()
        self.stop()
        return code

    def last_line(self) -> str:
        """Return the last line of standard error without the program's name, else the exit code."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {self._process.returncode}"
        return last.removeprefix("lorebench: ")

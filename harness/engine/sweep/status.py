"""What runs, what is stopped or failed and can go on, and what waits, by the folders of results. No torch.

Nothing is locked, waited for or changed, so it may be asked for while sweeps are at work and killed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from harness.engine.process import attempt, progress_file
from harness.engine.process.lock import holder
from harness.engine.process.progress_file import Line
from harness.engine.resume import names
from harness.engine.sweep import announced

State = Literal["running", "stopped", "failed", "waiting"]
#: The folder of a run, or what is named after one.
OF_A_RUN = re.compile(r"[0-9a-f]+-s\d+-r\d+\b")
#: What a suite's folder has beside its runs.
OTHER = ("tables", "logs")
#: Levels below a folder of results at which a suite's folder may be.
DEEPEST = 4
#: The newest reports that the speed of an attempt follows from, for the time left.
REPORTS = 20
#: How an attempt ended that the same command does not go on from.
ENDED = ("ok", "diverged", "unsupported", *attempt.FAILED)


@dataclass(frozen=True)
class Status:
    """One run; what is not known is None.

    `loss` is that of the last update that was reported, `mean_loss` of all since the report before, in nats.
    `left_s` is the time that the training will still take, by the clock on the wall, `told_s` the age of the
    last report and `checkpoint_s` that of the newest checkpoint, after so many updates as `checkpoint` says.
    """

    state: State
    machine: str
    suite: str
    run_id: str
    row: str
    seed: int | None
    repeat: int | None
    holder: str | None = None
    phase: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    mean_loss: float | None = None
    tokens_per_s: float | None = None
    peak_bytes: int | None = None
    left_s: float | None = None
    checkpoint: int | None = None
    checkpoint_s: float | None = None
    told_s: float | None = None


def survey(folders: Sequence[Path], now: float | None = None) -> list[Status]:
    """Return the runs below folders of results: what runs, what is stopped, what failed, and what waits."""
    now = time.time() if now is None else now
    places = dict.fromkeys(place.resolve() for folder in folders for place in _suites(folder))
    found = [each for place in places for each in _of_suite(place, now)]
    return sorted(found, key=lambda each: get_args(State).index(each.state))


def _suites(folder: Path) -> Iterator[Path]:
    """Find the folders in which something runs, waits or is stopped."""
    for text, folders, files in os.walk(folder):
        place = Path(text)
        seen = {name for name in folders if name[0] != "." and not OF_A_RUN.match(name)} - set(OTHER)
        folders[:] = sorted(seen) if len(place.relative_to(folder).parts) < DEEPEST else []
        if any(name.endswith(progress_file.SUFFIX) or announced.NAME.fullmatch(name) for name in files):
            yield place


def _of_suite(folder: Path, now: float) -> Iterator[Status]:
    waiting = {str(each.get("run_id")): each for each in announced.waiting(folder)}
    for run_id in _begun(folder):
        by = holder(attempt.claim(folder, run_id).path)
        lines = _last_attempt(progress_file.read(folder / f"{run_id}{progress_file.SUFFIX}"))
        left = _left_as(lines, folder, run_id)
        state: State | None = "running" if by else "waiting" if run_id in waiting else left
        announcement = waiting.pop(run_id, {})
        if state is not None:
            about = {**announcement, **(lines[0] if lines else {})}
            yield _status(state, folder, run_id, about, lines, by, now)
    for run_id, announcement in waiting.items():
        if OF_A_RUN.fullmatch(run_id):
            yield _status("waiting", folder, run_id, announcement, [], None, now)


def _left_as(lines: Sequence[Line], folder: Path, run_id: str) -> State | None:
    """Return what a run is that nobody is at work on; None for one that has ended for good."""
    status = lines[-1].get("status") if lines else None
    if status not in ENDED:
        return "stopped"
    return "failed" if status in attempt.FAILED and names.below(folder / f"{run_id}{names.SUFFIX}") else None


def _begun(folder: Path) -> list[str]:
    """Return the ids of the runs that an attempt was made at."""
    with suppress(OSError), os.scandir(folder) as entries:
        ids = (e.name.removesuffix(progress_file.SUFFIX) for e in entries if e.name.endswith(".jsonl"))
        return sorted(run_id for run_id in ids if OF_A_RUN.fullmatch(run_id))
    return []


def _last_attempt(lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines from the last one that a parent began an attempt with."""
    begun = [number for number, line in enumerate(lines) if "row" in line]
    return lines[begun[-1] :] if begun else lines


def _status(
    state: State,
    folder: Path,
    run_id: str,
    about: Mapping[str, Any],
    lines: Sequence[Line],
    by: str | None,
    now: float,
) -> Status:
    def last(name: str, kind: type) -> Any:
        """Return the newest value of a kind; a whole number is a float, too."""
        kinds = (int, float) if kind is float else (kind,)
        values = (line[name] for line in reversed(lines) if name in line)
        fit = (value for value in values if isinstance(value, kinds) and not isinstance(value, bool))
        return next(fit, None)

    said = [line for line in lines if "status" not in line]
    told = progress_file.seconds(said[-1]) if said else None
    step = last("step", int)
    saved, saved_at = _newest(folder / f"{run_id}{names.SUFFIX}")
    return Status(
        state=state,
        machine=folder.parent.name,
        suite=folder.name,
        run_id=run_id,
        row=str(about.get("row") or run_id),
        seed=_whole(about.get("seed")),
        repeat=_whole(about.get("repeat")),
        holder=by,
        phase=last("phase", str),
        step=saved if step is None else step,
        steps=last("steps", int) or _whole(about.get("steps")),
        loss=last("loss", float),
        mean_loss=last("mean_loss", float),
        tokens_per_s=last("tokens_per_s", float),
        peak_bytes=last("peak_bytes", int),
        left_s=_left(lines, now) if state == "running" else None,
        checkpoint=saved,
        checkpoint_s=None if saved_at is None else max(0.0, now - saved_at),
        told_s=None if told is None else max(0.0, now - told),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _newest(checkpoints: Path) -> tuple[int | None, float | None]:
    """Return the updates of the newest checkpoint, and when it was written."""
    for path in names.below(checkpoints)[:1]:
        with suppress(OSError):
            return names.step_of(path), path.stat().st_mtime
    return None, None


def _left(lines: Sequence[Line], now: float) -> float | None:
    """Return the seconds until the last update at the speed of the newest reports; None while unknown."""
    reports: list[tuple[float, int]] = []
    steps = 0
    for line in lines:
        at, step = progress_file.seconds(line), _whole(line.get("step"))
        if at is None or line.get("phase") != "train":
            reports = []  # another phase, after which the speed may be another
            continue
        if "resumed" in line or (step is None and not reports):
            reports = [(at, step or 0)]
        elif step is not None:
            reports.append((at, step))
        steps = _whole(line.get("steps")) or steps
    reports = reports[-REPORTS:]
    if len(reports) < 2 or not steps:
        return None
    (began, first), (ended, last) = reports[0], reports[-1]
    if last <= first or ended <= began:
        return None
    return max(0.0, (steps - last) * (ended - began) / (last - first) - (now - ended))

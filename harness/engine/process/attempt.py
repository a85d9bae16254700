"""Where an attempt at a run is written, and how it replaces an earlier one once it has ended.

An attempt at a run that has no ending yet is written in place. Where there is something to keep, a record
with an ending or weights, the attempt has a hidden folder beside it, laid out like the folder of the suite:

    .<run_id>.new/<run_id>.json, .<run_id>.new/<run_id>/…    at work; when left, removed unless it ended well
    .<run_id>.ready/…                                        has ended and replaces the earlier one
    .<run_id>.moving/…                                       the earlier one's folder is gone

Each step is one renaming or can be repeated, so a sweep that is killed between two of them is completed by
the next (`recover`). The record moves last, and only then the earlier series goes. All of this happens under
the claim of the run. No torch.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness import record as records
from harness import series
from harness.engine.process.job import Job
from harness.engine.process.lock import Lock
from harness.engine.resume import names
from harness.errors import UserError
from harness.record import Record, Status

#: What a sweep may leave when it is killed, by the id of its run.
LEFT = re.compile(r"\.([0-9a-f]+-s\d+-r\d+)\.(?:lock|new|ready|moving|.*\.tmp)")
FAILED_LOG = "log-of-failed-attempt.txt"
#: How a run may have ended that another attempt may mend.
FAILED = ("error", "oom", "timeout")


def claim(folder: Path, run_id: str) -> Lock:
    """Return the lock on a run, beside its record: who holds it may change the run's files."""
    return Lock(folder / f".{run_id}.lock")


def begin(job: Job, earlier: Record | None) -> Job:
    """Return the job with the place to write to: its own unless there is something to keep."""
    if not (has_ended(earlier) or _has_weights(job)):
        return job
    return replace(job, folder=_hidden(job, "new") / job.folder.name, kept=job.checkpoints)


def end(job: Job, attempt: Job, earlier: Record | None) -> bool:
    """Let an attempt replace the earlier one, or remove it; return whether the attempt stays.

    It does not replace anything if it was interrupted, nor, if it failed, what ended well or has weights: of
    such an attempt the log is kept.
    """
    if attempt.folder == job.folder:
        return True
    status = _status(attempt)
    ended_well = earlier is not None and earlier.outcome.status == "ok"
    worth = ended_well or (has_ended(earlier) and _has_weights(job))
    stays = status == "ok" or (status != "interrupted" and not worth)
    if stays:
        _hidden(job, "new").rename(_hidden(job, "ready"))
    elif status != "interrupted" and attempt.log.is_file():
        with suppress(OSError):
            job.folder.mkdir(exist_ok=True)
            attempt.log.replace(job.folder / FAILED_LOG)
    recover(job.folder.parent, job.folder.name)
    return stays


def recover(folder: Path, run_id: str) -> None:
    """Complete or remove what a killed sweep left of a run; OSError where the file system refuses."""
    new, ready, moving = (folder / f".{run_id}.{stage}" for stage in ("new", "ready", "moving"))
    if _is_folder(new) and _ended_well(new / f"{run_id}.json"):
        new.rename(ready)
    for half in (new, *folder.glob(f".{run_id}.*.tmp")):
        remove(half)
    for stage in (ready, moving):
        if not _is_folder(stage):
            remove(stage)
    if _is_folder(ready):
        remove(folder / run_id)
        ready.rename(moving)
    if _is_folder(moving):
        record = moving / f"{run_id}.json"
        for path in sorted(moving.iterdir(), key=lambda path: path == record):
            if path != record:
                remove(folder / path.name)
            path.replace(folder / path.name)
        kept = records.read(folder / record.name).series
        series.remove(folder / record.name, kept.file if kept else None)
        moving.rmdir()


def leftovers(folder: Path) -> set[str]:
    """Return the ids of the runs of which killed sweeps may have left something."""
    with os.scandir(folder) as entries:
        return {found[1] for entry in entries if (found := LEFT.fullmatch(entry.name))}


def clear(job: Job) -> None:
    """Remove everything that belongs to a run but its record and its checkpoints."""
    remove(job.folder)
    series.remove(job.record)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, if there is one; what links point to stays."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _hidden(job: Job, stage: str) -> Path:
    return job.folder.with_name(f".{job.folder.name}.{stage}")


def has_ended(record: Record | None) -> bool:
    """Return whether a record tells how its run ended, by whatever protocols it was measured."""
    return record is not None and record.outcome.status != "interrupted"


def _ended_well(record: Path) -> bool:
    """Return whether an attempt had ended, and well, when its sweep was killed."""
    with suppress(UserError):
        found = records.read(record)
        return found.finished and found.outcome.status == "ok"
    return False


def _status(attempt: Job) -> Status:
    """Return how an attempt ended, `interrupted` where its record is lost."""
    with suppress(UserError):
        return records.read(attempt.record).outcome.status
    return "interrupted"


def forget_checkpoints(job: Job, record: Record) -> None:
    """Remove the checkpoints of a run that ended so that it will not go on from them.

    The last one stays where a longer run may.
    """
    status, config = record.outcome.status, job.saving
    if status not in ("ok", "diverged", "unsupported") or lacks_weights(job, record):
        return
    if status == "ok" and config is not None and config.stay:
        for older in names.below(job.checkpoints)[1:]:
            remove(older)
    else:
        remove(job.checkpoints)


def begins_anew(job: Job, earlier: Record | None) -> bool:
    """Return whether a run that ended well is measured again from its first update on, not for weights alone.

    The checkpoint that may have stayed is then for others.
    """
    return earlier is not None and earlier.outcome.status == "ok" and not lacks_weights(job, earlier)


def saved(job: Job, earlier: Record | None) -> int:
    """Return how many updates a run need not do, as a checkpoint has them, its own or a shorter run's."""
    own = 0 if begins_anew(job, earlier) else names.newest_step(job.checkpoints)
    return own or (names.newest_step(job.extends) if job.extends else 0)


def share_left(job: Job, earlier: Record | None) -> float:
    """Return the share of its updates that a run has to do, from 0 to 1."""
    return max(0.0, 1 - saved(job, earlier) / job.run.train.steps)


def lacks_anything(job: Job, record: Record | None) -> bool:
    """Return whether a run ended well but has not left all that it is to leave."""
    return lacks_weights(job, record) or lacks_end(job, record)


def lacks_end(job: Job, record: Record | None) -> bool:
    """Return whether a run ended well but has not the last checkpoint that is to stay."""
    config, stage = job.run.train.checkpoint, job.run.train.stage
    wanted = config is not None and config.stay and stage != "compress"
    ended = record is not None and record.outcome.status == "ok"
    return wanted and ended and names.newest_step(job.checkpoints) != job.run.train.steps


def lacks_weights(job: Job, record: Record | None) -> bool:
    """Return whether a run ended well but has no weights, though they are to be saved."""
    wanted = job.run.save_weights and record is not None and record.outcome.status == "ok"
    return wanted and not _has_weights(job)


def _has_weights(job: Job) -> bool:
    """Return whether trained weights were saved, be it half."""
    with suppress(OSError):
        return any((job.folder / "weights").iterdir())
    return False

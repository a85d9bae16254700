"""Which shorter run a longer one goes on from, for `lorebench run --extend`. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from harness.config import Run
from harness.credentials import shown
from harness.engine.process.job import Job
from harness.engine.resume import names
from harness.errors import UserError
from harness.schedule import parting


def extending(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs, each to go on from the last checkpoint of the longest run that it continues.

    That is a run in the same folder, else the same, whose updates are the first ones of the job's. A job with
    a checkpoint of its own goes on from that, and one that only compresses has nothing to go on from.
    UserError where there is no such run, or the learning rates of its updates are others.
    """
    kept = {place.name: names.newest_step(place) for place in _kept(jobs)}
    return [_extended(job, kept) for job in jobs]


def _kept(jobs: Sequence[Job]) -> Iterator[Path]:
    for folder in {job.folder.parent for job in jobs}:
        yield from folder.glob(f"*{names.SUFFIX}")


def _extended(job: Job, kept: dict[str, int]) -> Job:
    run, refused = job.run, ""
    if run.train.stage == "compress" or kept.get(job.checkpoints.name):
        return job
    for steps in sorted(set(kept.values()), reverse=True):
        shorter = _with_steps(run, steps) if 0 < steps < run.train.steps else None
        if shorter is None:
            continue
        place = job.folder.with_name(f"{shorter.run_id}{names.SUFFIX}")
        if kept.get(place.name) != steps:
            continue
        if (step := parting(shorter.train, run.train)) is None:
            return replace(job, extends=place)
        refused = refused or (
            f"schedule {run.train.schedule} gives update {step + 1} another learning rate here than in the "
            f"run of {steps} updates; only trainings with train.schedule=constant can be extended"
        )
    raise UserError(
        f"--extend: {shown(run.name)} seed {run.seed}: "
        + (
            refused
            or f"{job.folder.parent} has no checkpoint of the end of the same training with fewer updates; "
            "train that with train.checkpoint.stay=true, or leave out --extend"
        )
    )


def _with_steps(run: Run, steps: int) -> Run | None:
    """Return the same run with another number of updates, None where it cannot have so few."""
    content = run.model_dump(mode="json")
    with suppress(ValidationError):
        return Run.model_validate({**content, "train": {**content["train"], "steps": steps}})
    return None

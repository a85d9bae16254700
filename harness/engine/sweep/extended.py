"""Which shorter run a longer one goes on from, for `lorebench run --extend`. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from harness.config import Run
from harness.credentials import shown
from harness.engine.process import attempt
from harness.engine.process.job import Job
from harness.engine.resume import names
from harness.errors import UserError
from harness.record import Record
from harness.schedule import parting

#: Checkpoints of other runs that a refusal names.
MOST = 3


def extending(
    jobs: Sequence[Job], found: Mapping[str, Record], fixed_length: Collection[str] = ()
) -> list[Job]:
    """Return the jobs, each to go on from the last checkpoint of the longest run that it continues.

    That is a run in the same folder, else the same, whose updates are the first ones of the job's. `found`
    are records of earlier attempts, and `fixed_length` runs whose updates depend on how many there are, by
    their ids. A job goes on from a checkpoint of its own where it has one, and one that only compresses has
    nothing to go on from. UserError for any other without such a run.
    """
    kept = {place.name: names.newest_step(place) for place in _kept(jobs)}
    return [_extended(job, kept, found.get(job.run_id), job.run_id in fixed_length) for job in jobs]


def _kept(jobs: Sequence[Job]) -> Iterator[Path]:
    for folder in {job.folder.parent for job in jobs}:
        yield from folder.glob(f"*{names.SUFFIX}")


def _extended(job: Job, kept: Mapping[str, int], earlier: Record | None, fixed: bool) -> Job:
    if job.run.train.stage == "compress":
        return job
    shorter = None if fixed else _shorter(job, kept)
    if shorter is not None:
        return replace(job, extends=shorter)
    if attempt.saved(job, earlier):
        return job
    stack = " + ".join(choice.name for choice in job.run.method)
    why = f"{stack} plans by the number of updates; leave out --extend" if fixed else _why_not(job, kept)
    raise UserError(f"--extend: {shown(job.run.name)} seed {job.run.seed}: {why}")


def _shorter(job: Job, kept: Mapping[str, int]) -> Path | None:
    """Return the checkpoints of the longest run whose updates are the first ones of a job's."""
    for steps in sorted(set(kept.values()), reverse=True):
        shorter = _with_steps(job.run, steps) if 0 < steps < job.run.train.steps else None
        if shorter is None:
            continue
        place = job.folder.with_name(f"{shorter.run_id}{names.SUFFIX}")
        if kept.get(place.name) == steps and parting(shorter.train, job.run.train) is None:
            return place
    return None


def _why_not(job: Job, kept: Mapping[str, int]) -> str:
    """Return why a run continues none of the checkpoints that were kept, and what to do."""
    run = job.run
    other = run.train.model_copy(update={"steps": run.train.steps - 1})
    if other.steps and (step := parting(other, run.train)) is not None:
        return (
            f"by train.schedule {run.train.schedule}, its learning rates from update {step + 1} on follow "
            "from its length, so that no shorter run is its beginning; only trainings with "
            "train.schedule=constant can be extended"
        )
    ends = [
        f"{name.removesuffix(names.SUFFIX)} after {steps} updates" for name, steps in kept.items() if steps
    ]
    more = f", {len(ends) - MOST} more" if len(ends) > MOST else ""
    others = f" (of other runs there is one of {', '.join(ends[:MOST])}{more})" if ends else ""
    return (
        f"no shorter run that is else the same has left the checkpoint of its last update in "
        f"{job.folder.parent}{others}; train one with train.checkpoint.stay=true, with --retry where it has "
        "ended without, or leave out --extend"
    )


def _with_steps(run: Run, steps: int) -> Run | None:
    """Return the same run with another number of updates, None where it cannot have so few."""
    content = run.model_dump(mode="json")
    with suppress(ValidationError):
        return Run.model_validate({**content, "train": {**content["train"], "steps": steps}})
    return None

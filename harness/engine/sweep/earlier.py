"""Find what earlier sweeps left in a suite's folder: records that stay, and files of killed runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import record_index
from harness.config import Run
from harness.engine.process import attempt
from harness.engine.process.interrupts import shielded
from harness.engine.process.job import Job
from harness.engine.process.progress import Display
from harness.engine.resume import about, names
from harness.engine.sweep.estimates import Estimates
from harness.errors import UserError, counted
from harness.inputs import Inputs, as_of, by_run, described, outdated
from harness.record import Record


def survey(
    runs: Sequence[Run], folder: Path, estimates: Estimates, inputs: Mapping[str, Inputs]
) -> dict[str, Record]:
    """Read a suite's folder and return the records of the runs; UserError for a file of another suite.

    `inputs` are hashes of what each run reads now, by its id.
    """
    found = {record.run_id: record for record in record_index.read_all(folder)}
    for record in found.values():
        if record.finished and record.time:
            estimates.add(record, record.time.wall_s)
    return by_run(runs, list(found.values()), inputs)


def still_valid(
    jobs: Sequence[Job], found: Mapping[str, Record], *, retry: bool, keep_old: bool, display: Display
) -> dict[str, Record]:
    """Return the records that stay, and say why others do not.

    `retry` repeats what did not end well or lacks the weights asked for, `keep_old` keeps what read something
    else than it would now.
    """
    older = sum(not r.finished and r.outcome.status != "interrupted" for r in found.values())
    if older:
        display.note(f"{counted(older, 'record')} of older measurement protocols: measured again")
    done = {key: record for key, record in found.items() if record.finished}
    stale = outdated(done, {job.run_id: job.inputs for job in jobs})
    what = "kept, for --keep-old" if keep_old else "measured again"
    alike = Counter(described(changed, done[key].config) for key, changed in stale.items())
    for changed, count in alike.items():
        since = "this run" if count == 1 else f"these {count} runs"
        display.note(f"changed since {since}: {changed}: {what}")
    again = set() if keep_old else set(stale)
    lacking = set[str]()
    for lacks, what in ((attempt.lacks_weights, "saved weights"), (attempt.lacks_end, "the last checkpoint")):
        those = {job.run_id for job in jobs if lacks(job, done.get(job.run_id))} - again
        if those and not retry:
            display.note(f"{counted(len(those), 'finished run')} without {what}: --retry repeats")
        lacking |= those
    ended = {key: record.outcome.status for key, record in done.items() if key not in again}
    failed = [status for status in ended.values() if status in attempt.FAILED]
    if failed and not retry:
        kinds = ", ".join(sorted(set(failed)))
        display.note(f"{counted(len(failed), 'finished run')} failed ({kinds}): --retry repeats")
    if retry:
        again |= lacking | {key for key, record in done.items() if record.outcome.status != "ok"}
    return {key: record for key, record in done.items() if key not in again}


def cannot_go_on(jobs: Sequence[Job], found: Mapping[str, Record]) -> dict[str, str]:
    """Return by run id why runs cannot go on from their checkpoints: these were written of other inputs.

    A worker looks at what else must be the same.
    """
    refused = {}
    for job in jobs:
        own = [] if attempt.begins_anew(job, found.get(job.run_id)) else names.below(job.checkpoints)
        paths = own or (names.below(job.extends) if job.extends else [])
        wrote = about.read(paths[0]) if paths else None
        instead = about.OWN if own else about.SHORTER
        if wrote and (why := about.refusal(paths[0], wrote, {"inputs": job.inputs}, instead)):
            refused[job.run_id] = why
    return refused


def recover(folder: Path) -> None:
    """Complete or remove what killed sweeps left, of all runs that nobody is at work on."""
    try:
        for run_id in sorted(attempt.leftovers(folder)):
            with shielded():
                claim = attempt.claim(folder, run_id)
                if not claim.take():
                    continue
                try:
                    attempt.recover(folder, run_id)
                finally:
                    claim.give()
    except OSError as error:
        raise UserError(f"{folder}: what a stopped sweep left cannot be removed: {error}") from error


def labelled(runs: Sequence[Run], found: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records of these runs, in order, as those of today: an id holds neither label nor tuning."""
    return {run.run_id: as_of(found[run.run_id], run) for run in runs if run.run_id in found}

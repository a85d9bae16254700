"""Which shorter run a longer one goes on from: by the names of checkpoints, without a worker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config import Run
from harness.engine.process import attempt
from harness.engine.process.job import Job
from harness.engine.resume import names
from harness.engine.runner import Settings
from harness.engine.sweep.earlier import cannot_go_on
from harness.engine.sweep.extended import extending
from harness.errors import UserError
from harness.record import Outcome


def training(steps: int, seed: int = 0, **changes: Any) -> Run:
    train = {"steps": steps, "schedule": "constant", "checkpoint": {"stay": True}}
    content = {"method": "full", "data": {"source": "random", "seq_len": 8}, "train": train, "seed": seed}
    return Run.model_validate({**content, **changes, "train": {**train, **changes.get("train", {})}})


def job_of(folder: Path, run: Run) -> Job:
    return Job(run, "suite", folder / run.run_id, "cpu", folder / "cache", "")


def ended(folder: Path, run: Run, *steps: int) -> Path:
    """Put checkpoints of a run after so many updates into a folder, by default one at its end."""
    place = job_of(folder, run).checkpoints
    for number in steps or (run.train.steps,):
        (place / names.name(number, "0" * 8)).mkdir(parents=True)
    return place


def extended(folder: Path, run: Run, status: str | None = None, fixed: bool = False) -> Path | None:
    """What a run goes on from, after an earlier attempt that ended so."""
    job, found = job_of(folder, run), {}
    if status:
        found[job.run_id] = job.blank()
        found[job.run_id].outcome = Outcome.model_validate({"status": status})
    (job,) = extending([job], found, [job.run_id] if fixed else [])
    return job.extends


def test_it_is_the_longest_shorter_run_that_is_else_the_same(tmp_path: Path) -> None:
    ended(tmp_path, training(10))
    wanted = ended(tmp_path, training(20))
    for other in (
        *(training(40), training(30, seed=1), training(25, train={"lr": 0.5})),
        *(training(25, method="galore"), training(25, repeat=1), training(25, train={"warmup": 3})),
    ):
        ended(tmp_path, other)
    assert extended(tmp_path, training(40)) == wanted  # where its own cannot be read
    assert extended(tmp_path, training(39)) == wanted
    assert extended(tmp_path, training(15)) == job_of(tmp_path, training(10)).checkpoints


def test_a_label_and_what_is_saved_do_not_part_two_runs(tmp_path: Path) -> None:
    wanted = ended(tmp_path, training(10, label="one"))
    assert extended(tmp_path, training(20, label="two", train={"checkpoint": {"every": 3}})) == wanted


def test_a_run_with_a_checkpoint_of_its_own_and_one_without_training_need_no_shorter_one(
    tmp_path: Path,
) -> None:
    ended(tmp_path, training(20), 12)
    assert extended(tmp_path, training(20)) is None
    halved = {"compress": {"reduction": 0.5}}
    assert extended(tmp_path, training(20, method=halved, train={"stage": "compress"})) is None


def test_what_stayed_of_a_run_that_is_measured_again_is_not_its_own(tmp_path: Path) -> None:
    ended(tmp_path, training(20))
    assert extended(tmp_path, training(20), "timeout") is None
    with pytest.raises(UserError, match="no shorter run"):
        extended(tmp_path, training(20), "ok")
    assert extended(tmp_path, training(30), "ok") == job_of(tmp_path, training(20)).checkpoints


def test_a_method_that_plans_by_the_number_of_updates_is_refused(tmp_path: Path) -> None:
    ended(tmp_path, training(10))
    with pytest.raises(
        UserError, match="--extend: 'full' seed 0: full plans by the number of updates; leave"
    ):
        extended(tmp_path, training(20), fixed=True)
    ended(tmp_path, training(20), 12)
    assert extended(tmp_path, training(20), fixed=True) is None


def test_a_refusal_names_what_there_is(tmp_path: Path) -> None:
    for seed in range(2, 7):
        ended(tmp_path, training(10, seed=seed))
    with pytest.raises(UserError, match=r"of other runs there is one of \w+-s\d-r0 after 10 .*, 2 more"):
        extended(tmp_path, training(20))


@pytest.mark.parametrize("steps", [(), (4, 9)])
def test_without_the_end_of_a_shorter_run_there_is_nothing_to_extend(
    tmp_path: Path, steps: tuple[int, ...]
) -> None:
    if steps:
        ended(tmp_path, training(10), *steps)
    with pytest.raises(
        UserError,
        match=r"--extend: 'full' seed 0: no shorter run that is else the same .*checkpoint\.stay=true",
    ):
        extended(tmp_path, training(20))


@pytest.mark.parametrize(("schedule", "first"), [("cosine", 5), ("linear", 5)])
def test_a_schedule_that_ends_elsewhere_is_refused_with_the_update(
    tmp_path: Path, schedule: str, first: int
) -> None:
    changes = {"schedule": schedule, "warmup": 3}
    ended(tmp_path, training(10, train=changes))
    with pytest.raises(UserError, match=rf"schedule {schedule}, .*from update {first} on"):
        extended(tmp_path, training(20, train=changes))
    level = {**changes, "min_lr_ratio": 1.0}  # the same rates as of a constant one
    ended(tmp_path, training(10, train=level))
    assert extended(tmp_path, training(20, train=level)) is not None


def test_a_run_that_could_not_have_been_so_short_is_no_obstacle(tmp_path: Path) -> None:
    evaluate = {"perplexity": ["world-a"], "during": {"every": 15}}
    text = {"data": {"source": "embedded", "seq_len": 8}, "evaluate": evaluate}
    ended(tmp_path, training(10))
    wanted = ended(tmp_path, training(16, **text))
    assert extended(tmp_path, training(40, **text)) == wanted


def test_nothing_can_be_extended_and_begun_anew_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--extend .*--from-scratch"):
        Settings(tmp_path, tmp_path, extend=True, from_scratch=True)


def test_the_newest_checkpoint_of_a_run_stays_where_it_is_asked_for(tmp_path: Path) -> None:
    for stay, status, left in ((True, "ok", [10]), (False, "ok", []), (True, "diverged", [])):
        run = training(10, train={"checkpoint": {"stay": stay}})
        job = job_of(tmp_path / status / str(stay), run)
        record = job.blank()
        record.outcome = Outcome.model_validate({"status": status})
        ended(job.folder.parent, run, 5, 10)
        attempt.forget_checkpoints(job, record)
        assert [names.step_of(path) for path in names.below(job.checkpoints)] == left
        assert attempt.begins_anew(job, record) is (status == "ok")
        assert attempt.lacks_end(job, record) is False


def test_a_run_that_ended_without_the_checkpoint_that_is_to_stay_lacks_it(tmp_path: Path) -> None:
    for run, lacks in (
        (training(10), True),
        (training(10, train={"checkpoint": {"every": 3}}), False),
        (training(10, method={"compress": {"reduction": 0.5}}, train={"stage": "compress"}), False),
    ):
        job = job_of(tmp_path, run)
        record = job.blank()
        assert not attempt.lacks_end(job, record)
        record.outcome = Outcome(status="ok")
        assert attempt.lacks_end(job, record) is lacks
        assert attempt.lacks_anything(job, record) is lacks


def test_a_checkpoint_of_other_inputs_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    def wrote(run: Run, **inputs: str) -> None:
        (path,) = names.below(ended(tmp_path, run))
        (path / names.MANIFEST).write_text(json.dumps({"about": {"torch": "1", "inputs": inputs}}))

    def job(run: Run, **more: Any) -> Job:
        return replace(job_of(tmp_path, run), inputs={"text t": "b"}, **more)

    wrote(training(10), **{"text t": "a"})
    wrote(training(20), **{"text t": "b"})
    same, other = job(training(20)), job(training(10))
    longer = job(training(30), extends=other.checkpoints)
    refused = cannot_go_on([same, other, longer, job(training(40))], {})
    assert refused.keys() == {other.run_id, longer.run_id}
    begun = "the checkpoint at update 10 was written with another content of text t; go on from it with the "
    assert refused[other.run_id].startswith(f"{begun}same, or begin anew with --from-scratch (")
    assert refused[longer.run_id].startswith(f"{begun}same, or leave out --extend (")
    record = other.blank()
    record.outcome = Outcome(status="ok")
    assert cannot_go_on([other], {other.run_id: record}) == {}  # it begins anew


def test_the_share_that_is_left_follows_from_the_newest_checkpoint(tmp_path: Path) -> None:
    job = job_of(tmp_path, training(20))
    assert attempt.share_left(job, None) == 1
    longer = replace(job_of(tmp_path, training(40)), extends=ended(tmp_path, training(20), 5, 10))
    assert attempt.share_left(job, None) == 0.5
    assert attempt.share_left(longer, None) == 0.75
    record = job.blank()
    record.outcome = Outcome(status="ok")
    assert attempt.share_left(job, record) == 1  # measured again

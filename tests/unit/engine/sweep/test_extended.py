"""Which shorter run a longer one goes on from: by the names of checkpoints, without a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import Run
from harness.engine.process import attempt
from harness.engine.process.job import Job
from harness.engine.resume import names
from harness.engine.runner import Settings
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


def extended(folder: Path, run: Run) -> Path | None:
    (job,) = extending([job_of(folder, run)])
    return job.extends


def test_it_is_the_longest_shorter_run_that_is_else_the_same(tmp_path: Path) -> None:
    ended(tmp_path, training(10))
    wanted = ended(tmp_path, training(20))
    for other in (
        *(training(40), training(30, seed=1), training(25, train={"lr": 0.5})),
        *(training(25, method="galore"), training(25, repeat=1), training(25, train={"warmup": 3})),
    ):
        ended(tmp_path, other)
    assert extended(tmp_path, training(40)) is None  # goes on from its own end
    assert extended(tmp_path, training(39)) == wanted
    assert extended(tmp_path, training(15)) == job_of(tmp_path, training(10)).checkpoints


def test_a_label_and_what_is_saved_do_not_part_two_runs(tmp_path: Path) -> None:
    wanted = ended(tmp_path, training(10, label="one"))
    assert extended(tmp_path, training(20, label="two", train={"checkpoint": {"every": 3}})) == wanted


def test_a_run_with_a_checkpoint_of_its_own_and_one_without_training_stay_as_they_are(tmp_path: Path) -> None:
    ended(tmp_path, training(10))
    ended(tmp_path, training(20), 12)
    assert extended(tmp_path, training(20)) is None
    halved = {"compress": {"reduction": 0.5}}
    assert extended(tmp_path, training(20, method=halved, train={"stage": "compress"})) is None


@pytest.mark.parametrize("steps", [(), (4, 9)])
def test_without_the_end_of_a_shorter_run_there_is_nothing_to_extend(
    tmp_path: Path, steps: tuple[int, ...]
) -> None:
    if steps:
        ended(tmp_path, training(10), *steps)
    with pytest.raises(
        UserError, match=r"--extend: 'full' seed 0: .*no checkpoint of the end.*checkpoint\.stay=true"
    ):
        extended(tmp_path, training(20))


@pytest.mark.parametrize(("schedule", "first"), [("cosine", 4), ("linear", 4)])
def test_a_schedule_that_ends_elsewhere_is_refused_with_the_update(
    tmp_path: Path, schedule: str, first: int
) -> None:
    changes = {"schedule": schedule, "warmup": 3}
    ended(tmp_path, training(10, train=changes))
    with pytest.raises(
        UserError, match=rf"schedule {schedule} gives update {first + 1} another learning rate"
    ):
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
        job = job_of(tmp_path, run)
        record = job.blank()
        record.outcome = Outcome.model_validate({"status": status})
        ended(tmp_path, run, 5, 10)
        attempt.forget_checkpoints(job, record)
        assert [names.step_of(path) for path in names.below(job.checkpoints)] == left
        attempt.forget_the_end(job, record)  # it is measured again
        assert names.below(job.checkpoints) == []

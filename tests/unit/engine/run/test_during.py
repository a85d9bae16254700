"""A model that is scored in the middle of its training: the curve, and no trace in the training."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch

from harness import series
from harness.config import EvaluateConfig, Run
from harness.engine import worker
from harness.engine.measure.peak import LiveMeter
from harness.engine.measure.speed import StepClock, Stopwatch
from harness.engine.process.job import Job
from harness.engine.quality.scored_text import ScoredText
from harness.engine.run import during, randomness, record_writer
from harness.engine.run.during import Scores
from harness.engine.run.train import Point, Trainer
from harness.plugins import build
from harness.record import Record, read
from tests.support.tiny import tiny_batch, tiny_llama, tiny_tokenizer
from tests.unit.engine.run.test_train import SILENT, Watch

CPU = torch.device("cpu")
LORA = {"lora": {"rank": 2, "dropout": 0.3}}


# ------------------------------------------------------------------------------------ a training alone
def scored_every(watch: Watch, steps: int, every: int) -> Trainer:
    trainer = watch.trainer(steps)

    def after(step: int) -> None:
        if step % every == 0 and step < steps:
            trainer.result.curve.append(Point(step, float(step), {}))

    trainer.run(SILENT, after)
    return trainer


def test_the_update_after_a_score_is_not_timed() -> None:
    watch = Watch()
    scored_every(watch, 20, 5)
    assert watch.under("meter") == [3, 4, 5]
    assert watch.under("clock") == [number for number in range(7, 21) if number not in (11, 16)]


def test_a_refresh_after_a_score_is_timed_since_each_may_be_such() -> None:
    watch = Watch(refresh_every=10)
    trainer = scored_every(watch, 32, 5)
    assert watch.under("meter") == [3, 4, 5, 11]
    assert [number for number in (6, 16, 21, 26, 31) if number in watch.under("clock")] == [21, 31]
    assert sum(trainer.result.refresh_step) == 2


def test_the_stopwatch_leaves_out_what_is_done_while_it_is_stopped() -> None:
    now = iter([10.0, 12.0, 100.0, 101.0, 103.0])  # start, stopped, go on, read, read
    watch = Stopwatch(CPU, now=lambda: next(now))
    assert watch.seconds() == 0.0
    watch.take(5.0)
    watch.start()
    with watch.stopped():
        assert watch.seconds() == 7.0
        with watch.stopped():
            assert watch.seconds() == 7.0
    assert watch.seconds() == 8.0
    assert watch.seconds() == 10.0


def test_random_states_come_back_whatever_was_drawn() -> None:
    def drawn() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    state = randomness.taken(CPU)
    wanted = drawn()
    randomness.put_back(CPU, state)
    with randomness.kept(CPU):
        drawn()
    assert drawn() == wanted


class Silent:
    """Stands for the writer of a record; keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def notify(self, **event: Any) -> None:
        self.told.append(event)

    def scoring(self) -> Any:
        return randomness.kept(CPU)


def scores_of(stopped: Callable[[], bool]) -> Scores:
    model = tiny_llama()
    config = Run.model_validate({"method": "full", "train": {"steps": 20}}).train
    stepper = build("full", {}).stepper(model, config)
    assert stepper is not None
    trainer = Trainer(
        model, stepper, iter(()), config, device=CPU, meter=LiveMeter(CPU), clock=StepClock(CPU)
    )
    wanted = EvaluateConfig.model_validate(
        {"perplexity": ["world-a", "world-b"], "batch": 2, "during": {"every": 5, "perplexity": ["world-b"]}}
    )
    text = ScoredText("text", list(tiny_batch(0, batch=6).numpy()))
    texts = {"world-a": text, "world-b": text}
    return Scores(wanted, texts, trainer, Silent(), lambda peak: None, stopped)  # type: ignore[arg-type]


def test_a_score_is_due_after_every_so_many_updates_but_not_after_the_last() -> None:
    scores = scores_of(lambda: False)
    assert [step for step in range(21) if scores.due(step)] == [5, 10, 15]
    scores.after(10)
    (point,) = scores.trainer.result.curve
    assert (point.step, list(point.perplexity)) == (10, ["world-b"])
    assert [step for step in range(21) if scores.due(step)] == [15]


def test_a_score_is_given_up_at_the_next_batch_once_the_process_shall_end() -> None:
    asked = []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) == 2

    scores = scores_of(stopped)
    model = scores.trainer.model.train()
    scores.after(5)
    assert (len(asked), scores.trainer.result.curve) == (2, [])
    assert all(module.training for module in model.modules())
    assert not model._forward_pre_hooks
    assert scores.due(5)
    scores.after(5)
    assert [point.step for point in scores.trainer.result.curve] == [5]
    assert len(asked) == 5, "one question a batch"


def test_a_forward_pass_that_draws_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    model = tiny_llama()

    def draw(*_: Any) -> None:
        torch.rand(2)

    model.register_forward_pre_hook(draw)
    during.score(model, tiny_batch().tolist(), 2, CPU)
    assert torch.rand(4).equal(wanted)


# ------------------------------------------------------------------------------------ a whole run
@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_llama(layers=1).save_pretrained(tmp_path / "D")
    tiny_tokenizer().save_pretrained(tmp_path / "D")
    (tmp_path / "a.txt").write_text("\n\n".join("wake up little one " * 4 for _ in range(40)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record_writer, "take_stdout", io.StringIO)
    return tmp_path


def carried_out(place: Path, steps: int = 12, every: int | None = 3, method: Any = LORA) -> Record:
    run = Run.model_validate(
        {
            "model": {"source": "local", "path": "./D"},
            "data": {"source": "files", "paths": ["a.txt"], "separator": "\n\n", "seq_len": 8},
            "train": {"steps": steps, "batch": 2, "schedule": "constant", "lr": 1e-2},
            "evaluate": {"perplexity": ["heldout"]} | ({"during": {"every": every}} if every else {}),
            "method": method,
            "save_weights": True,
        }
    )
    job = Job(run, "s", place / run.run_id, "cpu", place / "cache", "lorebench run", {})
    job.folder.mkdir()
    job.write()
    assert worker.run_job(job.file) == 0
    found = read(job.record)
    assert found.outcome.status == "ok", found.outcome
    return found


def weights(place: Path, record: Record) -> str:
    files = sorted((place / record.run_id / "weights").glob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_scores_change_no_bit_of_a_training_and_have_time_and_memory_of_their_own(place: Path) -> None:
    carried_out(place, steps=2, every=None)  # what libraries keep from their first call is there before
    plain, scored = carried_out(place, every=None), carried_out(place)
    assert plain.config_id != scored.config_id
    assert weights(place, plain) == weights(place, scored)
    one, other = series.read(plain), series.read(scored)
    assert (one.loss, one.lr, one.grad_norm) == (other.loss, other.lr, other.grad_norm)
    assert (one.perplexity, one.trained_s) == ((), ())
    assert plain.quality == scored.quality
    assert plain.memory is not None
    assert scored.memory is not None
    assert plain.memory.train == scored.memory.train
    mine, theirs = (memory.phase_peak_allocated_bytes for memory in (scored.memory, plain.memory))
    assert mine["evaluate"] > theirs["evaluate"], "the optimizer's states are there in the middle"
    assert mine["train"] == theirs["train"]
    assert plain.training is not None
    assert scored.training is not None
    assert (plain.training.scored, scored.training.scored) == (None, 3)


def test_the_curve_has_the_values_of_shorter_trainings_and_ends_with_the_last(place: Path) -> None:
    scored = carried_out(place)
    points = series.scores(scored)
    assert [point.step for point in points] == [3, 6, 9, 12]
    assert points[-1].perplexity == {}
    for point in points[:-1]:
        shorter = carried_out(place, steps=point.step, every=None)
        assert shorter.quality is not None
        assert point.perplexity == {"heldout": shorter.quality.perplexity["heldout"].perplexity}
    seconds = [point.trained_s for point in points]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    time = scored.time
    assert time is not None
    assert seconds[-1] <= time.phase_s["train"]
    assert sum(time.phase_s.values()) == pytest.approx(time.wall_s, rel=0.02)


def test_the_time_of_scores_is_that_of_evaluation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, score = [], during.perplexity.score

    def slow(*given: Any) -> Any:
        sleep(0.2)
        slept.append(0.2)
        return score(*given)

    monkeypatch.setattr(during.perplexity, "score", slow)
    time = carried_out(place).time
    assert time is not None
    assert len(slept) == 4, "three in training, one at the end"
    assert time.phase_s["evaluate"] > 0.8
    assert time.phase_s["train"] < time.wall_s - 0.8  # type: ignore[operator]


def test_a_training_that_diverges_keeps_the_curve_until_then(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_losses = Trainer.read

    def read_nan(trainer: Trainer) -> None:
        if len(trainer._losses) and len(trainer.result.lr) >= 8:
            trainer._losses[-1] = torch.tensor(float("nan"))
        read_losses(trainer)

    monkeypatch.setattr(Trainer, "read", read_nan)
    with pytest.raises(AssertionError, match="diverged"):
        carried_out(place)
    (file,) = place.glob("*.json")
    found = read(file)
    assert [point.step for point in series.scores(found)] == [3, 6]
    assert found.quality is None


def test_running_out_of_memory_while_it_is_scored_is_an_end_of_the_evaluation(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(during, "score", full)
    with pytest.raises(AssertionError, match="oom"):
        carried_out(place)
    (file,) = place.glob("*.json")
    assert read(file).outcome.phase == "evaluate"

"""The training loop: its schedule, what it meters and times, and how it ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.config import TrainConfig
from harness.engine.data.tokens import Tokens
from harness.engine.measure.peak import LiveMeter, Window
from harness.engine.measure.speed import StepClock
from harness.engine.run.train import (
    METERED_STEPS,
    REPORTS,
    WARMUP_STEPS,
    Trainer,
    TrainResult,
)
from harness.errors import DivergedError
from harness.method import StepInfo
from harness.plugins import build
from harness.schedule import lr_at
from tests.support.tiny import tiny_llama

CPU = torch.device("cpu")
SILENT: Callable[[dict[str, Any]], None] = lambda event: None  # noqa: E731


# ----------------------------------------------------------------------------------------- a watched loop
class Toy(nn.Module):
    """One weight, one loss; each forward pass takes a second of `Watch.now`."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))
        self.watch = watch

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        self.watch.events.append("forward" if self.training else "forward without dropout")
        self.watch.now += 1.0
        return SimpleNamespace(loss=(self.weight * input_ids.double().mean()).square().mean())


class Watch:
    """Stepper, meter and clock in one: notes for every update under what it was done."""

    name = "live"

    def __init__(
        self,
        refresh_every: int | None = None,
        nan_after: int | None = None,
        refresh_at: Collection[int] = (),
    ) -> None:
        self.refresh_every, self.nan_after, self.refresh_at = refresh_every, nan_after, refresh_at
        self.now, self.updates, self.events, self.reading = 0.0, 0, list[str](), set[str]()
        self.updates_under: list[set[str]] = []
        self.model = Toy(self)

    @contextmanager
    def window(self) -> Iterator[Window]:
        self.reading.add("meter")
        window = Window()
        yield window
        window.peak_allocated_bytes = 1000 + self.updates
        self.reading.discard("meter")

    def set_lr(self, lr: float) -> None:
        self.events.append("set_lr")

    def step(self) -> StepInfo:
        self.events.append("step")
        self.updates_under.append(set(self.reading))
        regular = self.refresh_every is not None and self.updates % self.refresh_every == 0
        self.updates += 1
        refreshed = regular or self.updates in self.refresh_at
        if self.updates == self.nan_after:
            with torch.no_grad():
                self.model.weight.fill_(math.nan)
        ranks = {"a": self.updates} if self.updates in self.refresh_at else None
        return StepInfo(
            refreshed=refreshed,
            refresh_next=self.updates + 1 in self.refresh_at,
            grad_norm=torch.tensor(float(self.updates)),
            ranks=ranks,
            refreshes=2 * refreshed if self.refresh_at else None,
            skipped=1 if self.refresh_at else None,
        )

    def zero_grad(self) -> None:
        self.events.append("zero_grad")
        self.model.weight.grad = None

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "moment", torch.zeros(3)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def trainer(self, steps: int, **settings: Any) -> Trainer:
        watch = self

        class Clock(StepClock):
            def start(self) -> None:
                watch.reading.add("clock")
                super().start()

            def stop(self, refreshed: bool) -> None:
                watch.reading.discard("clock")
                super().stop(refreshed)

        ones = np.ones((1, 4), dtype=np.int64)
        return Trainer(
            self.model,
            self,
            itertools.repeat(ones),
            TrainConfig(steps=steps, **settings),
            device=CPU,
            meter=self,  # type: ignore[arg-type]  # the fake is stepper and meter in one
            clock=Clock(CPU, now=lambda: self.now),
            period=self.refresh_every,
        )

    def train(self, steps: int, **settings: Any) -> TrainResult:
        return self.trainer(steps, **settings).run(SILENT)

    def under(self, ruler: str) -> list[int]:
        """The updates, counted from 1, that this ruler watched."""
        return [number for number, rulers in enumerate(self.updates_under, start=1) if ruler in rulers]


def test_the_first_two_updates_warm_up_three_are_metered_and_the_rest_are_timed() -> None:
    watch = Watch()
    result = watch.train(12)
    assert (WARMUP_STEPS, METERED_STEPS) == (2, 3)
    assert watch.under("meter") == [3, 4, 5]
    assert watch.under("clock") == [6, 7, 8, 9, 10, 11, 12]
    assert len(result.step_s) == len(result.refresh_step) == 7


@pytest.mark.parametrize("period", [None, 1, 2, 3, 7, 100])
def test_no_update_is_under_the_meter_and_on_the_clock_at_once(period: int | None) -> None:
    watch = Watch(refresh_every=period)
    watch.train(20)
    assert not set(watch.under("meter")) & set(watch.under("clock"))
    assert sorted(watch.under("meter") + watch.under("clock")) == list(range(3, 21))


def test_the_first_refresh_after_the_window_is_metered_and_later_ones_are_timed() -> None:
    watch = Watch(refresh_every=7)
    result = watch.train(16)
    assert watch.under("meter") == [3, 4, 5, 8]
    assert (result.memory.first_step, result.memory.last_step, result.memory.refreshes) == (3, 8, 1)
    assert result.memory.peak_bytes == 1008
    assert result.refresh_step == [number == 15 for number in watch.under("clock")]


def test_a_refresh_within_the_window_needs_no_second_metered_one() -> None:
    watch = Watch(refresh_every=3)
    result = watch.train(10)
    assert watch.under("meter") == [3, 4, 5]
    assert result.memory.refreshes == 1
    assert result.refresh_step == [False, True, False, False, True][: len(result.refresh_step)]


def test_a_refresh_that_a_method_announces_is_metered_once_and_later_ones_are_timed() -> None:
    watch = Watch(refresh_at=(9, 11))
    result = watch.train(14)
    assert watch.under("meter") == [3, 4, 5, 9]
    assert result.memory.refreshes == 1
    assert [
        number for number, fresh in zip(watch.under("clock"), result.refresh_step, strict=True) if fresh
    ] == [11]


def test_what_a_method_says_of_ranks_and_counts_is_kept_over_the_whole_training() -> None:
    result = Watch(refresh_at=(2, 5)).train(6)
    assert result.rank_moves == [(2, {"a": 2}), (5, {"a": 5})]
    assert result.ranks == {"a": 5}
    assert (result.refreshes, result.skipped) == (4, 6)
    silent = Watch().train(6)
    assert (silent.refreshes, silent.skipped, silent.rank_moves) == (None, None, [])


def test_the_window_splits_what_is_there_before_the_update() -> None:
    parts = Watch().train(6).memory.parts
    assert parts is not None
    assert (parts.weights_trainable_bytes, parts.gradients_bytes, parts.optimizer_bytes) == (20, 20, 12)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_no_longer_than_its_warm_up_has_no_memory_and_no_times(steps: int) -> None:
    result = Watch().train(steps)
    assert result.memory.parts is None
    assert result.memory.first_step is None
    assert not result.step_s
    assert len(result.loss) == steps


def test_the_time_of_a_step_is_its_own_work_and_not_the_report_or_the_meter() -> None:
    watch = Watch()

    def slow_progress(event: dict[str, Any]) -> None:
        watch.now += 100.0

    result = watch.trainer(9, grad_accum=3).run(slow_progress)
    assert list(result.step_s) == [3.0] * 4, "three forward passes of a second each"


def test_an_update_sets_the_rate_first_then_accumulates_then_steps_and_frees() -> None:
    watch = Watch()
    watch.model.eval()
    watch.train(2, grad_accum=2)
    assert watch.events == ["set_lr", "forward", "forward", "step", "zero_grad"] * 2


def test_the_course_holds_one_loss_rate_and_norm_per_update() -> None:
    result = Watch().train(50, grad_accum=2)
    assert result.loss == [1.0] * 50, "the mean over micro-batches, not their sum"
    assert len(result.lr) == 50
    assert result.grad_norm == [float(number) for number in range(1, 51)]


# -------------------------------------------------------------------------------------------- progress
@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (7, 7), (20, 20), (100, 20), (45, 23)])
def test_progress_is_told_about_twenty_times_and_at_the_end(steps: int, expected: int) -> None:
    events: list[dict[str, Any]] = []
    Watch().trainer(steps).run(events.append)
    assert len(events) == expected <= REPORTS + 3
    last = {"step": steps, "steps": steps, "loss": 1.0, "mean_loss": 1.0}
    assert events[-1] == {**last, "lr": lr_at(steps - 1, TrainConfig(steps=steps))}
    assert [event["step"] for event in events] == sorted({event["step"] for event in events})


@pytest.mark.parametrize(("step_s", "apart"), [(2.0, 15), (7.0, 5), (45.0, 1)])
def test_a_long_training_is_told_about_every_thirty_seconds_between_timed_updates(
    step_s: float, apart: int
) -> None:
    """With a clock on which an update takes so many seconds; a twentieth of the training is 20 updates."""
    watch = Watch()
    events: list[int] = []
    trainer = watch.trainer(400)
    trainer._now, trainer._reported_at = lambda: step_s * watch.updates, 0.0

    def told(event: dict[str, Any]) -> None:
        assert "clock" not in watch.reading
        events.append(event["step"])

    result = trainer.run(told)
    steps = np.diff([0, *events])
    assert max(steps) == apart
    assert set(range(20, 401, 20)) <= set(events)
    plain = Watch().train(400)
    assert (result.step_s, result.timed_steps) == (plain.step_s, plain.timed_steps)
    assert result.loss == plain.loss


def test_a_report_has_the_mean_loss_since_the_one_before_and_comes_in_time_whatever_is_read_between() -> None:
    """As a checkpoint reads the losses; here it also gives each update its number as its loss."""
    watch = Watch()
    events: list[dict[str, Any]] = []
    trainer = watch.trainer(400)
    trainer._now, trainer._reported_at = lambda: 7.0 * watch.updates, 0.0

    def save(step: int) -> None:
        trainer.read()
        trainer.result.loss[-1] = float(step)

    trainer.run(events.append, save)
    assert [event["step"] for event in events] == list(range(5, 401, 5))
    for event in events:
        step = event["step"]
        assert event["mean_loss"] == pytest.approx((sum(range(step - 4, step)) + 1.0) / 5)


def test_a_long_training_that_diverges_ends_within_thirty_seconds_and_keeps_its_times() -> None:
    watch = Watch(nan_after=1001)
    trainer = watch.trainer(100_000)
    trainer._now, trainer._reported_at = lambda: 1.0 * watch.updates, 0.0
    with pytest.raises(DivergedError, match="at step 1002 of 100000"):
        trainer.run(SILENT)
    assert 1002 <= len(trainer.result.loss) < 1002 + 30
    assert len(trainer.result.step_s) == len(trainer.result.loss) - WARMUP_STEPS - METERED_STEPS


# -------------------------------------------------------------------------------------------- divergence
@pytest.mark.parametrize(
    ("steps", "nan_after", "says"), [(10, 3, "step 4 of 10"), (100, 12, "step 13 of 100")]
)
def test_divergence_names_the_first_broken_step_though_losses_are_read_later(
    steps: int, nan_after: int, says: str
) -> None:
    with pytest.raises(DivergedError, match=says):
        Watch(nan_after=nan_after).train(steps)


def test_a_diverged_training_leaves_its_course_and_its_times() -> None:
    trainer = Watch(nan_after=11).trainer(100)
    with pytest.raises(DivergedError):
        trainer.run(SILENT)
    assert len(trainer.result.loss) == len(trainer.result.lr) == 15
    assert trainer.result.loss[10] == 1.0
    assert math.isnan(trainer.result.loss[11])
    assert len(trainer.result.step_s) == 15 - WARMUP_STEPS - METERED_STEPS
    assert trainer.result.memory.first_step == 3


# ------------------------------------------------------------------------------------- a real model
def course(
    batch: int, grad_accum: int = 1, seed: int = 0, steps: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[TrainResult, dict[str, Tensor]]:
    """Train a small LLaMA on windows drawn by the seed; the result and the weights afterwards."""
    model = tiny_llama().to(dtype)
    config = TrainConfig(steps=steps, batch=batch, grad_accum=grad_accum, lr=1e-2)
    stepper = build("full", {}).stepper(model, config)
    assert stepper is not None
    windows = np.random.default_rng(5).integers(0, 64, (40, 12))
    batches = Tokens(windows, "windows", "").batches(batch, seed)
    clock = StepClock(CPU)
    trainer = Trainer(model, stepper, batches, config, device=CPU, meter=LiveMeter(CPU), clock=clock)
    return trainer.run(SILENT), model.state_dict()


def test_accumulating_four_micro_batches_is_one_batch_of_all_of_them() -> None:
    whole, weights = course(batch=8, dtype=torch.float64)
    parts, accumulated = course(batch=2, grad_accum=4, dtype=torch.float64)
    assert len(whole.loss) == len(parts.loss) == 6
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6), "the loss itself is float32"
    for name, weight in weights.items():
        torch.testing.assert_close(accumulated[name], weight, rtol=1e-4, atol=1e-5)
    assert whole.loss[-1] < whole.loss[0]


def test_the_memory_of_the_first_updates_does_not_depend_on_when_losses_are_read() -> None:
    short, long = (course(batch=2, steps=steps)[0] for steps in (6, 60))  # after each update, and after three
    assert short.memory.summary() == long.memory.summary()


def test_accumulation_does_not_multiply_the_updates() -> None:
    watch = Watch()
    watch.train(6, grad_accum=4)
    assert watch.updates == 6
    assert watch.events.count("forward") == 24


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, weights = course(batch=4, seed=3)
    again, weights_again = course(batch=4, seed=3)
    assert first.loss == again.loss
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert course(batch=4, seed=4)[0].loss != first.loss

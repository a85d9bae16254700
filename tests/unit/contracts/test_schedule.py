"""The learning rate of each update, and where the rates of two trainings part."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.config import TrainConfig
from harness.no_effect import warm_up_alone
from harness.schedule import lr_at, parting


def rates(**settings: Any) -> list[float]:
    config = TrainConfig(**{"lr": 2.0, **settings})
    return [lr_at(step, config) for step in range(config.steps)]


def test_warm_up_rises_in_equal_steps_and_the_next_update_has_the_peak() -> None:
    found = rates(steps=10, warmup=4, schedule="constant")
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[5:] == [2.0] * 5


def test_without_warm_up_the_first_update_has_the_peak() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert rates(steps=3, schedule=schedule)[0] == 2.0


def test_the_cosine_is_halfway_between_peak_and_floor_in_the_middle_and_ends_at_the_floor() -> None:
    config = TrainConfig(lr=2.0, steps=12, warmup=2, schedule="cosine", min_lr_ratio=0.1)
    assert lr_at(2, config) == 2.0
    assert lr_at(7, config) == pytest.approx(2.0 * (1 + 0.1) / 2)
    assert lr_at(12, config) == pytest.approx(0.2)
    assert lr_at(4, config) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi * 0.2)) / 2)


def test_the_linear_schedule_falls_by_equal_steps_to_its_floor() -> None:
    found = rates(steps=5, schedule="linear", min_lr_ratio=0.5)
    assert found == pytest.approx([2.0, 1.8, 1.6, 1.4, 1.2])
    assert rates(steps=4, schedule="linear", min_lr_ratio=0.0)[-1] > 0, "the last update must do something"


def test_a_warm_up_longer_than_the_training_never_reaches_the_peak() -> None:
    assert max(rates(steps=3, warmup=10)) < 2.0
    for steps in (10, 3):
        (warning,) = warm_up_alone(TrainConfig(steps=steps, warmup=10))
        assert warning.startswith(f"10 updates of warm-up leave none of {steps}")
    assert warm_up_alone(TrainConfig(steps=11, warmup=10)) == []


def test_trainings_of_two_lengths_part_at_the_first_update_with_another_rate() -> None:
    def both(shorter: int, longer: int, **settings: Any) -> int | None:
        return parting(*(TrainConfig(steps=steps, **settings) for steps in (shorter, longer)))

    assert both(10, 20, schedule="constant", warmup=4) is None
    assert both(10, 20, schedule="cosine", warmup=4) == 5  # the peak, at update 4, is that of both
    assert both(10, 20, schedule="linear") == 1
    assert both(4, 20, schedule="cosine", warmup=8) is None  # both are still warming up
    assert both(10, 20, schedule="cosine", min_lr_ratio=1.0) is None

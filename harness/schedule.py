"""The learning rate of each update, by the schedule of a training. No torch."""

from __future__ import annotations

import math

from harness.config import TrainConfig


def lr_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of an update (from 0): linear warm-up, then the schedule to its minimum."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)


def parting(shorter: TrainConfig, longer: TrainConfig) -> int | None:
    """Return the first update of a shorter training whose rate a longer one has not; None where all agree."""
    rates = ((step, lr_at(step, shorter), lr_at(step, longer)) for step in range(shorter.steps))
    return next((step for step, mine, other in rates if mine != other), None)

"""The harness does what a loop without it does: the same losses to the bit, the same peak to the byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from harness.config import TrainConfig
from harness.engine.measure.peak import LiveMeter
from harness.engine.measure.speed import StepClock
from harness.engine.run.train import Trainer, TrainResult
from harness.plugins import build
from harness.schedule import lr_at
from tests.support.tiny import tiny_llama

CPU = torch.device("cpu")
CONFIG = TrainConfig(steps=8, batch=3, lr=1e-2, warmup=2, schedule="cosine", weight_decay=0.01)
WATCHED = (2, 3, 4)  # the updates that a memory window covers, counted from 0


def batches() -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    while True:
        yield draw.integers(0, 64, (CONFIG.batch, 24))


def bare_loop() -> tuple[list[float], int]:
    """The loop that anyone would write, with a meter around the watched updates."""
    model = tiny_llama(hidden=48)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=CONFIG.betas, eps=CONFIG.eps, weight_decay=CONFIG.weight_decay, fused=True
    )
    data, meter = batches(), LiveMeter(CPU)
    losses, peak_bytes = [], 0
    for step in range(CONFIG.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, CONFIG)
        if step in WATCHED:
            with meter.window() as window:
                losses.append(update(model, optimizer, next(data)))
            peak_bytes = max(peak_bytes, window.peak_allocated_bytes)
        else:
            losses.append(update(model, optimizer, next(data)))
    return losses, peak_bytes


def update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: np.ndarray) -> float:
    ids = torch.from_numpy(batch).clone()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def harness_loop() -> TrainResult:
    model = tiny_llama(hidden=48)
    stepper = build("full", {}).stepper(model, CONFIG)
    assert stepper is not None
    trainer = Trainer(
        model, stepper, batches(), CONFIG, device=CPU, meter=LiveMeter(CPU), clock=StepClock(CPU)
    )
    return trainer.run(lambda event: None)


@pytest.fixture(scope="module")
def both() -> tuple[tuple[list[float], int], TrainResult]:
    return bare_loop(), harness_loop()


def test_the_harness_trains_to_the_same_bits_as_a_bare_loop(
    both: tuple[tuple[list[float], int], TrainResult],
) -> None:
    (losses, _), trained = both
    assert trained.loss == losses
    assert losses[-1] < losses[0]


def test_the_harness_holds_no_byte_more_than_a_bare_loop(
    both: tuple[tuple[list[float], int], TrainResult],
) -> None:
    (_, peak_bytes), trained = both
    assert (trained.memory.first_step, trained.memory.last_step) == (WATCHED[0] + 1, WATCHED[-1] + 1)
    assert trained.memory.peak_bytes == peak_bytes > 0

"""Does the harness slow a training down or hold more memory than a bare loop? Both on the same model.

`python -m benchmarks.studies.overhead` trains the same shape by the harness and by the loop below,
interleaved, and prints the ratio of their step times (median and spread over rounds) and both live peaks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from harness.config import TrainConfig
from harness.engine.measure.peak import meter_for
from harness.engine.measure.speed import StepClock
from harness.engine.models.load import shape_config
from harness.engine.run.train import METERED_STEPS, WARMUP_STEPS, Trainer, lr_at
from harness.plugins import build

CPU = torch.device("cpu")


def new_model(shape: str) -> Any:
    """A LLaMA of the named shape with the same random weights every time."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(shape_config(shape))


def batches(vocab: int, config: TrainConfig, seq_len: int) -> Iterator[np.ndarray]:
    """Random token windows (batch, seq_len)."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, vocab, (config.batch, seq_len))


def bare_loop(shape: str, config: TrainConfig, seq_len: int) -> tuple[float, float]:
    """The loop that anyone would write; returns seconds per step after warm-up, and the last loss."""
    model = new_model(shape)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True
    )
    data = batches(model.config.vocab_size, config, seq_len)
    started = time.perf_counter()
    loss = torch.zeros(())
    for step in range(config.steps):
        if step == WARMUP_STEPS + METERED_STEPS:
            started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config)
        ids = torch.from_numpy(next(data))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - started
    return seconds / (config.steps - WARMUP_STEPS - METERED_STEPS), loss.item()


def harness_loop(shape: str, config: TrainConfig, seq_len: int) -> tuple[float, float]:
    """The same by the harness; its wall time per timed step includes all that it does between steps."""
    model = new_model(shape)
    stepper = build("full", {}).stepper(model, config)
    assert stepper is not None
    clock = StepClock(CPU)
    trainer = Trainer(
        model,
        stepper,
        batches(model.config.vocab_size, config, seq_len),
        config,
        device=CPU,
        meter=meter_for(CPU),
        clock=clock,
    )
    begun: list[float] = []
    plain_start = clock.start

    def start() -> None:
        begun.append(time.perf_counter())
        plain_start()

    clock.start = start  # type: ignore[method-assign]
    result = trainer.run(lambda event: None)
    return (time.perf_counter() - begun[0]) / len(begun), result.loss[-1]


def main() -> None:
    """Compare both loops in alternating rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="9m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    config = TrainConfig(steps=arguments.steps, batch=2, lr=1e-3)
    ratios = []
    for index in range(arguments.rounds):
        order = (bare_loop, harness_loop) if index % 2 == 0 else (harness_loop, bare_loop)
        found = {loop: loop(arguments.shape, config, 128) for loop in order}
        (bare_s, bare_loss), (harness_s, harness_loss) = found[bare_loop], found[harness_loop]
        assert bare_loss == harness_loss, "the two loops did different work"
        ratios.append(harness_s / bare_s)
        print(f"round {index + 1}: bare {bare_s:.4f} s, harness {harness_s:.4f} s, ratio {ratios[-1]:.3f}")
    spread = statistics.quantiles(ratios, n=4)
    print(f"harness / bare, median of {len(ratios)} rounds: {statistics.median(ratios):.4f}")
    print(f"(quartiles {spread[0]:.3f} to {spread[2]:.3f})")


if __name__ == "__main__":
    main()

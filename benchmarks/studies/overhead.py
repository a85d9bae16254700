"""Does the harness slow a training down or hold more memory than a bare loop? Both on the same model.

`python -m benchmarks.studies.overhead` trains the same shape by the harness and by the loop below,
interleaved, and prints the ratio of their step times (median and spread over rounds). With `--checkpoints
DIR` it saves the state of such a training there instead, and prints what share of ten minutes that takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config import CheckpointConfig, TrainConfig
from harness.engine.measure.peak import meter_for
from harness.engine.measure.speed import StepClock
from harness.engine.models.load import shape_config
from harness.engine.resume import names
from harness.engine.resume.checkpoints import Checkpoints
from harness.engine.run.state import state_of
from harness.engine.run.train import METERED_STEPS, WARMUP_STEPS, Trainer
from harness.plugins import build
from harness.schedule import lr_at

CPU = torch.device("cpu")
#: The interval that the time of a checkpoint is compared with.
INTERVAL_S = 600.0


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


def harness_trainer(shape: str, config: TrainConfig, seq_len: int) -> Trainer:
    """The same by the harness."""
    model = new_model(shape)
    stepper = build("full", {}).stepper(model, config)
    assert stepper is not None
    data = batches(model.config.vocab_size, config, seq_len)
    clock = StepClock(CPU)
    return Trainer(model, stepper, data, config, device=CPU, meter=meter_for(CPU), clock=clock)


def harness_loop(shape: str, config: TrainConfig, seq_len: int) -> tuple[float, float]:
    """Train by the harness; its wall time per timed step includes all that it does between steps."""
    trainer = harness_trainer(shape, config, seq_len)
    clock = trainer.clock
    begun: list[float] = []
    plain_start = clock.start

    def start() -> None:
        begun.append(time.perf_counter())
        plain_start()

    clock.start = start  # type: ignore[method-assign]
    result = trainer.run(lambda event: None)
    return (time.perf_counter() - begun[0]) / len(begun), result.loss[-1]


def time_checkpoints(shape: str, config: TrainConfig, seq_len: int, folder: Path, rounds: int) -> None:
    """Save the state of a training a few times, on the disk and with hashes, and print the seconds."""
    trainer = harness_trainer(shape, config, seq_len)
    trainer.run(lambda event: None)
    checkpoints = Checkpoints(folder, CheckpointConfig(), {}, warn=print)
    seconds = []
    for index in range(rounds):
        started = time.perf_counter()
        checkpoints.save(index + 1, state_of(trainer))
        seconds.append(time.perf_counter() - started)
    newest = names.below(folder)[0]
    size = sum(path.stat().st_size for path in newest.iterdir())
    share = statistics.median(seconds) / INTERVAL_S
    print(
        f"{shape}, {size:,} bytes: median {statistics.median(seconds):.2f} s of {rounds}, "
        f"{min(seconds):.2f} to {max(seconds):.2f}; {share:.2%} of {INTERVAL_S:g} s"
    )


def main() -> None:
    """Compare both loops in alternating rounds, or time checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="9m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoints", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.checkpoints:
        few = TrainConfig(steps=2, batch=2, lr=1e-3)
        time_checkpoints(arguments.shape, few, 128, arguments.checkpoints, arguments.rounds)
        return
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

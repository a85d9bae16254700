"""LISA beside AdamW over all layers, of which all but a few are frozen in each interval, as LMFlow does it.

That optimizer keeps the states of every layer that was ever drawn. Both draw the same layers in the same
updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.studies.peers.bench import Case, Duel, peak_bytes
from benchmarks.studies.peers.plain import LR, duel, loop, new_model, training_step
from harness.config import OptimConfig
from harness.engine.contract import members
from harness.engine.measure.storages import tensors_within
from harness.method import Context
from harness.plugins import build
from methods.parts.sampling.schedule import Schedule, layers_of

PEER = "torch AdamW, layers frozen"
OPTIONS = {"layers": 1, "interval": 1}
#: Updates, each with other layers, before the bytes of optimizer states are compared.
UPDATES = 10


def cases(quick: bool) -> Iterator[Case]:
    """Yield a training step."""
    shape, batch = ("nano", (1, 4)) if quick else ("9m", (4, 128))
    tokens = f"LLaMA {shape}, {batch[0]} x {batch[1]} tokens"
    yield Case("lisa", "training step", tokens, PEER, partial(lisa, shape, batch))


def lisa(shape: str, batch: tuple[int, int]) -> Duel:
    """Train one layer at a time with its states kept, and say how many bytes are there when they are not.

    The peaks are those of the next update, beyond the weights and states before it. Where states are dropped,
    those of the layers that are drawn come anew.
    """
    ours, mine, schedule = _ours(shape, batch, "keep")
    theirs = new_model(shape)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=0.0, fused=True)
    peer = _frozen_by(schedule, theirs, loop(theirs, optimizer, batch))
    both = duel(ours, peer)
    dropping, dropped, _ = _ours(shape, batch, "drop")
    for step in (ours, peer, dropping):
        for _ in range(UPDATES):
            step()
    moments = (value for state in optimizer.state.values() for key, value in state.items() if key != "step")
    both.facts.update(
        {
            "bytes of states, ours": str(_bytes(tensor for _, tensor in members.state_tensors(dropped))),
            "bytes of states, ours kept": str(_bytes(tensor for _, tensor in members.state_tensors(mine))),
            "bytes of states, peer": str(_bytes(moments)),
            "peak of a step beyond what was there, ours": str(peak_bytes(dropping)),
            "peak of a step beyond what was there, ours kept": str(peak_bytes(ours)),
            "peak of a step beyond what was there, peer": str(peak_bytes(peer)),
        }
    )
    return both


def _ours(shape: str, batch: tuple[int, int], states: str) -> tuple[Callable[[], Tensor], Any, Schedule]:
    """Return a training step, its stepper, and which layers train when."""
    method: Any = build("lisa", {**OPTIONS, "states": states})
    model = method.prepare(new_model(shape), Context(seed=0))
    stepper = method.stepper(model, OptimConfig(lr=LR))
    return training_step(model, stepper, lambda: stepper.set_lr(LR), batch), stepper, method.schedule(model)


def _frozen_by(schedule: Schedule, model: Any, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a training step before which all layers but those of its update are frozen."""
    numbers = count()

    def frozen() -> Tensor:
        drawn = schedule.layers(next(numbers))
        for number, layer in enumerate(layers_of(model)):
            layer.requires_grad_(number in drawn)
        return step()

    return frozen


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors_within(list(tensors)))

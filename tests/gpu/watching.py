"""One short training seen by three rulers: the device's allocator, the live meter and the simulation.

Works on a CPU as on a GPU, so that what runs on a GPU is tried without one; a CPU has no allocator that
counts, and the live meter without rounding stands in for it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import Run
from harness.engine.forecast.dry_run import simulate
from harness.engine.measure.components import requested_bytes
from harness.engine.measure.peak import LiveMeter, Window, meter_for
from harness.engine.measure.speed import StepClock
from harness.engine.models.load import DTYPES, load_model
from harness.engine.models.shapes import Shape
from harness.engine.run import prepare
from harness.engine.run.train import Trainer
from harness.method import Context, Stepper, stack_caps
from tests.contract.test_methods import Case

#: Powers of two: tensors fill the blocks of CUDA's allocator, which else are up to 1 MiB longer.
SHAPE = Shape(1024, 2048, 2, 8, vocab=4096, context=256)
NAME = "square"
GRANULARITY = 512
STEPS = 3  # warm-up, a plain update, and one with a refresh
TOLERANCE = 0.02
#: A refresh decomposes matrices, and what a library takes for that is seen by neither other ruler.
REFRESH_TOLERANCE = 0.25


@dataclass(frozen=True)
class Seen:
    """Peak bytes of the watched updates above what was there before; `requested` is without rounding."""

    allocated: int
    requested: int | None
    live: int
    simulated: int
    refreshed: bool

    def complaints(self) -> list[str]:
        """What is not as it should be: too much, or less than what is known to be unseen explains."""
        found = []
        below = REFRESH_TOLERANCE if self.refreshed else TOLERANCE
        for name, value in (("live", self.live), ("simulated", self.simulated)):
            ratio = value / self.allocated
            if not 1 - below <= ratio <= 1 + TOLERANCE:
                found.append(f"{name} / allocated is {ratio:.4f}: {self}")
        return found


class BothMeters:
    """The device's own meter and the live one around the same updates."""

    def __init__(self, device: torch.device, granularity: int) -> None:
        own = meter_for(device)
        self.device, self._own, self._live = device, own, LiveMeter(device, granularity)
        self.allocated, self.live, self.requested = 0, 0, 0

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Open both; what is yielded is the device's own."""
        with self._own.window() as own, self._live.window() as live:
            yield own
        self.allocated = max(self.allocated, own.peak_allocated_bytes)
        self.live = max(self.live, live.peak_allocated_bytes)
        self.requested = max(self.requested, requested_bytes(self.device) or 0)


def run_of(case: Case, shape: str = NAME, length: int = 256, batch: int = 4, **train: Any) -> Run:
    """A run of a stack in a stage that it can do, on random tokens."""
    stages = stack_caps(case.methods()).stages
    optim = case.optim.model_dump(exclude_defaults=True)
    stage = "finetune" if "finetune" in stages else "pretrain"
    return Run.model_validate(
        {
            "model": {"source": "shape", "name": shape},
            "data": {"source": "random", "seq_len": length},
            "method": [{name: options} for name, options in case.stack],
            "train": {**optim, "stage": stage, "batch": batch, **train},
        }
    )


def ready(run: Run, device: torch.device) -> tuple[Any, Stepper, dict[str, dict[str, int]]]:
    """A prepared model on a device, its stepper, and the ranks that followed from values."""
    methods, _ = prepare.load_stack(run)
    dtype = DTYPES[run.train.dtype]
    model: Any = load_model(run.model, dtype=dtype, device=device, seed=run.seed).model
    tokens = batches(run, model.config.vocab_size)
    made = prepare.assemble(
        run, methods, model, lambda key, method: Context(seed=run.seed), tokens, meter_for(device)
    )
    assert made.trainer is not None
    return made.model, made.trainer.stepper, made.parameters.chosen_ranks


def batches(run: Run, vocab: int) -> Iterator[Any]:
    """Random token windows (batch, length)."""
    generator = torch.Generator().manual_seed(run.seed)
    while True:
        yield torch.randint(vocab, (run.train.batch, run.data.seq_len), generator=generator).numpy()


def watch(run: Run, device: torch.device, granularity: int = GRANULARITY) -> Seen:
    """Train and simulate a run; what libraries keep is there before, so it does not count."""
    prepare.load_stack(run)
    warm_up(run, device)
    empty = BothMeters(device, granularity)
    with empty.window():
        pass
    meter = BothMeters(device, granularity)
    ranks, refreshed = _train(run, device, meter)
    report = simulate(run, ranks, granularity)
    assert report.train is not None
    return Seen(
        allocated=meter.allocated - empty.allocated,
        requested=meter.requested - empty.requested or None,
        live=meter.live - empty.live,
        simulated=report.train.peak_allocated_bytes,
        refreshed=refreshed,
    )


def _train(run: Run, device: torch.device, meter: BothMeters) -> tuple[dict[str, dict[str, int]], bool]:
    """Measure a run and forget the model; return the ranks that it chose, and whether it refreshed."""
    model, stepper, chosen = ready(run, device)
    tokens = batches(run, model.config.vocab_size)
    trainer = Trainer(model, stepper, tokens, run.train, device=device, meter=meter, clock=StepClock(device))
    trained = trainer.measure_memory(STEPS)
    for ranks in list(chosen.values())[-1:]:
        ranks |= {name: rank for name, rank in trained.ranks.items() if name in ranks}
    return chosen, trained.memory.refreshes > 0


_warm: set[tuple[str, str]] = set()


def warm_up(run: Run, device: torch.device) -> None:
    """Let the libraries take their workspaces, once per device and dtype, in both threads of training."""
    key = (str(device), run.train.dtype)
    if key not in _warm:
        _warm.add(key)
        full = run.model_copy(update={"method": run_of(Case([("full", {})])).method})
        plain = run.train.model_copy(update={"stage": "finetune", "per_layer": False, "state_bits": None})
        _train(full.model_copy(update={"train": plain}), device, BothMeters(device, GRANULARITY))
    gc.collect()


def losses(model: nn.Module, stepper: Stepper, tokens: Iterator[Any], steps: int) -> list[Tensor]:
    """Do some updates by hand; the losses stay on the device."""
    model.train()
    device = next(model.parameters()).device
    found = []
    for _ in range(steps):
        ids = torch.from_numpy(next(tokens)).to(device)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        found.append(loss.detach())
    return found

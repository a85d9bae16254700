"""The peak memory of one row: simulated, and for the smallest shape also counted during a short training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.studies import jobs as processes
from harness.config import Run
from harness.engine.forecast.dry_run import simulate
from harness.engine.forecast.fake_tensors import CUDA_GRANULARITY
from harness.engine.measure.peak import LiveMeter
from harness.engine.models.load import DTYPES, load_model
from harness.engine.run import prepare
from harness.errors import one_line
from harness.method import Context, Method, Simulated
from harness.record import TrainMemory
from methods.parts.optim import eightbit

CPU = torch.device("cpu")
SMALLEST = "nano"
#: A warm-up, a plain update and one that holds a refresh, where the method has any.
UPDATES = 3
#: Phases with a peak of their own beside that of training.
PHASES = ("load", "prepare")


class Figures(BaseModel):
    """Peaks by phase and the bytes of training by component, by one meter."""

    model_config = ConfigDict(extra="forbid")

    phase_peak_bytes: dict[str, int] = {}
    train: TrainMemory


class Measured(BaseModel):
    """What is known of one row; `failed` says in one line why nothing is."""

    model_config = ConfigDict(extra="forbid")

    config_id: str
    simulated: Figures | None = None
    live: Figures | None = None
    failed: str | None = None


def measure(run: Run) -> Measured:
    """All figures of a row, by one thread; what goes wrong becomes its result."""
    torch.set_num_threads(1)
    _warm_libraries()
    small = getattr(run.model, "name", None) == SMALLEST
    try:
        return Measured(
            config_id=run.config_id,
            simulated=simulated(run, 1 if small else CUDA_GRANULARITY),
            live=counted(run) if small else None,
        )
    except Exception as error:  # one row that fails must not take the others along
        return Measured(config_id=run.config_id, failed=f"{type(error).__name__}: {one_line(error)}")


def _forget() -> None:
    """Let each row make what is made once for all: else the first of a process would pay for the others."""
    eightbit._made_codebooks.cache_clear()


def simulated(run: Run, granularity: int) -> Figures:
    """By simulation, where ranks that depend on values are what the method assumes by itself."""
    _forget()
    report = simulate(run, granularity=granularity)
    assert report.train is not None
    peaks = report.phase_peak_allocated_bytes
    return Figures(
        phase_peak_bytes={phase: peak for phase, peak in peaks.items() if phase in PHASES},
        train=report.train,
    )


def counted(run: Run) -> Figures:
    """By the live meter, during a training of a few updates with the ranks that a simulation assumes."""
    _forget()
    meter = LiveMeter(CPU)
    with meter.window() as before:
        torch.empty(0)
    methods, _ = prepare.load_stack(run)
    model: Any = load_model(run.model, dtype=DTYPES[run.train.dtype], device=CPU, seed=0).model
    random = np.random.default_rng(0)
    shape = (run.train.batch, run.data.seq_len)
    tokens = (random.integers(model.config.vocab_size, size=shape) for _ in iter(int, 1))
    trainer = prepare.assemble(run, methods, model, _context, tokens, meter).trainer
    assert trainer is not None
    seen = trainer.measure_memory(UPDATES).memory
    seen.peak_bytes -= before.peak_allocated_bytes
    train = seen.summary()
    assert train is not None
    return Figures(train=train)


def _context(key: str, method: Method) -> Context:
    """Ranks that would follow from values follow from shapes, so that no processor's rounding moves them."""
    if not method.caps.value_dependent:
        return Context(seed=0)
    return Context(seed=0, simulated=Simulated(approximation=next(iter(method.approximations))))


def _warm_libraries() -> None:
    """What a library makes at its first call is not of a run."""
    import bitsandbytes

    values, moments = torch.ones(256), torch.zeros(256, dtype=torch.uint8)
    scales, code = torch.zeros(1), torch.linspace(-1, 1, 256)
    kept = (moments, moments.clone())
    numbers = (0.9, 0.999, 0.0, 0.0, 1e-8, 1, 1e-3)
    bitsandbytes.functional.optimizer_update_8bit_blockwise(
        "adam", values, values.clone(), *kept, *numbers, code, code, scales, scales.clone()
    )


def measure_all(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> dict[str, Measured]:
    """The figures of all rows by label, the largest models first, in as many processes.

    UserError where a process dies.
    """
    found: dict[str, Measured] = {}
    with processes.pool(jobs) as pool:
        tasks = {pool.submit(measure, run): run for run in runs}
        for task in as_completed(tasks):
            found[tasks[task].name] = task.result()
            say(f"{len(found)} of {len(runs)}: {tasks[task].name}")
    return {run.name: found[run.name] for run in runs}

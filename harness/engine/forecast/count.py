"""Count the peak memory of a run on the CPU during a few updates, as a reference for its simulation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.config import CalibrationConfig, RandomData, Run
from harness.engine.data.calibration import CalibrationText
from harness.engine.data.tokens import load_tokens
from harness.engine.measure.peak import LiveMeter
from harness.engine.models import load as models
from harness.engine.run import prepare
from harness.errors import UnsupportedError
from harness.forecast import MemoryReport
from harness.method import Calibration, Context, Method, Simulated

CPU = torch.device("cpu")
#: A warm-up, a plain update and one that holds a refresh, where the method has any.
UPDATES = 3


def count(run: Run) -> MemoryReport:
    """Train a run of a named shape on random tokens, by one thread, and count the bytes of its tensors.

    Ranks that depend on values are those that a simulation assumes, so no rounding of a processor moves them.
    UnsupportedError for a run that only compresses.
    """
    torch.set_num_threads(1)
    methods, _ = prepare.load_stack(run)
    _clear_caches(methods)
    meter = LiveMeter(CPU)
    with meter.window() as before:
        torch.empty(0)
    model: Any = models.load_model(run.model, dtype=models.DTYPES[run.train.dtype], device=CPU, seed=0).model
    tokens = _tokens(model.config.vocab_size, (run.train.batch, run.data.seq_len))
    text = _calibration(run, model.config.vocab_size)
    made = prepare.assemble(run, methods, model, partial(_context, run, text), tokens, meter)
    if made.trainer is None:
        raise UnsupportedError("the run only compresses, so it has no updates to count")
    seen = made.trainer.measure_memory(UPDATES).memory
    seen.peak_bytes -= before.peak_allocated_bytes
    return MemoryReport(
        config_id=run.config_id,
        granularity=1,
        parameters_total=made.parameters.total,
        parameters_trainable=made.parameters.trainable,
        phase_peak_allocated_bytes={"train": seen.peak_bytes},
        train=seen.summary(),
    )


def _context(run: Run, text: Calibration, key: str, method: Method) -> Context:
    context = Context(seed=0, updates=run.train.steps, calibration=text)
    if method.caps.value_dependent:
        context.simulated = Simulated(approximation=next(iter(method.approximations)))
    return context


def _calibration(run: Run, vocabulary: int) -> Calibration:
    """Return random tokens for methods that look at text."""
    data = RandomData(source="random", seq_len=run.data.seq_len)
    return CalibrationText(
        load_tokens(data, None, vocabulary, 0), CalibrationConfig(), run.train.batch, 0, CPU
    )


def _tokens(vocabulary: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    while True:
        yield random.integers(vocabulary, size=shape)


def _clear_caches(methods: Sequence[Method]) -> None:
    """Let each run create what its methods cache; else the first run of a process pays for the others."""
    packages = {type(method).__module__.partition(".")[0] for method in methods}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages:
            for function in vars(module).values():
                if hasattr(function, "cache_clear"):
                    function.cache_clear()

"""How the promises of training are looked at, on any device."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.config import OptimConfig
from harness.engine.measure.components import components
from harness.engine.measure.peak import meter_for
from harness.engine.measure.speed import StepClock
from tests.contract.test_methods import Case
from tests.gpu.watching import batches, losses, ready, run_of

SMALL = {"shape": "20m", "length": 32, "batch": 2}
MATRICES = 4096  # elements from which states are kept in 8 bits


def state_dtypes(case: Case, dtype: str, device: torch.device) -> set[tuple[str, torch.dtype]]:
    """Kind of device and dtype of both moments of every large parameter, after two updates."""
    run = run_of(case, **SMALL, dtype=dtype)
    model, stepper, _ = ready(run, device)
    losses(model, stepper, batches(run, model.config.vocab_size), 2)
    moments = [(name, state) for name, state in stepper.state_tensors() if ".exp_avg" in name]
    assert len(moments) == 2 * len(list(model.parameters()))
    return {(state.device.type, state.dtype) for _, state in moments if state.numel() >= MATRICES}


class FusedCalls(TorchDispatchMode):
    """Notes the devices of what torch's fused AdamW is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.name().startswith("aten::_fused_adam"):
            self.devices |= {tensor.device.type for tensor in args[0]}
        return func(*args, **(kwargs or {}))


def fused_devices(case: Case, device: torch.device) -> set[str]:
    """The kinds of devices on which torch's fused AdamW ran in two updates; empty where it never ran."""
    run = run_of(case, **SMALL)
    model, stepper, _ = ready(run, device)
    with FusedCalls() as seen:
        losses(model, stepper, batches(run, model.config.vocab_size), 2)
    return seen.devices


def gradients_after_backward(case: Case, device: torch.device) -> list[str]:
    """The parameters that still have a gradient when the backward pass has ended, with any bytes counted."""
    run = run_of(case, **SMALL)
    model, stepper, _ = ready(run, device)
    tokens = batches(run, model.config.vocab_size)
    losses(model, stepper, tokens, 1)
    ids = torch.from_numpy(next(tokens)).to(device)
    model(input_ids=ids, labels=ids).loss.backward()
    left = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert bool(left) == (components(model, stepper.state_tensors()).gradients_bytes > 0)
    return left


def peak_per_layer_and_not(device: torch.device, **shape: Any) -> tuple[int, int, int]:
    """Peak bytes of an update inside the backward pass, of one after it, and bytes of all gradients."""
    peaks, gradients = [], 0
    for per_layer in (True, False):
        run = run_of(Case([("full", {})], OptimConfig(per_layer=per_layer)), **shape)
        model, stepper, _ = ready(run, device)
        tokens = batches(run, model.config.vocab_size)
        losses(model, stepper, tokens, 1)
        with meter_for(device).window() as window:
            losses(model, stepper, tokens, 1)
        peaks.append(window.peak_allocated_bytes)
        gradients = sum(parameter.nbytes for parameter in model.parameters())
        del model, stepper
    return peaks[0], peaks[1], gradients


def equal_twice(case: Case, device: torch.device) -> bool:
    """Whether two runs of the same seed have equal losses and weights, with torch's deterministic kernels."""
    found: list[tuple[list[Tensor], list[Tensor]]] = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(5)
            run = run_of(case, **SMALL)
            model, stepper, _ = ready(run, device)
            course = losses(model, stepper, batches(run, model.config.vocab_size), 4)
            found.append((course, [parameter.detach().clone() for parameter in model.parameters()]))
    finally:
        torch.use_deterministic_algorithms(before)
    pairs = [pair for both in zip(*found, strict=True) for pair in zip(*both, strict=True)]
    return all(first.equal(second) for first, second in pairs)


def clock_against_wall(device: torch.device, repeats: int = 200, size: int = 8192) -> tuple[float, float]:
    """Seconds of the same matrix products by the step clock and by the wall."""
    matrix = torch.full((size, size), 1e-3, device=device)
    clock = StepClock(device)
    matrix @ matrix
    clock.seconds()  # waits for the device
    began = time.perf_counter()
    clock.start()
    for _ in range(repeats):
        matrix @ matrix
    clock.stop(False)
    seconds = clock.seconds()
    return seconds[0], time.perf_counter() - began

"""A method that trains every parameter and breaks on purpose, in the way and in the phase that it is told.

How each phase is reached: the constructor swaps the function that loads models (before `load` calls
it); `prepare`, `stepper.step` and `export` are the method's own; the first forward pass of the
prepared model without gradients is the evaluation's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import Context, Method, MethodConfig, StepInfo
from harness.record import Phase

Fault = Literal["none", "exception", "memory", "gpu memory", "python memory", "nan", "hang", "sigkill"]


def strike(fault: Fault) -> None:
    """Let the fault happen."""
    print(f"about to: {fault}", file=sys.stderr, flush=True)
    if fault == "exception":
        raise ValueError("this is not a shape I know")
    if fault == "memory":
        torch.empty(2**48, dtype=torch.float64)  # torch's own refusal: no machine has 2 PiB
    if fault == "gpu memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has 139 GiB")
    if fault == "python memory":
        raise MemoryError
    if fault == "hang":
        time.sleep(3600)
    if fault == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)


class Config(MethodConfig):
    """What breaks, and where."""

    fault: Fault = "none"
    phase: Phase = "train"


class PlainSGD:
    """Gradient descent on all parameters; breaks in its second step."""

    def __init__(self, model: nn.Module, fault: Fault) -> None:
        self.model, self.fault, self.lr, self.steps = model, fault, 0.0, 0

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    @torch.no_grad()
    def step(self) -> StepInfo:
        self.steps += 1
        if self.steps == 2:
            strike(self.fault)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter -= self.lr * parameter.grad
                if self.fault == "nan":
                    parameter *= float("nan")
        return StepInfo()

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from ()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Faulty(Method):
    """Breaks as its options say."""

    Config = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.fault != "none" and config.phase == "load":
            from harness.engine.run import phases

            def load_model(*args: Any, **kwargs: Any) -> NoReturn:
                strike(config.fault)
                raise AssertionError("the fault did not happen")

            phases.load_model = load_model

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        self._strike_in("prepare")
        if self.config.phase == "evaluate":
            model.register_forward_pre_hook(self._in_forward)
        return model.requires_grad_(True)

    def stepper(self, model: nn.Module, optim: OptimConfig) -> PlainSGD:
        return PlainSGD(model, self.config.fault if self.config.phase == "train" else "none")

    def export(self, model: nn.Module) -> nn.Module:
        self._strike_in("export")
        return model

    def _in_forward(self, model: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            self._strike_in("evaluate")

    def _strike_in(self, phase: Phase) -> None:
        if self.config.phase == phase:
            strike(self.config.fault)

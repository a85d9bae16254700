"""The subject of a check: a stack of methods, built anew for each trial on a tiny model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.engine.contract import members
from harness.engine.contract.tiny import TinyText, tiny_batch, tiny_llama
from harness.errors import MethodError
from harness.method import Caps, Context, Method, StepInfo, Stepper, stack_caps
from harness.plugins import build

LR = 1e-2
SEED = 1
#: Updates that a method is told will follow: enough to see a period of 10 twice.
UPDATES = 50
OPTIM = OptimConfig(lr=LR, weight_decay=0.01, clip=1.0)


@dataclass
class Trial:
    """A prepared model with its stepper."""

    model: Any
    stepper: Stepper

    def backward(self, step: int, lr: float = LR) -> float:
        """Set the rate, do a forward and a backward pass, and return the loss."""
        self.stepper.set_lr(lr)
        ids = tiny_batch(step)
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss.item())

    def update(self, step: int, lr: float = LR) -> tuple[float, StepInfo]:
        """Do one whole update and return its loss and what the stepper said."""
        loss = self.backward(step, lr)
        info = members.step(self.stepper)
        self.stepper.zero_grad()
        return loss, info

    def train(self, first: int, last: int, lr: float = LR) -> list[float]:
        """Do the updates `first` up to and without `last` and return their losses."""
        return [self.update(step, lr)[0] for step in range(first, last)]

    def weights(self) -> dict[str, Tensor]:
        """Return copies of all parameters."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


@dataclass(frozen=True)
class Subject:
    """A stack of methods as pairs of a name and options, and how it is trained."""

    stack: Sequence[tuple[str, Mapping[str, Any]]]
    optim: OptimConfig = OPTIM
    shape: Mapping[str, Any] = field(default_factory=dict)

    def methods(self) -> list[Method]:
        """Return the methods, the same ones each time, since `prepare` may keep something for `stepper`."""
        return self._methods

    @cached_property
    def _methods(self) -> list[Method]:
        return [build(name, options) for name, options in self.stack]

    @property
    def caps(self) -> Caps:
        """What the stack promises."""
        return stack_caps(self.methods())

    @property
    def name(self) -> str:
        """The names of the stack."""
        return " + ".join(name for name, _ in self.stack)

    def prepared(self, updates: int = UPDATES) -> Any:
        """Return a tiny model as the stack prepares it for a training of so many updates."""
        model: nn.Module = tiny_llama(**self.shape)
        for (name, _), method in zip(self.stack, self.methods(), strict=True):
            context = Context(seed=SEED, updates=updates, calibration=TinyText())
            model = members.prepare(name, method, model, context)
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig | None = None) -> Stepper:
        """Return the stepper of the last method that brings one, else plain descent."""
        for (name, _), method in reversed(list(zip(self.stack, self.methods(), strict=True))):
            made = members.stepper(name, method, model, optim or self.optim)
            if made is not None:
                members.trainable(name, method, model)
                return made
        return Descent(model)

    @property
    def trains(self) -> bool:
        """Whether the stack brings a stepper of its own."""
        return not isinstance(self.stepper(self.prepared()), Descent)

    def trial(self, optim: OptimConfig | None = None, updates: int = UPDATES) -> Trial:
        """Return a model and stepper ready for the first update; dropout then draws equal numbers."""
        model = self.prepared(updates)
        stepper = self.stepper(model, optim)
        model.train()
        seed_everything(5)
        return Trial(model, stepper)


class Descent:
    """Plain gradient descent, for a stack that changes the model and leaves its training to others."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.lr = 0.0
        if not self.parameters:
            raise MethodError("all parameters of the prepared model are frozen")

    def set_lr(self, lr: float) -> None:
        """Set the rate."""
        self.lr = lr

    @torch.no_grad()
    def step(self) -> StepInfo:
        """Move against the gradient."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=self.lr)
        return StepInfo()

    def zero_grad(self) -> None:
        """Free the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Return no tensors: nothing is kept."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""


def seed_everything(seed: int) -> None:
    """Seed the global random numbers of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)

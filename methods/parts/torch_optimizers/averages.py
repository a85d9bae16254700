"""Optimizers that evaluate other weights than they train: averages that they swap in and out.

Those without a schedule (Defazio et al. 2024, arXiv 2405.15682) are such.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def follows_mode(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has other weights to train and to evaluate, by `train()` and `eval()`."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


class Mode:
    """Hooks around the forward pass of a model that put optimizers into the model's mode.

    As long as `owner` lives, which trains, the weights to evaluate are there within a forward pass alone, and
    those to train come back to the bit: the optimizers' own way back rounds. The hooks keep the optimizers
    alive only until the weights to evaluate are there for good.
    """

    def __init__(self, optimizers: Iterable[Optimizer], owner: object) -> None:
        self._kept = [*optimizers]
        self._known = [weakref.ref(optimizer) for optimizer in self._kept]
        self._owner = weakref.ref(owner)
        self._trained: list[tuple[Tensor, Tensor]] = []
        self._training = False
        self.set(True)

    def watch(self, model: nn.Module) -> None:
        """Follow the mode of a model from now on."""
        model.register_forward_pre_hook(self)
        model.register_forward_hook(self._leave, always_call=True)

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        """Follow the mode of the model."""
        if not model.training and self._training and self._owner() is not None:
            groups = (group for optimizer in self._kept for group in optimizer.param_groups)
            weights = [weight for group in groups for weight in group["params"]]
            self._trained = [(weight, weight.detach().clone()) for weight in weights]
        self.set(model.training)

    @torch.no_grad()
    def _leave(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Put the weights to train back where training goes on."""
        trained, self._trained = self._trained, []
        if trained:
            self.set(True)
        for weight, before in trained:
            weight.copy_(before)

    def set(self, training: bool) -> None:
        """Put the weights to train or those to evaluate into the model."""
        if training != self._training:
            alive = [found for known in self._known if (found := known()) is not None]
            for optimizer in alive:
                getattr(optimizer, "train" if training else "eval")()
            self._kept, self._training = alive if training else [], training


def remove_mode(model: nn.Module) -> None:
    """Leave a model with the weights to evaluate, and without the hooks."""
    for key, hook in [*model._forward_pre_hooks.items()]:
        if isinstance(hook, Mode):
            hook.set(False)
            del model._forward_pre_hooks[key]
    for key, hook in [*model._forward_hooks.items()]:
        if isinstance(getattr(hook, "__self__", None), Mode):
            del model._forward_hooks[key]

"""Optimizers that evaluate other weights than they train: averages that they swap in and out.

Those without a schedule (Defazio et al. 2024, arXiv 2405.15682) are such.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def follows_mode(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has other weights to train and to evaluate, by `train()` and `eval()`."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


class Mode:
    """A hook before the forward pass of a model that puts optimizers into the model's mode.

    It keeps them alive only until the weights to evaluate are in place.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._kept = [*optimizers]
        self._known = [weakref.ref(optimizer) for optimizer in self._kept]
        self._training = False
        self.set(True)

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        """Follow the mode of the model."""
        self.set(model.training)

    def set(self, training: bool) -> None:
        """Put the weights to train or those to evaluate into the model."""
        if training != self._training:
            alive = [found for known in self._known if (found := known()) is not None]
            for optimizer in alive:
                getattr(optimizer, "train" if training else "eval")()
            self._kept, self._training = alive if training else [], training


def remove_mode(model: nn.Module) -> None:
    """Leave a model with the weights to evaluate, and without the hook."""
    for key, hook in [*model._forward_pre_hooks.items()]:
        if isinstance(hook, Mode):
            hook.set(False)
            del model._forward_pre_hooks[key]

"""Masks over the heads of an attention or the channels of an MLP while a model trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.parts.pruning.importance import scores
from methods.parts.pruning.removal import COLUMNS, ROWS, Kind, Part
from methods.parts.pruning.schedule import Ramp

#: The name of the masks within the module that they belong to.
NAME = "pruned_groups"


class Groups(nn.Module):
    """The groups of one attention or MLP: which are left, and their smoothed importance.

    The mask multiplies the outputs of the layers that write the groups. Both tensors (groups,) are of the
    optimizer, not of the model: a stepper yields and stores them.
    """

    def __init__(self, part: Part, ramp: Ramp) -> None:
        super().__init__()
        self.kind: Kind = part.kind
        self.ramp = ramp
        weight = part.column.weight
        self.mask = weight.new_ones(part.groups, requires_grad=False)
        self.importance = weight.new_zeros(part.groups, dtype=torch.float32, requires_grad=False)

    def watch(self, module: nn.Module) -> None:
        """Become a part of the attention or MLP, and multiply the outputs of its layers from now on."""
        module.add_module(NAME, self)
        for kind in ROWS[self.kind]:
            getattr(module, kind).register_forward_hook(self._masked)

    def _masked(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        by_group = output.unflatten(-1, (len(self.mask), -1)) * self.mask[:, None]
        return by_group.flatten(-2)

    @torch.no_grad()
    def score(self, module: Any, smoothing: float, quadratic: bool) -> None:
        """Take the importance by the gradients of this update in: S <- c S + (1 - c) I, unless it is NaN."""
        groups = len(self.mask)
        found = scores(getattr(module, COLUMNS[self.kind]), "columns", groups, quadratic)
        for kind in ROWS[self.kind]:
            found = found + scores(getattr(module, kind), "rows", groups, quadratic)
        smoothed = self.importance * smoothing + found.float() * (1 - smoothing)
        self.importance.copy_(torch.where(found.isfinite().all(), smoothed, self.importance))

    def count(self, update: int) -> int:
        """Return how many groups are pruned at an update, counted from 1."""
        return round(self.ramp.share(update) * len(self.mask))

    @torch.no_grad()
    def choose(self, count: int) -> None:
        """Prune the `count` groups of least importance; those that are pruned stay so and come first."""
        left = torch.where(self.mask > 0, self.importance, -1.0)
        self.mask[left.argsort(stable=True)[:count]] = 0


def groups_of(model: nn.Module) -> dict[str, Groups]:
    """Return all masks of a model by the name of the attention or MLP that they belong to."""
    return {
        name.rpartition(".")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, Groups)
    }


def taken_away(model: nn.Module) -> dict[str, Tensor]:
    """Take the masks out of a model; return each (groups,) by the name of its attention or MLP.

    The hooks on its layers stay, and go with the adapters.
    """
    found = groups_of(model)
    for name in found:
        delattr(model.get_submodule(name), NAME)
    return {name: groups.mask for name, groups in found.items()}

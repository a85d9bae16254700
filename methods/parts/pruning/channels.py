"""Which channels of an MLP stay: Li et al., LoRAP, ICML 2024, arXiv 2404.09695."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.parts.calibration.statistics import InputStatistics
from methods.parts.pruning.removal import ROWS, Part
from methods.parts.pruning.shares import removed_channels


@torch.no_grad()
def channel_importance(
    gate: nn.Linear, up: nn.Linear, down: nn.Linear, before: InputStatistics, within: InputStatistics
) -> Tensor:
    """Return the importance (width,) of each channel, float64: norms of its weights times those of inputs.

    ||(|up| D)_c|| + ||(|gate| D)_c|| + ||(|down| D')_:c||, where D and D' hold the root mean squares of the
    inputs of gate and up (`before`) and of down (`within`). A common factor of both changes no order.
    """
    first, second = ((layer.weight.double().square() @ before.mean_square).sqrt() for layer in (gate, up))
    columns = (down.weight.double().square().sum(0) * within.mean_square).sqrt()
    return first + second + columns


def kept_channels(
    part: Part, before: InputStatistics, within: InputStatistics, sparsity: float, least_kept: float
) -> Tensor:
    """Return the numbers of the channels of an MLP that stay, ascending; arguments as of `shares`."""
    gate, up = (part.row(kind) for kind in ROWS[part.kind])
    order = channel_importance(gate, up, part.column, before, within).argsort(stable=True)
    gone = removed_channels(part.groups, sparsity, least_kept)
    return torch.cat([order[: gone.start], order[gone.stop :]]).sort().values

"""A frozen linear layer beside a low-rank update whose outer factors other layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedTuckerLinear(nn.Module):
    """y = W x + scaling L C R x with L (out, r) and R (r, in) of several layers, C (r, r) of this one.

    The updates L C R of k layers that share L and R, stacked, are a tensor of Tucker rank at most (r, k, r)
    (Bershatsky et al., LoTR, 2024, arXiv 2402.01376).
    """

    def __init__(self, base: nn.Linear, left: nn.Parameter, right: nn.Parameter, scaling: float) -> None:
        """Begin with C = 0, so that the layer says what `base` says."""
        super().__init__()
        self.base, self.left, self.right, self.scaling = base, left, right, scaling
        self.core = nn.Parameter(left.new_zeros(left.shape[1], left.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (..., in) to (..., out)."""
        coordinates = functional.linear(functional.linear(x, self.right), self.core)
        return self.base(x) + self.scaling * functional.linear(coordinates, self.left)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Add the update to the weight of `base`, by products in float32, and return `base`."""
        update = self.left.float() @ self.core.float() @ self.right.float()
        self.base.weight.add_(self.scaling * update)
        return self.base

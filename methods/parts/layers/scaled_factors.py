"""Factors that stay as they are beside scales that train (Ji et al., Bolaco, 2024, arXiv 2405.10616, eq. 9).

y = (B A + diag(b) B_r diag(d) A_r) x + bias, where A_r are the leading r rows of A (rank, in) and B_r the
same columns of B (out, rank). Only b (out,) and d (r,) train. As A_r are rows of A, the sum is a product of
the same rank: that of A with B whose columns B_r are B_r * (1 + b d^T), element by element.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.factored import FactoredLinear


class ScaledFactors(FactoredLinear):
    """Two frozen factors with scales of the outputs (out,) and of r inner features (r,) that train."""

    def __init__(self, base: FactoredLinear, scaled: int, start: float) -> None:
        """Scale the first `scaled` inner features; with scales of outputs of 0 it begins as `base`."""
        super().__init__(base.down.requires_grad_(False), base.up.requires_grad_(False))
        weight = base.up.weight
        self.outputs = nn.Parameter(weight.new_zeros(base.out_features))
        self.inner = nn.Parameter(weight.new_full((scaled,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (..., in) to (..., out)."""
        inside, scaled = self.down(x), len(self.inner)
        beside = functional.linear(inside[..., :scaled] * self.inner, self.up.weight[:, :scaled])
        return self.up(inside) + self.outputs * beside

    @torch.no_grad()
    def folded(self) -> FactoredLinear:
        """Return plain factors of the same rank that say the same; the scales become part of `up`."""
        scaled = len(self.inner)
        exact = torch.promote_types(self.up.weight.dtype, torch.float32)
        change = 1 + torch.outer(self.outputs.to(exact), self.inner.to(exact))
        self.up.weight[:, :scaled] = (self.up.weight[:, :scaled].to(exact) * change).to(self.up.weight.dtype)
        return FactoredLinear(self.down, self.up)

    def merged(self) -> nn.Linear:
        """Return the dense layer that says the same."""
        return self.folded().merged()

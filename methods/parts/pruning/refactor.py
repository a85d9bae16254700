"""Factor weights that are products of low rank already, where nothing is lost by it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from harness.factored import factor
from methods.parts.factors.kernel import decompose

#: What a relative error may be that comes from rounding the weight: so many units of its dtype, and the
#: error of singular values that come from eigenvalues in float64.
ROUNDING, EIGENVALUES = 4.0, 1e-7


@torch.no_grad()
def refactor(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Replace plain linear layers by factors of these ranks, in place; those of a higher rank stay dense.

    So do those that factors of their rank would not make smaller.
    """
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear or rank * sum(layer.weight.shape) >= layer.weight.numel():
            continue
        found = decompose(layer.weight, None, rank, name=name)
        tolerance = max(ROUNDING * torch.finfo(layer.weight.dtype).eps, EIGENVALUES)
        if found.error(rank) <= tolerance**2 * float(found.energies.sum()):
            factors = found.factors(rank)
            made = factor(layer, factors.up, factors.down)
            model.set_submodule(name, made.requires_grad_(layer.weight.requires_grad))
    return model

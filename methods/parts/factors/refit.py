"""A factor that is fitted to inputs which the other one was not chosen for."""

from __future__ import annotations

import torch
from torch import Tensor

#: Relative size of the energies of z below which the text says nothing about a direction.
CUTOFF = 1e-10


@torch.no_grad()
def refitted(weight: Tensor, up: Tensor, down: Tensor, moment: Tensor) -> Tensor:
    """Return the `up` (out, rank) with the least error ||W x - up z||^2 over inputs x, where z = down x.

    `moment` is the mean of x x^T (in, in), float64. The minimum is W M A^T (A M A^T)^+ (Wang et al., SVD-LLM,
    2024, arXiv 2403.07378 v1, the closed-form update). Where A M A^T is singular many have the same error;
    this is the one nearest to the given `up`, since what the text says nothing about should stay. On the
    inputs that `up` and `down` are the best factors for, it changes nothing.
    """
    dense, left, right = (tensor.double() for tensor in (weight, up, down))
    inner = right @ moment @ right.T
    missing = (dense - left @ right) @ (moment @ right.T)
    return left + missing @ torch.linalg.pinv(inner, rtol=CUTOFF, hermitian=True)

"""Round groups of numbers to a grid of 2^bits equally spaced points each: value = low + code * step.

All functions work on groups as rows, (groups, size), with `step` and `low` (groups, 1). By default a grid
reaches from the smallest to the largest number of its group, and all is computed in float32 at least. Each
number then lies between two points of its grid, so stochastic rounding to one of them is unbiased.

`official` is the code of Zhang et al., Q-GaLore, 2024, arXiv 2407.08296: zero is a point of each grid, and
all is computed in the dtype of the numbers. There the extremes of a group lie up to half a step outside of
its grid and are pulled in at every rounding, a group that does not hold zero is cut off, and in bfloat16
most places between two points cannot be told apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.parts.quantisation.tensor import exact

#: Smallest range of a group in the official arithmetic.
SMALLEST_RANGE = 1e-5


def grid_of(groups: Tensor, bits: int, official: bool) -> tuple[Tensor, Tensor]:
    """Return step and lowest point of the grid of each group."""
    levels, dtype = 2**bits - 1, exact(groups.dtype)
    low, high = groups.aminmax(dim=1, keepdim=True)
    if not official:
        step = (high.to(dtype) - low.to(dtype)) / levels
        return torch.where(step > 0, step, 1.0), low.to(dtype)
    step = (high - low).clamp(min=SMALLEST_RANGE) / levels
    zero = (-(low / step).round()).clamp(0, levels)
    return step.to(dtype), -zero.to(dtype) * step.to(dtype)


def codes_of(
    groups: Tensor,
    step: Tensor,
    low: Tensor,
    bits: int,
    official: bool,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the codes of the nearest points, or of one of the two around each number with a generator.

    The upper one is taken with a probability that is the share of the step up to the number.
    """
    places = groups / step.to(groups.dtype) if official else (groups - low).div_(step)
    if generator is None:
        places.round_()
    else:
        below = places.floor()
        drawn = torch.rand(places.shape, generator=generator, dtype=step.dtype, device=places.device)
        places = below.add_(drawn < places.sub_(below))
    if official:
        places.sub_((low / step).round())
    return places.clamp_(0, 2**bits - 1).to(torch.uint8)


def values_of(codes: Tensor, step: Tensor, low: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the points of these codes, rounded once to a dtype."""
    return torch.addcmul(low, codes, step, out=torch.empty(codes.shape, dtype=dtype, device=codes.device))

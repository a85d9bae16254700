"""Keep the largest entries of a moment."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(values: Tensor, share: float) -> Tensor:
    """Return values with 0 for all but a share of them, the largest magnitudes, at least one."""
    count = max(1, round(share * values.numel()))
    flat = values.flatten()
    kept = flat.abs().topk(count).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(values)

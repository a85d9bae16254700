"""Replicas of a model on several processes: values that would differ by rounding are those of the first."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def several() -> bool:
    """Return whether the run is distributed over more than one process."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Give contiguous tensors the values that they have on process 0, in place; alone it does nothing."""
    if several():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)

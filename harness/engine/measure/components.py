"""The rulers of time and of memory by component; the meters of peak memory are in `meters.py`.

Nothing here decides when to measure: the training loop does, and the worker keeps the phases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from harness.engine.measure.storages import parts


# ------------------------------------------------------------------------------- memory by component
@dataclass(frozen=True)
class Components:
    """Bytes that stay between two steps, each storage counted once."""

    weights_trainable_bytes: int
    weights_frozen_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int

    @property
    def resident_bytes(self) -> int:
        """The sum of all components; a peak minus this is transient."""
        return (
            self.weights_trainable_bytes
            + self.weights_frozen_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.buffers_bytes
        )


def components(model: nn.Module, state: Iterable[tuple[str, Tensor]]) -> Components:
    """Split what a model and its optimizer hold right now into components.

    A storage belongs to the first of: trainable weights, frozen weights, gradients, buffers, optimizer
    `state`. So tied weights count once, and so does a state tensor that shares its storage with a
    parameter; a small view of a big storage counts as the storage that it keeps alive. Only storages
    on a device of the model's parameters count: state kept elsewhere is no memory of that device.
    """
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    seen: set[int] = set()

    def fresh_bytes(tensors: Iterable[Tensor]) -> int:
        total = 0
        for part in (part for tensor in tensors for part in parts(tensor)):
            storage = part.untyped_storage()
            if part.device in devices and storage._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
        return total

    return Components(
        weights_trainable_bytes=fresh_bytes(p for p in parameters if p.requires_grad),
        weights_frozen_bytes=fresh_bytes(p for p in parameters if not p.requires_grad),
        gradients_bytes=fresh_bytes(p.grad for p in parameters if p.grad is not None),
        buffers_bytes=fresh_bytes(model.buffers()),
        optimizer_bytes=fresh_bytes(tensor for _, tensor in state),
    )


def host_rss_bytes() -> int:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss


def requested_bytes(device: torch.device) -> int | None:
    """The most that tensors asked for since the peak was reset; None on a device without such a count.

    Allocated bytes are more: CUDA's caching allocator counts the whole block that it hands out, which may
    be up to 1 MiB longer than what was asked for.
    """
    return torch.cuda.memory_stats(device)["requested_bytes.all.peak"] if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int | None:
    """The most that the caching allocator held since its peak was reset; None on a device without one."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


# ------------------------------------------------------------------------------------------- time


# ---------------------------------------------------------------------------- model FLOPs utilisation

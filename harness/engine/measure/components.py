"""Measure memory by component (weights, gradients, optimizer states, buffers); peaks are in `peak.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from harness.engine.measure.storages import parts


@dataclass(frozen=True)
class Components:
    """Bytes that stay allocated between two steps, each storage counted once."""

    weights_trainable_bytes: int
    weights_frozen_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int

    @property
    def resident_bytes(self) -> int:
        """The sum of all components; the rest of a peak is activations and temporaries."""
        return sum(vars(self).values())


def components(model: nn.Module, state: Iterable[tuple[str, Tensor]]) -> Components:
    """Return the bytes that a model and its optimizer hold now, by component.

    A storage belongs to the first of: trainable weights, frozen weights, gradients, buffers, optimizer
    `state`. So tied weights count once, and so does a state tensor that shares its storage with a
    parameter; a small view of a big storage counts as the storage that it keeps alive. Only storages
    on a device of the model's parameters count.
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
    """Return the resident memory of this process."""
    return psutil.Process().memory_info().rss


def requested_bytes(device: torch.device) -> int | None:
    """Return the peak of bytes requested by tensors since the last reset; None except on CUDA.

    Allocated bytes are more: CUDA's caching allocator counts whole blocks, which may be up to 1 MiB longer
    than the request.
    """
    return torch.cuda.memory_stats(device)["requested_bytes.all.peak"] if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int | None:
    """Return the peak of bytes held by the caching allocator since the last reset; None except on CUDA."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None

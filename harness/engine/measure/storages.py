"""Find tensors and their storages: the plain parts of a tensor, tensors in containers, all tensors alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_SPARSE_PARTS: dict[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors behind a tensor: itself, or the parts of a wrapper subclass or a sparse layout.

    Parts may share a storage. Works on fake tensors, too: a part knows its device, a fake storage does not.
    """
    if tensor.layout in _SPARSE_PARTS:
        for name in _SPARSE_PARTS[tensor.layout]:
            yield getattr(tensor, name)()
    elif hasattr(type(tensor), "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield from parts(getattr(tensor, name))
    else:
        yield tensor


def tensors_alive() -> Iterator[Tensor]:
    """Yield every tensor that Python can reach, hidden caches included, with the gradients of leaves."""
    for thing in gc.get_objects():
        if not issubclass(type(thing), Tensor):  # isinstance() would run the code of proxies
            continue
        yield thing
        with suppress(RuntimeError, NotImplementedError, ValueError):
            if thing.is_leaf and thing.grad is not None:
                yield thing.grad


def tensors_within(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_within(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_within(item)

"""Count what each operation has to compute and to move, by its shapes alone: the work of an update.

Bytes are those that an operation has to read and to write once, if nothing stays in a cache from the
operation before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.engine.measure.flops import flops_of
from harness.engine.measure.storages import parts, tensors_within
from harness.forecast import Kind, Part, Work

aten = torch.ops.aten
#: Operations that only describe or reserve memory.
NO_WORK = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(aten._unsafe_view, aten._reshape_alias, aten.detach, aten.lift_fresh, aten.promote_types),
    torch.ops.prim.device,
}
#: Operations that read or write chosen rows of their first tensor, and no others of it.
ROWS_READ = {aten.embedding, aten.index_select, aten.gather, aten.index, aten.nll_loss_forward}
ROWS_CHANGED = {aten.index_add_, aten.index_add, aten.scatter_add_, aten.index_put_, aten.index_copy_}

#: The kinds of operations that compute without being products of matrices.
KINDS: dict[Any, Kind] = {
    aten._scaled_dot_product_flash_attention_for_cpu: "attention",
    aten._scaled_dot_product_flash_attention: "attention",
    aten._scaled_dot_product_efficient_attention: "attention",
    aten._scaled_dot_product_cudnn_attention: "attention",
    aten._scaled_dot_product_flash_attention_for_cpu_backward: "attention backward",
    aten._scaled_dot_product_flash_attention_backward: "attention backward",
    aten._scaled_dot_product_efficient_attention_backward: "attention backward",
    aten._scaled_dot_product_cudnn_attention_backward: "attention backward",
    aten._linalg_svd: "svd",
    aten._linalg_eigh: "eigh",
    aten.linalg_qr: "qr",
}

#: Operations that write to their first argument without reading it.
OVERWRITES = {aten.zero_, aten.fill_, aten.copy_, aten.normal_, aten.uniform_, aten.random_}


@dataclass(frozen=True)
class Call:
    """What one call of an operation has to do; the key under which equal ones are counted."""

    kind: Kind
    operation: str
    dtype: str
    size: int
    flops: int
    bytes: int
    new_bytes: int


class OperationLog:
    """The operations of a stretch of code: how many of each kind and size in each part of an update.

    `times` is how often each is counted.
    """

    def __init__(self) -> None:
        self.times = 1
        self._found: Counter[tuple[Part, Call]] = Counter()

    def note(
        self, part: Part, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Count one call of an operator of torch; `result` is what it returned."""
        if _works(func):
            self._found[part, call(func, args, kwargs, result)] += self.times

    def work(self) -> list[Work]:
        """Return what was noted, in the order in which each came first."""
        return [Work(part=part, count=count, **vars(call)) for (part, call), count in self._found.items()]


def call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Call:
    """Describe one call by its shapes."""
    given = [*tensors_within([*args, dict(kwargs)])]
    flops = flops_of(func, args, kwargs, result)
    kind = KINDS.get(func._overloadpacket, "product") if flops else "memory"
    first = next(iter(given or tensors_within(result)), None)
    dtype = "none" if first is None else str(first.dtype).removeprefix("torch.")
    size = _size(kind, given) if flops else 0
    moved, new = bytes_of(func, args, kwargs, result)
    return Call(kind, _name(func), dtype, size, flops, moved, new)


def bytes_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> tuple[int, int]:
    """Return the bytes that one call has to read and to write, and those of them that it allocates."""
    packet = func._overloadpacket
    given, made = _sizes([*args, dict(kwargs)]), _sizes(result)
    new = sum(size for key, size in made.items() if key not in given)
    first = next(tensors_within(list(args)), None)
    if first is not None and packet in ROWS_READ | ROWS_CHANGED:
        given.pop(_key(first), None)
    read = sum(given.values())
    if packet in ROWS_READ:
        return read + 2 * sum(made.values()), new
    if packet in ROWS_CHANGED:
        return 3 * read, new  # the rows are read, and they and the first tensor's written
    changed = _sizes([args[n] if n < len(args) else kwargs.get(name) for n, name in _written(func)])
    if packet in OVERWRITES or "out" in kwargs:
        read -= sum(size for key, size in changed.items() if key in given)
    return read + sum(changed.values()) + new, new


@cache
def _works(func: Any) -> bool:
    """Return whether an operator does more than to describe or to reserve memory."""
    return not func.is_view and func._overloadpacket not in NO_WORK


@cache
def _name(func: Any) -> str:
    return str(func.name()).removeprefix("aten::").partition(".")[0]


@cache
def _written(func: Any) -> list[tuple[int, str]]:
    """Return place and name of the arguments that an operator changes in place, by its schema."""
    return [
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        if argument.name != "grads"  # of a fused optimizer, which writes them only to rescale them
    ]


def _sizes(values: Any) -> dict[Any, int]:
    """Return the bytes of each different tensor within values; of a broadcast one, those that are stored."""
    found = {}
    for tensor in tensors_within(values):
        for part in parts(tensor):
            size = part.numel() * part.element_size()
            found[_key(part)] = min(size, part.untyped_storage().nbytes())
    return found


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)


def _size(kind: Kind, given: Sequence[Tensor]) -> int:
    """Return the side or length that decides the rate: the smallest of a product's three, for example."""
    if kind.startswith("attention"):
        return given[-1].shape[-2] if kind == "attention" else given[1].shape[-2]
    matrices = [tensor for tensor in given if tensor.dim() >= 2][-2:]
    if kind == "product":
        return min(side for matrix in matrices for side in matrix.shape[-2:]) if len(matrices) == 2 else 1
    return min(matrices[0].shape[-2:])

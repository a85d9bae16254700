"""Split a nested state into named tensors and plain values that JSON holds, and join them again.

What a stepper's `state_dict` returns is dicts, lists and tuples of tensors and of plain values. The tensors
go to safetensors and the rest to JSON, so that reading a checkpoint never executes anything, as unpickling
would. Types are kept: keys that are whole numbers, tuples, infinite floats, dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: The key that says what a dict of JSON stands for; the state's own dicts are lists of pairs.
KIND = "kind"


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a nested state as plain values, and its tensors by their places in it.

    Tensors of one memory, such as a tied head, have one name. A tensor is the one that it was, unless it has
    holes or is a part of another: then it is a copy. TypeError, with the place, for a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}

    def walk(value: Any, place: str) -> Any:
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {KIND: "float", "value": repr(value)}
        if isinstance(value, list):
            return [walk(item, _below(place, index)) for index, item in enumerate(value)]
        if isinstance(value, tuple):
            return {KIND: "tuple", "items": walk(list(value), place)}
        if isinstance(value, Mapping):
            pairs = [[walk(key, place), walk(item, _below(place, key))] for key, item in value.items()]
            return {KIND: "dict", "items": pairs}
        if isinstance(value, Tensor):
            return {KIND: "tensor", "name": _name(_whole(value, place), place, tensors, names)}
        if isinstance(value, torch.dtype):
            return {KIND: "dtype", "value": str(value).removeprefix("torch.")}
        raise TypeError(f"{place} is a {type(value).__name__}; a checkpoint holds tensors and plain values")

    return walk(state, ""), tensors


def _below(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _whole(tensor: Tensor, place: str) -> Tensor:
    """Return a tensor that fills its memory: itself where it does."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or type(tensor) is not Tensor:
        raise TypeError(f"{place} is a {type(tensor).__name__} of layout {tensor.layout}, not a dense tensor")
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _name(tensor: Tensor, place: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> str:
    memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape)
    if tensor.numel() and memory in names:
        return names[memory]
    while place in tensors:  # as of the keys 1 and "1"
        place += "'"
    tensors[place], names[memory] = tensor, place
    return place


def join(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `split`; KeyError where a tensor is missing."""
    if isinstance(plain, list):
        return [join(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    kind, value = plain[KIND], plain.get("value")
    if kind == "tensor":
        return tensors[plain["name"]]
    if kind == "float":
        return float(str(value))
    if kind == "dtype":
        return getattr(torch, str(value))
    if kind == "tuple":
        return tuple(join(plain["items"], tensors))
    return {join(key, tensors): join(item, tensors) for key, item in plain["items"]}

"""Split a nested state into named tensors and plain values that JSON holds, and join them again.

What a stepper's `state_dict` returns is dicts, lists and tuples of tensors and of plain values. The tensors
go to safetensors and the rest to JSON, so that reading a checkpoint never executes anything, as unpickling
would. Types are kept: keys that are whole numbers, tuples, infinite floats, dtypes, and tensors of other
classes that `torch.serialization` holds safe, by the function or the class that it was told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
        if isinstance(value, Tensor) and type(value.detach()) is not Tensor:
            return _made_of(value.detach(), place, walk)
        if isinstance(value, Tensor):
            return {KIND: "tensor", "name": _name(_whole(value, place), place, tensors, names)}
        if isinstance(value, torch.dtype):
            return {KIND: "dtype", "value": str(value).removeprefix("torch.")}
        raise TypeError(f"{place} is a {type(value).__name__}; a checkpoint holds tensors and plain values")

    return walk(state, ""), tensors


def _below(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _safe() -> dict[str, Any]:
    """Return what torch may call to load a file safely, by module and name."""
    known = [each for each in torch.serialization.get_safe_globals() if not isinstance(each, tuple)]
    return {f"{each.__module__}:{getattr(each, '__qualname__', '')}": each for each in known}


def _made_of(tensor: Tensor, place: str, walk: Callable[[Any, str], Any]) -> Any:
    """Return what a tensor of another class is made of: its plain tensors and values, and what makes it."""
    makers = {maker: name for name, maker in _safe().items()}
    if type(tensor) in makers and hasattr(tensor, "__tensor_flatten__"):
        parts, about = tensor.__tensor_flatten__()
        content = {part: getattr(tensor, part) for part in parts}
        shape = [list(tensor.size()), list(tensor.stride())]
        return {KIND: "wrapped", "by": makers[type(tensor)], "items": walk([content, about, *shape], place)}
    function, arguments, *more = tensor.__reduce_ex__(2)
    if function in makers and not any(more):
        return {KIND: "made", "by": makers[function], "items": walk(list(arguments), place)}
    raise TypeError(f"{place} is a {type(tensor).__name__}, which torch.serialization does not hold safe")


def _whole(tensor: Tensor, place: str) -> Tensor:
    """Return a tensor that fills its memory: itself where it does."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        raise TypeError(f"{place} is a tensor of layout {tensor.layout}, not a dense one")
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
    """Undo `split`; KeyError where a tensor is missing, or a class that torch was not told to be safe."""
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
    if kind == "made":
        return _safe()[plain["by"]](*join(plain["items"], tensors))
    if kind == "wrapped":
        return _safe()[plain["by"]].__tensor_unflatten__(*join(plain["items"], tensors))
    return {join(key, tensors): join(item, tensors) for key, item in plain["items"]}

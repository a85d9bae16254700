"""A cache of fake tensors by operation and shapes of its arguments.

A model repeats itself layer by layer, and so does its simulation: most operations have met the same shapes
before. `FakeTensorMode` has a cache, too, but its keys cost more than all the rest of a simulation; this one
covers fewer operations with cheaper keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from harness.engine.measure.storages import tensors_within

#: Shape, strides, dtype and device of a tensor that an operation creates.
Made = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]
#: Types of arguments that enter a key as they are.
PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
#: Operations whose result is a view of their first argument, determined by shape alone.
VIEWS = {
    "aten::_unsafe_view",
    "aten::alias",
    "aten::as_strided",
    "aten::detach",
    "aten::diagonal",
    "aten::expand",
    "aten::permute",
    "aten::select.int",
    "aten::slice.Tensor",
    "aten::squeeze",
    "aten::squeeze.dim",
    "aten::squeeze.dims",
    "aten::t",
    "aten::transpose.int",
    "aten::unsqueeze",
    "aten::view",
}
Kind = Literal["new", "view", "in place", "other"]
#: Results that depend on values, and arguments that change their shape or storage.
UNSUITABLE = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view}


class CachedFakeTensorMode(FakeTensorMode):
    """A mode of fake tensors that caches the results of operations for the life of the process."""

    #: The result of an operation by its key: new tensors, or () where it must be computed each time.
    known: ClassVar[dict[tuple[Any, ...], tuple[Made, ...]]] = {}
    #: The kind of result of an operation by its schema.
    kinds: ClassVar[dict[Any, Kind]] = {}

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.cache_enabled = False

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedFakeTensorMode:
        """Return itself: copies of a fake tensor, as of a layer, belong to the same simulation."""
        return self

    def dispatch(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation, or recreate its cached result."""
        kwargs = kwargs or {}
        if (kind := self.kinds.get(func)) is None:
            kind = self.kinds[func] = _kind(func)
        key = None if kind == "other" else _key(func, args, kwargs)
        if key is None:
            return super().dispatch(func, types, args, kwargs)
        if kind == "view":
            with in_kernel_invocation_manager(self):
                seen = func(*args, **kwargs)
            return FakeTensor(self, seen, args[0].fake_device)
        made = self.known.get(key)
        if kind == "in place" and (made is not None or not _has_tensor((args[1:], kwargs))):
            return args[0]
        if made:
            again = [self._make(*one) for one in made]
            return again[0] if len(again) == 1 else tuple(again)
        result = super().dispatch(func, types, args, kwargs)
        if made is None:
            self.known[key] = () if kind == "in place" else _made(result, args)
        return result

    def _make(
        self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> FakeTensor:
        return FakeTensor(self, torch.empty_strided(shape, strides, dtype=dtype, device="meta"), device)


def _kind(func: Any) -> Kind:
    """Return the kind of result: new tensors, a view of the first argument, that argument, or other."""
    schema, tags = func._schema, set(func.tags)
    returned = schema.returns
    if not returned or any(str(value.type) != "Tensor" for value in returned) or UNSUITABLE & tags:
        return "other"
    aliases = [value.alias_info for value in returned]
    if func.name() in VIEWS:
        return "view"
    if not any(aliases):
        return "other" if schema.is_mutable else "new"
    written = [value.alias_info is not None and value.alias_info.is_write for value in schema.arguments]
    one = len(aliases) == 1 and aliases[0] is not None and aliases[0].is_write and sum(written) == 1
    return "in place" if one and written[0] else "other"


def _has_tensor(values: Any) -> bool:
    """Return whether another tensor is among the arguments: only the operation can check its shape."""
    return next(tensors_within(values), None) is not None


def _key(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return the key of a call, all that decides its result; None for an unknown type of argument.

    The default dtype is part of it: it is the dtype of new tensors, and of integers times 1.5.
    """
    found: list[Any] = [func, torch.get_default_dtype(), *kwargs]
    return tuple(found) if _collect(args, found) and _collect(kwargs.values(), found) else None


def _collect(values: Iterable[Any], found: list[Any]) -> bool:
    """Append the key of each argument to `found`; False for an unknown type of argument."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None or value.layout is not torch.strided:
                return False
            found += (value.shape, value.stride(), value.dtype, value.fake_device)
        elif kind in PLAIN:
            found += (kind, value)  # 1, 1.0 and True are equal and mean different things
        elif kind is list or kind is tuple:
            found += (kind, len(value))
            if not _collect(value, found):
                return False
        else:
            return False
    return True


def _made(result: Any, args: Sequence[Any]) -> tuple[Made, ...]:
    """Return the tensors that an operation created; () unless each has a storage of its own."""
    tensors = result if isinstance(result, tuple) else (result,)
    if not all(type(tensor) is FakeTensor and _plain(tensor) for tensor in tensors):
        return ()
    given = {value.untyped_storage()._cdata for value in args if isinstance(value, Tensor)}
    if len({tensor.untyped_storage()._cdata for tensor in tensors} - given) < len(tensors):
        return ()
    return tuple((one.shape, one.stride(), one.dtype, one.fake_device) for one in tensors)


def _plain(tensor: FakeTensor) -> bool:
    """Return whether shape, strides, dtype and device describe a tensor in full."""
    if tensor.layout is not torch.strided or tensor.constant is not None or tensor.storage_offset():
        return False
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (last + 1) * tensor.element_size() if tensor.numel() else 0
    return bool(tensor.untyped_storage().nbytes() == needed)

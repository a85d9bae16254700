"""A float tensor that is stored in 8 or 4 bits for each element, and that all code takes for a float tensor.

Reading it makes a float copy for the time of one operation. Changing it in place changes a copy in float32,
which is then rounded to new grids. Groups in which nothing has changed keep their bits. Products with it in
linear layers save the codes for the backward pass; its gradient is a float tensor like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from methods.parts.quantisation.grid import codes_of, exact, grid_of, packed, unpacked, values_of
from methods.parts.targets import random_stream

aten = torch.ops.aten
#: Operations that read nothing of a tensor but shape and dtype.
LIKE = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like}
NEW = {aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full}
#: A large tensor is rounded part by part, so that what that needs is a fraction of a float copy.
MOST_PARTS, LEAST_ELEMENTS = 8, 1 << 16


@dataclass
class Rounding:
    """How the changes of a tensor are rounded; random numbers follow from seed, name and count of changes."""

    stochastic: bool = False
    official: bool = False
    seed: int = 0
    name: str = ""
    changes: int = 0

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return the generator of the next change; None where rounding is to the nearest point."""
        if not self.stochastic:
            return None
        self.changes += 1
        return random_stream(self.seed, f"{self.name}, rounding", self.changes, device)


@dataclass(frozen=True)
class Form:
    """Shape, dtype and bits of a tensor, and how it is rounded; the same object for all its aliases."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    rounding: Rounding


class Quantised(Tensor):
    """A tensor (any shape) stored as codes (groups, bytes of a group), step and lowest point (groups, 1).

    A view of it, but of the whole, is a float copy: what is written to that does not arrive.
    """

    codes: Tensor
    step: Tensor
    low: Tensor
    form: Form

    @staticmethod
    def __new__(cls, codes: Tensor, step: Tensor, low: Tensor, form: Form) -> Quantised:
        """Return a tensor of these parts, which are not copied."""
        made: Quantised = Tensor._make_wrapper_subclass(
            cls, form.shape, dtype=form.dtype, device=codes.device
        )
        made.codes, made.step, made.low, made.form = codes, step, low, form
        return made

    @property
    def stored_bytes(self) -> int:
        """The bytes of codes, steps and lowest points."""
        return self.codes.nbytes + self.step.nbytes + self.low.nbytes

    def floats(self, dtype: torch.dtype) -> Tensor:
        """Return a float copy."""
        codes = unpacked(self.codes, self.form.bits)
        return values_of(codes, self.step, self.low, dtype).view(self.form.shape)

    def write(self, values: Tensor) -> None:
        """Take the values of a float tensor of this shape, rounded; groups that are equal keep their bits."""
        self.round_to(values, self.form.rounding.generator(values.device))

    @torch.no_grad()
    def round_to(self, values: Tensor, generator: torch.Generator | None) -> None:
        """Take these values, rounded at random with a generator, else to the nearest points."""
        form = self.form
        count = max(1, min(MOST_PARTS, values.numel() // LEAST_ELEMENTS))
        parts = (each.tensor_split(count) for each in (self.codes, self.step, self.low))
        new_parts = values.reshape(len(self.step), -1).tensor_split(count)
        for codes, step, low, new in zip(*parts, new_parts, strict=True):
            before = values_of(unpacked(codes, form.bits), step, low, values.dtype)
            changed = (before != new).any(dim=1, keepdim=True)
            del before
            new_step, new_low = grid_of(new, form.bits, form.rounding.official)
            found = codes_of(new, new_step, new_low, form.bits, form.rounding.official, generator)
            for old, other in ((codes, packed(found, form.bits)), (step, new_step), (low, new_low)):
                old.copy_(torch.where(changed, other, old))

    def __tensor_flatten__(self) -> tuple[list[str], Form]:
        """Return the names of the plain tensors that it consists of, and the rest."""
        return ["codes", "step", "low"], self.form

    @classmethod
    def __tensor_unflatten__(cls, parts: Mapping[str, Tensor], form: Form, *_: Any) -> Quantised:
        """Return the tensor of these parts."""
        return cls(**parts, form=form)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return plain tensors and values, which torch loads safely."""
        form = {**vars(self.form), "rounding": asdict(self.form.rounding)}
        return rebuilt, (self.codes, self.step, self.low, form)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Keep codes, not values, for the backward pass of a linear layer."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear and len(args) > 1 and isinstance(args[1], cls):
                return _Linear.apply(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation on float copies, unless it needs none."""
        result = _without_values(func, args, kwargs or {})
        return _with_values(func, args, kwargs or {}) if result is None else result


class _Linear(torch.autograd.Function):
    """F.linear that saves the codes of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Quantised, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.floats(weight.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        needs_bias = any(ctx.needs_input_grad[2:])
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        grad_x = grad_output @ weight.floats(weight.dtype) if needs_x else None
        grad_weight = flat.T @ x.reshape(-1, x.shape[-1]) if needs_weight else None
        return grad_x, grad_weight, flat.sum(0) if needs_bias else None


def quantised(values: Tensor, group: int, bits: int, rounding: Rounding | None = None) -> Quantised:
    """Return a tensor rounded to the nearest points, with `group` elements of its rows to a grid.

    `rounding` is for later changes. `group` divides the number of elements, and is even for 4 bits.
    """
    count = values.numel() // group
    codes = values.new_zeros((count, group * bits // 8), dtype=torch.uint8)
    step, low = (values.new_zeros((count, 1), dtype=exact(values.dtype)) for _ in range(2))
    form = Form(tuple(values.shape), values.dtype, bits, rounding or Rounding())
    made = Quantised(codes, step, low, form)
    made.round_to(values.detach(), None)
    return made


@contextmanager
def writable(weight: Tensor) -> Iterator[Tensor]:
    """Yield a tensor to change in place: the weight, or a float copy whose values a quantised one takes."""
    if not isinstance(weight, Quantised):
        yield weight
        return
    values = weight.floats(_changed_in(weight))
    yield values
    weight.write(values)


def plain_weights(model: nn.Module) -> nn.Module:
    """Replace quantised parameters by plain ones of the same values, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, Quantised):
                values = parameter.floats(parameter.dtype)
                module._parameters[name] = nn.Parameter(values, parameter.requires_grad)
    return model


def rebuilt(codes: Tensor, step: Tensor, low: Tensor, form: Mapping[str, Any]) -> Quantised:
    """Return a tensor that was saved."""
    return Quantised(codes, step, low, Form(**{**form, "rounding": Rounding(**form["rounding"])}))


torch.serialization.add_safe_globals([rebuilt])


def _changed_in(tensor: Quantised) -> torch.dtype:
    """Return the dtype in which changes are computed."""
    return tensor.dtype if tensor.form.rounding.official else exact(tensor.dtype)


def _with_parts(tensor: Quantised, change: Callable[[Tensor], Tensor]) -> Quantised:
    """Return a tensor of changed parts, with a rounding of its own."""
    form = replace(tensor.form, rounding=replace(tensor.form.rounding))
    return Quantised(change(tensor.codes), change(tensor.step), change(tensor.low), form)


def _without_values(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the result of an operation that needs no float copy, else None."""
    packet, first = func._overloadpacket, args[0]
    if packet is aten.copy_ and all(isinstance(each, Quantised) for each in args[:2]):
        source = args[1]
        same = first.codes.shape == source.codes.shape
        if same and first.form == replace(source.form, rounding=first.form.rounding):
            for part in ("codes", "step", "low"):
                getattr(first, part).copy_(getattr(source, part))
            first.form.rounding.changes = source.form.rounding.changes
            return first
    if not isinstance(first, Quantised):
        return None
    if packet in (aten.detach, aten.alias) or (packet is aten.view and tuple(args[1]) == first.form.shape):
        return Quantised(first.codes, first.step, first.low, first.form)
    if packet is aten.clone:
        return _with_parts(first, torch.clone)
    if packet is aten._to_copy and kwargs.get("dtype") in (None, first.dtype):
        return _with_parts(first, lambda part: part.to(device=kwargs.get("device"), copy=True))
    if packet in LIKE or packet in NEW:
        shaped = first.step.new_empty((), dtype=first.dtype).expand(first.shape)
        dense = {"memory_format": torch.contiguous_format} if packet in LIKE else {}
        result: Tensor = func(shaped, *args[1:], **{**kwargs, **dense})
        return result
    return None


def _with_values(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation on float copies; those that it changes are rounded back."""
    written = _written(func, args, kwargs)
    changed = {id(each): each for each in written if isinstance(each, Quantised)}
    wide = {_changed_in(each) for each in changed.values()}
    copies: dict[int, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Quantised):
            if id(value) not in copies:
                copies[id(value)] = value.floats(_changed_in(value) if id(value) in changed else value.dtype)
            return copies[id(value)]
        beside = changed and isinstance(value, Tensor) and all(value is not each for each in written)
        return value.to(*wide) if beside and value.is_floating_point() and len(wide) == 1 else value

    result = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    for key, tensor in changed.items():
        tensor.write(copies[key])
    originals = {id(copies[key]): tensor for key, tensor in changed.items()}
    return tree_map(lambda value: originals.get(id(value), value), result)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an operation changes in place, by its schema."""
    arguments = func._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | dict(kwargs)
    marks = {argument.name for argument in arguments if argument.alias_info and argument.alias_info.is_write}
    return tree_leaves([value for name, value in given.items() if name in marks])

"""A float tensor that is stored in few bits for each element, and that all code takes for a float tensor.

Reading it makes a float copy for the time of one operation. Changing it in place changes a float copy, which
is then stored again. Products with it in linear layers save what is stored for the backward pass; its
gradient is a float tensor like any other. A subclass says how floats are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
#: Operations that read nothing of a tensor but shape and dtype.
LIKE = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like}
NEW = {aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full}
#: A large tensor is stored part by part, so that what that needs is a fraction of a float copy.
MOST_PARTS, LEAST_ELEMENTS = 8, 1 << 16


@dataclass(frozen=True)
class Form:
    """Shape and dtype of a tensor, and in a subclass how it is stored; one object for all aliases."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Quantised(Tensor):
    """A tensor (any shape) stored as plain tensors, its parts.

    A view of it, but of the whole, is a float copy: what is written to that does not arrive.
    """

    #: The names of the parts.
    PARTS: ClassVar[tuple[str, ...]]
    #: The subclasses by name, for tensors that were saved.
    KINDS: ClassVar[dict[str, type[Quantised]]] = {}
    form: Form

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.KINDS[cls.__name__] = cls

    @staticmethod
    def __new__(cls, form: Form, *parts: Tensor) -> Self:
        """Return a tensor of these parts, which are not copied."""
        device = parts[0].device
        made: Self = Tensor._make_wrapper_subclass(cls, form.shape, dtype=form.dtype, device=device)
        made.form = form
        for name, part in zip(cls.PARTS, parts, strict=True):
            setattr(made, name, part)
        return made

    def parts(self) -> list[Tensor]:
        """Return what is stored."""
        return [getattr(self, name) for name in self.PARTS]

    @property
    def stored_bytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.nbytes for part in self.parts())

    @property
    def wide(self) -> torch.dtype:
        """The dtype in which changes are computed."""
        return exact(self.dtype)

    def floats(self, dtype: torch.dtype) -> Tensor:
        """Return a float copy."""
        raise NotImplementedError

    def write(self, values: Tensor) -> None:
        """Take the values of a float tensor of this shape."""
        raise NotImplementedError

    def own_form(self) -> Form:
        """Return the form of a copy, which shares nothing that changes."""
        return self.form

    def is_stored_like(self, other: Quantised) -> bool:
        """Return whether the parts of another tensor say the same here."""
        return type(self) is type(other) and self.form == other.form

    def copy_stored(self, other: Quantised) -> None:
        """Copy the parts of a tensor that is stored alike."""
        for mine, theirs in zip(self.parts(), other.parts(), strict=True):
            mine.copy_(theirs)

    def with_parts(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with changed parts."""
        return type(self)(self.own_form(), *map(change, self.parts()))

    @classmethod
    def form_of(cls, content: Mapping[str, Any]) -> Form:
        """Return the form that was saved as `dataclasses.asdict`."""
        return Form(**content)

    def __tensor_flatten__(self) -> tuple[list[str], Form]:
        """Return the names of the plain tensors that it consists of, and the rest."""
        return [*self.PARTS], self.form

    @classmethod
    def __tensor_unflatten__(cls, parts: Mapping[str, Tensor], form: Form, *_: Any) -> Self:
        """Return the tensor of these parts."""
        return cls(form, *(parts[name] for name in cls.PARTS))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return plain tensors and values, which torch loads safely."""
        return rebuilt, (type(self).__name__, asdict(self.form), *self.parts())

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Keep what is stored, not values, for the backward pass of a linear layer."""
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
    """F.linear that saves the weight as it is stored."""

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


@contextmanager
def writable(weight: Tensor) -> Iterator[Tensor]:
    """Yield a tensor to change in place: the weight, or a float copy whose values a quantised one takes."""
    if not isinstance(weight, Quantised):
        yield weight
        return
    values = weight.floats(weight.wide)
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


def exact(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that numbers of a dtype are computed in."""
    return torch.promote_types(dtype, torch.float32)


def parts_of(count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one length part by part, as few as a tensor of `count` elements needs."""
    number = max(1, min(MOST_PARTS, count // LEAST_ELEMENTS))
    return zip(*(each.tensor_split(number) for each in tensors), strict=True)


def rebuilt(kind: str, form: Mapping[str, Any], *parts: Tensor) -> Quantised:
    """Return a tensor that was saved."""
    found = Quantised.KINDS[kind]
    return found(found.form_of(form), *parts)


torch.serialization.add_safe_globals([rebuilt])


def _without_values(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the result of an operation that needs no float copy, else None."""
    packet, first = func._overloadpacket, args[0]
    both = packet is aten.copy_ and all(isinstance(each, Quantised) for each in args[:2])
    if both and first.is_stored_like(args[1]):
        first.copy_stored(args[1])
        return first
    if not isinstance(first, Quantised):
        return None
    if packet in (aten.detach, aten.alias) or (packet is aten.view and tuple(args[1]) == first.form.shape):
        return type(first)(first.form, *first.parts())
    if packet is aten.clone:
        return first.with_parts(torch.clone)
    if packet is aten._to_copy and kwargs.get("dtype") in (None, first.dtype):
        return first.with_parts(lambda part: part.to(device=kwargs.get("device"), copy=True))
    if packet in LIKE or packet in NEW:
        shaped = first.parts()[0].new_empty((), dtype=first.dtype).expand(first.shape)
        dense = {"memory_format": torch.contiguous_format} if packet in LIKE else {}
        result: Tensor = func(shaped, *args[1:], **{**kwargs, **dense})
        return result
    return None


def _with_values(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation on float copies; those that it changes are rounded back."""
    written = _written(func, args, kwargs)
    changed = {id(each): each for each in written if isinstance(each, Quantised)}
    wide = {each.wide for each in changed.values()}
    copies: dict[int, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Quantised):
            if id(value) not in copies:
                copies[id(value)] = value.floats(value.wide if id(value) in changed else value.dtype)
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

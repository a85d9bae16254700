"""The arguments of an optimizer's constructor, and those of them that are options here."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError
from torch.optim import Optimizer

from harness.errors import UserError
from harness.plugins import place
from methods.parts.library_options import left_out_when_off, said_in_one_line

#: A subclass of Optimizer with a constructor of its own; mypy takes type[Optimizer] for unhashable.
OptimizerClass = Any
PLAIN = (bool, int, float, str, type(None))
#: Arguments that a run gives.
OF_THE_RUN = ("params", "lr")


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor: its default, `...` for none, and its annotation."""

    default: Any
    hint: Any
    inherited: bool
    """It is one of the base's constructor, which the class's own may give itself or hand on by **keywords."""


@functools.cache
def arguments(cls: OptimizerClass) -> Mapping[str, Argument]:
    """Return the arguments of a constructor by name, and those of its bases that it can hand on."""
    found: dict[str, Argument] = {}
    inherited = False
    for each in cls.__mro__:
        if each is Optimizer:
            break
        if (init := vars(each).get("__init__")) is None:
            continue
        hints: dict[str, Any] = {}
        with suppress(Exception):  # a name that is there for type checkers alone
            hints = typing.get_type_hints(init)
        own = [*inspect.signature(init).parameters.values()][1:]
        for argument in own:
            name, required = argument.name, argument.default is argument.empty
            named = argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL)
            if named and not (inherited and required and name not in OF_THE_RUN):
                default = ... if required else argument.default
                found.setdefault(name, Argument(default, hints.get(name), inherited))
        if not any(argument.kind is argument.VAR_KEYWORD for argument in own):
            break
        inherited = True
    return found


def fields_of(cls: OptimizerClass, taken: Collection[str]) -> dict[str, Any]:
    """Return fields of pydantic for the arguments that YAML can give, but for names that are `taken`.

    UserError for a class that cannot be used: without a rate, with a step that needs a closure, or with an
    argument that no option can give. `foreach` is off by default: torch's choice depends on the device, and
    on a GPU it costs a copy of all tensors.
    """
    found = arguments(cls)
    _refuse_closure(cls)
    for needed in OF_THE_RUN:
        if needed not in found:
            raise UserError(f"its constructor takes no `{needed}`, which comes from the run{place(cls)}")
    fields: dict[str, Any] = {}
    for name, argument in found.items():
        if name in taken or name in OF_THE_RUN or name.startswith("_"):
            continue
        required = argument.default is ...
        default = False if name == "foreach" else argument.default
        allowed = _allowed(argument.hint, default)
        if allowed is not None:
            about = {} if required else {"default": default, **left_out_when_off(default)}
            fields[name] = said_in_one_line(allowed), Field(**about)
        elif required:
            raise UserError(f"it needs `{name}`, which no option can give{place(cls)}")
    return fields


def _refuse_closure(cls: OptimizerClass) -> None:
    with suppress(ValueError):  # a builtin without a signature
        for argument in [*inspect.signature(cls.step).parameters.values()][1:]:
            if argument.default is argument.empty and argument.kind is argument.POSITIONAL_OR_KEYWORD:
                raise UserError(
                    f"its step needs `{argument.name}`: it computes the loss several times per update, and "
                    "here an update has one backward pass"
                )


def _allowed(hint: Any, default: Any) -> Any:
    """Return the type of an option: the plain part of its annotation, else that of its default.

    Any where neither says it, None where YAML cannot write the default. A default `...` stands for none.
    """
    plain = _plain(hint)
    if plain is None:
        unannotated = Any if hint is None else None
        plain = unannotated if default is ... else _type_of(default)
    if plain is not None and default is not ...:
        try:
            TypeAdapter(plain).validate_python(default)
        except ValidationError:  # an annotation that is wrong, as `float = None`
            return Any
    return plain


def _plain(hint: Any) -> Any:
    """Return the part of an annotation that YAML can write, None without one."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in PLAIN or origin is Literal:
        return hint
    if origin in (Union, types.UnionType):
        kept = [part for part in map(_plain, parts) if part is not None]
        return Union[tuple(kept)] if set(kept) - {type(None)} else None  # noqa: UP007
    if origin in (tuple, list, Sequence, Iterable):
        inner = [part if part is ... else _plain(part) for part in parts]
        if not inner or None in inner:
            return None
        return tuple[tuple(inner)] if origin is tuple else list[inner[0]]  # type: ignore[misc, valid-type]
    return None


def _type_of(default: Any) -> Any:
    """Return the type that a default stands for: 0 may mean a float."""
    if default is None:
        return Any
    if isinstance(default, int) and not isinstance(default, bool):
        return int | float
    if isinstance(default, tuple | list):
        inner = [_type_of(item) for item in default]
        return None if None in inner or not inner else tuple[tuple(inner)]  # type: ignore[misc]
    return type(default) if isinstance(default, PLAIN) else None

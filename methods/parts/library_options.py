"""Options that are those of a class in another library, as fields of pydantic."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationError, WrapValidator

WORDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number", dict: "a section"}


def unusable(reason: str, default: Any = None) -> tuple[Any, Any]:
    """Return a field that only says why an option cannot be used: "it" is the subject of `reason`."""
    refuse = functools.partial(_refuse, reason, default)
    return Annotated[Any, BeforeValidator(refuse)], Field(default, exclude=True, repr=False)


def left_out_when_off(default: Any) -> dict[str, Any]:
    """Return arguments of `Field` that leave an option out of a run's identity while it is off.

    An option that a later release adds as off by default then leaves earlier records valid.
    """
    off = default is None or default is False or default in ([], {})
    return {"exclude_if": lambda value: value == default} if off else {}


def said_in_one_line(hint: Any) -> Any:
    """Return a type that says in one line what it may be, where it is one of several types."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return Annotated[hint, WrapValidator(functools.partial(_one_of, _words(hint)))]


def _refuse(reason: str, default: Any, value: Any) -> Any:
    if value != default:
        raise ValueError(f"it {reason}")
    return value


def _one_of(allowed: str, value: Any, inner: Callable[[Any], Any]) -> Any:
    """Say in one line what a value of several types may be: pydantic names each type that it is not."""
    try:
        return inner(value)
    except ValidationError:
        raise ValueError(f"give {allowed}, not {str(value)[:40]}") from None


def _words(hint: Any) -> str:
    """Return in words what a type allows; None, which leaves an option out, is not mentioned."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Annotated:
        return getattr(hint.__metadata__[0], "description", None) or _words(parts[0])
    if get_origin(hint) is Literal:
        return " or ".join(map(str, parts))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in parts if not (part is int and float in parts)]
        return " or ".join(sorted(map(_words, parts)))  # which of two equal types typing gives is chance
    if get_origin(hint) is list:
        return f"a list of {_words(parts[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))

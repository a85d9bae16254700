"""Find the tensors that an object keeps, with the names of the attributes that lead to them."""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors_within(thing: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor reachable from an object with its path: attributes, containers, closures.

    Modules are left out, since their tensors are weights and buffers; so are classes and modules of Python.
    """
    yield from _within(type(thing).__name__, thing, set())


def _within(path: str, thing: object, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(thing) in seen or isinstance(thing, (nn.Module, str, bytes)) or inspect.isclass(thing):
        return
    if inspect.ismodule(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield path, thing
        return
    for name, part in _parts(thing):
        yield from _within(path + name, part, seen)


def _parts(thing: Any) -> Iterator[tuple[str, object]]:
    if isinstance(thing, Mapping):
        yield from ((f"[{_short(key)}]", value) for key, value in thing.items())
        yield from ((f".key({_short(key)})", key) for key in thing)
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        yield from ((f"[{index}]", part) for index, part in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield from (("", part) for part in (thing.func, *thing.args, *thing.keywords.values()))
    elif inspect.ismethod(thing):
        yield "", thing.__self__
    elif inspect.isfunction(thing):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        for name, cell in cells:
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:  # not filled yet
                continue
    if hasattr(thing, "__dict__"):
        yield from ((f".{name}", part) for name, part in vars(thing).items())
    for cls in type(thing).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                yield f".{name}", getattr(thing, name)


def _short(key: object) -> str:
    return repr(key) if isinstance(key, (str, int)) else type(key).__name__

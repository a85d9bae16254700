"""What an optimizer keeps from one update to the next: saved, restored and counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.plugins import find_class
from harness.reachable import tensors_within

#: The key of an object in a saved state, beside its attributes.
CLASS = "class of this object"


def saved(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return states by parameter, options of groups and plain attributes; TypeError for what is not plain.

    torch's own `state_dict` has no attributes, and loading it casts states to the dtype of their parameter.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    package = _package(type(optimizer))
    of_parameters = {key: state for key, state in optimizer.state.items() if id(key) in names}
    shared = {key: state for key, state in optimizer.state.items() if id(key) not in names}
    if not all(isinstance(key, str) for key in shared):
        raise TypeError("its state has keys that are neither parameters nor text")
    return {
        "state": {names[id(p)]: _plain(state, package) for p, state in of_parameters.items()},
        "shared": _plain(shared, package),
        "groups": [
            {key: _plain(value, package) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
        "attributes": {
            name: _plain(value, "") for name, value in vars(optimizer).items() if _is_plain(value)
        },
    }


def restore(optimizer: Optimizer, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
    """Restore copies of what `saved` returned; ValueError for a parameter that is not trained here."""
    if unknown := sorted(saved["state"].keys() - parameters.keys()):
        raise ValueError(f"optimizer state for parameters that are not trained: {', '.join(unknown)}")
    package = _package(type(optimizer))
    device = next(iter(parameters.values())).device
    for name, state in saved["state"].items():
        optimizer.state[parameters[name]] = _restored(state, device, package)
    optimizer.state.update(_restored(saved["shared"], device, package))
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(_restored(options, device, package))
    vars(optimizer).update(_restored(saved["attributes"], device, package))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_plain(value: Any) -> bool:
    """Return whether an attribute can be saved: numbers, text, tensors but parameters, and lists of these."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(_is_plain(item) for item in value.values())
    plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype))
    return plain or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter))


def _plain(value: Any, package: str) -> Any:
    """Return a value as tensors and plain values: of an object of the package its class and attributes."""
    if isinstance(value, Mapping):
        return {key: _plain(item, package) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, package) for item in value)
    if _is_plain(value):
        return value
    if _package(type(value)) != package:
        raise TypeError(f"its state holds a {type(value).__name__}")
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    return {CLASS: name, **_plain(vars(value), package)}


def _restored(value: Any, device: torch.device, package: str) -> Any:
    """Return a copy of what `_plain` returned; tensors of one number stay on their device."""
    if isinstance(value, Tensor):
        return value.detach().to(device if value.dim() else value.device, copy=True)
    if isinstance(value, list | tuple):
        return type(value)(_restored(item, device, package) for item in value)
    if not isinstance(value, dict):
        return value
    found = {key: _restored(item, device, package) for key, item in value.items()}
    if (name := found.pop(CLASS, None)) is None:
        return found
    if name.partition(":")[0].partition(".")[0] != package:
        raise ValueError(f"a saved state names {name}, which is not of {package}")
    cls = find_class("a saved state", name, object, plug_in=False)
    made = cls.__new__(cls)
    vars(made).update(found)
    return made


def named_tensors(prefix: str, thing: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor within a thing that has not been seen, named by the keys that lead to it."""
    for path, tensor in tensors_within(thing):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            inside = path.removeprefix(type(thing).__name__)
            yield prefix + re.sub(r"\['?([^'\]]*)'?\]", r".\1", inside), tensor

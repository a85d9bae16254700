"""How a tuner changes a model: at which layers, and so that all it keeps is counted, saved and trained."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from harness.errors import UserError, nearest
from harness.factored import FactoredLinear
from methods.parts.targets import LINEAR_KINDS, kind_of, seeded, target_linears
from methods.parts.tuners.catalogue import BY_KIND, OWN_TARGETS, installed
from methods.parts.tuners.options import TunerOptions

#: The folders of a path, which may name a user.
FOLDERS = re.compile(r"(?<![\w.:/])[~.]?/(\S*/)?")
#: Name in the model of what several layers share, such as the projections of VeRA.
SHARED = "peft_shared"


def targets(model: nn.Module, options: TunerOptions) -> Any:
    """Return `target_modules` for peft: kinds of layers, or full names where some of them are factored.

    The factors of a layer are of that layer's kind. UserError for a name that no module of the model has.
    """
    given = getattr(options, "target_modules", None)
    if given is None and options.base in OWN_TARGETS:
        known = getattr(installed()[options.base][1], "target_module_mapping", {})
        given = known.get(getattr(model.config, "model_type", ""))
    elif given is None:
        given = LINEAR_KINDS
    if given is None or isinstance(given, str):
        return given
    found = {
        each: [name for name, _ in model.named_modules() if f".{name}".endswith(f".{each}")] for each in given
    }
    if missing := next((each for each, names in found.items() if not names), None):
        hint = nearest(missing, {kind_of(name) for name, _ in model.named_modules()})
        raise UserError(f"target_modules: the model has no module {missing!r}; {hint}")
    matched = {name for names in found.values() for name in names}
    if not any(isinstance(model.get_submodule(name), FactoredLinear) for name in matched):
        return list(given)
    for option in ("layers_to_transform", "layers_pattern"):
        if getattr(options, option, None) is not None:
            raise UserError(f"{option} has no effect on layers of two factors; name them in target_modules")
    if options.base in BY_KIND:
        raise UserError(
            f"type {options.type} shares adapters among layers of one kind, which factors are not"
        )
    return list(target_linears(model, given))


def inject(options: TunerOptions, model: nn.Module, names: Any, seed: int) -> list[str]:
    """Let a tuner change the model in place, with random numbers from a seed; return what peft warns of.

    All that the tuner keeps becomes part of the model, so that it is counted, saved and trained. UserError
    for a change of an embedding and a head that share their weight, which would no longer be equal.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    make = installed()[options.base][1]
    assert make is not None
    tied = _tied(model)
    device = next(model.parameters()).device
    with seeded(seed, device), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", append=True)
        tuner = make(model, options.configuration(target_modules=names), "default")
    if options.base != "TRAINABLE_TOKENS":  # which knows of the other
        for name, layer in tied.items():
            if model.get_submodule(name) is not layer:
                raise UserError(
                    f"peft: {name} shares its weight with another layer; leave it out of the options"
                )
    _keep_shared(tuner, model)
    for layer in list(model.modules()):
        if isinstance(layer, BaseTunerLayer):
            _keep_attributes(layer)
    kinds = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
    texts = [" ".join(str(each.message).split()) for each in said if not issubclass(each.category, kinds)]
    return list(dict.fromkeys(FOLDERS.sub("", text) for text in texts))


def _tied(model: Any) -> dict[str, nn.Module]:
    """Return the embedding and the output head by name where they share their weight."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if ends[0].weight is not ends[1].weight:
        return {}
    return {name: layer for name, layer in model.named_modules() if layer in ends}


def _keep_shared(tuner: nn.Module, model: nn.Module) -> None:
    """Make what the tuner itself holds a part of the model; it may be of no layer alone."""
    holder = nn.Module()
    for name, child in tuner.named_children():
        if name != "model":
            holder.add_module(name, child)
    for name, parameter in tuner.named_parameters(recurse=False):
        holder.register_parameter(name, parameter)
    for name, buffer in tuner.named_buffers(recurse=False):
        holder.register_buffer(name, buffer)
    if holder.state_dict(keep_vars=True) or next(holder.buffers(), None) is not None:
        model.add_module(SHARED, holder)


def _keep_attributes(layer: nn.Module) -> None:
    """Make buffers of tensors in plain attributes, such as indices drawn from a seed."""
    plain = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    for number, tensor in enumerate(_tensors_in(plain)):
        layer.register_buffer(f"kept_{number}", tensor, persistent=False)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)

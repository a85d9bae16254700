"""Remove heads of an attention and channels of an MLP: from the layers, and from the config of the model.

A head or channel whose outputs are zero adds nothing to a model: where its value is zero the sum of an
attention has no share of it, and silu(0) * 0 = 0. So removing it, and writing zeros instead, are the same.
The config of a plain model has one width for all blocks; where blocks differ, zeros are what can be saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import UnsupportedError, UserError
from harness.factored import ranks
from methods.parts.quantisation.tensor import Quantised
from methods.parts.targets import LINEAR_KINDS, kind_of, target_linears

#: Groups that go as one: key-value heads with the query heads that read them, or channels of an MLP.
Kind = Literal["heads", "channels"]
#: Layers whose outputs belong to groups, and the layer that reads these.
ROWS: Mapping[Kind, tuple[str, ...]] = {
    "heads": ("q_proj", "k_proj", "v_proj"),
    "channels": ("gate_proj", "up_proj"),
}
COLUMNS: Mapping[Kind, str] = {"heads": "o_proj", "channels": "down_proj"}


@dataclass(frozen=True)
class Part:
    """An attention or an MLP of a model as it was: its groups lie one after the other in its layers."""

    name: str
    """Full name of its module."""

    module: nn.Module
    kind: Kind
    groups: int
    settings: Mapping[str, int]
    """What one group counts in each setting of the config."""

    fixed: Mapping[str, int]
    """Settings that the config must then say, too: the width of a head."""

    def row(self, kind: str) -> Any:
        """Return one of the layers whose outputs belong to the groups."""
        return getattr(self.module, kind)

    @property
    def column(self) -> Any:
        """The layer whose inputs belong to the groups."""
        return getattr(self.module, COLUMNS[self.kind])

    @property
    def parameters(self) -> int:
        """Parameters of one group."""
        rows = sum(_numel(self.row(kind)) for kind in ROWS[self.kind])
        return (rows + self.column.weight.numel()) // self.groups


def parts_of(model: nn.Module) -> list[Part]:
    """Return every attention and MLP of a model, in its order.

    UserError for a model without the seven linears of LLaMA, and for layers that are replaced already;
    UnsupportedError for weights in fewer bits.
    """
    adapted = hasattr(model, "peft_config")
    layers = {} if adapted else target_linears(model, LINEAR_KINDS)
    if adapted or ranks(model) or any(type(layer) is not nn.Linear for layer in layers.values()):
        raise UserError("layers are factored or adapted already; put the method that prunes first")
    if any(isinstance(layer.weight, Quantised) for layer in layers.values()):
        raise UnsupportedError("weights stored in fewer bits cannot be pruned; leave the quantisation out")
    found = []
    for name in layers:
        parent = name.rpartition(".")[0]
        module: Any = model.get_submodule(parent)
        if kind_of(name) == "q_proj":
            found.append(_attention(parent, module, model))
        elif kind_of(name) == "gate_proj":
            width = module.gate_proj.out_features
            found.append(Part(parent, module, "channels", width, {"intermediate_size": 1}, {}))
    return found


def _attention(name: str, module: Any, model: Any) -> Part:
    config = model.config
    width = getattr(module, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = module.k_proj.out_features // width
    settings = {
        "num_attention_heads": module.q_proj.out_features // width // groups,
        "num_key_value_heads": 1,
    }
    return Part(name, module, "heads", groups, settings, {"head_dim": width})


@torch.no_grad()
def keep(part: Part, kept: Tensor) -> None:
    """Remove all groups but those of these numbers (ascending) from the plain layers of a part, in place."""
    for kind in ROWS[part.kind]:
        layer = part.row(kind)
        _replace(layer, "weight", _by_group(layer.weight, part.groups, 0)[kept].flatten(0, 1))
        if layer.bias is not None:
            _replace(layer, "bias", _by_group(layer.bias, part.groups, 0)[kept].flatten())
        layer.out_features = layer.weight.shape[0]
    layer = part.column
    _replace(layer, "weight", _by_group(layer.weight, part.groups, 1)[:, kept].flatten(1))
    layer.in_features = layer.weight.shape[1]
    if part.kind == "channels" and hasattr(part.module, "intermediate_size"):
        setattr(part.module, "intermediate_size", len(kept))  # noqa: B010


@torch.no_grad()
def clear(part: Part, removed: Tensor) -> None:
    """Write zeros for the groups of these numbers into the plain layers of a part, in place."""
    for kind in ROWS[part.kind]:
        layer = part.row(kind)
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                _by_group(tensor, part.groups, 0)[removed] = 0
    _by_group(part.column.weight, part.groups, 1)[:, removed] = 0


def refusal(model: Any, parts: Collection[Part], kept: Mapping[str, int]) -> str:
    """Return why no config describes a model that keeps so many groups of each part; empty where one does.

    `kept` has a number for each part by name, all of one kind; a part without one keeps all of its groups.
    """
    counts = {kept.get(part.name, part.groups) for part in parts}
    if len(counts) > 1:
        return f"blocks keep {min(counts)} to {max(counts)} of them, and a config has one number for all"
    part = next(iter(parts))
    wanted = settings(part, counts.pop())
    try:
        type(model.config).from_dict({**model.config.to_dict(), **wanted})
    except Exception as error:  # whatever the checks of a config raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        words = ", ".join(f"{key} {value}" for key, value in wanted.items())
        return f"no config takes {words}: {said[-1].strip()}"
    return ""


def settings(part: Part, count: int) -> dict[str, int]:
    """Return the settings of the config of a model whose parts all keep `count` groups."""
    return {**{key: each * count for key, each in part.settings.items()}, **part.fixed}


def remove(model: Any, parts: Sequence[Part], masks: Mapping[str, Tensor]) -> None:
    """Remove the groups that a mask (groups,) of a part has as 0, where a config can say so; else clear them.

    Parts without a mask stay whole.
    """
    for kind in ROWS:
        alike = [part for part in parts if part.kind == kind]
        kept = {name: mask.nonzero().flatten() for name, mask in masks.items()}
        counts = {part.name: len(kept[part.name]) for part in alike if part.name in kept}
        if all(counts.get(part.name, part.groups) == part.groups for part in alike):
            continue
        if refusal(model, alike, counts):
            for part in alike:
                if part.name in masks:
                    clear(part, (masks[part.name] == 0).nonzero().flatten())
        else:
            for part in alike:
                keep(part, kept[part.name])
            model.config.update(settings(alike[0], len(kept[alike[0].name])))


def _numel(layer: Any) -> int:
    return layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel())


def _by_group(tensor: Tensor, groups: int, dim: int) -> Tensor:
    """Return a view with a dimension of groups in place of one of rows or columns, and one within each."""
    return tensor.unflatten(dim, (groups, -1))


def _replace(layer: nn.Module, name: str, values: Tensor) -> None:
    trains = getattr(layer, name).requires_grad
    setattr(layer, name, nn.Parameter(values.contiguous(), requires_grad=trains))

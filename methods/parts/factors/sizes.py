"""How large a model is, and what is left of it when some of its layers become factors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import nn

from methods.parts.targets import kind_of

#: Shape (out, in) of each target layer by name.
Shapes = Mapping[str, tuple[int, ...]]


def parameters(model: nn.Module) -> int:
    """The number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module) -> int:
    """Multiply-adds per token in all linear layers, the head included (half their FLOPs).

    The embedding lookup has none; attention scores depend on the context length and are left out.
    """
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def reduction_facts(shapes: Shapes, kept: Mapping[str, int]) -> dict[str, Any]:
    """Measured reduction (pruned ranks of factored layers over all ranks), mean kept ranks, size ratios.

    Multiply-adds per token of a linear layer are its weights, so both ratios of the targets are equal.
    """
    pruned = sum(min(shapes[name]) - rank for name, rank in kept.items())
    kinds: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        kinds.setdefault(kind_of(name), []).append(kept.get(name, min(shape)))
    weights = sum(kept[name] * sum(shape) if name in kept else prod(shape) for name, shape in shapes.items())
    ratio = weights / sum(map(prod, shapes.values()))
    return {
        "measured_err": pruned / sum(map(min, shapes.values())),
        "kept_rank_by_kind": {kind: sum(kept_ranks) / len(kept_ranks) for kind, kept_ranks in kinds.items()},
        "parameter_ratio_targets": ratio,
        "flop_ratio_targets": ratio,
    }

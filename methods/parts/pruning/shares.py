"""How much LoRAP keeps of what: ranks of attention matrices, channels of the MLP, and parameters by that.

Li et al., LoRAP, ICML 2024, arXiv 2404.09695, in the integer formulas of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from methods.parts.targets import LINEAR_KINDS, Shapes, kind_of

ATTENTION = LINEAR_KINDS[:4]
#: Those that keep more than the others do.
FAVOURED = ("v_proj", "o_proj")


def attention_ranks(shapes: Shapes, sparsity: float, allocation: float) -> dict[str, int]:
    """Return the rank of every attention matrix by name; those that stay dense have none.

    v and o together keep `allocation` times the parameters of q and k, and where that would be all of them
    they stay dense. Square matrices (h, h) have the ranks of the code's formulas, rounded down; others, as
    with grouped queries, keep the same share of their parameters.
    """
    keep = 1 - sparsity
    ranks = {}
    for name, (out, width) in shapes.items():
        if (kind := kind_of(name)) not in ATTENTION:
            continue
        hidden = width if kind != "o_proj" else out
        attention = int(keep * hidden / 2)
        most = int(2 * allocation * attention / (1 + allocation))
        least = int(2 * attention / (1 + allocation))
        if dense := most >= hidden // 2:
            least = int(keep * hidden) - hidden // 2
        if kind in FAVOURED and dense:
            continue
        square = most if kind in FAVOURED else least
        ranks[name] = max(1, 2 * square * out * width // (hidden * (out + width)))
    return ranks


def removed_channels(width: int, sparsity: float, least_kept: float) -> range:
    """Return which channels go, by their place in ascending order of importance: not the very first ones."""
    return range(int(least_kept * width), int((sparsity + least_kept) * width))


def kept_facts(shapes: Shapes, ranks: Mapping[str, int], share: float, parameters: int) -> dict[str, Any]:
    """Return the shares of parameters that are left of attention and MLP, and what all lost.

    `share` is that of the channels which stay, `parameters` are those of the whole model before.
    """
    whole, left = {"attention": 0, "mlp": 0}, {"attention": 0.0, "mlp": 0.0}
    for name, shape in shapes.items():
        part = "attention" if kind_of(name) in ATTENTION else "mlp"
        whole[part] += prod(shape)
        if part == "mlp":
            left[part] += share * prod(shape)
        else:
            left[part] += ranks[name] * sum(shape) if name in ranks else prod(shape)
    total = sum(whole.values())
    lost = total - sum(left.values())
    return {
        "kept": {part: left[part] / whole[part] for part in whole},
        "measured_reduction": {"linears": lost / total, "all": lost / parameters},
    }

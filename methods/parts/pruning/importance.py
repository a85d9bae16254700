"""How much a loss minds the loss of a head or channel, by the gradients of adapters alone.

A step of gradient descent with rate 1 changes B A by -(gB A + B gA - gB gA). That stands for the gradient of
the frozen weight beside it, and |change x weight| for the first-order change of the loss when an entry is
zeroed (LoRAPrune, arXiv 2305.18403, with the absolute value of its code in place of the square).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.parts.optim.adamw import gradient
from methods.parts.quantisation.tensor import exact

#: Entries of a weight that are scored at a time: two float32 buffers of 16 MiB, whatever the weight.
CHUNK = 2**22


@torch.no_grad()
def scores(layer: Any, side: Literal["rows", "columns"], groups: int, quadratic: bool) -> Tensor:
    """Return the importance (groups,) of groups of rows or columns of an adapted layer, with length 1.

    `layer` is a LoRA layer of peft whose adapters have gradients. `quadratic` takes the term gB gA in, which
    alone depends on the scale of the loss. The weight (out, in) is read once, in chunks of rows, so that no
    copy of all of it exists; an entry costs 3 `rank` multiply-adds, what 1.5 `rank` tokens cost it forward
    and backward.
    """
    down, up = (_weight(layer, part) for part in ("lora_A", "lora_B"))
    base: Tensor = layer.get_base_layer().weight
    dtype = exact(base.dtype)
    inner, outer = down.to(dtype), up.to(dtype)
    gradients = gradient(down).to(dtype), gradient(up).to(dtype)
    right = torch.cat([inner - gradients[0] if quadratic else inner, gradients[0]])
    left = torch.cat([gradients[1], outer], 1)
    scaling = layer.scaling["default"]
    rows = max(1, CHUNK // base.shape[1])
    found = base.new_zeros(base.shape[side == "columns"], dtype=dtype)
    for first in range(0, len(base), rows):
        part = slice(first, first + rows)
        weight = torch.addmm(base[part].to(dtype), outer[part], inner, alpha=scaling)
        product = weight.mul_(left[part] @ right).abs_()
        if side == "rows":
            found[part] = product.sum(1)
        else:
            found += product.sum(0)
    total = found.unflatten(0, (groups, -1)).sum(1)
    return total / torch.linalg.vector_norm(total)


def _weight(layer: Any, part: str) -> nn.Parameter:
    found: nn.Parameter = getattr(layer, part)["default"].weight
    return found

"""Choose how each of several matrices is stored, from candidates and within a budget of bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from math import ceil

import numpy as np

from harness.errors import UserError
from methods.parts.quantisation.allocation import allocate
from methods.parts.quantisation.normal_float import Layout

#: Bits, bits of a scale, dtype of the largest scales, block, superblock. `paper` has LQ-LoRA's 432.
CANDIDATES = {
    "few": ((2, 3, 4, 8), (4, 8), ("float16",), (16, 32, 64), (256,)),
    "paper": (
        *((2, 3, 4, 8), (2, 3, 4, 8)),
        *(("bfloat16", "float16", "float32"), (16, 32, 64), (16, 64, 256)),
    ),
}


def candidates(name: str) -> list[Layout]:
    """Return the layouts of a set of candidates."""
    return [Layout(*values) for values in product(*CANDIDATES[name])]  # type: ignore[arg-type]


def check_budget(budget: float, choices: list[Layout]) -> None:
    """Raise UserError for bits per weight that no model can keep: small matrices take more than the least."""
    least = min(layout.bits_per_weight for layout in choices)
    if budget < least:
        raise UserError(too_small(budget, "any", least))


def too_small(budget: float, which: str, least: float) -> str:
    """Return that a budget is too small for a model, with the least, rounded up, that is not."""
    return f"budget {budget:g} is too small for {which} model; give {ceil(1e4 * least) / 1e4:.4f} or more"


def spend(
    what: str,
    budget: float,
    elements: Mapping[str, int],
    choices: list[Layout],
    cost: Callable[[str, Layout], float],
) -> dict[str, Layout]:
    """Return a layout for each matrix, by name, that together cost least at `budget` bits per element.

    `elements` are the sizes of the matrices, and `cost` what a layout costs for one of them. UserError, which
    begins with `what`, for a budget that is too small.
    """
    bits = [[layout.stored_bits(count) for layout in choices] for count in elements.values()]
    sizes, costs = np.array(bits, float), np.full((len(elements), len(choices)), np.inf)
    for (row, (name, count)), (column, layout) in product(enumerate(elements.items()), enumerate(choices)):
        if count % layout.block == 0:
            costs[row, column] = cost(name, layout)
    total = sum(elements.values())
    least = float(np.where(np.isfinite(costs), sizes, np.inf).min(axis=1).sum()) / total
    if least > budget:
        raise UserError(f"{what}: {too_small(budget, 'this', least)}")
    chosen = allocate(costs, sizes, budget * total)
    return {name: choices[choice] for name, choice in zip(elements, chosen, strict=True)}

"""Give each matrix one of several layouts, so that all together keep a budget of bits and miss the least.

An integer program: one choice of each matrix, the sum of sizes bounded, the sum of costs least (Guo et al.,
LQ-LoRA, 2023, arXiv 2311.12023, section 3.2). Solved by scipy's HiGHS.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, kron, vstack

#: What the solver may exceed the budget by is taken off it first, a little more at each try.
SLACKS = (0.0, 1e-7, 1e-6, 1e-5)


def allocate(costs: np.ndarray, sizes: np.ndarray, budget: float) -> list[int]:
    """Return the choice of each matrix, from costs and sizes (matrices, choices).

    An infinite cost bars a choice. Where the solver finds nothing within the budget, each has its least size.
    ValueError where the least sizes exceed the budget.
    """
    count, choices = costs.shape
    barred = ~np.isfinite(costs)
    if np.where(barred, np.inf, sizes).min(axis=1).sum() > budget:
        raise ValueError("the budget is less than the least sizes")
    scaled = np.where(barred, 0.0, costs) / max(float(costs[~barred].max()), np.finfo(float).tiny)
    once = kron(csr_array(np.eye(count)), np.ones((1, choices)))
    matrix = vstack([once, csr_array(sizes.reshape(1, -1) / budget)])
    upper = np.where(barred, 0.0, 1.0).ravel()
    for slack in SLACKS:
        found = milp(
            scaled.ravel(),
            integrality=np.ones(count * choices),
            bounds=Bounds(0, upper),
            constraints=LinearConstraint(matrix, [1.0] * count + [0.0], [1.0] * count + [1.0 - slack]),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            break
        chosen = found.x.reshape(count, choices).argmax(axis=1)  # the solver returns floats near 0 and 1
        if sizes[np.arange(count), chosen].sum() <= budget:
            return [int(choice) for choice in chosen]
    return [int(choice) for choice in np.where(barred, np.inf, sizes).argmin(axis=1)]

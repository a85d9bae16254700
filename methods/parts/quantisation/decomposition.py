"""A matrix as NormalFloat and a product of low rank beside it: W = Q + left right, nearly.

Guo et al., LQ-LoRA, 2023, arXiv 2311.12023, algorithms 1 and 2: alternately, the factors are those of what Q
leaves, and Q stores what the factors leave. Kept is the best pair; the paper's code keeps the one after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import UserError
from methods.parts.quantisation.normal_float import Layout, NormalFloats, normal_floats
from methods.parts.targets import random_stream, seeded

#: Singular vectors that a randomized decomposition finds beside those asked for (paper's code).
OVERSAMPLING = 10
#: The least weight of a row or column, as a share of the mean: what never had a gradient is still stored.
LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Decomposition:
    """Stored numbers, factors (out, rank) and (rank, in) in float32, and norms of their error and of all."""

    stored: NormalFloats
    left: Tensor
    right: Tensor
    error: float
    whole: float
    turns: int


@torch.no_grad()
def decompose(
    weight: Tensor,
    rank: int,
    layout: Layout,
    turns: int,
    *,
    name: str,
    seed: int = 0,
    fisher: Tensor | None = None,
) -> Decomposition:
    """Decompose a weight (out, in) in at most `turns`, until the error no longer falls; rank may be 0.

    `fisher`, of the same shape, weights the squares of the error by entry, and the factors by the means of
    its rows and columns. UserError for NaN or infinity in the weight.
    """
    if not weight.isfinite().all():
        raise UserError(f"the weight of {name} holds NaN or infinity, so it cannot be decomposed")
    exact = weight.float()
    whole = _norm(exact, fisher)
    best: Decomposition | None = None
    left_over = exact
    for turn in range(1, turns + 1):
        stream = random_stream(seed, f"{name}, decomposition", turn, torch.device("cpu"))
        left, right = weighted_factors(left_over, rank, fisher, stream.initial_seed())
        beside = exact - left @ right
        stored = normal_floats(beside, layout, weight.dtype)
        values = stored.floats(torch.float32)
        error = _norm(beside - values, fisher)
        if best is not None and error >= best.error:
            break
        best = Decomposition(stored, left, right, error, whole, turn)
        left_over = exact - values
    assert best is not None
    return best


def _norm(matrix: Tensor, fisher: Tensor | None) -> float:
    squares = matrix.square()
    return float((squares if fisher is None else squares.mul_(fisher)).sum().sqrt())


def weighted_factors(matrix: Tensor, rank: int, fisher: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Return balanced factors of low rank, nearest to a matrix whose rows and columns have weights.

    Weights are the roots of the means of `fisher`, for which this is the optimum where it has rank one.
    """
    if fisher is None or not fisher.any():
        return factors(matrix, rank, seed)
    rows, columns = (_weights(fisher, dim) for dim in (1, 0))
    left, right = factors(rows[:, None] * matrix * columns, rank, seed)
    return left / rows[:, None], right / columns


def _weights(fisher: Tensor, dim: int) -> Tensor:
    means = fisher.mean(dim)
    return (means / means.mean()).clamp_(min=LEAST_WEIGHT).sqrt_()


def factors(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return u sqrt(s) (out, rank) and sqrt(s) vh (rank, in), by a randomized SVD where that is less work."""
    found = rank + OVERSAMPLING
    if found < min(matrix.shape):
        with seeded(seed, matrix.device):
            u, s, v = torch.svd_lowrank(matrix, q=found)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]

"""Leading singular subspaces of a matrix: exact, by its Gram matrix, or by randomized iteration; their rank.

Each finder takes `matrix` (d, k) and returns orthonormal columns (d, q) with their singular values (q,),
both descending, in float32 (float64 for float64). The columns span (exactly or nearly) the leading
left singular subspace; for the right one give the transpose.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

#: How a subspace is found: thin SVD (Golub & Van Loan), eigenvectors of the Gram matrix of the short
#: side, or randomized subspace iteration (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, alg. 4.4).
Finder = Literal["svd", "gram", "randomized"]

OVERSAMPLING = 8
POWER_ITERATIONS = 1
TRACE = 1e-3  # of noise in an earlier basis, or a matrix that annihilates it would leave nothing to iterate


def leading(
    matrix: Tensor, width: int, how: Finder, generator: torch.Generator, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The leading `width` columns; `start` (d, any) may hold an earlier basis to begin from."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    width = min(width, *matrix.shape)
    if how == "svd":
        columns, values = _svd(matrix)
    elif how == "gram":
        columns, values = _gram(matrix, width)
    else:
        columns, values = _randomized(matrix, width, generator, start)
    kept = columns[:, :width].clone(memory_format=torch.contiguous_format)  # NCCL sends nothing else
    return kept, values[:width].clone()  # copies, without the columns that nobody keeps


def seeded(seed: int, name: str, update: int, device: torch.device) -> torch.Generator:
    """A random stream of its own for one matrix and update, so that nothing else moves with it."""
    digest = hashlib.sha256(f"{seed} {name} {update}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Of the matrix or its transpose, whichever is tall: LAPACK takes up to 1.7 times as long for wide."""
    if matrix.shape[0] < matrix.shape[1]:
        _, values, rows = torch.linalg.svd(matrix.T, full_matrices=False)
        return rows.T, values
    columns, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return columns, values


def _gram(matrix: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Squaring loses what lies below the root of the precision, about 3e-4 of the largest in float32."""
    if matrix.shape[0] <= matrix.shape[1]:
        squares, columns = torch.linalg.eigh(matrix @ matrix.T)
        return columns.flip(1)[:, :width], squares.flip(0).clamp(min=0).sqrt()
    squares, rows = torch.linalg.eigh(matrix.T @ matrix)
    image = matrix @ rows.flip(1)[:, :width]
    return torch.linalg.qr(image).Q, squares.flip(0).clamp(min=0).sqrt()


def _randomized(
    matrix: Tensor, width: int, generator: torch.Generator, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Iterate on a few more columns than asked for, then turn them to the singular directions within."""
    enough = min(width + OVERSAMPLING, *matrix.shape)
    begun = torch.empty(matrix.shape[0], 0, dtype=matrix.dtype, device=matrix.device)
    if start is not None:  # an earlier basis replaces a first pass over the matrix
        begun = start[:, :width].to(matrix.dtype)
        trace = torch.randn(begun.shape, generator=generator, dtype=matrix.dtype, device=matrix.device)
        begun = begun + TRACE * trace / matrix.shape[0] ** 0.5
    missing = (matrix.shape[1], enough - begun.shape[1])
    noise = torch.randn(missing, generator=generator, dtype=matrix.dtype, device=matrix.device)
    basis = torch.cat([begun, torch.linalg.qr(matrix @ noise).Q], dim=1)  # each part well conditioned
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    inner = basis.T @ matrix
    squares, turn = torch.linalg.eigh(inner @ inner.T)
    return basis @ turn.flip(1)[:, :width], squares.flip(0).clamp(min=0).sqrt()


def squared_norm(gradient: Tensor) -> float:
    """|G|_F^2 row by row: one float32 sum over millions of squares would be too rough for `energy` 1."""
    exact = torch.promote_types(gradient.dtype, torch.float32)
    rows = torch.linalg.vector_norm(gradient, dim=1, dtype=exact)
    return float(rows.double().square().sum())


def least_rank(values: Tensor, total: float, energy: float) -> int:
    """The smallest rank whose squared singular values (descending) reach `energy` of `total`, else all."""
    kept = values.double().square().cumsum(0)
    enough = int(torch.searchsorted(kept, kept.new_tensor(energy * total * (1 - 1e-6))))
    return min(enough + 1, len(values))

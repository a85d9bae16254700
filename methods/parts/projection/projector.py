"""Projectors: how a gradient is projected to few coordinates and back, and how the subspace is found.

left: R = L^T G, (rank, in);  right: R = G Q, (out, rank);  both: R = L^T G Q, (rank, rank), with a gradient
G (out, in) and columns L (out, rank), Q (in, rank). The side is stored, not guessed from shapes.

The columns found here are orthonormal, and span, exactly or nearly, the leading singular subspace of a
gradient. It is found by thin SVD (Golub & Van Loan), by the eigenvectors of the Gram matrix of the short
side, or by randomized subspace iteration (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.parts.replicas import take_from_first

Side = Literal["left", "right", "both"]
#: As in GaLore's code: `std` projects the short side (a square matrix on the right), `reverse_std` the long.
Projection = Literal["std", "reverse_std", "left", "right", "full"]
Finder = Literal["svd", "gram", "randomized"]

OVERSAMPLING = 8
POWER_ITERATIONS = 1
#: Noise in an earlier basis; without it a matrix that annihilates the basis would leave nothing to iterate.
TRACE = 1e-3


def side_of(shape: tuple[int, ...], projection: Projection) -> Side:
    """Return the side on which a matrix (out, in) is projected."""
    if projection == "full":
        return "both"
    if projection in ("left", "right"):
        return projection
    tall = shape[0] >= shape[1]
    return "right" if tall == (projection == "std") else "left"


@dataclass(frozen=True)
class Projector:
    """The basis of one matrix: columns on the left, on the right, or on both sides.

    `changes_from` and `overlap` are for orthonormal ones.
    """

    left: Tensor | None = None
    right: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of columns."""
        return self._basis.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of coordinates."""
        return self._basis.dtype

    @property
    def _basis(self) -> Tensor:
        return next(iter(self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the bases by side, `left` before `right`."""
        sides = {"left": self.left, "right": self.right}
        return {side: basis for side, basis in sides.items() if basis is not None}

    def project(self, gradient: Tensor) -> Tensor:
        """Return the coordinates of a gradient (out, in), of the shapes above."""
        coordinates = gradient.to(self.dtype)
        if self.left is not None:
            coordinates = self.left.T @ coordinates
        return coordinates if self.right is None else coordinates @ self.right

    def empty(self, gradient: Tensor) -> Tensor:
        """Return a tensor of the shape and dtype of the coordinates of a gradient, without values."""
        rows = gradient.shape[0] if self.left is None else self.rank
        columns = gradient.shape[1] if self.right is None else self.rank
        return gradient.new_empty((rows, columns), dtype=self.dtype)

    def add_back(self, weight: Tensor, coordinates: Tensor, scale: float) -> None:
        """Add scale * (coordinates mapped back) to a weight in place, in one kernel where dtypes allow."""
        if self.left is None:
            assert self.right is not None
            first, second = coordinates, self.right.T
        elif self.right is None:
            first, second = self.left, coordinates
        else:
            first, second = self.left @ coordinates, self.right.T
        if weight.dtype == first.dtype:
            weight.addmm_(first, second, alpha=scale)
        else:
            weight.add_(first @ second, alpha=scale)

    def align(self, old: Projector) -> None:
        """Turn columns in place so that none points away from the column of `old` at its place.

        The sign of a singular vector is arbitrary, and rounding decides it. Columns that only one of the two
        has, and those at a right angle, stay as they are.
        """
        before = old.tensors()
        for side, basis in self.tensors().items():
            common = min(basis.shape[1], before[side].shape[1])
            columns = basis[:, :common]
            exact = torch.promote_types(basis.dtype, torch.float32)
            products = (columns.to(exact) * before[side][:, :common].to(exact)).sum(0)
            columns.mul_(torch.where(products < 0, -1.0, 1.0).to(basis.dtype))

    def changes_from(self, old: Projector) -> tuple[Tensor | None, Tensor | None]:
        """Return (a, b), where a M b maps old to new coordinates M; None stands for the identity.

        a is (rank, old rank) and b (old rank, rank).
        """
        left = None if self.left is None or old.left is None else self.left.T @ old.left
        right = None if self.right is None or old.right is None else old.right.T @ self.right
        return left, right

    def overlap(self, old: Projector) -> float:
        """Return the share of the old subspace in the new, |P_old^T P_new|_F^2 / rank in 0 … 1.

        On both sides it is the smaller of the two shares.
        """
        changes = [change for change in self.changes_from(old) if change is not None]
        return min(float(change.float().square().sum()) / min(change.shape) for change in changes)


def find_projector(
    gradient: Tensor,
    side: Side,
    rank: int,
    how: Finder,
    generator: torch.Generator,
    old: Projector | None = None,
) -> tuple[Projector, Tensor]:
    """Return the projector to the leading `rank` directions of a gradient, and their singular values.

    Bases are float32 at least. In a distributed run all processes get those of process 0, since signs and
    rounding are arbitrary. `old` is where a randomized iteration starts. torch.linalg.LinAlgError where a
    decomposition fails.
    """
    bases: dict[str, Tensor] = {}
    values = torch.empty(0)
    for name, matrix in (("left", gradient), ("right", gradient.T)):
        if side in (name, "both"):
            start = None if old is None else getattr(old, name)
            bases[name], values = leading(matrix, rank, how, generator, start)
    take_from_first((*bases.values(), values))
    return Projector(**bases), values


def leading(
    matrix: Tensor, rank: int, how: Finder, generator: torch.Generator, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the `rank` leading left singular vectors of a matrix (d, k) and their singular values.

    Both are descending. The vectors are orthonormal columns (d, rank), or as many as the matrix has, in
    float32 (float64 for float64). A randomized iteration starts from the basis `start` (d, any).
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    rank = min(rank, *matrix.shape)
    if how == "svd":
        columns, values = _svd(matrix)
    elif how == "gram":
        columns, values = _gram(matrix, rank)
    else:
        columns, values = _randomized(matrix, rank, generator, start)
    # Copies, so that the columns beyond the rank are freed; NCCL sends contiguous tensors only.
    return columns[:, :rank].clone(memory_format=torch.contiguous_format), values[:rank].clone()


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose the matrix or its transpose, whichever is tall: LAPACK is up to 1.7 times slower for wide."""
    if matrix.shape[0] < matrix.shape[1]:
        _, values, rows = torch.linalg.svd(matrix.T, full_matrices=False)
        return rows.T, values
    columns, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return columns, values


def _gram(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Square the matrix; values below the root of the precision, 3e-4 of the largest in float32, are lost."""
    if matrix.shape[0] <= matrix.shape[1]:
        squares, columns = torch.linalg.eigh(matrix @ matrix.T)
        return columns.flip(1)[:, :rank], squares.flip(0).clamp(min=0).sqrt()
    squares, rows = torch.linalg.eigh(matrix.T @ matrix)
    image = matrix @ rows.flip(1)[:, :rank]
    return torch.linalg.qr(image).Q, squares.flip(0).clamp(min=0).sqrt()


def _randomized(
    matrix: Tensor, rank: int, generator: torch.Generator, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Iterate on a few columns more than the rank, then rotate to the singular directions among them."""
    enough = min(rank + OVERSAMPLING, *matrix.shape)
    basis = torch.empty(matrix.shape[0], 0, dtype=matrix.dtype, device=matrix.device)
    if start is not None:  # an earlier basis replaces a first pass over the matrix
        basis = start[:, :rank].to(matrix.dtype)
        trace = torch.randn(basis.shape, generator=generator, dtype=matrix.dtype, device=matrix.device)
        basis = basis + TRACE * trace / matrix.shape[0] ** 0.5
    missing = (matrix.shape[1], enough - basis.shape[1])
    noise = torch.randn(missing, generator=generator, dtype=matrix.dtype, device=matrix.device)
    basis = torch.cat([basis, torch.linalg.qr(matrix @ noise).Q], dim=1)  # each part well conditioned
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    inner = basis.T @ matrix
    squares, rotation = torch.linalg.eigh(inner @ inner.T)
    return basis @ rotation.flip(1)[:, :rank], squares.flip(0).clamp(min=0).sqrt()


def squared_norm(gradient: Tensor) -> float:
    """Return |G|_F^2, summed by row: one float32 sum over millions is too rough for an energy of 1."""
    exact = torch.promote_types(gradient.dtype, torch.float32)
    rows = torch.linalg.vector_norm(gradient, dim=1, dtype=exact)
    return float(rows.double().square().sum())


def least_rank(values: Tensor, total: float, energy: float) -> int:
    """Return the least rank whose squared singular values, descending, reach `energy` of `total`, or all."""
    captured = values.double().square().cumsum(0)
    enough = int(torch.searchsorted(captured, captured.new_tensor(energy * total * (1 - 1e-6))))
    return min(enough + 1, len(values))

"""Projection of a gradient (out, in) to few coordinates and back, on one side or on both.

left: R = L^T G, (rank, in);  right: R = G Q, (out, rank);  both: R = L^T G Q, (rank, rank), with
orthonormal columns L (out, rank) and Q (in, rank). The side is stored, never guessed from shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.parts.projection.subspace import Finder, leading

Side = Literal["left", "right", "both"]
#: As in GaLore's code: `std` projects the short side (a square matrix on the right), `reverse_std` the long.
Projection = Literal["std", "reverse_std", "left", "right", "full"]


def side_of(shape: tuple[int, ...], projection: Projection) -> Side:
    """The side on which a matrix (out, in) is projected."""
    if projection == "full":
        return "both"
    if projection in ("left", "right"):
        return projection
    tall = shape[0] >= shape[1]
    return "right" if tall == (projection == "std") else "left"


@dataclass(frozen=True)
class Projector:
    """The basis of one matrix: orthonormal columns on the left, on the right, or on both sides."""

    left: Tensor | None = None
    right: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of columns."""
        basis = self.left if self.left is not None else self.right
        assert basis is not None
        return basis.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What coordinates are computed in."""
        basis = self.left if self.left is not None else self.right
        assert basis is not None
        return basis.dtype

    def tensors(self) -> dict[str, Tensor]:
        """The bases that are there, by side."""
        sides = {"left": self.left, "right": self.right}
        return {side: basis for side, basis in sides.items() if basis is not None}

    def project(self, gradient: Tensor) -> Tensor:
        """The coordinates of a gradient (out, in)."""
        coordinates = gradient.to(self.dtype)
        if self.left is not None:
            coordinates = self.left.T @ coordinates
        return coordinates if self.right is None else coordinates @ self.right

    def add_back(self, weight: Tensor, coordinates: Tensor, scale: float) -> None:
        """weight += scale * (coordinates mapped back), in place, at best without a matrix between."""
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

    def changes_from(self, old: Projector) -> tuple[Tensor | None, Tensor | None]:
        """The maps (a, b) of old to new coordinates, M -> a M b, of sizes rank by old rank; None for 1."""
        left = None if self.left is None or old.left is None else self.left.T @ old.left
        right = None if self.right is None or old.right is None else old.right.T @ self.right
        return left, right

    def overlap(self, old: Projector) -> float:
        """Share of the old subspace in the new, 0 to 1: |P_old^T P_new|_F^2 / rank, the least over sides."""
        changes = [change for change in self.changes_from(old) if change is not None]
        return min(float(change.float().square().sum()) / min(change.shape) for change in changes)


def find(
    gradient: Tensor,
    side: Side,
    width: int,
    how: Finder,
    generator: torch.Generator,
    old: Projector | None = None,
) -> tuple[Projector, Tensor]:
    """The projector of the leading `width` directions of a gradient, and their singular values.

    Bases are float32 at least. In a distributed run they are those of rank 0 on all ranks, since signs
    and rounding are free. torch.linalg.LinAlgError where a decomposition fails.
    """
    bases: dict[str, Tensor] = {}
    values = torch.empty(0)
    for name, matrix in (("left", gradient), ("right", gradient.T)):
        if side in (name, "both"):
            start = None if old is None else getattr(old, name)
            bases[name], values = leading(matrix, width, how, generator, start)
    for tensor in (*bases.values(), values):
        agree(tensor)
    return Projector(**bases), values


def agree(tensor: Tensor) -> None:
    """Give all processes of a distributed run the tensor of rank 0, in place."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast(tensor, src=0)

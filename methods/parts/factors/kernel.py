"""The best factors of a weight for inputs of given statistics, at any rank.

A layer y = W x + b is replaced by y = B (A x) + c with B = U_k and A = U_k^T W, where U_k are the k leading
eigenvectors of W M W^T. M weights the errors: the identity (plain SVD), a diagonal (ASVD, LoRAP's AWSVD), the
mean of x x^T (SVD-LLM's whitening, and the projection of features on their principal components) or the
covariance of x with c = b + (I - U_k U_k^T) W mean(x) (LORD, Bolaco). For each M this is the minimum of the
mean squared error tr((W - B A) M (W - B A)^T), also where M is singular, and nothing is inverted (Eckart &
Young 1936: B A R is the best approximation of W R for every R with R R^T = M).

Eigenvectors come from the smaller one of two problems, W M W^T (out, out) or R^T W^T W R (in, in), in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import UserError

#: Float64 matrix (in, in), its diagonal (in,), or None for the identity.
Metric = Tensor | None
#: Over the longest column; beside shorter ones, rounding leaves columns that are not orthogonal enough.
SHORTEST = 1e-3
#: Parts of a symmetric product.
PANELS = 8


@dataclass(frozen=True)
class Factors:
    """Factors `up` (out, rank) and `down` (rank, in) of a weight, and what is added to its bias (out,)."""

    up: Tensor
    down: Tensor
    offset: Tensor | None = None


@dataclass(frozen=True)
class Decomposition:
    """Directions of a layer's outputs, the leading one first: factors of every rank are slices of them."""

    weight: Tensor
    """The weight (out, in)."""

    directions: Tensor
    """Orthonormal columns (out, most)."""

    energies: Tensor
    """What each of all min(out, in) directions holds of tr(W M W^T), descending, float64."""

    mean: Tensor | None = None
    """Mean output W mean(x) (out,) of a decomposition about it, else None."""

    @torch.no_grad()
    def factors(self, rank: int) -> Factors:
        """Return factors of a rank up to `most`; along each direction both have the same length."""
        kept = self.directions[:, :rank]
        offset = None if self.mean is None else self.mean - kept @ (kept.T @ self.mean)
        up = kept.to(torch.promote_types(self.weight.dtype, torch.float32))
        down = up.T @ self.weight.to(up.dtype)
        length = torch.linalg.vector_norm(down, dim=1, dtype=torch.float64).sqrt().to(up.dtype)
        length = torch.where(length > 0, length, torch.ones_like(length))
        return Factors(up * length, down / length[:, None], offset)

    def error(self, rank: int) -> float:
        """Return the mean squared error of factors of a rank, summed over outputs: what is left out."""
        return float(self.energies[rank:].sum())


@torch.no_grad()
def decompose(
    weight: Tensor, metric: Metric, most: int | None = None, mean: Tensor | None = None, name: str = ""
) -> Decomposition:
    """Decompose a weight (out, in) up to rank `most` (null: all) by a metric of its inputs.

    `mean` (in,) is the mean input that a covariance as metric leaves out: then the bias takes the mean of
    what a rank drops. UserError for a weight or a metric that holds NaN or infinity.
    """
    layer = name or "a layer"
    if not weight.isfinite().all():
        raise UserError(f"the weight of {layer} holds NaN or infinity, so it has no factors")
    if metric is not None and not metric.isfinite().all():
        raise UserError(
            f"the inputs of {layer} hold NaN or infinity on the calibration text, so it has no factors; look "
            "at the layers before it, or at its dtype"
        )
    exact = weight.double()
    out, inputs = exact.shape
    most = min(out, inputs) if most is None else most
    if out <= inputs:
        energies, vectors = torch.linalg.eigh(_lower(_weighted(exact, metric), exact.T))
        directions = vectors.flip(1)[:, :most]
    else:
        rooted = _times_root(exact, metric)
        energies, vectors = torch.linalg.eigh(_lower(rooted.T, rooted))
        directions = _normal(rooted @ vectors.flip(1)[:, :most])
    centre = None if mean is None else exact @ mean.double()
    return Decomposition(weight, directions.contiguous(), energies.flip(0).clamp(min=0), centre)


def _normal(columns: Tensor) -> Tensor:
    """Return orthogonal columns (n, m), the longest first, at length one, also where some are zero."""
    lengths = torch.linalg.vector_norm(columns, dim=0)
    if lengths.numel() and lengths[-1] > SHORTEST * lengths[0]:
        return columns / lengths
    return torch.linalg.qr(columns).Q  # several times as long


def _lower(left: Tensor, right: Tensor) -> Tensor:
    """Return the lower triangle of a symmetric product (n, n), which is all that `eigh` reads.

    What stands above the panels of the diagonal is zero: eight of them take 56 % of the time of all of it.
    """
    size = len(left)
    product = left.new_zeros(size, size)
    step = -(-size // PANELS)
    for first in range(0, size, step):
        torch.mm(left[first:], right[:, first : first + step], out=product[first:, first : first + step])
    return product


def _weighted(weight: Tensor, metric: Metric) -> Tensor:
    """Return W M (out, in)."""
    if metric is None:
        return weight
    return weight * metric if metric.dim() == 1 else weight @ metric


def _times_root(weight: Tensor, metric: Metric) -> Tensor:
    """Return W R (out, in) for a root R R^T = M: Cholesky's, or that by eigenvectors where M is singular."""
    if metric is None:
        return weight
    if metric.dim() == 1:
        return weight * metric.clamp(min=0).sqrt()
    lower, failed = torch.linalg.cholesky_ex(metric)
    if not failed:
        return weight @ lower
    energies, vectors = torch.linalg.eigh(metric)
    return weight @ (vectors * energies.clamp(min=0).sqrt())

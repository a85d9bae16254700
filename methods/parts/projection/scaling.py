"""Descend along a gradient, or a part of it, scaled as Adam scales its coordinates; limit its growth.

With R the coordinates of a gradient and N Adam's step on them, index j of the side that is not projected
gets the factor s_j = |N_j| / (|R_j| + 1e-8), or all get s = |N| / (|R| + 1e-8) (Zhu et al., APOLLO, MLSys
2025, arXiv 2412.05270, section 3; Chen et al., Fira, NeurIPS 2025, arXiv 2410.01623, section 4). The norm of
the scaled direction may grow by at most the factor `limiter` from one update to the next.

Both papers' codes start the limiter at the first norm. Where that is 0 the norm starts at 1e-8, and needs
1,850 updates to reach 1. Here the limiter starts at the first norm above 0, and passes over later zeros.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from methods.parts.projection.method import Matrix, ProjectedStepper, ProjectionConfig, ProjectionMethod

OneSided = Literal["std", "reverse_std", "left", "right"]
Scaling = Literal["channel", "tensor"]
Limiter = Annotated[float, Field(ge=1)] | None
#: Beside the norm of coordinates, so that none is divided by 0 (both codes).
TINY = 1e-8


class ScalingConfig(ProjectionConfig):
    """Options of the methods that scale gradients."""

    projection: OneSided = "std"
    """Which side is projected: `std` the short one (a square matrix on the right), `reverse_std` the long
    one, `left` or `right` always that one."""

    scaling: Scaling = "channel"
    """One factor for each row or column of a matrix, along its side that is not projected (`channel`), or
    one for all of it (`tensor`)."""

    limiter: Limiter = 1.01
    """Largest growth of the norm of the scaled gradient of a matrix from one update to the next, as a factor
    (gamma); null for no limit."""


class ScalingMethod(ProjectionMethod):
    """A method that scales gradients."""

    config: ScalingConfig

    def state_elements(self, shape: tuple[int, ...]) -> int:
        """Return also the last norm of what is scaled."""
        return super().state_elements(shape) + (self.config.limiter is not None)


class ScalingStepper(ProjectedStepper):
    """A stepper that moves weights along scaled gradients, or parts of them."""

    config: ScalingConfig

    def factors(
        self, name: str, matrix: Matrix, direction: Tensor, step: Tensor, coordinates: Tensor
    ) -> Tensor:
        """Return the factors s of a direction (out, in), after limiting its growth.

        `step` is Adam's on the coordinates, at a learning rate of 1. The norm that is limited, and stored, is
        that before the bias correction where the arithmetic is official. Nothing of the size of the weight is
        allocated, and no value is read.
        """
        factors = scaling_factors(step, coordinates, matrix, self.config.scaling)
        if self.config.limiter is not None:
            norms = norms_along(direction, _dims_of(factors))
            norm = torch.linalg.vector_norm(norms * factors) / self.bias_correction(name)
            before = torch.zeros_like(norm) if matrix.norm is None else matrix.norm
            limited = torch.where(before > 0, torch.minimum(norm, self.config.limiter * before), norm)
            factors = factors * torch.where(norm > 0, limited / norm, 1.0)
            matrix.norm = torch.where(norm > 0, limited, before)
        return factors


def scaling_factors(step: Tensor, coordinates: Tensor, matrix: Matrix, scaling: Scaling) -> Tensor:
    """Return the factors s, (out, 1) for coordinates (out, rank), (1, in) for (rank, in), (1, 1) for one."""
    dims = (0, 1) if scaling == "tensor" else (0,) if matrix.side == "left" else (1,)
    return norms_along(step, dims) / (norms_along(coordinates, dims) + TINY)


def norms_along(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return norms over some dimensions, which stay with length 1, in float32 at least."""
    exact = torch.promote_types(tensor.dtype, torch.float32)
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=exact)


def _dims_of(factors: Tensor) -> tuple[int, ...]:
    """Return the dimensions that factors are spread over."""
    return tuple(dim for dim, length in enumerate(factors.shape) if length == 1)

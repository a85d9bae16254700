"""APOLLO: all parameters train along their gradients, scaled as Adam scales a random projection of them.

The gradient of each attention and feed-forward matrix is projected to a few coordinates by a Gaussian
matrix, another one every `period` updates. Adam works on the coordinates. Each row or column of the gradient
is multiplied by what Adam multiplies the norm of its coordinates by, and is what moves the weight. The matrix
is drawn again from its seed in each update, so that Adam's moments of the coordinates are all that is stored.
APOLLO-Mini is `{rank: 1, scaling: tensor, scale: 128}`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import Caps
from methods.parts.optim.adamw import gradient
from methods.parts.projection.method import Arithmetic, Matrix, Precision
from methods.parts.projection.projector import Projector, side_of
from methods.parts.projection.scaling import ScalingConfig, ScalingMethod, ScalingStepper
from methods.parts.targets import random_stream


class ApolloConfig(ScalingConfig):
    """Hyperparameters of APOLLO; rank, period and scale as in the paper's recipe for 60M parameters."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Square of the factor of the scaled gradient (alpha^2, as in the paper's code): 1, or 128 at rank 1."""

    projector: Literal["seed", "stored", "svd"] = "seed"
    """`seed`: a Gaussian matrix, drawn again from its seed in each update, so that it takes no memory
    (paper). `stored`: the same, kept (paper's code). `svd`: leading directions (paper's APOLLO w. SVD)."""

    moments: Literal["keep", "reset"] = "keep"
    """At a refresh: `keep` them, in coordinates that are gone (paper's code), or `reset` them."""

    precision: Precision = "float32"
    """Of projection and moments. `gradient` is the paper's code: bfloat16 in a bfloat16 model.
    `train.state_bits` overrules it for the moments."""

    arithmetic: Arithmetic = "torch"
    """`official`: eps beside the root of the uncorrected second moment (but not with `train.state_bits: 8`),
    the limit on norms before bias correction, and weight decay after the update."""


class Apollo(ScalingMethod):
    """Train the targets along scaled gradients, and the rest with AdamW."""

    Config = ApolloConfig
    config: ApolloConfig
    name = "apollo"
    source = (
        "Zhu et al., APOLLO, MLSys 2025, arXiv 2412.05270, algorithm 1 and table 1. By default it departs "
        "from their code in a projection that is not stored, in seeds from the run's and the matrix's name "
        "(theirs are numbers, and all equal with updates per layer), in a limiter that starts at the first "
        "norm that is not 0, in float32 projections and moments, and in eps, weight decay and the limited "
        "norm, which is bias-corrected. `projector`, `precision` and `arithmetic` bring theirs back. Their "
        "`scale_front` would change nothing: the limiter compares norms that have the same factor."
    )

    @property
    def caps(self) -> Caps:
        """Return one period for all matrices; a refresh costs no decomposition unless by `svd`."""
        return replace(super().caps, period=self.config.period)

    def stepper(self, model: nn.Module, optim: OptimConfig) -> ApolloStepper:
        """Return a stepper that draws projections periodically."""
        return ApolloStepper(model, optim, self.config, self.seed)

    def state_elements(self, shape: tuple[int, ...]) -> int:
        """Return those of table 1: two moments of the coordinates, projection or seed, and the last norm."""
        elements = super().state_elements(shape)
        if self.config.projector != "seed":
            return elements
        projected = shape[0] if side_of(shape, self.config.projection) == "left" else shape[1]
        return elements - min(self.config.rank, *shape) * projected + 1


class ApolloStepper(ScalingStepper):
    """Draw projections at updates 0, T, 2T, … and move weights along scaled gradients."""

    config: ApolloConfig

    def __init__(self, model: nn.Module, optim: OptimConfig, config: ApolloConfig, seed: int) -> None:
        super().__init__(model, optim, config, seed)
        self.config, self.rule, self.arithmetic = config, config.moments, config.arithmetic
        self.precision, self.aligned = config.precision, config.projector == "svd"

    def new_projector(self, name: str, matrix: Matrix, gradient: Tensor) -> Projector | None:
        """Return a new random projector, or that to the leading directions of this gradient."""
        if self.config.projector == "svd":
            return super().new_projector(name, matrix, gradient)
        matrix.notes["drawn"] = self.updates
        return self._drawn(name, matrix, gradient)

    def _drawn(self, name: str, matrix: Matrix, gradient: Tensor) -> Projector:
        """Return the projector of entries N(0, 1 / rank) that was drawn at the last refresh of a matrix."""
        generator = random_stream(self.seed, name, matrix.notes["drawn"], gradient.device)
        shape = gradient.shape[0 if matrix.side == "left" else 1], matrix.rank
        dtype = gradient.dtype
        if self.precision == "float32":
            dtype = torch.promote_types(dtype, torch.float32)
        basis = torch.randn(shape, generator=generator, dtype=dtype, device=gradient.device)
        return Projector(**{matrix.side: basis.mul_(matrix.rank**-0.5)})

    def update_matrix(self, name: str, matrix: Matrix) -> None:
        """Draw the projection of a matrix again for the time of its update, where it is not stored."""
        if self.config.projector == "seed" and "drawn" in matrix.notes:
            matrix.projector = self._drawn(name, matrix, gradient(self.parameters[name]))
        super().update_matrix(name, matrix)
        if self.config.projector == "seed":
            matrix.projector = None

    def move(self, name: str, matrix: Matrix, weight: Tensor, coordinates: Tensor) -> None:
        """Move the weight along its gradient, scaled as Adam scales the coordinates, whatever their basis."""
        step, grad = self.adam_step(name, coordinates, 1.0), gradient(self.parameters[name])
        factors = self.factors(name, matrix, grad, step, coordinates)
        weight.addcmul_(grad, factors.to(weight.dtype), value=-self.lr * self.config.scale**0.5)

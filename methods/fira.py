"""Fira: as GaLore, and what the subspace does not hold of the gradient is followed, too.

The residual of each attention and feed-forward matrix, its gradient without the part in the subspace, has
no moments. Each of its rows or columns is multiplied by what Adam multiplies the norm of its coordinates by,
and then it moves the weight at the full learning rate, while Adam's step is multiplied by `scale`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from harness.config import OptimConfig
from methods.galore import GaLore, GaLoreConfig, GaLoreStepper
from methods.parts.optim.adamw import gradient
from methods.parts.projection.method import Matrix
from methods.parts.projection.scaling import ScalingConfig, ScalingMethod, ScalingStepper


class FiraConfig(ScalingConfig, GaLoreConfig):
    """Hyperparameters of Fira; rank, period and scale as in the paper's recipe for 60M parameters."""

    residual_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the gradient in the subspace that the residual leaves out: 1 is the paper, G - P P^T G, and
    the value of `scale` the paper's code, whose residual holds three quarters of it at a scale of 0.25."""


class Fira(ScalingMethod, GaLore):
    """Train the targets in subspaces of their gradients and along the residuals, and the rest with AdamW."""

    Config = FiraConfig
    config: FiraConfig
    name = "fira"
    source = (
        "Chen et al., Fira, NeurIPS 2025, arXiv 2410.01623, equations 8 to 11, on GaLore (Zhao et al., ICML "
        "2024, arXiv 2403.03507). By default it departs from their code in the residual (`residual_alpha`), "
        "in a limiter that starts at the first norm that is not 0 and compares bias-corrected norms, and in "
        "what GaLore departs in here; `arithmetic`, `precision` and `signs` bring theirs back."
    )

    def stepper(self, model: nn.Module, optim: OptimConfig) -> FiraStepper:
        """Return a stepper that refreshes subspaces periodically."""
        return FiraStepper(model, optim, self.config, self.seed)


class FiraStepper(ScalingStepper, GaLoreStepper):
    """Move weights by Adam's step in a subspace, and along what is left of the gradient."""

    config: FiraConfig

    def move(self, name: str, matrix: Matrix, weight: Tensor, coordinates: Tensor) -> None:
        """Add Adam's step on the coordinates, mapped back, and subtract the scaled residual."""
        assert matrix.projector is not None
        step, residual = self.adam_step(name, coordinates, 1.0), gradient(self.parameters[name]).clone()
        matrix.projector.add_back(residual, coordinates, -self.config.residual_alpha)
        matrix.projector.add_back(weight, step, self.lr * self.scale)
        factors = self.factors(name, matrix, residual, step, coordinates)
        weight.addcmul_(residual, factors.to(weight.dtype), value=-self.lr)

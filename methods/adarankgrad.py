"""AdaRankGrad: as GaLore, but each matrix's rank follows its gradient, and so does the time of a refresh.

At a refresh a randomized range finder gives the leading directions of the gradient, and the smallest
rank that keeps the share `energy` of its squared norm is taken. The moments are mapped into the new
subspace. A subspace serves until its gradient has shrunk to `convergence` of what it was there, at
most `period` updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import Caps
from methods.parts.projection.method import Matrix, Positive, ProjectedStepper, SubspaceConfig, SubspaceMethod
from methods.parts.projection.projector import Finder, Projector, find_projector, least_rank, squared_norm
from methods.parts.targets import random_stream

Given = Mapping[str, int] | None


class AdaRankGradConfig(SubspaceConfig):
    """Hyperparameters; of the paper only the upper ranks are known to us, so the rest are our choices.

    `rank` is the upper bound of all ranks, `period` that of the updates between two refreshes (200 in
    a third party's code), and one-sided projection is of the short side.
    """

    energy: Annotated[float, Field(gt=0, le=1)] = 0.96
    """Share of the squared norm of the gradient that the subspace must keep: the paper's information
    threshold. 0.96 is a residual of 0.2 of the norm, the default of a third party's code."""

    min_rank: Positive = 1
    """The lower bound of all ranks."""

    convergence: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Refresh when the norm of the projected gradient is at most this share of what it was in the first
    update of the subspace; 0 leaves refreshes to `period`. The paper's thresholds are not known to us."""

    refresh: Finder = "randomized"
    """How the directions are found: `randomized` (paper), or the exact `svd` or `gram`."""

    moments: Literal["square", "ldadam", "reset", "keep", "paper"] = "square"
    """How moments follow a new subspace, with R the change of basis: first moments by R; second moments
    by R o R (`square`), as variances (`ldadam`), or by R clamped at 0 (`paper`: as printed it can turn
    negative). `reset` starts anew, `keep` changes nothing while the rank stays."""

    projection: Literal["std", "reverse_std", "left", "right"] = "std"
    """Which side is projected: `std` the short one, `reverse_std` the long one, `left`, `right`."""

    @model_validator(mode="after")
    def _ranks_in_order(self) -> AdaRankGradConfig:
        if self.min_rank > self.rank:
            raise ValueError(f"min_rank {self.min_rank} is above rank {self.rank}; give one that is not")
        return self


class AdaRankGrad(SubspaceMethod):
    """Train the targets with AdamW in subspaces of varying rank, and the rest with AdamW."""

    Config = AdaRankGradConfig
    config: AdaRankGradConfig
    name = "adarankgrad"
    source = (
        "Refael et al., AdaRankGrad, ICLR 2025, arXiv 2410.17881: the blocks of its algorithm as others "
        "summarise them. Our choices where it is silent: one `energy` on the captured share (the printed "
        "rule bounds the residual; its supremum is the full rank), relative convergence, one step count over "
        "all subspaces, squared coefficients for second moments (as printed they diverge on a quadratic)."
    )

    approximations: ClassVar[Mapping[str, str]] = {"upper": "every rank is at its upper bound"}

    @property
    def caps(self) -> Caps:
        """Return that ranks follow from gradients, as do refreshes, at most a period apart."""
        return replace(super().caps, value_dependent=True, mean_period=self.config.period)

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdaRankGradStepper:
        """Return a stepper that refreshes by convergence and at the latest after a period."""
        given = None if self.simulated is None else self.simulated.ranks or {}
        return AdaRankGradStepper(model, optim, self.config, self.seed, given)


class AdaRankGradStepper(ProjectedStepper):
    """Choose ranks at refreshes, and refresh where a gradient has shrunk in its subspace.

    In a simulation `given` are the ranks by layer; all others are then at their upper bound.
    """

    def __init__(
        self, model: nn.Module, optim: OptimConfig, config: AdaRankGradConfig, seed: int, given: Given = None
    ) -> None:
        super().__init__(model, optim, config, seed)
        self.config, self.given = config, given
        self.rule, self.aligned = config.moments, config.signs == "aligned"
        self._norms_here: dict[str, Tensor] = {}

    def new_projector(self, name: str, matrix: Matrix, gradient: Tensor) -> Projector | None:
        """Return the projector of the least rank that captures enough; None for a gradient of zeros."""
        if (total := squared_norm(gradient)) == 0:
            return None
        generator = random_stream(self.seed, name, self.updates, gradient.device)
        upper = min(self.config.rank, *gradient.shape)
        how, old = self.config.refresh, matrix.projector
        # Ranks mostly fall or stay, so a cheap finder looks for few directions before it looks for all.
        first = min(2 * old.rank, upper) if old is not None and how == "randomized" else upper
        for width in sorted({first, upper}):
            found, values = find_projector(gradient, matrix.side, width, how, generator, old)
            rank = self._rank(name, values, total)
            if rank < width:
                break
        return Projector(**{side: basis[:, :rank].clone() for side, basis in found.tensors().items()})

    def _rank(self, name: str, values: Tensor, total: float) -> int:
        """Return the rank that reaches the energy, at most the number of singular values."""
        if self.given is not None:
            return min(self.given.get(name.removesuffix(".weight"), len(values)), len(values))
        return max(min(self.config.min_rank, len(values)), least_rank(values, total, self.config.energy))

    def after_refresh(self, matrix: Matrix, old: Projector | None) -> None:
        """Forget the norm in the old subspace."""
        matrix.notes["norm"] = None
        super().after_refresh(matrix, old)

    def after_projection(self, name: str, matrix: Matrix, coordinates: Tensor) -> None:
        """Collect the norm; it stays on the device until the end of the step."""
        if self.config.convergence:
            self._norms_here[name] = torch.linalg.vector_norm(coordinates)

    def after_step(self) -> None:
        """Read all norms at once; refresh a matrix next whose gradient has shrunk enough."""
        norms, self._norms_here = self._norms_here, {}
        values = torch.stack(list(norms.values())).tolist() if norms else []
        for name, norm in zip(norms, values, strict=True):
            matrix = self.matrices[name]
            if matrix.notes["norm"] is None:
                matrix.notes["norm"] = norm
            elif norm <= self.config.convergence * matrix.notes["norm"]:
                matrix.next_refresh = min(matrix.next_refresh, self.updates + 1)

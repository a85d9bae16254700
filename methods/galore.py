"""GaLore: all parameters train, but Adam's moments live in a low-rank subspace of each gradient.

Every `period` updates the leading singular directions of the current gradient of each attention and
feed-forward matrix become its subspace. In between the gradient is projected, Adam works on the
coordinates, and the result is mapped back, times `scale`. The update itself is `ProjectedStepper.step`
in `methods/parts/projection/method.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from harness.config import OptimConfig
from harness.method import Caps, MethodConfig
from methods.parts.projection.method import (
    Arithmetic,
    Matrix,
    Precision,
    ProjectedStepper,
    SubspaceConfig,
    SubspaceMethod,
)
from methods.parts.projection.projector import Projector

LAZY_MEMORY = 5  # refreshes that a lazy period looks back on, as in Q-GaLore's queue


class GaLoreConfig(SubspaceConfig):
    """Hyperparameters of GaLore; rank, period and scale as in the paper's recipe for 60M parameters."""

    moments: Literal["keep", "rotate", "reset"] = "keep"
    """At a refresh: `keep` them in coordinates that are gone (paper's code; see `signs`), `rotate`
    them into the new subspace (second moments by squared coefficients), or `reset` them."""

    stagger: bool = False
    """Spread the refreshes evenly over a period, so that no step but the first holds all of them."""

    lazy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Double a matrix's period when its last 5 refreshes kept at least this share of the subspace on
    average (Q-GaLore, with the overlap of subspaces in place of a signed cosine of one vector)."""

    precision: Precision = "float32"
    """Of bases and moments. `gradient` is the paper's code: bfloat16 in a bfloat16 model, where second
    moments cannot decay (0.999 v rounds to v). `train.state_bits` overrules it for the moments."""

    arithmetic: Arithmetic = "torch"
    """`official`: eps beside the root of the uncorrected second moment (but not with `train.state_bits: 8`,
    as in the paper's code), and weight decay after the update."""


class GaLore(SubspaceMethod):
    """Train the targets with AdamW in subspaces of their gradients, and the rest with AdamW."""

    Config: ClassVar[type[MethodConfig]] = GaLoreConfig
    config: GaLoreConfig
    name = "galore"
    source = (
        "Zhao et al., GaLore, ICML 2024, arXiv 2403.03507, algorithm 2 and section 4. By default it departs "
        "from their code in float32 bases and moments, in eps and weight decay as in torch, and in the signs "
        "of a new basis, aligned with the old one: moments are kept across it, and signs left to rounding "
        "would part equal runs. `precision`, `arithmetic` and `signs: free` bring theirs back. Lazy refresh: "
        "Zhang et al., Q-GaLore, 2024, arXiv 2407.08296."
    )

    @property
    def version(self) -> int:
        """Return 2 also for the official arithmetic: since then eps follows each tensor's own count."""
        return 2 if self.config.arithmetic == "official" else super().version

    @property
    def caps(self) -> Caps:
        """Return one period for all matrices, unless refreshes are staggered or lazy: lazy ones come no more
        often."""
        common, period = not self.config.stagger and self.config.lazy is None, self.config.period
        return replace(
            super().caps, period=period if common else None, mean_period=None if common else period
        )

    def stepper(self, model: nn.Module, optim: OptimConfig) -> GaLoreStepper:
        """Return a stepper that refreshes subspaces periodically."""
        return GaLoreStepper(model, optim, self.config, self.seed)


class GaLoreStepper(ProjectedStepper):
    """Refresh at updates 0, T, 2T, … or, staggered or lazy, at separate times for each matrix."""

    def __init__(self, model: nn.Module, optim: OptimConfig, config: GaLoreConfig, seed: int) -> None:
        super().__init__(model, optim, config, seed)
        self.config, self.arithmetic, self.precision = config, config.arithmetic, config.precision
        self.finder, self.aligned = config.refresh, config.signs == "aligned"
        self.rule = "square" if config.moments == "rotate" else config.moments
        if config.stagger:
            for index, matrix in enumerate(self.matrices.values()):
                matrix.notes["first_period"] = 1 + index * config.period // len(self.matrices)

    def similarity(self, new: Projector, old: Projector) -> float:
        """Return how much of an old subspace a new one keeps, 0 … 1."""
        return new.overlap(old)

    def after_refresh(self, matrix: Matrix, old: Projector | None) -> None:
        """Schedule the next refresh, after twice the period for a subspace that has hardly moved."""
        if self.config.lazy is not None and old is not None:
            assert matrix.projector is not None
            overlap = self.similarity(matrix.projector, old)
            overlaps = [*matrix.notes.get("overlaps", ()), overlap][-LAZY_MEMORY:]
            matrix.notes["overlaps"] = overlaps
            if len(overlaps) == LAZY_MEMORY and sum(overlaps) / LAZY_MEMORY >= self.config.lazy:
                matrix.period *= 2
        first = matrix.notes.pop("first_period", None)
        matrix.next_refresh = self.updates + (first or matrix.period)

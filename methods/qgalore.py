"""Q-GaLore: as GaLore, with int8 weights, bases in 4 bits, and fewer refreshes of subspaces that rest.

The weights are those of `int8.py`. A basis is rounded when a refresh has found it. The period of a matrix
doubles when its last 5 refreshes were similar enough; its refreshes are at the multiples of its period. The
paper trains with moments in 8 bits (`train.state_bits: 8`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from harness.config import OptimConfig
from harness.method import Context
from methods.galore import GaLore, GaLoreConfig, GaLoreStepper
from methods.int8 import Int8, Int8Config
from methods.parts.projection.method import Matrix
from methods.parts.projection.projector import Projector, side_of
from methods.parts.quantisation.gridded import Rounding, gridded
from methods.parts.targets import shapes_of, target_linears


class QGaLoreConfig(GaLoreConfig, Int8Config):
    """Hyperparameters of Q-GaLore: those of GaLore, those of int8 weights, and its own."""

    weights: Literal["int8", "float"] = "int8"
    """How the targets are stored; `float` leaves them in the model's dtype, and `rounding` aside."""

    basis_bits: Literal[4, 8] | None = 4
    """Bits for each entry of a basis, in groups of `group` entries; null for float bases."""

    lazy: Annotated[float, Field(gt=0, le=1)] | None = 0.4
    """Double a matrix's period when its last 5 refreshes had at least this `similarity` on average; null for
    refreshes once a period."""

    similarity: Literal["vector", "subspace"] = "vector"
    """Of an old and a new basis: the cosine of their first vectors (paper's code), or the share of the old
    subspace that the new one holds."""

    @model_validator(mode="after")
    def _pairs_of_4_bits(self) -> QGaLoreConfig:
        if self.basis_bits == 4 and self.group % 2:
            raise ValueError(f"`basis_bits` 4 needs an even `group`, not {self.group}")
        return self


class QGaLore(GaLore, Int8):
    """Train int8 targets with AdamW in rounded subspaces of their gradients, and the rest with AdamW."""

    Config = QGaLoreConfig
    config: QGaLoreConfig
    name = "qgalore"
    source = (
        "Zhang et al., Q-GaLore, 2024, arXiv 2407.08296, algorithm 1 and section 3, on GaLore (Zhao et al., "
        "ICML 2024, arXiv 2403.03507). By default it departs from their code in what GaLore departs in here, "
        "in weights updated in float32 on grids without a point at 0 (as `int8`), in clipping that includes "
        "the targets, and in two codes of 4 bits to a byte. Aligned signs keep the cosine from turning "
        "negative by rounding. `arithmetic`, `precision`, `signs` and `write_back` bring theirs back."
    )

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Store the targets in int8, make every parameter trainable, and report ranks and sizes."""
        if self.config.weights == "int8":
            model = Int8.prepare(self, model, context)
        if self.config.basis_bits is not None:
            self.check_groups(dict(self._bases(model)))
        return GaLore.prepare(self, model, context)

    def stepper(self, model: nn.Module, optim: OptimConfig) -> QGaLoreStepper:
        """Return a stepper that refreshes subspaces periodically or more rarely, and rounds their bases."""
        return QGaLoreStepper(model, optim, self.config, self.seed)

    def _bases(self, model: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the shape of every basis."""
        for name, shape in shapes_of(target_linears(model, self.config.targets)).items():
            side, rank = side_of(shape, self.config.projection), min(self.config.rank, *shape)
            for end, length in (("left", shape[0]), ("right", shape[1])):
                if side in (end, "both"):
                    yield f"the {end} basis of {name}", (length, rank)


class QGaLoreStepper(GaLoreStepper):
    """Refresh at multiples of each matrix's period, and round what was found."""

    config: QGaLoreConfig

    def similarity(self, new: Projector, old: Projector) -> float:
        """Return the cosine of the first vectors, the smaller one of two sides, or the share of subspaces."""
        if self.config.similarity == "subspace":
            return super().similarity(new, old)
        before = old.tensors()
        cosines = [
            F.cosine_similarity(basis[:, 0].float(), before[side][:, 0].float(), dim=0)
            for side, basis in new.tensors().items()
        ]
        return float(torch.stack(cosines).min())

    def after_refresh(self, matrix: Matrix, old: Projector | None) -> None:
        """Schedule the next refresh, and round the basis."""
        super().after_refresh(matrix, old)
        if self.config.lazy is not None and not self.config.stagger:
            matrix.next_refresh = (self.updates // matrix.period + 1) * matrix.period
        if self.config.basis_bits is not None:
            assert matrix.projector is not None
            rounding = Rounding(official=self.config.write_back == "official")
            matrix.projector = Projector(
                **{
                    side: gridded(basis, self.config.group, self.config.basis_bits, rounding)
                    for side, basis in matrix.projector.tensors().items()
                }
            )

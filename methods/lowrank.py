"""Low-rank pre-training: each attention and feed-forward matrix is a product of two thin ones, from scratch.

W = B A alone: the baseline that shows what GaLore's full gradients and SLTrain's sparse part add. To compress
trained weights see `methods/uniform.py`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from harness.errors import UserError
from harness.factored import FactoredLinear, factor, ranks
from harness.method import Caps, Context, MethodConfig
from methods.parts.factors.method import replace_by_factors
from methods.parts.factors.refactoring import SOURCE, Factors, FactorTraining, RefactoringConfig
from methods.parts.targets import LINEAR_KINDS, Shapes, clamp_ranks, random_stream, shapes_of, target_linears


class LowRankPretrainingConfig(RefactoringConfig):
    """Hyperparameters of low-rank pre-training."""

    rank: Annotated[int, Field(gt=0)] = 128
    """Inner width of B A; a matrix with a shorter side gets that side, with a warning."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers that are replaced."""


class LowRankPretraining(FactorTraining):
    """Train all parameters; `export` leaves the factors in place, as they are the model."""

    Config: ClassVar[type[MethodConfig]] = LowRankPretrainingConfig
    config: LowRankPretrainingConfig
    name = "lowrank"
    source = (
        "Kamalakara et al., Exploring Low Rank Training of Deep Neural Networks, 2022, arXiv 2209.13569; row "
        "`Low-Rank` of Zhao et al., GaLore, ICML 2024, arXiv 2403.03507, Table 2. Departs from it in how the "
        "factors begin: Gaussian, with the variance of the weights replaced, not by their spectrum. " + SOURCE
    )

    @property
    def caps(self) -> Caps:
        """Return pre-training alone, since `prepare` discards the weights of the targets."""
        because = "it begins with fresh factors, so trained weights would be lost"
        return replace(super().caps, stages=frozenset({"pretrain"}), because=because)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace each target by two factors, one by one; on the meta device without values."""
        shapes, chosen = self.shapes_and_ranks(model, context)
        ratios = replace_by_factors(
            model, chosen, lambda name, dense, rank: fresh_factors(dense, rank, context.seed, name)
        )
        if sum(rank * sum(shapes[name]) for name, rank in chosen.items()) > sum(map(prod, shapes.values())):
            context.warn("lowrank: the factors have more parameters than the matrices that they replace")
        context.facts.update(targets=len(chosen), trainable="all parameters", **ratios)
        return model.requires_grad_(True)

    def shapes_and_ranks(self, model: nn.Module, context: Context) -> tuple[Shapes, dict[str, int]]:
        """Return the shape and the rank of each target; UserError for a model that is factored already."""
        if ranks(model):
            raise UserError(
                f"{self.name}: the model is factored already; start from one with plain linear layers"
            )
        shapes = shapes_of(target_linears(model, self.config.targets))
        chosen = clamp_ranks(self.name, self.config.rank, shapes, context)
        context.ranks.update(chosen)
        return shapes, chosen

    def factors(self, model: nn.Module) -> list[Factors]:
        """Return the weights of both factors of each factored layer."""
        layers = (layer for layer in model.modules() if isinstance(layer, FactoredLinear))
        return [(layer.up.weight, layer.down.weight) for layer in layers]


def fresh_factors(dense: nn.Linear, rank: int, seed: int, name: str) -> FactoredLinear:
    """Return Gaussian factors whose product has the variance of the weight replaced; the bias stays.

    With entries of variance s^2 in both, an entry of B A has the variance rank s^4. The draw is on the CPU in
    float32, from a random stream of the seed and the layer.
    """
    outputs, inputs = dense.weight.shape
    spread = float(dense.weight.detach().float().std(correction=0))
    deviation = (spread / rank**0.5) ** 0.5
    generator = random_stream(seed, name, 0, torch.device("cpu"))
    up, down = (
        torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * deviation
        for shape in ((outputs, rank), (rank, inputs))
    )
    return factor(dense, up, down)

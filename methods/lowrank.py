"""Low-rank pre-training: each attention and feed-forward matrix is a product of two thin ones, from scratch.

W = B A and nothing beside it: the baseline that shows what GaLore's full gradients and SLTrain's
sparse part add. It is no compression of trained weights; for that see `methods/uniform.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.factored import FactoredLinear, factor, ranks, restructure
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.factors.sizes import Shapes, multiplications, parameters
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.projection.subspace import seeded
from methods.parts.targets import LINEAR_KINDS, target_linears


class LowRankPretrainingConfig(MethodConfig):
    """Hyperparameters of low-rank pre-training."""

    rank: Annotated[int, Field(gt=0)] = 128
    """Inner width of B A; a matrix with a shorter side gets that side, with a warning."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers that are factored."""


class LowRankPretraining(Method):
    """All parameters train; `export` leaves the factors in place, as they are the model."""

    Config = LowRankPretrainingConfig
    config: LowRankPretrainingConfig
    source = (
        "Kamalakara et al., Exploring Low Rank Training of Deep Neural Networks, 2022, arXiv 2209.13569; row "
        "`Low-Rank` of Zhao et al., GaLore, ICML 2024, arXiv 2403.03507, Table 2. Departs from it in how the "
        "factors begin: Gaussian, with the variance of the weights replaced, not by their spectrum."
    )

    @property
    def caps(self) -> Caps:
        """From scratch only, since `prepare` gives up the weights of the targets."""
        because = "it begins with fresh factors, so trained weights would be lost"
        return Caps(stages=frozenset({"pretrain"}), because=because, **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Put two factors in the place of each target, one by one; on the meta device without values."""
        if ranks(model):
            raise UserError("lowrank: the model is factored already; start from one with plain linear layers")
        sizes = parameters(model), multiplications(model)
        layers = target_linears(model, self.config.targets)
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        on_meta = any(layer.weight.is_meta for layer in layers.values())
        del layers  # so that each dense weight is freed when it is replaced
        kept = {name: min(self.config.rank, *shape) for name, shape in shapes.items()}
        if on_meta:
            restructure(model, kept)
        else:
            for name, rank in kept.items():
                dense = model.get_submodule(name)
                assert isinstance(dense, nn.Linear)
                model.set_submodule(name, fresh_factors(dense, rank, context.seed, name))
        self._report(shapes, kept, context)
        context.facts["parameter_ratio"] = parameters(model) / sizes[0]
        context.facts["flop_ratio"] = multiplications(model) / sizes[1]
        return model.requires_grad_(True)

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        """AdamW over all parameters."""
        return AdamWStepper(model, optim)

    def _report(self, shapes: Shapes, kept: Mapping[str, int], context: Context) -> None:
        clamped = [rank for rank in kept.values() if rank < self.config.rank]
        if clamped:
            context.warn(
                f"lowrank: rank {self.config.rank} is more than the short side of {len(clamped)} matrices; "
                f"these got their short side as rank, the smallest {min(clamped)}"
            )
        if sum(rank * sum(shapes[name]) for name, rank in kept.items()) > sum(map(prod, shapes.values())):
            context.warn("lowrank: the factors have more parameters than the matrices that they replace")
        context.ranks.update(kept)
        context.facts.update(targets=len(kept), trainable="all parameters")


def fresh_factors(dense: nn.Linear, rank: int, seed: int, name: str) -> FactoredLinear:
    """Gaussian factors whose product has the variance of the weight replaced; the bias stays as it is.

    With entries of variance s^2 in both, an entry of B A has the variance rank s^4. Drawn on the CPU and in
    float32, from a stream that belongs to the seed and the layer.
    """
    outputs, inputs = dense.weight.shape
    spread = float(dense.weight.detach().float().std(correction=0))
    deviation = (spread / rank**0.5) ** 0.5
    generator = seeded(seed, name, 0, torch.device("cpu"))
    up, down = (
        torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * deviation
        for shape in ((outputs, rank), (rank, inputs))
    )
    return factor(dense, up, down)

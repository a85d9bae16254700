"""SLTrain: each attention and feed-forward matrix is a low-rank product plus a sparse matrix, from scratch.

W = (alpha / rank) B A + S. The positions of S are drawn once, at random, and never move; B, A and the
entries of S train, and so does all that is not a target.
"""

from __future__ import annotations

from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.method import Context
from methods.lowrank import LowRankPretraining, LowRankPretrainingConfig
from methods.parts.factors.method import parameters
from methods.parts.factors.refactoring import SOURCE, Factors
from methods.parts.layers.sparse_plus_lowrank import Execution, SLTrainLinear
from methods.parts.targets import random_stream


class SLTrainConfig(LowRankPretrainingConfig):
    """Hyperparameters of SLTrain beside `rank` and `targets`; those of its code for 60M parameters."""

    delta: Annotated[float, Field(gt=0, le=1)] = 0.03
    """Share of the entries of each matrix that S holds."""

    alpha: Annotated[float, Field(gt=0)] = 32
    """Numerator of the factor alpha / rank of B A, the same for all matrices; S has no factor."""

    execution: Execution = "auto"
    """`dense` rebuilds matrices, as the paper does; `factored` multiplies by their parts; `auto` takes what
    is cheaper for shape and tokens (cost model in `methods/parts/layers`), on a GPU always `dense`."""


class SLTrain(LowRankPretraining):
    """Train all parameters; the targets have few of them, hence few gradients and optimizer states."""

    Config = SLTrainConfig
    config: SLTrainConfig
    name = "sltrain"
    source = (
        "Han et al., SLTrain, NeurIPS 2024, arXiv 2406.02214, algorithm 1; initialisation of their code. Pre-"
        "trains only: matrices are replaced by fresh B A + S, so trained weights could not be kept. Departs "
        "from it in int32 positions, and in the order of multiplication where that is cheaper (`execution`). "
        + SOURCE
    )

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace each target by a new layer, one by one; on the meta device without values."""
        _, chosen = self.shapes_and_ranks(model, context)
        dense_parameters = parameters(model)
        layers = {}
        for index, (name, rank) in enumerate(chosen.items()):
            dense = model.get_submodule(name)
            assert isinstance(dense, nn.Linear)
            layers[name] = self._replacement(dense, rank, context, index)
            model.set_submodule(name, layers[name])
        supports = {f"{layer.out_features}x{layer.in_features}": layer.support for layer in layers.values()}
        total = parameters(model)
        context.facts.update(
            targets=len(layers),
            scaling=self.config.alpha / self.config.rank,
            support_by_shape={shape: len(positions) for shape, positions in supports.items()},
            support_bytes=sum(layer.support.nbytes for layer in layers.values()),
            trainable="all parameters",
            parameters=total,
            parameter_ratio=total / dense_parameters,
        )
        if total > dense_parameters:
            context.warn("sltrain: factors and sparse entries are more than the matrices that they replace")
        return model.requires_grad_(True)

    def factors(self, model: nn.Module) -> list[Factors]:
        """Return B and A of each layer; its scale and S are no part of the product."""
        layers = (layer for layer in model.modules() if isinstance(layer, SLTrainLinear))
        return [(layer.factor_b, layer.factor_a) for layer in layers]

    def export(self, model: nn.Module) -> nn.Module:
        """Multiply out to plain linear layers, in place."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, SLTrainLinear):
                model.set_submodule(name, layer.merged())
        return model

    def _replacement(self, dense: nn.Linear, rank: int, context: Context, index: int) -> SLTrainLinear:
        shape, seed = tuple(dense.weight.shape), context.seed
        if dense.weight.is_meta or context.simulated:
            size, dtype = support_size(shape, self.config.delta), support_dtype(shape)
            positions = torch.empty(size, dtype=dtype, device=dense.weight.device)
        else:
            positions = support(shape, self.config.delta, seed, index)
        scale = self.config.alpha / self.config.rank
        generator = random_stream(seed, "weights", index, torch.device("cpu"))
        return SLTrainLinear(dense, positions, rank, scale, self.config.execution, generator)


def support_size(shape: tuple[int, ...], delta: float) -> int:
    """Return the number of entries of S, floor(delta out in)."""
    return int(delta * prod(shape))


def support_dtype(shape: tuple[int, ...]) -> torch.dtype:
    """Return int32 unless it cannot hold the positions of the matrix."""
    return torch.int32 if prod(shape) < 1 << 31 else torch.int64


def support(shape: tuple[int, ...], delta: float, seed: int, index: int) -> Tensor:
    """Return the sorted flat positions of S in layer number `index`; the same for the same arguments.

    Uniform among all sets of this size. Positions are drawn until enough are distinct, in a mask of
    one byte each (a permutation has eight); of more than half, those that are left out are drawn.
    """
    total, size = prod(shape), support_size(shape, delta)
    generator = random_stream(seed, "support", index, torch.device("cpu"))
    drawn = torch.zeros(total, dtype=torch.bool, device="cpu")
    while missing := min(size, total - size) - int(drawn.count_nonzero()):
        drawn[torch.randint(total, (missing,), generator=generator, device="cpu")] = True
    inside = drawn if 2 * size <= total else ~drawn
    return inside.nonzero().flatten().to(support_dtype(shape))

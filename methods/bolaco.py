"""Bolaco: principal components of the outputs, ranks by Bayesian optimisation, then scales that train."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from harness.config import OptimConfig
from harness.factored import FactoredLinear
from harness.method import Context
from methods.parts.allocation.bayes import Bayes
from methods.parts.allocation.catalogue import AnyAllocator
from methods.parts.factors.compression import Compression, CompressionConfig
from methods.parts.factors.factorisers import AnyFactoriser, Pca
from methods.parts.layers.scaled_factors import ScaledFactors
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.targets import random_stream


class BolacoConfig(CompressionConfig):
    """Options of Bolaco: those of a compression, with the paper's as defaults, and its post-training."""

    allocator: AnyAllocator = Bayes()
    """How much of each matrix is kept: `bayes` searches; ranks that are known need no search."""

    factoriser: AnyFactoriser = Pca()
    """How a matrix is factored: `pca`, with `groups: 32` as pooled in the paper, or another factoriser."""

    multiple: Annotated[int, Field(gt=0)] = 8
    """Every rank is a multiple of this number."""

    train: Literal["scales", "lrc", "none"] = "none"  # type: ignore[assignment]
    """`scales` trains scales beside frozen factors, out + `rank` numbers a matrix (equation 9); `lrc` the
    factors and all RMSNorm weights; `none` leaves training to a method on top."""

    rank: Annotated[int, Field(gt=0)] = 256
    """Inner features of each matrix that scales are for; a matrix with fewer has scales for all."""

    rows: Literal["leading", "random"] = "leading"
    """Which inner features: the `leading` components, or `random` ones, as in the paper's code."""

    start: float = 0.1
    """Scale of an inner feature before training; those of outputs begin at 0, so that nothing changes."""

    @model_validator(mode="after")
    def _scales_have_options(self) -> Self:
        if self.train != "scales" and (self.rank, self.rows, self.start) != (256, "leading", 0.1):
            raise ValueError("`rank`, `rows` and `start` matter only with `train: scales`; leave them out")
        return self


class Bolaco(Compression):
    """Centred components at searched ranks; `train: scales` trains a small share of what they hold."""

    Config = BolacoConfig
    config: BolacoConfig
    name = "bolaco"
    source = (
        "Ji et al., Feature-based Low-Rank Compression of Large Language Models via Bayesian Optimization, "
        "EMNLP Findings 2024, arXiv 2405.10616, equations 2-4 and 7-9. Departs from its code in a search for "
        "any model and reduction on text that is not scored, in post-training that keeps the factors instead "
        "of dense products, and without its dropout."
    )

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Factor, then freeze everything and put scales beside the factors where these are to train."""
        model = super().prepare(model, context)
        if self.config.train != "scales":
            return model
        model.requires_grad_(False)
        count = 0
        for name in context.facts["lrc"]:
            base = model.get_submodule(name)
            assert isinstance(base, FactoredLinear)
            if self.config.rows == "random" and not context.simulated:
                _shuffle(base, random_stream(context.seed, name, 0, torch.device("cpu")))
            made = ScaledFactors(base, min(self.config.rank, base.rank), self.config.start)
            model.set_submodule(name, made)
            count += made.outputs.numel() + made.inner.numel()
        context.facts.update(scales=count, trainable=f"scales of {len(context.facts['lrc'])} layers")
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper | None:
        """Return AdamW over the scales, over factors and norms, or None."""
        return None if self.config.train == "none" else AdamWStepper(model, optim)

    def export(self, model: nn.Module) -> nn.Module:
        """Fold scales into the factors, in place; ranks stay."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, ScaledFactors):
                model.set_submodule(name, layer.folded())
        return model


@torch.no_grad()
def _shuffle(layer: FactoredLinear, generator: torch.Generator) -> None:
    """Bring inner features into a random order, in place; the layer says the same."""
    order = torch.randperm(layer.rank, generator=generator).to(layer.up.weight.device)
    layer.up.weight.copy_(layer.up.weight[:, order])
    layer.down.weight.copy_(layer.down.weight[order])

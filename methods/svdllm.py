"""SVD-LLM: factors with the least error of each layer's outputs, and two ways to make up for what they lose.

Truncation-aware data whitening is `Whiten` (`parts/factors/factorisers.py`): W S = U diag(s) V^T with
S S^T = X X^T, cut at the rank. All linears of all blocks keep the same share of their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Caps, Context, MethodConfig
from methods.lora import LoRAConfig
from methods.parts.calibration.blocks import walk_twice
from methods.parts.factors.compression import Compression, CompressionConfig
from methods.parts.factors.factorisers import Whiten
from methods.parts.factors.refit import refitted
from methods.parts.factors.stages import FactorAdapters, Side, StagedStepper, StageOptions
from methods.parts.optim.adamw import AdamWStepper


class SvdLlmConfig(StageOptions, CompressionConfig):
    """Options of SVD-LLM: those of a compression, its update and its training."""

    factoriser: Whiten = Whiten()
    """How a matrix is factored: `whiten`."""

    update: Literal["none", "closed"] = "none"
    """`closed` fits the up factors of each block to the inputs that the compressed blocks before it make, in
    closed form, once (version 1 of the paper). It needs a second set of hidden states, two sets of second
    moments, and sends the text through each block three times."""

    train: Literal["stages", "lrc", "none"] = "none"  # type: ignore[assignment]  # one more
    """`stages` trains adapters of one factor in the first half of the updates and of the other in the second,
    and adds each into its factor; `lrc` trains the factors and all RMSNorm weights; `none` leaves training to
    a method on top."""

    @model_validator(mode="after")
    def _options_that_act(self) -> SvdLlmConfig:
        fields = StageOptions.model_fields
        changed = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if self.train != "stages" and changed:
            raise ValueError(f"`{changed[0]}` matters only with train: stages; leave it out")
        if self.update == "closed" and self.sequential:
            raise ValueError(
                "`update: closed` changes nothing where `sequential` has factored for the same inputs; leave "
                "one of them out"
            )
        return self


class SvdLlm(Compression):
    """Factor all linears of the blocks by truncation-aware whitening, then update or train the factors."""

    Config: ClassVar[type[MethodConfig]] = SvdLlmConfig
    config: SvdLlmConfig
    name: ClassVar[str] = "svdllm"
    libraries = ("peft",)
    source = (
        "Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378 v5, section 3.1 (whitening) and 3.2 (stages); v1 "
        "of the paper for the closed-form update. Departs from the code in eigenvectors instead of Cholesky "
        "factors and inverses, which is right for singular statistics too; in a closed-form update that "
        "keeps what the text says nothing about; in the budget, which all linears meet together where the "
        "code rounds each rank down. The text and the README train U first, and table 5 says that "
        "its headline was made with V first: `first`."
    )
    half: int | None = None

    @property
    def caps(self) -> Caps:
        """Return those of a compression; adapters of stages, halves of a training, go into frozen factors."""
        stages = self.config.train == "stages"
        return replace(super().caps, merges=stages, fixed_length=stages)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Factor as every compression does; for `stages`, put adapters around both factors."""
        model = super().prepare(model, context)
        if self.config.train == "stages":
            inner = Context(seed=context.seed)  # its ranks are no ranks of layers
            model = self._adapters.prepare(model, inner)
            self.half = None if context.updates is None else context.updates // 2
            context.warnings += inner.warnings
            halves = f"{self.config.first} factors for {self.half} updates, then those of the others"
            context.facts["trainable"] = f"adapters of the {halves}"
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper | None:
        """Return AdamW over the adapters of both stages, or what every compression does.

        UserError where the number of updates is not known or has no half.
        """
        if self.config.train != "stages":
            return super().stepper(model, optim)
        if not self.half:
            raise UserError(f"{self.name}: `train: stages` needs a known number of updates, at least two")
        order: tuple[Side, Side] = ("up", "down") if self.config.first == "up" else ("down", "up")
        return StagedStepper(model, optim, order, self.half)

    def export(self, model: nn.Module) -> nn.Module:
        """Add adapters into their factors; the layers stay factored."""
        return self._adapters.export(model) if self.config.train == "stages" else model

    @property
    def _adapters(self) -> FactorAdapters:
        config = self.config
        options = LoRAConfig(rank=config.adapter_rank, alpha=config.alpha, dropout=config.dropout)
        return FactorAdapters(options)

    @torch.no_grad()
    def _factor(
        self,
        model: nn.Module,
        layers: dict[str, nn.Linear],
        chosen: Mapping[str, int],
        context: Context,
    ) -> None:
        """Factor for the inputs of the whole model, then fit to those behind compressed blocks.

        Both second moments have the same damping, so where both inputs are the same nothing changes.
        """
        if self.config.update == "none":
            super()._factor(model, layers, chosen, context)
            return
        for whole, shifted in walk_twice(model, layers, self.text(context).batches, self.config.place):
            for name, inputs in whole.items():
                dense, rank = layers.pop(name), chosen[name]
                damping = self.decomposing.damping_of(inputs, context)
                found = self.config.factoriser.decompose(dense.weight, inputs, rank, damping, name)
                made = self._replace(model, name, dense, found.factors(rank), inputs, context)
                moment = shifted[name].second_moment()
                moment.diagonal().add_(damping * moment.diagonal().mean())
                fitted = refitted(dense.weight, made.up.weight, made.down.weight, moment)
                made.up.weight.copy_(fitted)

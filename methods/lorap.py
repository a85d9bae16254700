"""LoRAP: attention matrices become factors by a weighted SVD, and the MLP loses channels.

Block after block, each judged by what the compressed blocks before it make of the calibration text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.config import Share
from harness.errors import UserError
from harness.factored import empty_factors, factor
from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.calibration.blocks import Place, walk
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.factorisers import Awsvd
from methods.parts.factors.method import parameters
from methods.parts.optim.adamw import TRAIN_OPTIONS
from methods.parts.pruning.channels import kept_channels
from methods.parts.pruning.refactor import refactor
from methods.parts.pruning.removal import Part, keep, parts_of, settings
from methods.parts.pruning.shares import ATTENTION, attention_ranks, kept_facts, removed_channels
from methods.parts.targets import LINEAR_KINDS, shapes_of, target_linears


class LoRAPConfig(MethodConfig):
    """Options of LoRAP."""

    sparsity: Share = 0.2
    """The share of the parameters that attention and MLP lose, each."""

    allocation: Annotated[float, Field(ge=1)] = 3.0
    """How many times the parameters of q and k those of v and o may be; where that would be more than all
    of v and o, these stay dense."""

    least_kept: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The share of the channels of an MLP, the least important, that stay; those after them go."""

    added_rank: Annotated[int, Field(ge=0)] | None = None
    """Null stores attention as factors, so that adapters on top train each factor and its rank stays. A
    number stores their dense product, and `export` factors what training made of it at a rank that is so much
    higher: 8 after LoRA of rank 8 in the paper."""

    place: Place = "device"
    """Where the hidden states of the calibration text wait between two blocks: on the `device`, or on the
    `host`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sparsity + self.least_kept >= 1:
            raise ValueError("sparsity and least_kept take up all channels; their sum must be below 1")
        return self


class LoRAP(Method):
    """Factor attention and prune MLP channels, block after block; another method trains."""

    Config = LoRAPConfig
    config: LoRAPConfig
    source = (
        "Li et al., LoRAP, ICML 2024, arXiv 2404.09695, with the integer formulas of its code. Departs from "
        "it in grouped queries, which the code lacks: their matrices keep the share of parameters that it "
        "gives square ones; and in features that are always 0, which weigh nothing (code: 1e-4)."
    )

    @property
    def caps(self) -> Caps:
        """Return the stages that start from trained weights."""
        because = "random weights have nothing to leave out"
        stages = frozenset({"finetune", "compress"})
        return Caps(stages=stages, because=because, reads_text=True, **TRAIN_OPTIONS)

    def prepare(self, model: Any, context: Context) -> nn.Module:
        """Compress every block in place, and say in the config how wide its MLP is now."""
        mlps = [part for part in parts_of(model) if part.kind == "channels"]
        layers, before = target_linears(model, LINEAR_KINDS), parameters(model)
        shapes = shapes_of(layers)
        chosen = attention_ranks(shapes, self.config.sparsity, self.config.allocation)
        for inputs in self._statistics(model, layers, context):
            for name, sums in inputs.items():
                if name in chosen:
                    self._factor(model, name, layers[name], sums, chosen[name])
            for part in mlps:
                if f"{part.name}.down_proj" in inputs:
                    keep(part, self._channels(part, inputs))
        width = mlps[0].groups - len(self._removed(mlps[0]))
        model.config.update(settings(mlps[0], width))
        context.ranks.update(chosen)
        context.facts.update(
            kept_facts(shapes, chosen, width / mlps[0].groups, before),
            target_reduction=self.config.sparsity,
            counted="linears",
            parameter_ratio=parameters(model) / before,
            mlp_width=width,
            lrc=list(chosen),
        )
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Factor attention that was left dense, `added_rank` above the rank that it had."""
        added = self.config.added_rank
        if added is None:
            return model
        shapes = shapes_of(target_linears(model, ATTENTION))
        chosen = attention_ranks(shapes, self.config.sparsity, self.config.allocation)
        return refactor(model, {name: rank + added for name, rank in chosen.items()})

    def _statistics(
        self, model: nn.Module, layers: Mapping[str, nn.Linear], context: Context
    ) -> Iterator[Mapping[str, InputStatistics | None]]:
        """Yield the statistics of one block after the other; in a simulation none, for all blocks at once."""
        if context.simulated:
            return iter([dict.fromkeys(layers)])
        if context.calibration is None:
            raise UserError("lorap: this needs calibration text, and the run has none")
        batches = context.calibration.batches()
        return walk(model, layers, batches, second_moments=False, sequential=True, place=self.config.place)

    def _factor(
        self, model: nn.Module, name: str, layer: nn.Linear, inputs: InputStatistics | None, rank: int
    ) -> None:
        if inputs is None:
            factored = empty_factors(layer, rank)
        else:
            found = Awsvd().decompose(layer.weight, inputs, rank, name=name).factors(rank)
            factored = factor(layer, found.up, found.down)
        made = factored if self.config.added_rank is None else factored.merged()
        model.set_submodule(name, made.requires_grad_(layer.weight.requires_grad))

    def _channels(self, part: Part, inputs: Mapping[str, InputStatistics | None]) -> Tensor:
        """Return the channels of an MLP that stay; in a simulation the first ones."""
        sparsity, least = self.config.sparsity, self.config.least_kept
        before, within = (inputs[f"{part.name}.{kind}"] for kind in ("gate_proj", "down_proj"))
        if before is None or within is None:
            return torch.arange(part.groups - len(self._removed(part)))
        return kept_channels(part, before, within, sparsity, least)

    def _removed(self, part: Part) -> range:
        return removed_channels(part.groups, self.config.sparsity, self.config.least_kept)

"""LoRAPrune: adapters train while heads and channels are pruned by the adapters' gradients.

Masks hide what is pruned; it is removed when the model is exported, so that training needs no less memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Caps, Context
from methods.lora import LoRA, LoRAConfig
from methods.parts.pruning.masks import taken_away
from methods.parts.pruning.plan import Plan
from methods.parts.pruning.removal import parts_of, remove
from methods.parts.pruning.schedule import Ramp
from methods.parts.pruning.stepper import PruningStepper
from methods.parts.targets import LINEAR_KINDS

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Part01 = Annotated[float, Field(ge=0, lt=1)]


class LoRAPruneConfig(LoRAConfig):
    """Hyperparameters of LoRAPrune: those of LoRA, and its own."""

    alpha: Annotated[float, Field(gt=0)] | None = 16.0
    """Numerator of the scaling alpha / rank; null is `rank`."""

    dropout: Part01 = 0.05
    """Dropout on the input of the adapters."""

    ratio: Part01 = 0.5
    """The share of heads, and of channels, that each block loses by the end; 0 is LoRA."""

    initial: Part01 = 0.0
    """The share with which pruning begins after the warm-up."""

    warmup: Part01 = 0.1
    """The share of the updates before pruning begins."""

    cooldown: Part01 = 0.1
    """The share of the updates after pruning has ended."""

    period: Positive = 10
    """Updates between two choices of what is pruned."""

    smoothing: Part01 = 0.9
    """What an importance keeps of its value at each update; the rest comes from the new gradients."""

    quadratic: bool = True
    """Whether the importance has the term gB gA, whose weight depends on the scale of the loss."""

    exempt_first: Part01 = 0.1
    """The share of the blocks, the first, that stay whole; rounded down."""

    exempt_last: Count = 1
    """The number of blocks, the last, that stay whole."""

    updates: Positive | None = None
    """The updates that the shares of the schedule are of; null is the length of the run."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if {*self.targets} != {*LINEAR_KINDS}:
            raise ValueError(f"targets: all of {', '.join(LINEAR_KINDS)} decide what is pruned; leave it out")
        if self.warmup + self.cooldown >= 1:
            raise ValueError("warmup and cooldown take up the whole training; their sum must be below 1")
        if self.initial > self.ratio:
            raise ValueError(f"initial {self.initial:g} is more than ratio {self.ratio:g}; give at most that")
        return self


class LoRAPrune(LoRA):
    """Train adapters and prune heads and channels; `export` merges and removes."""

    Config: ClassVar[type[LoRAConfig]] = LoRAPruneConfig
    config: LoRAPruneConfig
    source = (
        "Zhang et al., LoRAPrune, ACL 2024 Findings, arXiv 2305.18403, and its code. Departs from the code "
        "where that errs: the last share is applied, gradients are scored before clipping, widths come from "
        "the config, and grouped queries go with their key-value head."
    )

    @property
    def caps(self) -> Caps:
        """Return fine-tuning with whole gradients; an update that prunes counts as a refresh."""
        because = "random weights have nothing to prune by"
        changes: dict[str, Any] = {"period": self.config.period, "own_updates": True, "per_layer": False}
        changes["fixed_length"] = self.config.updates is None
        return replace(super().caps, stages=frozenset({"finetune"}), because=because, **changes)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Put adapters around all linears, and masks behind those of the blocks that are not exempt."""
        plan = Plan(model, self._ramp(context), self.config.exempt_first, self.config.exempt_last)
        plan.report(context)
        model = super().prepare(model, context)
        plan.hide()
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> PruningStepper:
        """Return AdamW over the adapters that scores and prunes, too."""
        return PruningStepper(model, optim, self.config.smoothing, self.config.quadratic)

    def export(self, model: nn.Module) -> nn.Module:
        """Merge the adapters, then remove what is pruned, or write zeros where no config can say so."""
        masks = taken_away(model)
        model = super().export(model)
        remove(model, parts_of(model), masks)
        return model

    def _ramp(self, context: Context) -> Ramp:
        """Return the schedule; UserError where the length of the training is not known."""
        config = self.config
        updates = config.updates or context.updates
        if updates is None:
            raise UserError("loraprune: the length of the training is not known here; set its option updates")
        if context.updates is not None and context.updates < updates:
            context.warn(
                f"loraprune: the run ends after {context.updates} of the {updates} updates of the schedule, "
                "so less may be pruned than ratio says"
            )
        return Ramp(updates, config.period, config.initial, config.ratio, config.warmup, config.cooldown)

"""ReLoRA: LoRA whose adapters are added into the weights and begin anew, so that the sum has a high rank.

After each `period` updates W takes (alpha / rank) B A, A is drawn anew and B is zero; of the moments of A and
B only the largest entries stay, and the learning rate rises from zero again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import Caps, Context, StepInfo
from methods.lora import LoRA, LoRAConfig
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.optim.pruning import largest
from methods.parts.quantisation.tensor import writable
from methods.parts.targets import random_stream

Positive = Annotated[int, Field(gt=0)]


class ReLoRAConfig(LoRAConfig):
    """Hyperparameters of ReLoRA: those of LoRA, and its own."""

    rank: Positive = 128
    """Inner width of each adapter; a matrix with a shorter side gets that side, with a warning."""

    alpha: Annotated[float, Field(gt=0)] | None = 32.0
    """Numerator of the scaling alpha / rank (code); null is `rank`."""

    others: Literal["frozen", "train"] = "train"
    """What has no adapter (embeddings, norms, head): `train`, or `frozen` as in fine-tuning."""

    period: Positive = 1000
    """Updates from one start of the adapters to the next."""

    warmup: Annotated[int, Field(ge=0)] = 100
    """Updates in which the rate of all parameters rises to that of the schedule, after each new start."""

    kept: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of the entries of each moment of A and B, the largest, that a new start keeps; the others
    become 0. With 0 the states are forgotten, and with them the counts of updates."""


class ReLoRA(LoRA):
    """Train adapters that are merged periodically, and what has none."""

    Config: ClassVar[type[LoRAConfig]] = ReLoRAConfig
    config: ReLoRAConfig
    source = (
        "Lialin et al., ReLoRA, ICLR 2024, arXiv 2307.05695, algorithm 1 and section 3. It begins with "
        "adapters at once; the paper's runs begin with updates of all weights, as a run of `full` does."
    )
    seed = 0

    @property
    def caps(self) -> Caps:
        """Return training only; the last update before a new start counts as a refresh."""
        return replace(super().caps, period=self.config.period, own_updates=True, merges=True)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Put adapters around the targets as LoRA does, and say how often they will begin anew."""
        self.seed = context.seed
        model = super().prepare(model, context)
        if context.updates is not None:
            context.facts["merges"] = merges = context.updates // self.config.period
            if context.updates <= self.config.period:  # a merge at its end would not be trained on
                ends = "before" if not merges else "with"
                shorter = f"a period of at most {context.updates - 1}, or " if context.updates > 1 else ""
                context.warn(
                    f"relora: a run of {context.updates} updates ends {ends} the first merge, so it is lora; "
                    f"set {shorter}more than {self.config.period} updates"
                )
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> ReLoRAStepper:
        """Return AdamW that merges the adapters periodically."""
        return ReLoRAStepper(model, optim, self.config, self.seed)


class ReLoRAStepper(AdamWStepper):
    """AdamW over the adapters and what has none; merges at the end of each period."""

    def __init__(self, model: nn.Module, optim: OptimConfig, config: ReLoRAConfig, seed: int) -> None:
        from peft.tuners.lora import LoraLayer

        super().__init__(model, optim)
        self.config, self.seed = config, seed
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        self.into = self.merges = 0

    def set_lr(self, lr: float) -> None:
        """Set the rate of the next update, less while it rises after a merge."""
        rising = self.merges > 0 and self.into < self.config.warmup
        super().set_lr(lr * (self.into + 1) / (self.config.warmup + 1) if rising else lr)

    def step(self) -> StepInfo:
        """Update, and at the end of a period merge."""
        info = super().step()
        self.into += 1
        if merges := self.into == self.config.period:
            self.merge()
        return replace(info, refreshed=merges, refresh_next=self.into + 1 == self.config.period)

    def refresh_soon(self) -> None:
        """End the period with the next update."""
        self.into = self.config.period - 1

    @torch.no_grad()
    def merge(self) -> None:
        """Add all adapters into their weights and let them begin anew."""
        self.into, self.merges = 0, self.merges + 1
        for name, layer in self.layers.items():
            down, up = (cast(nn.Linear, part["default"]).weight for part in (layer.lora_A, layer.lora_B))
            with writable(cast(Tensor, layer.get_base_layer().weight)) as weight:
                exact = torch.promote_types(weight.dtype, torch.float32)
                weight.add_((up.to(exact) @ down.to(exact)).mul_(layer.scaling["default"]))
            generator = random_stream(self.seed, f"{name}, relora", self.merges, torch.device("cpu"))
            bound = 1 / sqrt(down.shape[1])  # as peft draws it: Kaiming's uniform with a = sqrt(5)
            drawn = torch.empty(down.shape, dtype=torch.float32, device="cpu")
            down.copy_(drawn.uniform_(-bound, bound, generator=generator))
            up.zero_()
        adapters = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        for name, parameter in self.parameters.items():
            if id(parameter) in adapters and name in self.states:
                self._prune(name, parameter)

    def _prune(self, name: str, parameter: Tensor) -> None:
        """Keep the largest entries of each moment of a parameter, or forget its state."""
        state = self.states.pop(name)
        if self.config.kept:
            first, second = (largest(moment, self.config.kept) for moment in self.adam.moments(state))
            self.states[name] = self.adam.with_moments(state, first, second, parameter)

    def state_dict(self) -> dict[str, Any]:
        """Return what the stepper stores, and where it is in its period."""
        return {"stepper": super().state_dict(), "into": self.into, "merges": self.merges}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore copies of a saved state."""
        super().load_state_dict(state["stepper"])
        self.into, self.merges = state["into"], state["merges"]

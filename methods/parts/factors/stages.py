"""Training of factors one after the other by adapters: half of the updates for one, half for the other.

All adapters are there from the start, since a state that is resumed, the names of parameters and the bytes of
a forecast must not change on the way; those that rest are passed over by the forward pass. A factor with its
adapter keeps its shape, so adding adapters changes no rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.factored import ranks
from harness.method import MethodConfig, StepInfo
from methods.lora import LoRA
from methods.parts.optim.adamw import AdamWStepper

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

#: A factor of a layer: `up` (out, rank) or `down` (rank, in).
Side = Literal["up", "down"]


class StageOptions(MethodConfig):
    """Options of the stages, for a method whose option `train` may be `stages`."""

    first: Side = "up"
    """Which factor trains first in `stages`: `up` (U, paper and README) or `down` (V; so the headline of the
    paper's table 5 was made)."""

    adapter_rank: Annotated[int, Field(gt=0)] = 8
    """Inner width of each adapter (code)."""

    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Numerator of the scaling alpha / adapter_rank (code)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the input of the adapters (code)."""


class FactorAdapters(LoRA):
    """Adapters of both factors of every factored layer; layers that are dense get none."""

    def layers(self, model: nn.Module) -> dict[str, nn.Linear]:
        """Return the factors of all layers by full name."""
        names = [f"{name}.{side}" for name in ranks(model) for side in ("up", "down")]
        return {name: cast(nn.Linear, model.get_submodule(name)) for name in names}


def adapters_by_side(model: nn.Module) -> dict[Side, list[LoraLayer]]:
    """Return the layers with adapters that are factors, by which factor they are."""
    from peft.tuners.lora import LoraLayer

    found: dict[Side, list[LoraLayer]] = {"up": [], "down": []}
    for name, layer in model.named_modules():
        side = name.rpartition(".")[2]
        if isinstance(layer, LoraLayer) and side in ("up", "down"):
            found[cast(Side, side)].append(layer)
    return found


class StagedStepper(AdamWStepper):
    """AdamW over the adapters of one factor, then over those of the other, with moments that begin anew.

    At the end of update `half` the adapters that have trained are added into their factors and become zero.
    The next update, the first of the second stage, counts as a refresh.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, order: Sequence[Side], half: int) -> None:
        by_side = adapters_by_side(model)
        self.stages = [by_side[side] for side in order]
        for layer in (layer for stage in self.stages for layer in stage):
            layer.enable_adapters(True)
        super().__init__(model, optim)
        self.half, self.updates = half, 0
        self._enter(0)

    def step(self) -> StepInfo:
        """Update, and begin the second stage when it is due."""
        first_of_second = self.stage == 1 and self.updates == self.half
        info = super().step()
        self.updates += 1
        ends = self.stage == 0 and self.updates == self.half
        if ends:
            self._switch()
        return replace(info, refreshed=first_of_second, refresh_next=ends)

    def refresh_soon(self) -> None:
        """Begin the second stage with the next update, if it has not begun."""
        if self.stage == 0:
            self._switch()
        self.half = self.updates

    def state_dict(self) -> dict[str, Any]:
        """Return what the stepper stores, and how far it is."""
        return {"moments": super().state_dict(), "updates": self.updates, "stage": self.stage}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore copies of a saved state."""
        super().load_state_dict(state["moments"])
        self.updates = state["updates"]
        self._enter(state["stage"])

    def _enter(self, stage: int) -> None:
        self.stage = stage
        for number, layers in enumerate(self.stages):
            for layer in layers:
                layer.enable_adapters(number == stage)

    @torch.no_grad()
    def _switch(self) -> None:
        for layer in self.stages[0]:
            down, up = (cast(nn.Linear, part["default"]).weight for part in (layer.lora_A, layer.lora_B))
            weight = cast(Tensor, layer.get_base_layer().weight)
            weight.addmm_(up, down, alpha=layer.scaling["default"])  # no product beside the weight
            up.zero_()
        self.states.clear()
        self._enter(1)

"""AdamW over adapters, which also scores the groups of a model and prunes them by a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import StepInfo
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.pruning.masks import groups_of
from methods.parts.pruning.removal import ROWS

#: The tensors of `Groups` that live from one update to the next.
KEPT = ("mask", "importance")


class PruningStepper(AdamWStepper):
    """Scores groups by unclipped gradients, updates, then prunes where it is due."""

    def __init__(self, model: nn.Module, optim: OptimConfig, smoothing: float, quadratic: bool) -> None:
        super().__init__(model, optim)
        self.smoothing, self.quadratic = smoothing, quadratic
        self.groups = groups_of(model)
        self.modules = {name: model.get_submodule(name) for name in self.groups}
        self.updates, self.soon = 0, False

    def step(self) -> StepInfo:
        """Score, update the adapters, and prune with the updates that the schedule says."""
        for name, groups in self.groups.items():
            groups.score(self.modules[name], self.smoothing, self.quadratic)
        info = super().step()
        self.updates += 1
        chooses = self.soon or self._chooses(self.updates)
        self.soon = False
        if chooses:
            for groups in self.groups.values():
                groups.choose(groups.count(self.updates))
        return replace(info, refreshed=chooses, refresh_next=self._chooses(self.updates + 1))

    def refresh_soon(self) -> None:
        """Prune with the next update, as many groups as the schedule has by then."""
        self.soon = True

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield those of AdamW, and masks and importances beside the adapter of a layer that they are of."""
        yield from super().state_tensors()
        for name, groups in self.groups.items():
            beside = f"{name}.{ROWS[groups.kind][0]}.lora_B.default.weight"
            yield from ((f"{beside}.{key}", getattr(groups, key)) for key in KEPT)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of AdamW, masks and importances, and how many updates there have been."""
        groups = {name: {key: getattr(groups, key) for key in KEPT} for name, groups in self.groups.items()}
        return {"stepper": super().state_dict(), "groups": groups, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore copies of a saved state; ValueError where it is of another model."""
        if state["groups"].keys() != self.groups.keys():
            raise ValueError("the saved state prunes other parts of a model than this one does")
        super().load_state_dict(state["stepper"])
        for name, groups in self.groups.items():
            for key in KEPT:
                getattr(groups, key).copy_(state["groups"][name][key])
        self.updates = state["updates"]

    def _chooses(self, update: int) -> bool:
        return any(groups.ramp.chooses(update) for groups in self.groups.values())

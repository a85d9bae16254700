"""Decide which layers of a model train in which interval, from a seed and the interval's number alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from torch import nn

from harness.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """`count` layers train at a time, for `length` updates; then they are drawn anew.

    They are drawn one after the other in proportion to their weights, none twice; a layer of weight 0 never
    trains. Nothing that happens in training moves a later draw, so replicas and resumed runs agree.
    """

    weights: tuple[float, ...]
    count: int
    length: int
    seed: int

    def layers(self, interval: int) -> tuple[int, ...]:
        """Return the numbers of the layers that train in an interval (from 0), ascending.

        Each layer arrives after an exponential time of rate `weight`, and the first to arrive are drawn
        (Efraimidis & Spirakis, Weighted random sampling with a reservoir, 2006). Python's numbers, because a
        tensor has no value in a forecast, and because they are the same in every version.
        """
        stream = random.Random(f"{self.seed} layers {interval}")
        times = [stream.expovariate(1.0) / weight if weight else math.inf for weight in self.weights]
        return tuple(sorted(sorted(range(len(times)), key=times.__getitem__)[: self.count]))

    def never_trained(self, updates: int) -> list[int]:
        """Return the layers that no update of a training of this length trains."""
        left = set(range(len(self.weights)))
        reachable = sum(weight > 0 for weight in self.weights)
        for interval in range(-(-updates // self.length)):
            left.difference_update(self.layers(interval))
            if len(self.weights) - len(left) == reachable:
                break
        return sorted(left)

    def absences(self, updates: int) -> list[int]:
        """Return for how many updates each layer that was drawn again had been away."""
        last: dict[int, int] = {}
        found = []
        for interval in range(-(-updates // self.length)):
            for layer in self.layers(interval):
                found.append((interval - last.get(layer, interval) - 1) * self.length)
                last[layer] = interval
        return [length for length in found if length > 0]


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of a model: the outermost list of as many modules as its config says.

    UserError for a model without one.
    """
    config = getattr(model, "config", None)
    count = getattr(config and config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError("the model has no list of as many layers as num_hidden_layers of its config says")

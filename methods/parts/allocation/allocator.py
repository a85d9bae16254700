"""The interface of allocators: what they may look at, and what they decide."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import nn

from harness.method import Calibration, Context, MethodConfig
from methods.parts.allocation.budget import Budget
from methods.parts.factors.decompositions import Decomposing, text_of
from methods.parts.factors.kernel import Decomposition
from methods.parts.factors.svd_cache import SingularValues, singular_values
from methods.parts.sampling.schedule import layers_of
from methods.parts.targets import Shapes


@dataclass(frozen=True)
class Problem:
    """What an allocator decides about: the layers of a model, the budget, and how they will be factored."""

    model: nn.Module
    layers: Mapping[str, nn.Linear]
    budget: Budget
    decomposing: Decomposing
    context: Context

    def decompositions(self, names: Collection[str]) -> Iterator[tuple[str, Decomposition]]:
        """Yield decompositions of these targets, up to the largest rank that costs less than a dense one."""
        most = {name: self.budget.most(name) for name in names}
        layers = {name: self.layers[name] for name in names}
        for name, found, _ in self.decomposing.each(self.model, layers, most, self.context):
            yield name, found

    @property
    def shapes(self) -> Shapes:
        """Shape (out, in) of each target matrix by name."""
        return self.budget.shapes

    @cached_property
    def singular_values(self) -> SingularValues:
        """Singular values of every target by name, descending."""
        return singular_values(self.layers, self.context)

    @property
    def blocks(self) -> int:
        """How many decoder blocks the model has; UserError for one without."""
        return len(layers_of(self.model))

    @cached_property
    def block_of(self) -> dict[str, int]:
        """Number of the block, from 0, of each target by name; those outside of blocks are left out."""
        numbers = {
            id(module): number
            for number, block in enumerate(layers_of(self.model))
            for module in block.modules()
        }
        return {name: numbers[id(layer)] for name, layer in self.layers.items() if id(layer) in numbers}

    def text(self, asking: str) -> Calibration:
        """Return the calibration text; UserError, which begins with who asks, where there is none."""
        return text_of(self.context, asking)


class Allocator(MethodConfig):
    """Options of an allocator, and its decision."""

    value_dependent: ClassVar[bool] = False
    """Whether values of weights or text decide; a simulation then takes equal shares."""

    @property
    def reads_text(self) -> bool:
        """Whether it looks at calibration text."""
        return False

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return the rank of every matrix to factor by name; those that are left out stay dense.

        Facts worth recording go to `problem.context`. UserError where the options fit no layer.
        """
        raise NotImplementedError

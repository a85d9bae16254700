"""LQ-LoRA: LoRA beside weights in few bits; the adapters start as the low-rank part of what the bits miss.

With a `budget` of bits an integer program chooses how each matrix is stored; `fisher` weights the errors by
how much the loss minds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.method import Caps, Context
from methods.lora import LoRAConfig
from methods.parts.fisher import fisher_diagonals
from methods.parts.quantisation.decomposition import Decomposition, decompose
from methods.parts.quantisation.layouts import candidates, check_budget, spend
from methods.parts.quantisation.normal_float import Layout
from methods.parts.targets import shapes_of
from methods.qlora import Positive, QLoRA, QLoRAConfig, start_adapters, store


class LQLoRAConfig(QLoRAConfig):
    """Hyperparameters of LQ-LoRA: those of QLoRA, where there is no budget, and its own."""

    rank: Positive = 64
    """Inner width of each adapter; a matrix with a shorter side gets that side, with a warning."""

    alpha: Annotated[float, Field(gt=0)] | None = 16.0
    """Numerator of the scaling alpha / rank; null is `rank`."""

    budget: Annotated[float, Field(gt=0)] | None = None
    """Bits per weight of all targets together, scales included and adapters not; an integer program spends
    them. Null stores all alike, as `bits`, `block` and the others say."""

    candidates: Literal["few", "paper"] = "few"
    """With a budget, the layouts that it chooses from: 24, or the paper's 432."""

    turns: Positive = 100
    """Most turns of factors and stored weights; they end when the error no longer falls."""

    search_turns: Positive = 1
    """With a budget, turns for each of its candidates. The paper searches with all, and reports that one does
    about as well."""

    fisher: Positive | None = None
    """Sequences of training text for the weights of errors (paper: 10,000); null weights all alike."""

    @model_validator(mode="after")
    def _without_effect(self) -> LQLoRAConfig:
        names: tuple[str, ...]
        if self.budget is None:
            names, where = ("candidates", "search_turns"), "with a budget"
        else:
            names, where = ("bits", "block", "scale_bits", "superblock", "scale_dtype"), "without a budget"
            check_budget(self.budget, candidates(self.candidates))
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` matters only {where}; leave it out")
        return self


class LQLoRA(QLoRA):
    """Split the targets into stored weights and adapters, and train the adapters."""

    Config: ClassVar[type[LoRAConfig]] = LQLoRAConfig
    config: LQLoRAConfig
    name: ClassVar[str] = "lqlora"
    source = (
        "Guo et al., LQ-LoRA, ICLR 2024, arXiv 2311.12023, algorithms 1 and 2. Departs from its code in the "
        "pair of factors and weights that is kept (the best, not the one after it), in gradients for "
        "`fisher` without dropout, in one turn to compare layouts, and in a free solver."
    )
    approximations: ClassVar[Mapping[str, str]] = {
        "filled": "layouts that fill the budget as if each bit helped all matrices alike"
    }

    @property
    def caps(self) -> Caps:
        """Return that a budget is spent by the values of the weights, and that text weights the errors."""
        budget, text = self.config.budget is not None, self.config.fisher is not None
        return replace(super().caps, value_dependent=budget, reads_text=text)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Split each target, one after the other, in place."""
        layers = self.unquantised(model)
        fisher = self._fisher(model, layers, context)
        layouts = self._layouts(layers, fisher, context)
        turns = 1 if context.simulated else self.config.turns
        starts: dict[str, tuple[Tensor, Tensor]] = {}
        missed = whole = 0.0
        for name, layer in layers.items():
            found = self._decomposed(name, layer, layouts[name], turns, fisher, context)
            missed, whole = missed + found.error**2, whole + found.whole**2
            store(layer, found.stored)
            starts[name] = found.left, found.right
        self.report_bits(layers, context)
        context.facts["decomposition_error"] = round((missed / whole) ** 0.5, 6) if whole else 0.0
        model = super(QLoRA, self).prepare(model, context)
        start_adapters(model, starts, self.scaling)
        return model

    def _fisher(
        self, model: nn.Module, layers: Mapping[str, nn.Linear], context: Context
    ) -> dict[str, Tensor]:
        """Return the weights of the errors by layer; none for those that weigh all alike."""
        if (samples := self.config.fisher) is None or context.simulated:
            return {}
        if context.calibration is None:
            context.warn(f"{self.name}: without text there are no gradients, so all errors weigh alike")
            return {}
        return fisher_diagonals(model, layers, context.calibration.batches(samples), samples)

    def _layouts(
        self, layers: Mapping[str, nn.Linear], fisher: Mapping[str, Tensor], context: Context
    ) -> dict[str, Layout]:
        """Return how each layer is stored; UserError for blocks that do not divide it, or a small budget."""
        shapes, budget = shapes_of(layers), self.config.budget
        if budget is None:
            self.check_blocks(shapes, self.config.block)
            return dict.fromkeys(layers, self.layout)
        choices = candidates(self.config.candidates)
        self.check_blocks(shapes, min(layout.block for layout in choices))
        elements = {name: prod(shape) for name, shape in shapes.items()}

        def cost(name: str, layout: Layout) -> float:
            if context.simulated:
                return elements[name] * 4.0**-layout.bits_per_weight
            turns = self.config.search_turns
            return self._decomposed(name, layers[name], layout, turns, fisher, context).error ** 2

        layouts = spend(self.name, budget, elements, choices, cost)
        context.facts["layouts"] = {name: str(layout) for name, layout in layouts.items()}
        return layouts

    def _decomposed(
        self,
        name: str,
        layer: nn.Linear,
        layout: Layout,
        turns: int,
        fisher: Mapping[str, Tensor],
        context: Context,
    ) -> Decomposition:
        rank, weights = min(self.config.rank, *layer.weight.shape), fisher.get(name)
        return decompose(layer.weight, rank, layout, turns, name=name, seed=context.seed, fisher=weights)

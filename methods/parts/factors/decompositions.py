"""Decompose the layers of a model, one after the other, from one pass over the calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from harness.errors import UserError
from harness.method import Calibration, Context
from methods.parts.calibration.blocks import Place, walk
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.factorisers import Factoriser
from methods.parts.factors.kernel import Decomposition

#: Tokens for each feature of an input, below which second moments are doubtful.
ENOUGH = 4
#: What is then added to their diagonal, times its mean.
DAMPING = 0.01


@dataclass(frozen=True)
class Decomposing:
    """How layers are decomposed: by which factoriser, and how its statistics are gathered.

    `damping` and `place` are as in the options of a compression.
    """

    factoriser: Factoriser
    damping: float | None = None
    place: Place = "device"
    wanted_by: str = "calibration"
    """Who needs the text, for messages."""

    def each(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear],
        most: Mapping[str, int],
        context: Context,
        sequential: bool = False,
        products: bool = False,
    ) -> Iterator[tuple[str, Decomposition, InputStatistics | None]]:
        """Yield every layer's name, decomposition up to the rank `most`, and statistics, block after block.

        Layers may be replaced as they come; `sequential` then takes later statistics from the changed model.
        Statistics are there where the factoriser needs any, or with `products`, which asks for products of
        features. UserError where text is needed and there is none.
        """
        factoriser = self.factoriser
        if factoriser.need == "nothing" and not products:
            for name in list(layers):
                yield name, factoriser.decompose(layers[name].weight, None, most[name], 0.0, name), None
            return
        text, second = text_of(context, self.wanted_by), factoriser.need == "products" or products
        blocks = walk(model, layers, text.batches(), second, sequential, self.place, factoriser.pooled)
        for found in blocks:
            for name, inputs in found.items():
                damping = self.damping_of(inputs, context)
                weight = layers[name].weight
                yield name, factoriser.decompose(weight, inputs, most[name], damping, name), inputs

    def damping_of(self, inputs: InputStatistics, context: Context) -> float:
        """Return the damping of second moments, with one warning where there are few tokens."""
        if self.damping is not None or self.factoriser.need != "products":
            return self.damping or 0.0
        if inputs.tokens >= ENOUGH * inputs.width:
            return 0.0
        if "damped" not in context.facts:
            context.warn(
                f"{self.wanted_by}: {inputs.tokens:,} tokens of calibration text are fewer than "
                f"{ENOUGH} for each of {inputs.width:,} features, so second moments are damped by {DAMPING}; "
                "give more (calibration.sequences)"
            )
        context.facts["damped"] = DAMPING
        return DAMPING


def text_of(context: Context, wanted_by: str) -> Calibration:
    """Return the calibration text; UserError where there is none."""
    if context.calibration is None:
        raise UserError(f"{wanted_by}: this needs calibration text, and the run has none")
    return context.calibration

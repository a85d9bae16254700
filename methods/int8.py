"""int8 weights: linear layers store a byte for each weight, and stay trainable by other methods of a stack.

`[int8, full]`, `[int8, apollo]`, `[int8, lora]`; alone, in stage `compress`, it evaluates a rounded model.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from harness.method import Caps, Context, Method, MethodConfig
from methods.parts.optim.adamw import TRAIN_OPTIONS
from methods.parts.quantisation.gridded import Rounding, gridded
from methods.parts.quantisation.layers import check_divides, check_unquantised
from methods.parts.quantisation.tensor import plain_weights
from methods.parts.targets import LINEAR_KINDS, Shapes, shapes_of, target_linears

BITS = 8


class Int8Config(MethodConfig):
    """Options of int8 weights."""

    group: Annotated[int, Field(gt=1)] = 256
    """Weights, one after the other in the rows of a matrix, that share a grid of 256 points."""

    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """Of what an update writes back: to one of the two points around a weight, at random and unbiased, or to
    the nearest, where updates of less than half a step are lost."""

    write_back: Literal["float32", "official"] = "float32"
    """How an update adds to a weight and rounds it: in float32, on grids from the smallest to the largest
    weight of a group, or as in Q-GaLore's `official` code: in the model's dtype, on grids with a point at 0.
    In bfloat16 most of a small update is lost there, and the largest weights shrink."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers; of a factored layer both factors are stored in int8."""


class Int8(Method):
    """Store the weights of the targets in int8; another method of the stack trains."""

    Config: ClassVar[type[MethodConfig]] = Int8Config
    config: Int8Config
    name: ClassVar[str] = "int8"
    source = (
        "Zhang et al., Q-GaLore, 2024, arXiv 2407.08296, section 3.4. Departs from it in grids that have no "
        "point at 0 and in updates in float32; `write_back: official` brings their code back. Gradients "
        "are ordinary ones, so that they are clipped, which in their code they are not."
    )

    @property
    def caps(self) -> Caps:
        """Return every stage; the method that trains may restrict it."""
        return Caps(**TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Round the weights to the nearest points, one matrix after the other, in place."""
        layers = target_linears(model, self.config.targets)
        check_unquantised(self.name, layers)
        self.check_groups(shapes_of(layers))
        before = sum(layer.weight.nbytes for layer in layers.values())
        stored = 0
        for name, layer in layers.items():
            official, stochastic = self.config.write_back == "official", self.config.rounding == "stochastic"
            rounding = Rounding(stochastic, official, context.seed, name)
            weight = gridded(layer.weight, self.config.group, BITS, rounding)
            layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
            stored += weight.stored_bytes
        context.facts.update(int8_matrices=len(layers), int8_bytes=stored, float_bytes=before)
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Put plain weights of the same values back, in place."""
        return plain_weights(model)

    def check_groups(self, shapes: Shapes) -> None:
        """Raise UserError for the first matrix that groups do not divide."""
        check_divides(self.name, "group", self.config.group, shapes, usual=256)

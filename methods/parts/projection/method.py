"""What the methods share that train everything with Adam in low-rank subspaces of the gradients."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from harness.method import Caps, Context, Method, MethodConfig, Simulated
from methods.parts.optim.adamw import TRAIN_OPTIONS
from methods.parts.projection.matrix import Matrix, state_facts
from methods.parts.projection.projector import Projection, side_of
from methods.parts.projection.subspace import Finder
from methods.parts.targets import LINEAR_KINDS, target_linears

Positive = Annotated[int, Field(gt=0)]


class ProjectingConfig(MethodConfig):
    """What all methods of this kind are asked for."""

    rank: Positive = 128
    """Dimensions of a subspace; a matrix with a shorter side gets that side, with a warning."""

    period: Positive = 200
    """Updates between two refreshes of a subspace."""

    scale: Annotated[float, Field(gt=0)] = 0.25
    """Factor of the mapped-back step (alpha); with weight decay 0 the same as one of the learning rate."""

    projection: Projection = "std"
    """Which side is projected: `std` the short one (a square matrix on the right), `reverse_std` the long
    one, `left` or `right` always that one, `full` both."""

    refresh: Finder = "svd"
    """How the directions are found: `svd` (exact), `gram` (eigenvectors on the short side) or
    `randomized` (subspace iteration, which begins from the old basis where it has one)."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_KINDS
    """Kinds of linear layers whose gradients are projected; of a factored layer both factors are."""


class Projecting(Method):
    """Trains everything; only the optimizer's states of the targets are small."""

    Config: ClassVar[type[MethodConfig]] = ProjectingConfig
    config: ProjectingConfig
    name: ClassVar[str]
    seed = 0
    simulated: Simulated | None = None

    @property
    def caps(self) -> Caps:
        """Trains only; refreshes count as often as they are seen unless a subclass knows their period."""
        return Caps(stages=frozenset({"pretrain", "finetune"}), **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Make every parameter trainable and say how large the states will be beside Adam's."""
        self.seed, self.simulated = context.seed, context.simulated
        layers = target_linears(model, self.config.targets)
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        facts = state_facts(shapes, self.config.rank, self.config.projection)
        context.facts.update(trainable="all parameters", **facts)
        clamped = [min(shape) for shape in shapes.values() if min(shape) < self.config.rank]
        if clamped:
            context.warn(
                f"{self.name}: rank {self.config.rank} is more than the short side of {len(clamped)} "
                f"matrices; these got their short side as rank, the smallest {min(clamped)}"
            )
        if facts["state_elements"] > facts["adam_state_elements"]:
            context.warn(f"{self.name}: bases and moments are larger than Adam's moments at this rank")
        context.ranks.update({name: min(self.config.rank, *shape) for name, shape in shapes.items()})
        return model.requires_grad_(True)


def matrices_of(model: nn.Module, config: ProjectingConfig) -> dict[str, Matrix]:
    """A fresh matrix for each target, by the name of its weight, in the order of the model."""
    layers = target_linears(model, config.targets)
    return {
        f"{name}.weight": Matrix(
            side_of(tuple(layer.weight.shape), config.projection),
            min(config.rank, *layer.weight.shape),
            config.period,
        )
        for name, layer in layers.items()
    }

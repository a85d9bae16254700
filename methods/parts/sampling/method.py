"""Base of the methods that train a few layers at a time, and what lies outside of the layers always.

A stepper with `SampledStepper` first among its bases updates as the others do, but freezes all layers except
those of the interval. Frozen layers get no gradients, and by default the optimizer keeps nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Caps, Context, Method, MethodConfig, StepInfo
from methods.parts.layers.subtoken import VeLoRALinear
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.sampling.schedule import Schedule, layers_of

Positive = Annotated[int, Field(gt=0)]


class SamplingConfig(MethodConfig):
    """Options of the methods that sample layers."""

    layers: Positive = 2
    """Layers (blocks) that train at a time; at most those of the model."""

    interval: Positive = 20
    """Updates until the layers are drawn anew."""

    states: Literal["drop", "reset", "keep"] = "drop"
    """What an optimizer holds, at the end of an interval: `drop` that of layers that stop training; `reset`
    all of it, as if the model were saved and loaded again (the papers' runs of LISA); `keep` all of it, to go
    on with when a layer is drawn again (its code), with room for all layers from the start."""

    train_embeddings: bool = True
    """Train the embeddings in every update; false freezes them."""

    train_head: bool = True
    """Train the output head in every update; false freezes it. A head tied to the embeddings needs both."""


class SamplingMethod(Method):
    """Train sampled layers and what is outside of the layers; a subclass adds the stepper and may weight."""

    Config: ClassVar[type[MethodConfig]] = SamplingConfig
    config: SamplingConfig
    name: ClassVar[str]
    seed = 0
    weights: tuple[float, ...] = ()

    @property
    def caps(self) -> Caps:
        """Return training only; the first update of an interval counts as a refresh."""
        stages = frozenset({"pretrain", "finetune"})
        return Caps(stages=stages, period=self.config.interval, own_updates=True, **TRAIN_OPTIONS)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Make trainable what the first interval trains, whatever a method below in the stack has frozen."""
        layers, count = layers_of(model), self.config.layers
        self.seed, self.weights = context.seed, self.find_weights(model, context)
        drawable = sum(weight > 0 for weight in self.weights)
        if count > drawable:
            which = "" if drawable == len(layers) else f", of which {drawable} can be drawn"
            said = f"{self.name}: layers is {count}, but the model has {len(layers)}{which}"
            raise UserError(f"{said}; give at most {drawable}")
        schedule = self.schedule(model)
        self._choose_outside(model.requires_grad_(True))
        for number, layer in enumerate(layers):
            layer.requires_grad_(number in schedule.layers(0))
        self._report(schedule, context)
        return model

    def find_weights(self, model: nn.Module, context: Context) -> tuple[float, ...]:
        """Return what layers are drawn in proportion to, one number a layer."""
        return (1.0,) * len(layers_of(model))

    def schedule(self, model: nn.Module) -> Schedule:
        """Return which layers train when; uniformly drawn for a model that was not prepared here."""
        weights = self.weights or (1.0,) * len(layers_of(model))
        return Schedule(weights, self.config.layers, self.config.interval, self.seed)

    def _choose_outside(self, model: nn.Module) -> None:
        """Freeze embeddings and head where the options say so; UserError where they are one and differ."""
        language_model: Any = model
        embeddings, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
        flags = self.config.train_embeddings, self.config.train_head
        if embeddings.weight is head.weight and flags[0] != flags[1]:
            raise UserError(
                f"{self.name}: the head of this model is its embedding, so train_embeddings and train_head "
                "cannot differ"
            )
        for module, trains in zip((embeddings, head), flags, strict=True):
            module.requires_grad_(trains)

    def _report(self, schedule: Schedule, context: Context) -> None:
        total, updates = len(schedule.weights), context.updates
        context.facts.update(
            trainable=f"{self.config.layers} of {total} layers at a time, and what is outside of them",
        )
        if updates is not None and self.config.states == "keep" and (away := schedule.absences(updates)):
            context.facts["updates_away"] = round(sum(away) / len(away), 1)
        if updates is not None and (never := schedule.never_trained(updates)):
            context.facts["never_trained"] = never
            context.warn(
                f"{self.name}: layers that are never drawn in {updates} updates ({len(never)} of {total}): "
                f"{', '.join(map(str, never))}"
            )


class SampledStepper(AdamWStepper):
    """A stepper whose layers train by a schedule; the layers of the next update are set after each."""

    def __init__(
        self, model: nn.Module, optim: OptimConfig, *rest: Any, schedule: Schedule, config: SamplingConfig
    ) -> None:
        self.schedule, self.sampling = schedule, config
        self.interval = self.into = 0  # the number of the interval, and of its updates so far
        layers = layers_of(model).requires_grad_(True)  # a layer left out here would never be updated
        super().__init__(model, optim, *rest)
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.layers = [[names[id(parameter)] for parameter in layer.parameters()] for layer in layers]
        for module in layers.modules():
            if isinstance(module, VeLoRALinear):
                module.rests = True
        if config.states == "keep":
            self.make_room(name for layer in self.layers for name in layer)
        self._train()

    def step(self) -> StepInfo:
        """Update, and draw the layers anew at the end of an interval."""
        info, first = super().step(), self.into == 0
        self.into += 1
        if self.into == self.schedule.length:
            self.next_interval()
        return replace(
            info, refreshed=info.refreshed or first, refresh_next=info.refresh_next or self.into == 0
        )

    def refresh_soon(self) -> None:
        """Begin the next interval with the next update."""
        self.next_interval()

    def next_interval(self) -> None:
        """Let other layers train, and free what is not to be kept."""
        before = self.active
        self.interval, self.into = self.interval + 1, 0
        self._train()
        if self.sampling.states == "reset":
            self.forget(self.parameters)
        elif self.sampling.states == "drop":
            left = sorted(set(before) - set(self.active))
            self.forget(name for number in left for name in self.layers[number])

    def forget(self, names: Iterable[str]) -> None:
        """Free what is stored of parameters."""
        for name in names:
            self.states.pop(name, None)

    def make_room(self, names: Iterable[str]) -> None:
        """Create states before the first update, so that what a run needs in the end shows at once."""
        for name in names:
            self.states[name] = self.adam.new_state(self.parameters[name])

    def _train(self) -> None:
        """Let the layers of the interval train and freeze the others, without gradients."""
        self.active = self.schedule.layers(self.interval)
        for number, names in enumerate(self.layers):
            for name in names:
                parameter = self.parameters[name].requires_grad_(number in self.active)
                if number not in self.active:
                    parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the stepper stores, and the interval, from which the layers follow."""
        return {"stepper": super().state_dict(), "interval": self.interval, "into": self.into}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore copies of a saved state, and the layers that train."""
        super().load_state_dict(state["stepper"])
        self.interval, self.into = state["interval"], state["into"]
        self._train()

"""The contract between a training method and the harness, and the registry that finds methods.

A method is one class in one file. It says what it needs (`Config`), where it comes from (`source`)
and what it can do (`caps`); it changes a model (`prepare`), trains it (`stepper`) and hands back a
plain model (`export`). This module knows no method but by the strings of the registry.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.errors import UserError
from harness.registry import check_name
from harness.spectrum import thinned_spectrum
from harness.validation import validate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.config import OptimConfig


@dataclass(frozen=True)
class Caps:
    """What one configured method can honestly do; the caps of a stack are the intersection.

    `period` is the number of steps between expensive refreshes (None: every step costs the same).
    `value_dependent` says that shapes depend on the values of weights or gradients, so that a
    simulation needs the ranks from elsewhere. `decoding` says that the prepared model can generate.
    `per_layer` and `state_bits` say which options of the train section are honoured: updates inside
    the backward pass, and the precisions of optimizer states beside the method's own. `because` tells a
    user whose run is refused why the stages are what they are.
    """

    stages: frozenset[str] = frozenset({"pretrain", "finetune", "compress"})
    grad_accum: bool = True
    grad_clip: bool = True
    ddp: bool = True
    period: int | None = None
    value_dependent: bool = False
    decoding: bool = True
    per_layer: bool = False
    state_bits: frozenset[int] = frozenset()
    because: str = ""

    def meet(self, other: Caps) -> Caps:
        """The caps of a stack of two methods: what both can do."""
        periods = [p for p in (self.period, other.period) if p is not None]
        return Caps(
            stages=self.stages & other.stages,
            grad_accum=self.grad_accum and other.grad_accum,
            grad_clip=self.grad_clip and other.grad_clip,
            ddp=self.ddp and other.ddp,
            period=max(periods, default=None),
            value_dependent=self.value_dependent or other.value_dependent,
            decoding=self.decoding and other.decoding,
            per_layer=self.per_layer and other.per_layer,
            state_bits=self.state_bits & other.state_bits,
            because="; ".join(dict.fromkeys(filter(None, (self.because, other.because)))),
        )


@dataclass(frozen=True)
class Simulated:
    """Says to a method that tensors have shapes and no values, and where ranks then come from.

    `ranks` by layer are those to use in place of what the method would choose; None asks for its own
    approximation (`Method.approximations`) of that name, or for the first of them.
    """

    ranks: Mapping[str, int] | None = None
    approximation: str | None = None


@dataclass
class Context:
    """What a method may use while it prepares a model, and where it says what it did.

    `calibration` yields fresh batches of training token ids, each (batch, seq) int64, for methods
    that look at data. `cache` is a folder for results that are costly and depend on the weights
    alone. `ranks`, `facts`, `spectra` and `warnings` end up in the record of the run. `simulated` is there
    when tensors have no values.
    """

    seed: int = 0
    cache: Path | None = None
    calibration: Callable[[], Iterator[Tensor]] | None = None
    simulated: Simulated | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    spectra: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Keep a warning for the record, e.g. that a value was clamped."""
        self.warnings.append(text)

    def say_spectra(self, found: Mapping[str, Iterable[float]]) -> None:
        """Keep the singular values of the weights that a method was given, by matrix and in any order.

        What is kept of each is in `record.Parameters`.
        """
        self.spectra.update({name: thinned_spectrum(values) for name, values in found.items()})


@dataclass(frozen=True)
class StepInfo:
    """What happened in one optimizer step.

    `refreshed` labels the step for the clock; `refresh_next` announces that the coming step will hold a
    refresh, so that a meter can watch it. `grad_norm` is the global norm before clipping, as a device
    tensor (reading it would stall the device), or None where it was not computed. `ranks` holds those
    that moved. `refreshes` and `skipped` count tensors: those that got a new subspace, and those that
    were left alone because their gradient was not finite; None from a method that has no such thing.
    """

    refreshed: bool = False
    refresh_next: bool = False
    grad_norm: Tensor | None = None
    ranks: Mapping[str, int] | None = None
    refreshes: int | None = None
    skipped: int | None = None


@runtime_checkable
class Stepper(Protocol):
    """The optimizer side of a method. One call of `step` is one update, whatever happens inside."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the coming update; called before its backward pass."""

    def step(self) -> StepInfo:
        """Apply the update from the gradients that are there."""

    def zero_grad(self) -> None:
        """Free all gradients."""

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that is kept between steps, projectors included, each with a name."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only; together with the model enough for a bit-exact resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""


class MethodConfig(BaseModel):
    """Base of every method's hyperparameters: typed, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Method:
    """Base class of all methods: changes nothing and trains nothing until a member is overridden."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    #: Paper, section and equations; says where the implementation departs from them.
    source: ClassVar[str] = ""
    #: How a method whose shapes depend on values can do without: name -> what is assumed, the default first.
    approximations: ClassVar[Mapping[str, str]] = {}
    #: Packages that take long to import and that only work needs, not the reading of options: they are
    #: imported before anything is metered.
    libraries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @property
    def caps(self) -> Caps:
        """What this configured instance can do."""
        return Caps()

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace layers and set `requires_grad`; return the model to train (often the same object)."""
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> Stepper | None:
        """Return the optimizer side for the prepared model, or None when this method does not train it."""
        return None

    def export(self, model: nn.Module) -> nn.Module:
        """Undo the training scaffold: a plain transformers model whose linears may stay factored."""
        return model


def find(name: str) -> type[Method]:
    """Import a method's class by its registered name or by "module:Class"."""
    target = check_name(name)
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"method {name!r}: cannot import module {module_name!r}: {error}") from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise UserError(f"method {name!r}: {target!r} is not a subclass of harness.method.Method")
    return found


def build(name: str, options: Mapping[str, Any]) -> Method:
    """Make a configured method; a wrong option raises UserError with what is allowed."""
    cls = find(name)
    return cls(validate(cls.Config, dict(options), where=f"method {name}"))


def stack_caps(methods: Sequence[Method]) -> Caps:
    """The caps of a stack of methods."""
    caps = methods[0].caps
    for method in methods[1:]:
        caps = caps.meet(method.caps)
    return caps


def caps_as_dict(caps: Caps) -> dict[str, Any]:
    """Caps as plain values, stages sorted, for printing."""
    values = {item.name: getattr(caps, item.name) for item in fields(caps)}
    return {**values, "stages": sorted(caps.stages), "state_bits": sorted(caps.state_bits)}

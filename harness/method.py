"""The contract between a training method and the harness; a method author reads this file first.

A method is one class in one file. Its `Config` declares the options, `source` cites the paper, and `caps`
states what the configured method supports. A run then calls, in this order:

1. `prepare(model, context)`: replace layers, choose what trains, and put ranks and facts into the record.
2. `stepper(model, optim)`: return the optimizer. For each update the training loop calls `set_lr`, the
   backward pass, `step` and `zero_grad`.
3. `export(model)`, when the run saves its weights: return a plain model.

In a stack, `prepare` and `export` of every method are called, the last method first to export, and the last
method that returns a stepper trains the model. Raise `UserError` for an option that cannot work with this
model and `UnsupportedError` for a feature that the method lacks; the latter becomes a row of the table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.spectrum import thinned_spectrum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.config import OptimConfig


@dataclass(frozen=True)
class Caps:
    """Capabilities of one configured method. The harness refuses a run that asks for more."""

    stages: frozenset[str] = frozenset({"pretrain", "finetune", "compress"})
    """Values of `train.stage` that the method supports."""

    grad_accum: bool = True
    """One update may follow several backward passes."""

    grad_clip: bool = True
    """The global gradient norm can be clipped before an update."""

    ddp: bool = True
    """Replicas on several processes stay equal when their gradients are averaged before `step`: everything
    that `prepare` and `step` draw or decide follows from the seed, the weights and the averaged gradients."""

    period: int | None = None
    """Updates between two expensive refreshes; None where all updates cost the same or no period is fixed."""

    mean_period: int | None = None
    """Without a fixed period, the updates from one refresh of a matrix to its next, as near as they are known
    before training: a forecast of speed spreads refreshes over them."""

    value_dependent: bool = False
    """Shapes depend on the values of weights or gradients, so a simulation takes ranks from `Simulated`."""

    reads_text: bool = False
    """`prepare` looks at `context.calibration`."""

    per_layer: bool = False
    """The stepper honours `train.per_layer`: it updates each parameter inside the backward pass."""

    state_bits: frozenset[int] = frozenset()
    """Values of `train.state_bits` that the stepper honours, beside its own precision."""

    no_export: str = ""
    """Why `export` cannot return a plain model, so that no run may save weights; empty where it can."""

    own_updates: bool = False
    """The stepper's update is what the method is, so that the method must be the last of a stack with one."""

    merges: bool = False
    """Updates change frozen parameters, too, as where adapters are added into them."""

    fixed_length: bool = False
    """What an update does depends on how many there will be (`context.updates`), so that a training cannot be
    extended once it has ended."""

    because: str = ""
    """Why the stages are restricted, for the message to a user whose run is refused."""

    def meet(self, other: Caps) -> Caps:
        """Return the capabilities of a stack of two methods: what both support."""
        periods = [p for p in (self.period, other.period) if p is not None]
        means = [p for p in (self.mean_period, other.mean_period) if p is not None]
        return Caps(
            stages=self.stages & other.stages,
            grad_accum=self.grad_accum and other.grad_accum,
            grad_clip=self.grad_clip and other.grad_clip,
            ddp=self.ddp and other.ddp,
            period=max(periods, default=None),
            mean_period=max(means, default=None),
            value_dependent=self.value_dependent or other.value_dependent,
            reads_text=self.reads_text or other.reads_text,
            per_layer=self.per_layer and other.per_layer,
            state_bits=self.state_bits & other.state_bits,
            no_export=self.no_export or other.no_export,
            own_updates=self.own_updates or other.own_updates,
            merges=self.merges or other.merges,
            fixed_length=self.fixed_length or other.fixed_length,
            because="; ".join(dict.fromkeys(filter(None, (self.because, other.because)))),
        )


@dataclass(frozen=True)
class Simulated:
    """Mark a simulation: tensors have shapes and dtypes, but no values that can be read.

    A method whose shapes depend on values then takes `ranks`, by layer name. Where they are None it follows
    the entry `approximation` of its `Method.approximations`, or the first entry where that is None too.
    """

    ranks: Mapping[str, int] | None = None
    approximation: str | None = None


class Batch(NamedTuple):
    """Rows of training text, twice (batch, seq) int64, as language models of transformers take them."""

    ids: Tensor
    """What the model reads, with some token in place of padding."""

    labels: Tensor
    """What the loss counts: the same ids, with -100 in place of padding."""


class Calibration(Protocol):
    """Text that a method may look at before training, the same whenever it is asked for."""

    @property
    def source(self) -> str:
        """The name of the text."""

    @property
    def count(self) -> int:
        """Sequences for statistics, as the run declares them."""

    @property
    def length(self) -> int:
        """Tokens in a sequence."""

    @property
    def seed(self) -> int:
        """What the choice of sequences follows from."""

    def batches(self, count: int | None = None) -> Iterator[Batch]:
        """Yield `count` sequences, by default the declared ones; UserError where the text has fewer."""

    def validation(self) -> Iterator[Batch]:
        """Yield other sequences, to choose settings by; UserError where the text has too few."""


@dataclass
class Context:
    """Inputs of `Method.prepare`, and the place where it reports results for the record of the run."""

    seed: int = 0
    """Seed of every random choice of the method."""

    cache: Path | None = None
    """Folder for costly results that depend on the weights alone; None turns caching off."""

    updates: int | None = None
    """Updates of the training that follows; None where it is not known."""

    calibration: Calibration | None = None
    """Text to look at; None where there is none."""

    simulated: Simulated | None = None
    """Set in a simulation, where tensors have no values."""

    ranks: dict[str, int] = field(default_factory=dict)
    """Rank of each layer that got one, by its full name."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Anything else worth recording, as values that JSON can hold."""

    spectra: dict[str, list[float]] = field(default_factory=dict)
    """Singular values by matrix, filled by `add_spectra`."""

    warnings: list[str] = field(default_factory=list)
    """Warnings, filled by `warn`."""

    def warn(self, text: str) -> None:
        """Add a warning to the record, e.g. that a value was clamped."""
        self.warnings.append(text)

    def add_spectra(self, found: Mapping[str, Iterable[float]]) -> None:
        """Add the singular values of the original weights, by matrix and in any order.

        The record stores at most `harness.spectrum.SPECTRUM_POINTS` of each, relative to the largest.
        """
        self.spectra.update({name: thinned_spectrum(values) for name, values in found.items()})


@dataclass(frozen=True)
class StepInfo:
    """Events of one update. None means that the method has no such event."""

    refreshed: bool = False
    """The update included an expensive refresh; the clock times such updates apart."""

    refresh_next: bool = False
    """The next update will include a refresh, so that a meter can prepare for it."""

    grad_norm: Tensor | None = None
    """Global gradient norm before clipping, as a tensor on the device: reading it here would stall a GPU."""

    ranks: Mapping[str, int] | None = None
    """New rank of each layer whose rank has changed."""

    refreshes: int | None = None
    """Number of parameters that got a new subspace."""

    skipped: int | None = None
    """Number of parameters left alone because their gradient was not finite."""


@runtime_checkable
class Stepper(Protocol):
    """The optimizer of a method. One call of `step` is one update, whatever happens inside.

    A stepper with refreshes may also define `refresh_soon()`, which makes the next update a refresh; a
    measurement too short to reach one calls it.
    """

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next update; called before its backward pass."""

    def step(self) -> StepInfo:
        """Update the parameters from their gradients."""

    def zero_grad(self) -> None:
        """Free all gradients."""

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that lives from one step to the next, projectors included, with a name.

        These tensors are reported as optimizer memory.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that, together with the model, suffice for a bit-exact resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class MethodConfig(BaseModel):
    """Base of every method's options: typed and frozen; unknown options are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Method:
    """Base class of all methods; it changes nothing and trains nothing until a member is overridden."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    """Options of the method, each a typed field with a docstring."""

    source: ClassVar[str] = ""
    """Paper, section and equations, and where the implementation departs from them."""

    approximations: ClassVar[Mapping[str, str]] = {}
    """Assumptions that replace values in a simulation: name -> description, the default first."""

    later: ClassVar[Mapping[str, int]] = {}
    """Options that came with a later `version`: option -> version. A configuration of an earlier version
    does what it did before the option existed, and keeps the identity that it had."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages that are slow to import and that `Config` does not need; imported before metering begins."""

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @classmethod
    def config_for(cls, options: Mapping[str, Any]) -> type[MethodConfig]:
        """Return the class that validates these options: `Config`, or a subclass where one option decides
        which others there are. UserError for a value of that option that is unknown or cannot be used.
        """
        return cls.Config

    @classmethod
    def choices(cls) -> Mapping[str, str]:
        """Return the values of an option that decides about others, and what each is or why it is refused."""
        return {}

    @property
    def caps(self) -> Caps:
        """Return what this configured instance supports."""
        return Caps()

    @property
    def version(self) -> int:
        """Return the version of this configured instance's arithmetic, from 1.

        Raise it when a change of the code gives the same options other numbers. It is part of a run's
        identity, so that results of two versions are never averaged.
        """
        return 1

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Replace layers and set `requires_grad`; return the model to train, often the same object."""
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> Stepper | None:
        """Return the optimizer of the prepared model, or None when this method does not train it."""
        return None

    def export(self, model: nn.Module) -> nn.Module:
        """Return a plain transformers model without training parts; its linear layers may stay factored."""
        return model


def stack_caps(methods: Sequence[Method]) -> Caps:
    """Return the capabilities that all methods of a stack share."""
    return functools.reduce(Caps.meet, (method.caps for method in methods))

"""Try an optimizer on three small parameters, before anything trains: what it needs and what it keeps to."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.errors import UserError, one_line
from methods.parts.torch_optimizers.averages import follows_mode
from methods.parts.torch_optimizers.catalogue import Choice
from methods.parts.torch_optimizers.signature import OptimizerClass
from methods.parts.torch_optimizers.states import restore, saved
from methods.parts.torch_optimizers.stepper import set_rate

#: Two matrices, large enough for states in 8 bits, and a vector.
SHAPES = {"wide": (64, 80), "tall": (80, 64), "vector": (64,)}
MATRICES = ("wide", "tall")
RATE = 0.1
#: Updates of a trial: some do nothing in their first ten, or do something more only in every fifth.
UPDATES = 12
#: Make an optimizer of small parameters by name.
Make = Callable[[Mapping[str, nn.Parameter]], Optimizer]
_KNOWN: dict[tuple[OptimizerClass, str, bool], Trial] = {}


@dataclass(frozen=True)
class Trial:
    """What an optimizer did."""

    vectors: bool
    """It updates a vector, not only matrices."""

    apart: bool
    """One for each parameter does the same as one for all."""

    draws: bool
    """It draws from the global random numbers."""

    cannot_resume: str
    """Why its state cannot be saved, "" where a restored one goes on to the bit."""


def tried(choice: Choice, matrices_alone: bool = False) -> Trial:
    """Return what an optimizer does with small parameters, and remember it.

    UserError where it cannot update them, where the rate of its groups does not decide its updates, or where
    it does not read a key of `choice.group`.
    """
    key = choice.cls, repr((choice.options, choice.group)), matrices_alone
    if key not in _KNOWN:
        with _quiet():
            try:
                _KNOWN[key] = _tried(choice, MATRICES if matrices_alone else tuple(SHAPES))
            except Exception as error:
                said = str(error) if isinstance(error, UserError) else _said(error)
                raise UserError(f"{choice.name} cannot be used: {said}") from error
    return _KNOWN[key]


def _tried(choice: Choice, names: Sequence[str]) -> Trial:
    read: set[str] = set()

    def make(parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        optimizer = choice.make(parameters, MATRICES, RATE, wrap=lambda group: _Watched(group, read))
        optimizer.param_groups[:] = [_Watched(group, read) for group in optimizer.param_groups]
        return optimizer

    try:
        moved = _Steps(make, names)
    except Exception:
        if names != MATRICES:
            with suppress(Exception):  # what it says of all parameters says more
                return _tried(choice, MATRICES)
        raise
    if unread := sorted(choice.group.keys() - read):
        raise UserError(f"it reads no key {unread[0]!r} of its groups; leave it out of `group`")
    _check_rate(make, names, moved.weights)
    apart = False
    with suppress(Exception):
        apart = _equal(moved.weights, _Steps(make, names, apart=True).weights)
    return Trial(
        vectors=names != MATRICES,
        apart=apart and not moved.drew,
        draws=moved.drew,
        cannot_resume=_cannot_resume(make, moved),
    )


def _said(error: BaseException) -> str:
    said = one_line(error)
    if isinstance(error, KeyError):
        said = f"no key {error} in its groups; give it under `group`"
    return f"tried on small parameters, it raises {type(error).__name__}: {said}"


def _check_rate(make: Make, names: Sequence[str], usual: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the rate of its groups scales each update."""
    doubled = _Steps(make, names, (*(RATE,) * (UPDATES - 1), 2 * RATE)).weights
    still = _Steps(make, names, (0.0,) * UPDATES).weights
    start = {name: parameter.detach() for name, parameter in _parameters(names).items()}
    for name, weight in usual.items():
        if weight.equal(doubled[name]):
            raise UserError(
                "an update does not use the rate that was set before it, so train.lr and its schedule would "
                "have no effect"
            )
        if not start[name].equal(still[name]):
            raise UserError("it moves weights at the rate 0, so the schedule would not scale its updates")


class _Steps:
    """Updates of fresh parameters at some rates, from gradients that are the same each time."""

    def __init__(
        self,
        make: Make,
        names: Sequence[str],
        rates: Sequence[float] = (RATE,) * UPDATES,
        apart: bool = False,
    ) -> None:
        self.parameters, self.updates = _parameters(names), 0
        parts = [{name: p} for name, p in self.parameters.items()] if apart else [self.parameters]
        torch.default_generator.manual_seed(0)
        before = torch.get_rng_state()
        self.optimizers = [make(part) for part in parts]
        for optimizer in filter(follows_mode, self.optimizers):
            optimizer.train()  # type: ignore[attr-defined]
        for rate in rates:
            self.update(rate)
        self.drew = not before.equal(torch.get_rng_state())

    def update(self, rate: float) -> None:
        generator = torch.Generator().manual_seed(self.updates)
        for parameter in self.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in self.optimizers:
            set_rate(optimizer, rate)
            optimizer.step()
        self.updates += 1

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}


def _parameters(names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return small parameters: steps that are tiny at first, as without a rate, still change them."""
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(1e-3 * torch.randn(SHAPES[name], generator=generator)) for name in names}


def _cannot_resume(make: Make, moved: _Steps) -> str:
    """Return why a saved state does not go on to the bit, "" where it does."""
    file = io.BytesIO()
    try:
        torch.save(saved(moved.optimizers[0], moved.parameters), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        other = _Steps(make, tuple(moved.parameters), rates=())
        with torch.no_grad():
            for name, parameter in other.parameters.items():
                parameter.copy_(moved.parameters[name])
        restore(other.optimizers[0], state, other.parameters)
        other.updates = moved.updates
        for each in (moved, other):
            torch.default_generator.manual_seed(0)
            each.update(RATE)
    except Exception as error:
        return f"its state cannot be saved and loaded safely: {type(error).__name__}: {one_line(error)[:200]}"
    if _equal(moved.weights, other.weights):
        return ""
    return "its state does not hold all that an update depends on: restored, it goes on differently"


def _equal(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return all(weight.equal(theirs[name]) for name, weight in mine.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Give no warnings, compile nothing, and leave the global random numbers as before."""
    stance = torch.compiler.set_stance("force_eager")
    with torch.random.fork_rng([]), warnings.catch_warnings(), stance:
        warnings.simplefilter("ignore")
        yield


class _Watched(dict[str, Any]):
    """A group of parameters that notes which of its keys are read."""

    def __init__(self, keys: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(keys)
        self.read = read

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

"""Put a run together, real or simulated: its stack of methods, prepared model, stepper and trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from harness.config import Run
from harness.engine.contract import members
from harness.engine.data import tokens
from harness.engine.measure.peak import Meter
from harness.engine.measure.speed import StepClock
from harness.engine.run import checks
from harness.engine.run.train import Trainer
from harness.errors import UnsupportedError
from harness.method import Caps, Context, Method, Stepper, stack_caps
from harness.plugins import import_libraries, import_library
from harness.record import Parameters

#: The context of a method, by its key in the stack.
ContextFor = Callable[[str, Method], Context]


@dataclass
class Assembly:
    """A prepared model, its parameters and warnings for the record, and its trainer.

    The trainer is None for a run that only compresses.
    """

    model: Any
    parameters: Parameters
    warnings: list[str]
    trainer: Trainer | None = None


def load_stack(run: Run) -> tuple[list[Method], Caps]:
    """Build the methods of a run and import their libraries; UnsupportedError where the run asks for more.

    Call it before a meter runs: an import leaves tensors behind, too.
    """
    methods = checks.stack(run)
    for key, method in zip(keys(run), methods, strict=True):
        import_libraries(key, method)
    if run.train.state_bits == 8:
        with suppress(ImportError):  # the optimizer says what to install
            import_library("bitsandbytes")
    return methods, checks.supported(run, methods)


def assemble(
    run: Run,
    methods: Sequence[Method],
    model: Any,
    context_for: ContextFor,
    batches: Iterator[np.ndarray],
    meter: Meter,
) -> Assembly:
    """Prepare a loaded model by the stack of methods, find its stepper and make its trainer.

    `batches` yields (batch, seq_len) int64 arrays on the host; `meter` knows the device. UnsupportedError if
    no method of the stack trains.
    """
    prepared = prepare(run, methods, model, context_for)
    model = prepared.model
    if run.train.stage == "compress":
        return prepared
    stepper = find_stepper(run, methods, model)
    if stepper is None:
        names = " + ".join(choice.name for choice in run.method)
        raise UnsupportedError(
            f"{names} trains nothing: stack a method that trains on it, or set train.stage to compress"
        )
    if run.train.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    prepared.trainer = Trainer(
        model,
        stepper,
        batches,
        run.train,
        device=meter.device,
        meter=meter,
        clock=StepClock(meter.device),
        period=stack_caps(methods).period,
        padded=tokens.padded(run.data),
    )
    return prepared


def keys(run: Run) -> list[str]:
    """Return a name for each method of the stack: its own, with its position where it occurs twice."""
    names = [choice.name for choice in run.method]
    return [name if name not in names[:index] else f"{name}#{index + 1}" for index, name in enumerate(names)]


def prepare(run: Run, methods: Sequence[Method], model: Any, context_for: ContextFor) -> Assembly:
    """Prepare a loaded model by the stack of methods, without a trainer; parameters count once."""
    ranks: dict[str, int] = {}
    chosen: dict[str, dict[str, int]] = {}
    facts: dict[str, Any] = {}
    spectra: dict[str, list[float]] = {}
    warnings: list[str] = []
    for key, method in zip(keys(run), methods, strict=True):
        context = context_for(key, method)
        model = members.prepare(key, method, model, context)
        ranks |= context.ranks
        facts[key] = context.facts
        spectra = context.spectra | spectra  # the first method of a stack was given the weights themselves
        warnings += context.warnings
        if method.caps.value_dependent:
            chosen[key] = dict(context.ranks)
    unique = {id(parameter): parameter for parameter in model.parameters()}.values()
    parameters = Parameters(
        total=sum(parameter.numel() for parameter in unique),
        trainable=sum(parameter.numel() for parameter in unique if parameter.requires_grad),
        trainable_names=[name for name, parameter in model.named_parameters() if parameter.requires_grad],
        ranks=ranks,
        chosen_ranks=chosen,
        spectra=spectra,
        facts=facts,
    )
    return Assembly(model, parameters, warnings)


def find_stepper(run: Run, methods: Sequence[Method], model: nn.Module) -> Stepper | None:
    """Return the stepper of the last method that brings one, None when none does.

    UnsupportedError where the updates of a method before that one would not take place.
    """
    stack = list(zip(keys(run), methods, strict=True))
    while stack:
        key, method = stack.pop()
        stepper = members.stepper(key, method, model, run.train)
        if stepper is not None:
            members.trainable(key, method, model)
            if idle := [other for other, below in stack if below.caps.own_updates]:
                raise UnsupportedError(
                    f"{key} trains this stack, so {' and '.join(idle)} would not: a stack has one "
                    f"optimizer, that of its last method with one; leave out {key}, or the training of "
                    f"{' and '.join(idle)}"
                )
            return stepper
    return None

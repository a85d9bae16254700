"""The stack of methods changes a model, and says what it did; the same for a run and its simulation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from harness.config import Run
from harness.method import Context, Method
from harness.record import Parameters


def keys(run: Run) -> list[str]:
    """A name for each method of the stack: its own, with its position where it occurs twice."""
    names = [choice.name for choice in run.method]
    return [name if name not in names[:index] else f"{name}#{index + 1}" for index, name in enumerate(names)]


def load_libraries(methods: Sequence[Method]) -> None:
    """Import what the methods will need, before a meter runs: an import leaves tensors behind, too."""
    for name in (name for method in methods for name in method.libraries):
        importlib.import_module(name)


def prepare(
    run: Run, methods: Sequence[Method], model: Any, context_for: Callable[[str, Method], Context]
) -> tuple[Any, Parameters, list[str]]:
    """The prepared model, its parameters with what the methods report, and their warnings.

    `context_for` gives each method, by its key, what it may use.
    """
    ranks: dict[str, int] = {}
    chosen: dict[str, dict[str, int]] = {}
    facts: dict[str, Any] = {}
    spectra: dict[str, list[float]] = {}
    warnings: list[str] = []
    for key, method in zip(keys(run), methods, strict=True):
        context = context_for(key, method)
        model = method.prepare(model, context)
        ranks |= context.ranks
        facts[key] = context.facts
        spectra = context.spectra | spectra  # the first method of a stack was given the weights themselves
        warnings += context.warnings
        if method.caps.value_dependent:
            chosen[key] = dict(context.ranks)
    parameters = describe(model, ranks, chosen, facts)
    parameters.spectra = spectra
    return model, parameters, warnings


def describe(
    model: nn.Module, ranks: dict[str, int], chosen: dict[str, dict[str, int]], facts: dict[str, Any]
) -> Parameters:
    """Count the unique parameters of a model."""
    unique = {id(parameter): parameter for parameter in model.parameters()}.values()
    return Parameters(
        total=sum(parameter.numel() for parameter in unique),
        trainable=sum(parameter.numel() for parameter in unique if parameter.requires_grad),
        trainable_names=[name for name, parameter in model.named_parameters() if parameter.requires_grad],
        ranks=ranks,
        chosen_ranks=chosen,
        facts=facts,
    )

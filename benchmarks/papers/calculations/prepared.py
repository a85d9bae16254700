"""A model as a method prepares and a stepper trains it, counted: the real classes, tensors without values.

Nothing is measured here and no weight is read. A method whose ranks follow from the values of weights takes
the singular values that it assumes for a shape (`Method.approximations`, the first).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.papers.calculations.value import shape_name
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from harness.config import Run
    from harness.method import Method

#: A method as in a suite: a name, a name with options, or a list of these.
MethodChoice = str | dict[str, Any] | list[Any]
#: The kind of layer that a single matrix stands for.
KIND = "q_proj"


@dataclass(frozen=True)
class Prepared:
    """Numbers (not bytes) in the parts of a model and in what its stepper keeps; `counts` by kind."""

    counts: Mapping[str, int]
    weight_bytes: int
    buffer_bytes: int
    state_elements: int
    state_bytes: int
    ranks_total: int
    assumption: str


def prepared(
    shape: str, method: MethodChoice, states: bool = False, state_bits: int | None = None
) -> Prepared:
    """Prepare a named shape in bfloat16 by a stack of methods and count; cached.

    The stepper is asked only for `states`: it takes about as long as the rest. `state_bits` are those of a
    run's settings.
    """
    return _prepared(shape_name(shape), None, json.dumps(method, sort_keys=True), states, state_bits)


def matrix(method: MethodChoice, out: int, inputs: int) -> Prepared:
    """Prepare a model that is one matrix (out, inputs) in bfloat16, a target of the methods, and count."""
    chosen = with_option(method, "targets", [KIND])
    return _prepared("nano", (out, inputs), json.dumps(chosen, sort_keys=True), states=True)


@cache
def _prepared(
    shape: str, size: tuple[int, int] | None, method: str, states: bool, state_bits: int | None = None
) -> Prepared:
    """Count a model of a shape, or of one matrix of this size; `method` as JSON."""
    from torch import bfloat16, nn

    from harness.config import Run
    from harness.engine.forecast.attribution import Attribution
    from harness.engine.forecast.fake_tensors import SimulatedMeter, world
    from harness.engine.models.load import build_empty, check_model
    from harness.validation import validate

    asked = {
        "model": {"source": "shape", "name": shape},
        "method": json.loads(method),
        "data": {"source": "random"},
        "train": {"dtype": "bfloat16", "state_bits": state_bits},
    }
    run = validate(Run, asked, where="method")
    check_model(run.model)
    with world(SimulatedMeter(Attribution())):
        if size is None:
            return _count(build_empty(run.model, bfloat16), run, states)
        layer = nn.Linear(size[1], size[0], bias=False, dtype=bfloat16)
        return _count(nn.ModuleDict({KIND: layer}), run, states)


def stack(method: MethodChoice) -> list[tuple[str, dict[str, Any]]]:
    """Return name and options of each method of a stack."""
    pairs: list[tuple[str, dict[str, Any]]] = []
    for choice in method if isinstance(method, list) else [method]:
        pairs += [(choice, {})] if isinstance(choice, str) else list(choice.items())
    return pairs


def one_method(method: MethodChoice) -> tuple[str, dict[str, Any]]:
    """Return name and options of a single method; UserError for a stack of several."""
    pairs = stack(method)
    if len(pairs) != 1:
        raise UserError(f"one method is needed here, given {method!r}; give a name, or a name with options")
    return pairs[0]


def with_option(method: MethodChoice, option: str, value: Any) -> list[dict[str, Any]]:
    """Return a stack with an option set in each method that has it."""
    from harness.plugins import find

    return [
        {name: {**options, **({option: value} if option in find(name).Config.model_fields else {})}}
        for name, options in stack(method)
    ]


def _count(model: nn.Module, run: Run, states: bool) -> Prepared:
    """Prepare, count, make one update from gradients of zeros, and count what the stepper then keeps."""
    from harness.engine.run import checks, prepare
    from harness.method import Context, Simulated

    methods = checks.stack(run)
    assumed = [next(iter(method.approximations.values())) for method in methods if method.approximations]
    ranks_total = sum(min(weight.shape) for weight in _targets(model).values())
    made = prepare.prepare(run, methods, model, lambda key, method: Context(simulated=Simulated()))
    model = made.model
    counts = {"total": made.parameters.total, "trainable": made.parameters.trainable} | _counts(model)
    kept = _states(model, run, methods) if states else []
    return Prepared(
        counts=counts,
        weight_bytes=_stored(model.parameters()),
        buffer_bytes=_stored(model.buffers()),
        state_elements=sum(state.numel() for state in kept),
        state_bytes=_stored(kept),
        ranks_total=ranks_total,
        assumption="; ".join(assumed),
    )


def _stored(tensors: Iterable[Any]) -> int:
    """Return the bytes of tensors, those of one in fewer bits by its parts."""
    from harness.engine.measure.storages import parts

    return sum(part.nbytes for tensor in tensors for part in parts(tensor))


def _counts(model: nn.Module) -> dict[str, int]:
    """Count parameters by their place; indices of sparse entries are no parameters."""
    from harness.factored import FactoredLinear

    targets, everything = _targets(model), dict(model.named_parameters())
    factored = {
        f"{name}.{part}"
        for name, layer in model.named_modules()
        if isinstance(layer, FactoredLinear)
        for part, _ in layer.named_parameters()
    }
    adapters = {name for name in everything if ".lora_A." in name or ".lora_B." in name}
    sizes = {name: parameter.numel() for name, parameter in everything.items()}
    supports = {name: b.numel() for name, b in model.named_buffers() if name.rpartition(".")[2] == "support"}
    whole = targets.keys() - factored - adapters
    return {
        "frozen": sum(sizes[name] for name, parameter in everything.items() if not parameter.requires_grad),
        "targets": sum(sizes[name] for name in targets),
        "others": sum(sizes[name] for name in sizes.keys() - targets.keys()),
        "factored": sum(sizes[name] for name in factored),
        "dense_targets": sum(sizes[name] for name in whole),
        "adapters": sum(sizes[name] for name in adapters),
        "support": sum(supports.values()),
    }


def _targets(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of attention and feed-forward matrices, or of what replaced them."""
    from methods.parts.targets import LINEAR_KINDS

    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if set(name.split(".")) & set(LINEAR_KINDS)
    }


def _states(model: nn.Module, run: Run, methods: list[Method]) -> list[Any]:
    """Return the tensors that the stepper keeps after an update, without step counters; [] if none trains."""
    import torch

    from harness.engine.run.prepare import find_stepper

    stepper = find_stepper(run, methods, model)
    if stepper is None:
        return []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    stepper.set_lr(0.0)
    stepper.step()
    return [state for name, state in stepper.state_tensors() if not name.endswith(".step")]

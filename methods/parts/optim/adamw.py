"""AdamW as the optimizer side of a method, after each backward pass or, layer by layer, inside it.

Moments have the dtype of their parameter unless the run asks for a precision, so a bfloat16 model has
bfloat16 moments, as in the papers' own baselines. A method that does more with some parameters
inherits from the stepper and overrides `update`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.errors import UnsupportedError
from harness.method import StepInfo
from methods.parts.optim.adam import Adam, State


class TrainOptions(TypedDict):
    """The caps of `TRAIN_OPTIONS`."""

    per_layer: bool
    state_bits: frozenset[int]


#: The caps of a method whose stepper is this one, or that leaves training to another method.
TRAIN_OPTIONS: TrainOptions = {"per_layer": True, "state_bits": frozenset({8, 16, 32})}


class AdamWStepper:
    """Updates every parameter with `requires_grad`; a tied parameter is one parameter.

    With `per_layer` each parameter is updated in a hook of the backward pass as soon as its gradient
    is complete, and the gradient is freed at once, so that the gradients of the whole model never
    exist together (Lv et al. 2023, arXiv 2306.09782). The result is the same to the bit.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, bits: int | None = None) -> None:
        """`bits` is the states' precision where the run does not ask for one; None is the parameter's."""
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
        self.optim, self.lr = optim, optim.lr
        self.adam = Adam(optim, bits)
        self.states: dict[str, State] = {}
        self._norms: list[Tensor] = []
        if optim.per_layer:
            _refuse_replicas()
            self._hook()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the coming update."""
        self.lr = lr

    def step(self) -> StepInfo:
        """Clip the gradients to the global norm `clip` where it is set, then update.

        With `per_layer` all updates are done already; what is left is to gather the gradient norm.
        """
        if self.optim.per_layer:
            norm = torch.linalg.vector_norm(torch.stack(self._norms)) if self._norms else None
            self._norms = []
            return StepInfo(grad_norm=norm)
        norm = None
        if self.optim.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.optim.clip)
        self.update([name for name, parameter in self.parameters.items() if parameter.grad is not None])
        return StepInfo(grad_norm=norm)

    def update(self, names: Sequence[str], **rules: float) -> None:
        """Update these parameters from their gradients; `rules` may overrule `eps` and `weight_decay`."""
        parameters = [self.parameters[name] for name in names]
        for name, parameter in zip(names, parameters, strict=True):
            if name not in self.states:
                self.states[name] = self.adam.new_state(parameter)
        states = [self.states[name] for name in names]
        self.adam.update(parameters, [gradient(p) for p in parameters], states, self.lr, **rules)

    def zero_grad(self) -> None:
        """Free all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield `<parameter>.exp_avg`, `.exp_avg_sq`, `.step` … of every parameter updated so far."""
        yield from moment_tensors(self.states)

    def state_dict(self) -> dict[str, Any]:
        """Map each parameter's name to its state; like torch's, these tensors are not copies."""
        return {name: dict(state) for name, state in self.states.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over copies of the saved states; names that are not trained here raise ValueError."""
        if unknown := sorted(state.keys() - self.parameters.keys()):
            raise ValueError(f"optimizer state for parameters that are not trained: {', '.join(unknown)}")
        self.states = {name: copied(saved, self.parameters[name].device) for name, saved in state.items()}

    def _hook(self) -> None:
        """Update inside backward; the parameters do not keep this stepper, nor thereby its states, alive."""
        stepper = weakref.ref(self)
        for name, parameter in self.parameters.items():

            def update_and_free(parameter: Tensor, name: str = name) -> None:
                this = stepper()
                if this is not None:
                    exact = torch.promote_types(parameter.dtype, torch.float32)
                    this._norms.append(torch.linalg.vector_norm(gradient(parameter), dtype=exact))
                    this.update([name])
                    parameter.grad = None

            handle = parameter.register_post_accumulate_grad_hook(update_and_free)
            weakref.finalize(self, handle.remove)


def moment_tensors(states: Mapping[str, State]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of Adam's states, each with its name."""
    for name, state in states.items():
        yield from ((f"{name}.{key}", value) for key, value in state.items() if isinstance(value, Tensor))


def gradient(parameter: Tensor) -> Tensor:
    """The gradient that must be there."""
    assert parameter.grad is not None
    return parameter.grad


def copied(state: Mapping[str, Any], device: torch.device) -> State:
    """Copies of the tensors on a device, and the numbers as they are."""
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def _refuse_replicas() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UnsupportedError(
            "per_layer updates before gradients are averaged over processes, so replicas would drift apart; "
            "leave it out, or use one process"
        )

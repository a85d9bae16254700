"""AdamW: the arithmetic on lists of tensors, and the stepper that updates a model with it.

m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w (1 - lr wd) - lr m' / (sqrt(v') + eps), where m'
and v' are m and v over 1 - b^t (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1; weight decay as Loshchilov &
Hutter 2019, arXiv 1711.05101, algorithm 2).

Precision of the moments:

* By default the dtype of the parameter, so a bfloat16 model has bfloat16 moments, as in the baselines of the
  papers. torch's fused kernel updates all tensors at once.
* 16 or 32 bits beside parameters of another dtype: the same kernel, tensor by tensor, in the wider of both
  dtypes; the narrower tensor is widened for the update and rounded afterwards.
* 8 bits: see `eightbit.py`. Tensors of fewer than 4096 elements keep 32 bits, as in bitsandbytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from harness.config import OptimConfig
from harness.errors import UnsupportedError
from harness.method import StepInfo
from methods.parts.optim import eightbit
from methods.parts.quantisation.tensor import Quantised, writable
from methods.parts.replicas import several

#: State of one tensor: "exp_avg" and "exp_avg_sq" of its shape, "step", and for 8 bits the scales.
State = dict[str, Any]

MOMENTS = ("exp_avg", "exp_avg_sq")
MIN_8BIT_SIZE = 4096
DTYPES = {32: torch.float32, 16: torch.bfloat16}

#: Capabilities of a method whose stepper is `AdamWStepper`, or that leaves training to another method.
TRAIN_OPTIONS: dict[str, Any] = {"per_layer": True, "state_bits": frozenset({8, 16, 32})}


class AdamWStepper:
    """Update every parameter that requires a gradient with AdamW; a tied parameter is one parameter.

    With `per_layer` a hook of the backward pass updates each parameter as soon as its gradient is complete
    and frees the gradient, so that the gradients of the whole model never exist together (Lv et al. 2023,
    arXiv 2306.09782). The result is the same to the bit. A subclass that treats some parameters differently
    overrides `update`. ValueError for a model without trainable parameters.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
        self.optim, self.lr = optim, optim.lr
        self.adam = Adam(optim)
        self.states: dict[str, State] = {}
        self._norms: list[Tensor] = []
        if optim.per_layer:
            self._update_in_backward()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next update."""
        self.lr = lr

    def step(self) -> StepInfo:
        """Clip the gradients to the global norm `clip` where it is set, then update.

        With `per_layer` all updates are done already, and only the gradient norm is gathered.
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

    def update(self, names: Sequence[str], **overrides: float) -> None:
        """Update the named parameters from their gradients; `overrides` are `eps` and `weight_decay`."""
        parameters = [self.parameters[name] for name in names]
        for name, parameter in zip(names, parameters, strict=True):
            if name not in self.states:
                self.states[name] = self.adam.new_state(parameter)
        states = [self.states[name] for name in names]
        self.adam.update(parameters, [gradient(p) for p in parameters], states, self.lr, **overrides)

    def zero_grad(self) -> None:
        """Free all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield `<parameter>.exp_avg`, `.exp_avg_sq`, `.step` … of every parameter updated so far."""
        for name, state in self.states.items():
            yield from ((f"{name}.{key}", value) for key, value in state.items() if isinstance(value, Tensor))

    def state_dict(self) -> dict[str, Any]:
        """Map each parameter's name to its state; as in torch, the tensors are not copies."""
        return {name: dict(state) for name, state in self.states.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the states by copies of saved ones; ValueError for a parameter that is not trained here."""
        if unknown := sorted(state.keys() - self.parameters.keys()):
            raise ValueError(f"optimizer state for parameters that are not trained: {', '.join(unknown)}")
        self.states = {name: copied(saved, self.parameters[name].device) for name, saved in state.items()}

    def _update_in_backward(self) -> None:
        """Register the hooks; they hold the stepper weakly, so that its states are freed with it.

        UnsupportedError in a distributed run.
        """
        if several():
            raise UnsupportedError(
                "per_layer updates before gradients are averaged over processes, so replicas would drift "
                "apart; leave it out, or use one process"
            )
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


class Adam:
    """Adam's update of tensors in place. The caller owns the states."""

    def __init__(self, optim: OptimConfig) -> None:
        self.optim = optim
        if optim.state_bits == 8:
            eightbit.library()

    def new_state(self, tensor: Tensor) -> State:
        """Return zero moments for a tensor, in the precision `state_bits` or in the dtype of the tensor."""
        bits = self.optim.state_bits
        if bits == 8 and tensor.numel() >= MIN_8BIT_SIZE:
            return eightbit.new_state(tensor)
        dtype = tensor.dtype if bits is None else DTYPES.get(bits, torch.float32)
        moments = {key: torch.zeros_like(tensor, dtype=dtype) for key in MOMENTS}
        return {"step": torch.zeros((), device=tensor.device), **moments}

    def reset(self, state: State, moments: Literal["both", "first"]) -> None:
        """Set both moments and the count of updates to zero in place, or the first moment alone."""
        for key, value in state.items():
            if moments == "first" and key not in eightbit.PARTS[0]:
                continue
            if isinstance(value, Tensor):
                value.zero_()
            else:
                state[key] = 0

    @torch.no_grad()
    def update(
        self,
        tensors: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[State],
        lr: float,
        *,
        eps: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        """Update each tensor once, from its gradient of the same shape and its state."""
        common: dict[str, float] = {
            "lr": lr,
            "eps": self.optim.eps if eps is None else eps,
            "weight_decay": self.optim.weight_decay if weight_decay is None else weight_decay,
        }
        together: list[tuple[Tensor, Tensor, State]] = []
        for tensor, grad, state in zip(tensors, grads, states, strict=True):
            if isinstance(tensor, Quantised):
                self._update_quantised(tensor, grad, state, **common)
                continue
            if grad.stride() != tensor.stride():  # torch's fused kernel goes by memory, not by index
                grad = torch.empty_like(tensor, dtype=grad.dtype).copy_(grad)
            if eightbit.holds(state):
                eightbit.update(tensor, grad, state, self.optim.betas, **common)
            elif state["exp_avg"].dtype == tensor.dtype == grad.dtype:
                together.append((tensor, grad, state))
            else:
                self._update_mixed(tensor, grad, state, **common)
        if together:
            self._update_fused(*zip(*together, strict=True), **common)  # type: ignore[arg-type]

    def _update_quantised(self, tensor: Quantised, grad: Tensor, state: State, **common: float) -> None:
        """Update one tensor as a float copy, which ends here: no two exist together."""
        with writable(tensor) as values:
            self.update([values], [grad.to(values.dtype)], [state], **common)

    def _update_fused(
        self, tensors: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], **common: float
    ) -> None:
        """Call torch's kernel; `fused`, because `foreach` holds one more copy of all tensors at its peak."""
        beta1, beta2 = self.optim.betas
        adamw(
            list(tensors),
            list(grads),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            **common,  # type: ignore[arg-type]
        )

    def _update_mixed(self, tensor: Tensor, grad: Tensor, state: State, **common: float) -> None:
        """Update one tensor in the wider dtype of tensor and moments, and round both."""
        dtype = torch.promote_types(tensor.dtype, state["exp_avg"].dtype)
        wide = {key: state[key].to(dtype) for key in MOMENTS}
        copy = tensor.to(dtype)
        self._update_fused([copy], [grad.to(dtype)], [{**wide, "step": state["step"]}], **common)
        for narrow, result in ((tensor, copy), *((state[key], wide[key]) for key in wide)):
            if narrow is not result:
                narrow.copy_(result)

    def moments(self, state: State) -> tuple[Tensor, Tensor]:
        """Return both moments in at least float32, as they are or as copies."""
        if eightbit.holds(state):
            return eightbit.moments(state)
        first, second = (state[key] for key in MOMENTS)
        dtype = torch.promote_types(first.dtype, torch.float32)
        return first.to(dtype), second.to(dtype)

    def with_moments(self, state: State, first: Tensor, second: Tensor, like: Tensor) -> State:
        """Return a state for the tensor `like` with these moments and the step count of `state`."""
        new = self.new_state(like)
        if eightbit.holds(new):
            eightbit.set_moments(new, first, second)
        else:
            for key, value in zip(MOMENTS, (first, second), strict=True):
                new[key].copy_(value)
        if isinstance(new["step"], Tensor):
            new["step"].copy_(torch.as_tensor(state["step"]))
        else:
            new["step"] = int(state["step"])
        return new


def gradient(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter, which must have one."""
    assert parameter.grad is not None
    return parameter.grad


def copied(state: Mapping[str, Any], device: torch.device) -> State:
    """Return a state with copies of its tensors on a device, and its numbers as they are."""
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }

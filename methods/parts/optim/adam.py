"""Adam's arithmetic on lists of tensors, with moments in the precision that is asked for.

m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w (1 - lr wd) - lr m' / (sqrt(v') + eps), where m'
and v' are m and v over 1 - b^t (Kingma & Ba 2015, arXiv 1412.6980; decay as Loshchilov & Hutter 2019).

* Moments in the dtype of the tensor: torch's fused kernel over all tensors at once.
* Moments of another dtype (16 or 32 bits): the same kernel, tensor by tensor, in the wider of both
  dtypes; what is narrower is widened for the moment and rounded back.
* 8 bits: see `_eightbit.py`. Tensors of fewer than 4096 elements keep 32 bits, as the papers' library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from harness.config import OptimConfig
from methods.parts.optim import eightbit

#: What is kept for one tensor: "exp_avg" and "exp_avg_sq" of its shape, "step", and for 8 bits the scales.
State = dict[str, Any]

MOMENTS = ("exp_avg", "exp_avg_sq")
MIN_8BIT_SIZE = 4096
DTYPES = {32: torch.float32, 16: torch.bfloat16}


#: Where eps and weight decay act. `torch`: decay first, eps beside the root of the corrected second
#: moment. `official` (GaLore's code): eps beside the root of the uncorrected one, decay after the update.
Arithmetic = Literal["torch", "official"]


class Adam:
    """Updates tensors in place; keeps nothing, so states are the caller's."""

    def __init__(self, optim: OptimConfig, bits: int | None = None) -> None:
        """`bits` overrules the method's default where the run asks for a precision of its own."""
        self.optim = optim
        self.bits = optim.state_bits or bits
        if self.bits == 8:
            eightbit.library()

    def new_state(self, tensor: Tensor) -> State:
        """Zero moments for a tensor."""
        if self.bits == 8 and tensor.numel() >= MIN_8BIT_SIZE:
            return eightbit.new_state(tensor)
        dtype = tensor.dtype if self.bits is None else DTYPES.get(self.bits, torch.float32)
        moments = {key: torch.zeros_like(tensor, dtype=dtype) for key in MOMENTS}
        return {"step": torch.zeros((), device=tensor.device), **moments}

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
        """One step for each tensor, from its gradient of the same shape and dtype and its state."""
        common: dict[str, float] = {
            "lr": lr,
            "eps": self.optim.eps if eps is None else eps,
            "weight_decay": self.optim.weight_decay if weight_decay is None else weight_decay,
        }
        together: list[tuple[Tensor, Tensor, State]] = []
        for tensor, grad, state in zip(tensors, grads, states, strict=True):
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

    def _update_fused(
        self, tensors: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], **common: float
    ) -> None:
        """`fused` because `foreach` keeps one more copy of all tensors at its peak."""
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
        dtype = torch.promote_types(tensor.dtype, state["exp_avg"].dtype)
        wide = {key: state[key].to(dtype) for key in MOMENTS}
        copy = tensor.to(dtype)
        self._update_fused([copy], [grad.to(dtype)], [{**wide, "step": state["step"]}], **common)
        for narrow, result in ((tensor, copy), *((state[key], wide[key]) for key in wide)):
            if narrow is not result:
                narrow.copy_(result)

    def eps(self, arithmetic: Arithmetic, step: int) -> float:
        """The eps that has the effect of the configured one in this arithmetic; steps count from 1."""
        if arithmetic == "torch":
            return self.optim.eps
        return self.optim.eps / (1 - self.optim.betas[1] ** step) ** 0.5

    def moments(self, state: State) -> tuple[Tensor, Tensor]:
        """Both moments in at least float32, as they are or as copies."""
        if eightbit.holds(state):
            return eightbit.moments(state)
        first, second = (state[key] for key in MOMENTS)
        dtype = torch.promote_types(first.dtype, torch.float32)
        return first.to(dtype), second.to(dtype)

    def replaced(self, state: State, first: Tensor, second: Tensor, like: Tensor) -> State:
        """A state with other moments, perhaps of another shape, that of `like`; the step count goes on."""
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

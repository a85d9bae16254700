"""AdamW as the optimizer side of a method: torch's fused kernel over all trainable parameters.

Loshchilov & Hutter 2019 (arXiv 1711.05101): decay first, then the Adam step, eps outside the root.
States have the dtype of their parameter, so a bfloat16 model has bfloat16 states, as in the papers'
own baselines. `fused` because `foreach` keeps one more copy of all parameters at its peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import StepInfo


class AdamWStepper:
    """Updates every parameter with `requires_grad`; a tied parameter is one parameter."""

    def __init__(self, model: nn.Module, optim: OptimConfig) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
        self.clip = optim.clip
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the coming update."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self) -> StepInfo:
        """Clip the gradients to the global norm `clip` where it is set, then update."""
        norm = None
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self.optimizer.step()
        return StepInfo(grad_norm=norm)

    def zero_grad(self) -> None:
        """Free all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield `<parameter>.exp_avg`, `.exp_avg_sq` and `.step` of every parameter updated so far."""
        for name, state in self.state_dict().items():
            for key, tensor in state.items():
                yield f"{name}.{key}", tensor

    def state_dict(self) -> dict[str, Any]:
        """Map each parameter's name to its state tensors; like torch's, these are not copies."""
        states = self.optimizer.state
        return {name: dict(states[p]) for name, p in self.parameters.items() if p in states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over copies of the saved states; names that are not trained here raise ValueError."""
        if unknown := sorted(state.keys() - self.parameters.keys()):
            raise ValueError(f"optimizer state for parameters that are not trained: {', '.join(unknown)}")
        self.optimizer.state.clear()
        for name, saved in state.items():
            parameter = self.parameters[name]
            copies = {key: tensor.to(parameter.device, copy=True) for key, tensor in saved.items()}
            self.optimizer.state[parameter] = copies

"""Attribute memory: in which module and in which part of an update an operation runs.

Hooks mark modules in the forward pass, also when activation checkpointing repeats it. For the backward pass
the nodes of the autograd graph are marked with the module that created them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.engine.measure.storages import tensors_within
from harness.forecast import Part

#: The group of a module's tensors by a part of its dotted name; the first match counts, innermost name first.
KINDS = {
    "embed": "embedding",
    "lm_head": "logits and loss",
    "rotary": "rotary embedding",
    "norm": "norms",
    "attn": "attention",
    "mlp": "feed-forward",
    "layers": "residual stream",
}
OUTERMOST = "logits and loss"  # outside of all submodules the model computes its head and the loss
DECOMPOSITIONS = "decompositions (SVD, QR, eigenvectors)"
UPDATE = "update workspace"
OTHER = "other"
MARK = "lorebench.kind"


def kind_of(name: str) -> str:
    """Return the group of a module by its dotted name ("" is the whole model)."""
    for piece in reversed(name.split(".")):
        for key, kind in KINDS.items():
            if key in piece:
                return kind
    return OUTERMOST


class Attribution:
    """Follows a model through its passes; the caller of the stepper sets `updating`."""

    def __init__(self) -> None:
        self.updating = False
        self._inside: list[str] = []
        self._behind = OUTERMOST

    def follow(self, model: nn.Module) -> None:
        """Register hooks on all modules of a model."""
        for name, module in model.named_modules():
            self._hook(module, kind_of(name))

    def here(self, operation: Any) -> tuple[Part, str]:
        """Return the part of an update and the group of the tensors that an operation creates."""
        node: Any = torch._C._current_autograd_node()
        part: Part = "update" if self.updating else "forward" if node is None else "backward"
        if "linalg" in operation.name():
            return part, DECOMPOSITIONS
        if self._inside:
            return part, self._inside[-1]
        if node is None:
            return part, UPDATE if self.updating else OUTERMOST
        if node.name() == "torch::autograd::AccumulateGrad":  # an update inside the backward pass
            return part, UPDATE
        self._behind = node.metadata.get(MARK, self._behind)
        return part, f"{self._behind}, backward"

    def _hook(self, module: nn.Module, kind: str) -> None:
        def enter(_: nn.Module, inputs: Any, keywords: Any) -> None:
            outer = self._inside[-1] if self._inside else OUTERMOST
            _mark((inputs, keywords), outer)
            self._inside.append(kind)

        def leave(_: nn.Module, inputs: Any, output: Any) -> None:
            if self._inside:
                self._inside.pop()
            _mark(output, kind)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)


def _mark(value: Any, kind: str) -> None:
    """Mark the nodes that created these tensors with their module; an earlier mark stays."""
    for tensor in tensors_within(value):
        node: Any = tensor.grad_fn
        if node is not None:
            node.metadata.setdefault(MARK, kind)

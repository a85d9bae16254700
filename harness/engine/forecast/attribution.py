"""Where in a model and in which part of an update an operation runs, so that memory can be named.

Modules announce themselves by hooks in the forward pass, also in one that is repeated for activation
checkpointing. For the backward pass the nodes of the graph are marked with the module that made them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.engine.measure.storages import tensors_within
from harness.forecast import Part

#: What a module's tensors are for, by a piece of its dotted name; the first that fits, innermost name first.
KINDS = {
    "embed": "embedding",
    "lm_head": "logits and loss",
    "rotary": "rotary embedding",
    "norm": "norms",
    "attn": "attention",
    "mlp": "feed-forward",
    "layers": "residual stream",
}
OUTERMOST = "logits and loss"  # what is left to the whole model is its head and the loss
DECOMPOSITIONS = "decompositions (SVD, QR, eigenvectors)"
UPDATE = "update workspace"
OTHER = "other"
MARK = "lorebench.kind"


def kind_of(name: str) -> str:
    """The kind of a module by its dotted name, "" for the whole model."""
    for piece in reversed(name.split(".")):
        for key, kind in KINDS.items():
            if key in piece:
                return kind
    return OUTERMOST


class Attribution:
    """Follows a model through its passes; `updating` is set by whoever calls the stepper."""

    def __init__(self) -> None:
        self.updating = False
        self._inside: list[str] = []
        self._behind = OUTERMOST

    def follow(self, model: nn.Module) -> None:
        """Announce the modules of a model from now on."""
        for name, module in model.named_modules():
            self._announce(module, kind_of(name))

    def here(self, operation: Any) -> tuple[Part, str]:
        """The part of an update (forward, backward, update) and the group of what an operation makes."""
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

    def _announce(self, module: nn.Module, kind: str) -> None:
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
    """Note on the nodes that made these tensors where they were made; the first note stays."""
    for tensor in tensors_within(value):
        node: Any = tensor.grad_fn
        if node is not None:
            node.metadata.setdefault(MARK, kind)

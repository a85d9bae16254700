"""The diagonal of the Fisher information of weights: how much the loss minds a change of each entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import Batch


def fisher_diagonals(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: Iterator[Batch], samples: int
) -> dict[str, Tensor]:
    """Return the mean square of the gradients of single sequences, for the weight of each layer by name.

    The first `samples` sequences of the batches count, with the loss of a sequence averaged over its tokens
    without padding. Each result has the shape of the weight (out, in) and float32. Without dropout; what
    trains is restored, and no gradient stays.
    """
    language_model: Any = model
    names = {id(layer.weight): name for name, layer in layers.items()}
    squares = {name: torch.zeros_like(layer.weight, dtype=torch.float32) for name, layer in layers.items()}

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        squares[names[id(weight)]].add_(weight.grad.float().square_())
        weight.grad = None

    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    mode = model.training
    model.requires_grad_(False).eval()
    hooks = [
        layer.weight.requires_grad_(True).register_post_accumulate_grad_hook(add) for layer in layers.values()
    ]
    left = samples
    try:
        while left > 0:
            batch = next(batches)
            for ids, labels in zip(batch.ids[:left], batch.labels[:left], strict=True):
                language_model(input_ids=ids[None], labels=labels[None], use_cache=False).loss.backward()
                left -= 1
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, trains in trained.items():
            parameter.requires_grad_(trains)
        model.train(mode)
    return {name: total.div_(samples) for name, total in squares.items()}

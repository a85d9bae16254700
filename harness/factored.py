"""A linear layer stored as two factors, and models with such layers: build, restructure, merge.

This is a data structure, not a method: several methods make such layers, checkpoints carry them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.errors import UserError


class FactoredLinear(nn.Module):
    """y = up(down(x)): `down.weight` is (rank, in), `up.weight` is (out, rank); a bias sits in `up`."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = down, up

    @property
    def rank(self) -> int:
        """The inner width."""
        return self.down.out_features

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.up.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Apply both factors to x (..., in); the result is (..., out)."""
        return self.up(self.down(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the dense layer with weight up @ down (out, in), multiplied in at least float32."""
        dtype = self.up.weight.dtype
        exact = torch.promote_types(dtype, torch.float32)
        dense = _empty_linear(self.in_features, self.out_features, self.up.bias is not None, self.up.weight)
        dense.weight.copy_((self.up.weight.to(exact) @ self.down.weight.to(exact)).to(dtype))
        if self.up.bias is not None:
            dense.bias.copy_(self.up.bias)
        return dense


def _empty_linear(inputs: int, outputs: int, bias: bool, like: Tensor) -> nn.Linear:
    """Return a linear layer with uninitialised weights; `skip_init` draws no random numbers."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=like.device, dtype=like.dtype)


def _empty_factors(dense: nn.Linear, rank: int) -> FactoredLinear:
    down = _empty_linear(dense.in_features, rank, False, dense.weight)
    up = _empty_linear(rank, dense.out_features, dense.bias is not None, dense.weight)
    return FactoredLinear(down, up)


@torch.no_grad()
def factor(dense: nn.Linear, up: Tensor, down: Tensor) -> FactoredLinear:
    """Return `up` (out, rank) and `down` (rank, in) as a layer in the dtype and on the device of `dense`.

    ValueError where the shapes do not fit `dense`.
    """
    outputs, inputs = dense.weight.shape
    rank = down.shape[0]
    if up.shape != (outputs, rank) or down.shape != (rank, inputs):
        given = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise ValueError(f"factors {given} do not make {outputs} x {inputs}")
    made = _empty_factors(dense, rank)
    made.down.weight.copy_(down)
    made.up.weight.copy_(up)
    if dense.bias is not None:
        made.up.bias.copy_(dense.bias)
    return made


def ranks(model: nn.Module) -> dict[str, int]:
    """Return the rank of every factored layer by its name: enough to rebuild the structure."""
    return {name: layer.rank for name, layer in model.named_modules() if isinstance(layer, FactoredLinear)}


def restructure(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Replace dense layers by empty factored ones; UserError for what is no such layer or no rank of it."""
    for name, rank in ranks.items():
        try:
            dense = model.get_submodule(name)
        except AttributeError:
            dense = None
        if not isinstance(dense, nn.Linear):
            raise UserError(f"the manifest of factors names {name!r}, which is no linear layer of this model")
        largest = min(dense.weight.shape)
        if type(rank) is not int or not 1 <= rank <= largest:
            raise UserError(
                f"the manifest of factors gives {name!r} the rank {str(rank)[:40]}; this layer "
                f"takes 1 to {largest}"
            )
        model.set_submodule(name, _empty_factors(dense, rank))
    return model


def merge(model: nn.Module) -> nn.Module:
    """Replace every factored layer by its dense product, in place; the result is a plain model."""
    for name in ranks(model):
        layer = model.get_submodule(name)
        assert isinstance(layer, FactoredLinear)
        model.set_submodule(name, layer.merged())
    return model

"""A linear layer stored as two factors, and models with such layers: build, restructure, merge.

This is a data structure, not a method: several methods make such layers, checkpoints carry them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

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


def empty_factors(dense: nn.Linear, rank: int, bias: bool = False) -> FactoredLinear:
    """Return uninitialised factors in place of a dense layer, with a bias where that has one or `bias`."""
    down = _empty_linear(dense.in_features, rank, False, dense.weight)
    up = _empty_linear(rank, dense.out_features, bias or dense.bias is not None, dense.weight)
    return FactoredLinear(down, up)


@torch.no_grad()
def factor(dense: nn.Linear, up: Tensor, down: Tensor, offset: Tensor | None = None) -> FactoredLinear:
    """Return `up` (out, rank) and `down` (rank, in) as a layer in the dtype and on the device of `dense`.

    The bias is that of `dense`, plus `offset` (out,) where it is given. ValueError where the shapes do not
    fit `dense`.
    """
    outputs, inputs = dense.weight.shape
    rank = down.shape[0]
    if up.shape != (outputs, rank) or down.shape != (rank, inputs):
        given = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise ValueError(f"factors {given} do not make {outputs} x {inputs}")
    made = empty_factors(dense, rank, offset is not None)
    made.down.weight.copy_(down)
    made.up.weight.copy_(up)
    parts = [part for part in (dense.bias, offset) if part is not None]
    if parts:
        made.up.bias.copy_(torch.stack([part.double() for part in parts]).sum(0))
    return made


def ranks(model: nn.Module) -> dict[str, int]:
    """Return the rank of every factored layer by its name: enough to rebuild the structure."""
    return {name: layer.rank for name, layer in model.named_modules() if isinstance(layer, FactoredLinear)}


def biased(model: nn.Module) -> list[str]:
    """Return the names of the factored layers that have a bias."""
    return [name for name in ranks(model) if model.get_submodule(name).up.bias is not None]  # type: ignore[union-attr]


def restructure(model: nn.Module, ranks: Mapping[str, int], biased: Collection[str] = ()) -> nn.Module:
    """Replace dense layers by empty factored ones, those that are `biased` with a bias in any case.

    UserError for what is no such layer or no rank of it.
    """
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
        model.set_submodule(name, empty_factors(dense, rank, name in biased))
    return model


def merge(model: nn.Module) -> nn.Module:
    """Replace every factored layer by its dense product, in place; the result is a plain model.

    Where layers have biases that the config of the model does not know, it says so afterwards, and all layers
    that the same setting is about have biases. UserError, and an unchanged model, where it has no such
    setting.
    """
    factors = {name: model.get_submodule(name) for name in ranks(model)}
    plain = _with_biases(model, biased(model))
    for name, layer in factors.items():
        assert isinstance(layer, FactoredLinear)
        model.set_submodule(name, layer.merged())
    if plain is not None:
        model.config = plain.config
        _add_zero_biases(model, plain)
    return model


#: The settings of a config, and the layers that have biases with them.
_BIASES = {
    "attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}


def _with_biases(model: Any, names: Collection[str]) -> Any:
    """Return a model without values like this one whose config says that these layers have biases.

    None where its own config says so already, or where it has none. UserError where no setting says it.
    """
    config = copy.deepcopy(getattr(model, "config", None))
    lacking = names if config is None else _lacking(type(model), config, names)[1]
    if config is None or not lacking:
        return None
    for setting, together in _BIASES.items():
        if any(name.rpartition(".")[2] in together for name in lacking) and hasattr(config, setting):
            setattr(config, setting, True)
    plain, lacking = _lacking(type(model), config, lacking)
    if lacking:
        raise UserError(
            f"the factors of {lacking[0]} have a bias, and no dense {type(model).__name__} has one there; "
            "keep the factors"
        )
    return plain


def _lacking(kind: Any, config: Any, names: Collection[str]) -> tuple[Any, list[str]]:
    """Return the model without values of a config, and which of these layers have no bias there."""
    with torch.device("meta"):
        plain = kind(copy.deepcopy(config))
    return plain, [name for name in names if plain.get_submodule(name).bias is None]


def _add_zero_biases(model: nn.Module, plain: nn.Module) -> None:
    """Give layers of a model biases of zero where those of a plain one have biases and they have none."""
    for name, like in plain.named_modules():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and layer.bias is None and getattr(like, "bias", None) is not None:
            zeros = layer.weight.new_zeros(layer.out_features)
            layer.bias = nn.Parameter(zeros, layer.weight.requires_grad)

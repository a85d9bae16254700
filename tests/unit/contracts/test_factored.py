"""Factored linear layers: the data structure, its structure manifest and its product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness import factored
from harness.errors import UserError
from tests.support.tiny import logits, tiny_llama


def random_layer(bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(6, 4, bias=bias, dtype=dtype), torch.randn(4, 3), torch.randn(3, 6)


@pytest.mark.parametrize("bias", [False, True])
def test_a_factored_layer_computes_the_product_of_its_factors(bias: bool) -> None:
    dense, up, down = random_layer(bias)
    layer = factored.factor(dense, up, down)
    x = torch.randn(2, 5, 6)
    offset = dense.bias if bias else 0
    torch.testing.assert_close(layer(x), x @ (up @ down).T + offset)
    assert (layer.rank, layer.in_features, layer.out_features) == (3, 6, 4)


@pytest.mark.parametrize("bias", [False, True])
def test_merging_gives_a_plain_layer_with_the_same_output(bias: bool) -> None:
    dense, up, down = random_layer(bias)
    layer = factored.factor(dense, up, down)
    merged = layer.merged()
    x = torch.randn(5, 6)
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), layer(x), atol=1e-5, rtol=1e-5)


def test_factors_take_the_dtype_of_the_layer_that_they_replace() -> None:
    dense, up, down = random_layer(bias=True, dtype=torch.bfloat16)
    layer = factored.factor(dense, up, down)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert layer.merged().weight.dtype == torch.bfloat16


def test_bfloat16_factors_are_multiplied_in_float32() -> None:
    dense, up, down = random_layer(dtype=torch.bfloat16)
    layer = factored.factor(dense, up, down)
    exact = layer.up.weight.float() @ layer.down.weight.float()
    assert layer.merged().weight.equal(exact.to(torch.bfloat16))


def test_factors_of_the_wrong_shape_are_refused() -> None:
    dense, up, down = random_layer()
    with pytest.raises(ValueError, match="do not make 4 x 6"):
        factored.factor(dense, down, up)


def test_the_structure_is_rebuilt_from_ranks_alone() -> None:
    ranks = {"model.layers.0.self_attn.q_proj": 5, "model.layers.1.mlp.down_proj": 7}
    model = factored.restructure(tiny_llama(), ranks)
    assert factored.ranks(model) == ranks
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    copy = factored.restructure(tiny_llama(seed=1), ranks)
    copy.load_state_dict(model.state_dict())
    assert logits(copy).equal(logits(model))


def test_merging_a_model_leaves_no_factors_and_its_own_keys() -> None:
    model = factored.restructure(tiny_llama(), {"model.layers.0.self_attn.q_proj": 5})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    before = logits(model)
    factored.merge(model)
    assert not factored.ranks(model)
    assert model.state_dict().keys() == tiny_llama().state_dict().keys()
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["model.layers.9.self_attn.q_proj", "model.norm"])
def test_a_manifest_of_another_model_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        factored.restructure(tiny_llama(), {name: 4})

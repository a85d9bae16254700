"""LORD: the principal components of outputs, at the shares published for LLaMA-2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness import factored
from harness.errors import UserError
from harness.factored import FactoredLinear
from harness.method import Context
from harness.plugins import build
from tests.support.tiny import TinyText, logits, tiny_llama

ATTENTION, OTHERS = ("q_proj", "k_proj"), ("o_proj", "gate_proj", "up_proj", "down_proj")


def lord(model: nn.Module, **options: Any) -> tuple[nn.Module, Context]:
    context = Context(calibration=TinyText())
    return build("lord", options).prepare(model, context), context


@pytest.mark.parametrize("reduction", [0.2, 0.3, 0.5])
def test_values_stay_dense_and_the_others_keep_the_published_proportions(reduction: float) -> None:
    model, context = lord(tiny_llama(hidden=128), reduction=reduction, multiple=1)
    before = dict(tiny_llama(hidden=128).named_parameters())
    kept: dict[str, float] = {}
    for name, rank in context.ranks.items():
        shape = before[f"{name}.weight"].shape
        kept[name.rpartition(".")[2]] = rank * sum(shape) / shape.numel()
    assert set(kept) == {*ATTENTION, *OTHERS}
    wanted = 0.7 / 0.8 if reduction == 0.2 else 0.55 / 0.7
    for one in ATTENTION:
        for other in OTHERS:
            assert kept[one] / kept[other] == pytest.approx(wanted, rel=0.06)
    name = "model.layers.1.self_attn.v_proj.weight"
    assert dict(model.named_parameters())[name].equal(before[name])
    assert context.facts["measured_reduction"]["linears"] == pytest.approx(reduction, abs=0.002)


def test_each_layer_keeps_the_principal_components_and_the_mean_of_its_outputs() -> None:
    """A loop of its own: eigenvectors of the covariance of outputs, on the inputs of the whole model."""
    whole, inputs = tiny_llama().double(), []
    name = "model.layers.1.mlp.down_proj"
    dense = whole.get_submodule(name)
    dense.register_forward_hook(lambda _, given, __: inputs.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        for ids, _ in TinyText().batches():
            whole(input_ids=ids)
        x = torch.cat(inputs)
        y = x @ dense.weight.T
        model, context = lord(tiny_llama().double(), multiple=1, damping=0)
        rank = context.ranks[name]
        leading = torch.linalg.eigh(torch.cov(y.T)).eigenvectors[:, -rank:]
        projected = (y - y.mean(0)) @ leading @ leading.T + y.mean(0)
        layer = model.get_submodule(name)
        assert isinstance(layer, FactoredLinear)
        assert torch.allclose(layer(x), projected, atol=1e-6)


def test_ranks_are_multiples_of_8_by_default_and_nothing_trains() -> None:
    model, context = lord(tiny_llama(hidden=64))
    assert {rank % 8 for rank in context.ranks.values()} == {0}
    assert context.ranks == factored.ranks(model)
    assert build("lord", {}).stepper(model, None) is None  # type: ignore[arg-type]


def test_the_plain_model_says_the_same() -> None:
    model, _ = lord(tiny_llama(), multiple=1)
    wanted = logits(model)
    torch.testing.assert_close(logits(factored.merge(model)), wanted, atol=1e-4, rtol=1e-4)


def test_without_text_it_says_so() -> None:
    with pytest.raises(UserError, match=r"^lord: this needs calibration text, and the run has none$"):
        build("lord", {}).prepare(tiny_llama(), Context())

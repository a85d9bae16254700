"""Low-rank pre-training: what is factored, how the factors begin, and what is left in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig, Run
from harness.engine.models.load import shape_config
from harness.engine.run import checks
from harness.errors import UnsupportedError, UserError
from harness.factored import FactoredLinear
from harness.method import Context, Method
from harness.plugins import build
from methods.lowrank import fresh_factors
from tests.support.tiny import logits, tiny_llama, train


def lowrank(model: nn.Module, context: Context | None = None, **options: Any) -> tuple[Method, nn.Module]:
    method = build("lowrank", options)
    return method, method.prepare(model, context or Context())


def factors(model: nn.Module) -> list[Tensor]:
    layers = [module for module in model.modules() if isinstance(module, FactoredLinear)]
    return [factor.weight.detach().clone() for layer in layers for factor in (layer.up, layer.down)]


def test_targets_become_factors_of_the_rank_and_everything_trains() -> None:
    before = {name: p.detach().clone() for name, p in tiny_llama().named_parameters()}
    _, model = lowrank(tiny_llama().requires_grad_(False), rank=4, targets=["q_proj", "down_proj"])
    assert set(factored.ranks(model).values()) == {4}
    assert {name.split(".")[-1] for name in factored.ranks(model)} == {"q_proj", "down_proj"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    kept = {name: p for name, p in model.named_parameters() if name in before}
    assert len(before) - len(kept) == 4
    assert all(parameter.equal(before[name]) for name, parameter in kept.items())


@pytest.mark.parametrize(("shape", "rank"), [((300, 200), 64), ((200, 300), 8)])
def test_the_product_begins_with_the_variance_of_the_weight_replaced(
    shape: tuple[int, int], rank: int
) -> None:
    dense = nn.Linear(shape[1], shape[0])
    nn.init.normal_(dense.weight, std=0.02)
    made = fresh_factors(dense, rank, seed=3, name="some.layer")
    assert made.merged().weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert made.up.weight.std().item() == pytest.approx(made.down.weight.std().item(), rel=0.1)
    assert made.up.bias.equal(dense.bias)


def test_factors_depend_on_the_seed_of_the_run_and_on_the_layer_alone() -> None:
    torch.manual_seed(1)
    first = factors(lowrank(tiny_llama(), Context(seed=3), rank=4)[1])
    torch.manual_seed(2)
    again = factors(lowrank(tiny_llama(), Context(seed=3), rank=4)[1])
    other = factors(lowrank(tiny_llama(), Context(seed=4), rank=4)[1])
    assert all(mine.equal(theirs) for mine, theirs in zip(first, again, strict=True))
    assert not any(mine.equal(theirs) for mine, theirs in zip(first, other, strict=True))
    ups = [factor for factor in first if factor.shape == (32, 4)]
    assert not any(one.sign().equal(two.sign()) for i, one in enumerate(ups) for two in ups[:i])


#: Ranks of the official scripts of SLTrain, and the millions of parameters that follow.
TABLE = {"60m": (128, 42.77), "130m": (256, 94.0), "350m": (256, 185.22), "1b": (512, 609.31)}


@pytest.mark.parametrize("size", TABLE)
def test_a_model_without_values_gets_the_papers_number_of_parameters(size: str) -> None:
    rank, millions = TABLE[size]
    with torch.device("meta"):
        model = LlamaForCausalLM(shape_config(size))
        lowrank(model, rank=rank)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_facts_and_ranks_say_what_was_factored() -> None:
    context = Context()
    dense = sum(parameter.numel() for parameter in tiny_llama().parameters())
    _, model = lowrank(tiny_llama(), context, rank=4)
    assert context.ranks == factored.ranks(model)
    assert context.facts["targets"] == 14
    assert context.facts["parameter_ratio"] == sum(p.numel() for p in model.parameters()) / dense < 1
    assert context.facts["flop_ratio"] < 1
    assert not context.warnings


def test_a_rank_beyond_the_short_side_is_clamped_and_larger_factors_are_warned_of() -> None:
    context = Context()
    lowrank(tiny_llama(kv_heads=1), context, rank=30)
    assert context.ranks["model.layers.0.self_attn.k_proj"] == 8
    assert context.ranks["model.layers.0.self_attn.q_proj"] == 30
    assert "rank 30 is more than the short side of 4 matrices" in context.warnings[0]
    assert "more parameters than the matrices" in context.warnings[1]


def test_a_model_that_is_factored_already_is_refused() -> None:
    _, model = lowrank(tiny_llama(), rank=4)
    with pytest.raises(UserError, match="factored already"):
        lowrank(model, rank=4)


@pytest.mark.parametrize("stage", ["finetune", "compress"])
def test_trained_weights_are_refused_because_none_would_be_left(stage: str) -> None:
    run = Run.model_validate({"method": "lowrank", "train": {"stage": stage}})
    with pytest.raises(UnsupportedError, match=f"lowrank does not do stage '{stage}'"):
        checks.supported(run, [build("lowrank", {})])


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="method lowrank: rank"):
        build("lowrank", {"rank": 0})
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        lowrank(tiny_llama(), targets=["q_prj"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_leaves_the_trained_factors_in_place(dtype: torch.dtype) -> None:
    method, model = lowrank(tiny_llama().to(dtype), rank=4)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    stepper = method.stepper(model, OptimConfig())
    assert stepper is not None
    train(model, stepper, 0, 3)
    wanted, ranks = logits(model), factored.ranks(model)
    exported = method.export(model)
    assert factored.ranks(exported) == ranks
    assert logits(exported).equal(wanted)

"""LoRA: what is adapted, at which rank and scaling, and what comes out when the adapters are merged."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context, Method
from harness.plugins import build
from tests.support.tiny import logits, tiny_llama, train


def lora(model: nn.Module, context: Context | None = None, **options: object) -> tuple[Method, nn.Module]:
    method = build("lora", options)
    return method, method.prepare(model, context or Context())


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def test_the_prepared_model_is_still_a_transformers_model_that_says_the_same() -> None:
    wanted = logits(tiny_llama())
    _, model = lora(tiny_llama())
    assert isinstance(model, LlamaForCausalLM)
    assert logits(model).equal(wanted)


def test_only_adapters_train_and_their_number_follows_from_the_shapes() -> None:
    _, model = lora(tiny_llama(hidden=32, layers=2), rank=4)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(adapters(model))
    attention, feed_forward = 4 * 4 * (32 + 32), 3 * 4 * (32 + 80)
    assert sum(tensor.numel() for tensor in adapters(model).values()) == 2 * (attention + feed_forward)


def test_facts_and_ranks_say_what_was_adapted() -> None:
    context = Context()
    lora(tiny_llama(layers=3), context, rank=4, alpha=8)
    assert context.facts == {
        "targets": 21,
        "alpha": 8,
        "scaling": 2,
        "trainable": "the adapters of 21 linear layers",
    }
    assert set(context.ranks.values()) == {4}
    assert "model.layers.2.mlp.up_proj.lora" in context.ranks
    assert not context.warnings


def test_without_alpha_the_scaling_is_one_at_every_rank() -> None:
    for rank in (2, 16):
        context = Context()
        lora(tiny_llama(), context, rank=rank)
        assert (context.facts["alpha"], context.facts["scaling"]) == (rank, 1)


def test_targets_choose_the_kinds_of_layers() -> None:
    context = Context()
    lora(tiny_llama(), context, targets=["q_proj", "v_proj"])
    assert {name.split(".")[-2] for name in context.ranks} == {"q_proj", "v_proj"}
    assert context.facts["targets"] == 4


def test_an_unknown_target_is_an_error_that_names_the_linears_there_are() -> None:
    with pytest.raises(UserError, match="no linear layer 'q_prj'; did you mean 'q_proj'"):
        lora(tiny_llama(), targets=["q_prj"])
    with pytest.raises(
        UserError, match="known: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    ):
        lora(tiny_llama(), targets=["xyz"])


def test_the_output_head_is_no_target_because_it_may_be_tied() -> None:
    with pytest.raises(UserError, match="lm_head"):
        lora(tiny_llama(tie=True), targets=["lm_head"])


def test_a_rank_beyond_the_short_side_is_clamped_per_matrix_with_one_warning_and_equal_scaling() -> None:
    context = Context()
    _, model = lora(tiny_llama(hidden=32, kv_heads=1), context, rank=16, alpha=32)
    ranks = {name.split(".")[-2]: rank for name, rank in context.ranks.items()}
    assert (ranks["q_proj"], ranks["k_proj"], ranks["v_proj"]) == (16, 8, 8)
    assert len(context.warnings) == 1
    assert "rank 16 is more than the short side of 4 matrices" in context.warnings[0]
    for module in model.modules():
        if isinstance(module, LoraLayer):
            assert module.scaling["default"] == 2
            assert module.lora_A["default"].weight.shape[0] == min(16, *module.get_base_layer().weight.shape)


def test_adapters_depend_on_the_seed_of_the_run_alone() -> None:
    torch.manual_seed(1)
    first = adapters(lora(tiny_llama(), Context(seed=3))[1])
    torch.manual_seed(2)
    again = adapters(lora(tiny_llama(), Context(seed=3))[1])
    other = adapters(lora(tiny_llama(), Context(seed=4))[1])
    drawn = [name for name in first if "lora_A" in name]
    assert all(first[name].equal(again[name]) for name in first)
    assert not any(first[name].equal(other[name]) for name in drawn)


def test_dropout_acts_on_the_adapters_in_training_only() -> None:
    _, model = lora(tiny_llama(), dropout=0.5)
    train(model, build("lora", {}).stepper(model, OptimConfig()), 0, 2)
    ids = torch.tensor([[3, 4, 5, 6]])
    model.train()
    with torch.no_grad():
        assert not model(input_ids=ids).logits.equal(model(input_ids=ids).logits)
        model.eval()
        assert model(input_ids=ids).logits.equal(model(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    _, model = lora(tiny_llama().to(dtype))
    assert {tensor.dtype for tensor in adapters(model).values()} == {dtype}


def test_on_a_factored_layer_both_factors_get_an_adapter() -> None:
    model = factored.restructure(tiny_llama(), {"model.layers.0.self_attn.q_proj": 6})
    context = Context()
    lora(model, context, targets=["q_proj"], rank=8)
    assert context.ranks == {
        "model.layers.0.self_attn.q_proj.down.lora": 6,
        "model.layers.0.self_attn.q_proj.up.lora": 6,
        "model.layers.1.self_attn.q_proj.lora": 8,
    }


def test_export_keeps_factors_and_leaves_nothing_of_peft() -> None:
    model = factored.restructure(tiny_llama(), {"model.layers.0.self_attn.q_proj": 6})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    method, model = lora(model)
    stepper = method.stepper(model, OptimConfig())
    assert stepper is not None
    train(model, stepper, 0, 3)
    wanted = logits(model)
    exported = method.export(model)
    assert factored.ranks(exported) == {"model.layers.0.self_attn.q_proj": 6}
    assert not hasattr(exported, "peft_config")
    assert not [name for name, _ in exported.named_modules() if "lora" in name or "base_layer" in name]
    torch.testing.assert_close(logits(exported), wanted, atol=1e-5, rtol=1e-4)


def test_more_layers_than_peft_condenses_are_found_exactly() -> None:
    """peft rewrites long lists of names into suffixes; the set of adapted layers must not change."""
    context = Context()
    model = factored.restructure(tiny_llama(layers=4), {"model.layers.3.mlp.up_proj": 9})
    _, model = lora(model, context)
    found = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert found == {name.removesuffix(".lora") for name in context.ranks}
    assert len(found) == 4 * 7 + 1


def test_lora_prepares_a_model_without_values_for_simulation() -> None:
    with torch.device("meta"):
        model = tiny_llama()
        _, model = lora(model)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("options", "message"), [({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout")])
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"method lora: {message}"):
        build("lora", options)

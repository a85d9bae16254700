"""WeLore's training part and its place in a stack: what trains, what stays, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import factored
from harness.config import OptimConfig
from harness.method import Context, stack_caps
from harness.plugins import build
from tests.support.tiny import logits, tiny_batch, tiny_llama, train
from tests.unit.methods.test_welore import low_rank_llama, targets, uneven_llama

NORMS = {
    *(
        f"model.layers.{i}.{name}.weight"
        for i in (0, 1)
        for name in ("input_layernorm", "post_attention_layernorm")
    ),
    "model.norm.weight",
}
Options = dict[str, Any]


def stacked(model: nn.Module, *stack: tuple[str, Options]) -> tuple[nn.Module, Any, list[Context]]:
    """The prepared model, the stepper of the last method that has one, and each method's context."""
    methods = [build(name, options) for name, options in stack]
    contexts = [Context(seed=index) for index in range(len(methods))]
    for method, context in zip(methods, contexts, strict=True):
        model = method.prepare(model, context)
    steppers = [method.stepper(model, OptimConfig()) for method in methods]
    return model, next((stepper for stepper in reversed(steppers) if stepper), None), contexts


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["welore", "uniform"])
@pytest.mark.parametrize("shape", [{}, {"tie": True, "kv_heads": 2}], ids=["plain", "tied, grouped queries"])
def test_28_factors_and_all_norms_train_and_everything_else_is_bit_identical(
    name: str, shape: Options
) -> None:
    model, stepper, (context,) = stacked(uneven_llama(**shape), (name, {"err": 0.5}))
    factors = {f"{layer}.{part}.weight" for layer in context.ranks for part in ("down", "up")}
    assert trainable(model) == factors | NORMS
    before = snapshot(model)
    train(model, stepper, 0, 3)
    changed = {key for key, tensor in model.state_dict().items() if not tensor.equal(before[key])}
    assert changed == factors | NORMS
    assert {key.rpartition(".")[0] for key, _ in stepper.state_tensors()} == factors | NORMS
    assert (
        context.facts["trainable"] == f"both factors of {len(context.ranks)} layers and all RMSNorm weights"
    )


def test_28_a_bias_of_a_factored_layer_stays_frozen() -> None:
    model = uneven_llama()
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.bias = nn.Parameter(torch.ones(32))
    model, _, _ = stacked(model, ("uniform", {}))
    assert "model.layers.0.self_attn.q_proj.up.bias" not in trainable(model)
    assert model.get_submodule("model.layers.0.self_attn.q_proj").up.bias.equal(torch.ones(32))


@pytest.mark.parametrize("frozen", [False, True])
def test_train_none_trains_nothing_and_leaves_requires_grad_as_it_was(frozen: bool) -> None:
    model, stepper, (context,) = stacked(
        uneven_llama().requires_grad_(not frozen), ("welore", {"train": "none", "err": 0.5})
    )
    assert stepper is None
    assert {parameter.requires_grad for parameter in model.parameters()} == {not frozen}
    assert context.facts["trainable"] == "nothing"


def test_29_merged_factors_say_the_same_as_factors() -> None:
    model, stepper, _ = stacked(uneven_llama(), ("welore", {"err": 0.5}))
    train(model, stepper, 0, 3)
    wanted = logits(model)
    torch.testing.assert_close(logits(factored.merge(model)), wanted, atol=1e-5, rtol=1e-4)


def test_29_saved_factors_load_without_any_decomposition(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, stepper, (context,) = stacked(uneven_llama(), ("welore", {"err": 0.5}))
    train(model, stepper, 0, 3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(torch.linalg, "svd", forbidden)
    loaded = factored.restructure(tiny_llama(seed=9), context.ranks)
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert logits(loaded).equal(logits(model))


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("a decomposition was computed")


def test_export_leaves_the_factors() -> None:
    model, _, (context,) = stacked(uneven_llama(), ("welore", {"err": 0.5}))
    assert build("welore", {}).export(model) is model
    assert factored.ranks(model) == context.ranks


def test_bfloat16_weights_are_decomposed_in_float32_and_stored_in_bfloat16() -> None:
    half = low_rank_llama(6).to(torch.bfloat16)
    single = low_rank_llama(6).to(torch.bfloat16).float()
    half, _, (context,) = stacked(half, ("welore", {"err": 0.5}))
    single, _, (other,) = stacked(single, ("welore", {"err": 0.5}))
    assert context.ranks == other.ranks
    assert context.facts["tau"] == other.facts["tau"]
    for name, tensor in single.state_dict().items():
        assert half.state_dict()[name].equal(tensor.to(torch.bfloat16)), name


# ------------------------------------------------------------------------------------- stacks
@pytest.mark.parametrize("below", ["none", "lrc"])
def test_lora_on_welore_trains_adapters_alone(below: str) -> None:
    model, stepper, (context, lora) = stacked(
        uneven_llama(), ("welore", {"err": 0.5, "train": below}), ("lora", {"rank": 4})
    )
    names = trainable(model)
    assert names
    assert all("lora_" in name for name in names)
    assert lora.facts["targets"] == 14 + len(context.ranks)
    before = snapshot(model)
    train(model, stepper, 0, 3)
    assert {key for key, tensor in model.state_dict().items() if not tensor.equal(before[key])} == names


def test_lora_on_welore_exports_factors_that_carry_the_adapters() -> None:
    model, stepper, (context, _) = stacked(
        uneven_llama(), ("welore", {"err": 0.5, "train": "none"}), ("lora", {})
    )
    train(model, stepper, 0, 3)
    wanted = logits(model)
    for name in ("lora", "welore"):
        model = build(name, {}).export(model)
    assert factored.ranks(model) == context.ranks
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(factored.merge(model)), wanted, atol=1e-4, rtol=1e-4)


def test_full_on_welore_trains_everything() -> None:
    model, stepper, _ = stacked(uneven_llama(), ("welore", {"err": 0.5, "train": "none"}), ("full", {}))
    assert factored.ranks(model)
    train(model, stepper, 0, 1)
    everything = {name for name, _ in model.named_parameters()}
    assert trainable(model) == everything == {name.rpartition(".")[0] for name, _ in stepper.state_tensors()}


def test_a_stack_can_do_what_each_of_its_methods_can() -> None:
    compress, adapt = build("welore", {}), build("lora", {})
    assert compress.caps.stages == {"finetune", "compress"}
    assert compress.caps.value_dependent
    assert not build("uniform", {}).caps.value_dependent
    caps = stack_caps([compress, adapt])
    assert caps.stages == {"finetune"}
    assert caps.value_dependent


def test_a_prepared_stack_generates() -> None:
    model, _, _ = stacked(uneven_llama(), ("welore", {"err": 0.5}), ("lora", {}))
    assert model.generate(tiny_batch(), max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 15)


def test_embeddings_and_a_tied_head_stay_one_untouched_tensor() -> None:
    before = uneven_llama(tie=True)
    model, _, _ = stacked(uneven_llama(tie=True), ("welore", {"err": 0.7, "min_ratio": 0}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.equal(before.lm_head.weight)
    assert len(targets(model)) == 0

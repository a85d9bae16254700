"""Removing heads and channels: a smaller model that says what the masked one said.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from harness.engine.models import checkpoint
from harness.errors import UnsupportedError, UserError
from harness.method import Context
from harness.plugins import build
from methods.parts.pruning.removal import Part, clear, keep, parts_of, refusal, remove
from tests.support.tiny import logits, tiny_batch, tiny_llama

SHAPES = [{}, {"kv_heads": 2}, {"tie": True, "kv_heads": 1}]


def biased(**shape: Any) -> Any:
    """A float64 model with random biases in all of its linears."""
    model: Any = tiny_llama(**shape).double()
    generator = torch.Generator().manual_seed(3)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            drawn = torch.randn(layer.out_features, generator=generator, dtype=torch.float64)
            layer.bias = nn.Parameter(drawn / 10)
    model.config.attention_bias = model.config.mlp_bias = True
    return model


def exact_logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=tiny_batch()).logits
    return found


def with_zeroed_outputs(model: Any, removed: dict[str, list[int]]) -> Tensor:
    """Logits when the outputs of these groups are multiplied by zero, by hooks and a loop of their own."""
    hooks = []
    for name, groups in removed.items():
        module = model.get_submodule(name)
        attention = hasattr(module, "q_proj")
        for kind in ("q_proj", "k_proj", "v_proj") if attention else ("gate_proj", "up_proj"):
            layer = getattr(module, kind)
            count = module.k_proj.out_features // module.head_dim if attention else layer.out_features
            width = layer.out_features // count

            def zero(_: Any, __: Any, output: Tensor, width: int = width, groups: Any = groups) -> Tensor:
                output = output.clone()
                for group in groups:
                    output[..., group * width : (group + 1) * width] = 0
                return output

            hooks.append(layer.register_forward_hook(zero))
    found = exact_logits(model)
    for hook in hooks:
        hook.remove()
    return found


def masks_of(model: Any, removed: dict[str, list[int]]) -> dict[str, Tensor]:
    masks = {part.name: torch.ones(part.groups) for part in parts_of(model) if part.name in removed}
    for name, groups in removed.items():
        masks[name][groups] = 0
    return masks


def heads(model: Any, block: int) -> Part:
    return next(part for part in parts_of(model) if part.name == f"model.layers.{block}.self_attn")


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_22_a_model_with_other_heads_and_channels_in_each_block_says_what_the_masked_one_says(
    shape: dict[str, Any],
) -> None:
    removed = {
        "model.layers.0.self_attn": [1],
        "model.layers.0.mlp": [0, 3, 79],
        "model.layers.1.mlp": [5],
    }
    wanted = with_zeroed_outputs(biased(**shape), removed)
    assert not torch.allclose(wanted, exact_logits(biased(**shape)), atol=1e-3)
    for change in ("keep", "clear"):
        model = biased(**shape)
        for part in parts_of(model):
            gone = removed.get(part.name, [])
            if change == "keep":
                keep(part, torch.tensor([group for group in range(part.groups) if group not in gone]))
            else:
                clear(part, torch.tensor(gone, dtype=torch.long))
        torch.testing.assert_close(exact_logits(model), wanted, atol=1e-10, rtol=0)
        torch.testing.assert_close(token_by_token(model), wanted, atol=1e-10, rtol=0)


def token_by_token(model: Any) -> Tensor:
    """Logits with a cache of keys and values, one token at a time."""
    cache, found = DynamicCache(), []
    with torch.no_grad():
        for token in tiny_batch().split(1, dim=1):
            found.append(model.eval()(input_ids=token, past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_22_equal_blocks_become_a_smaller_model_that_transformers_loads(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = biased(**shape)
    groups = heads(model, 0).groups
    removed = {
        f"model.layers.{block}.{name}": gone
        for block in (0, 1)
        for name, gone in (
            ("self_attn", [block, (block + 1) % groups][: groups // 2]),
            ("mlp", [block, 7, 40]),
        )
    }
    wanted = with_zeroed_outputs(model, removed)
    before = sum(parameter.numel() for parameter in model.parameters())
    remove(model, parts_of(model), masks_of(model, removed))
    config = model.config
    assert config.intermediate_size == 77
    assert config.num_key_value_heads == groups - groups // 2
    assert config.num_attention_heads == 2
    assert config.head_dim == 8
    assert model.model.layers[0].self_attn.o_proj.weight.shape == (32, 16)
    assert not checkpoint.not_saved(model)
    checkpoint.save(model, None, tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float64)
    assert sum(parameter.numel() for parameter in loaded.parameters()) < before
    torch.testing.assert_close(exact_logits(loaded), wanted, atol=1e-10, rtol=0)
    again = checkpoint.load(tmp_path / "small", torch.float64)
    torch.testing.assert_close(exact_logits(again), wanted, atol=1e-10, rtol=0)


def test_22_unequal_blocks_keep_their_shapes_with_zeros(tmp_path: Path) -> None:
    model = biased()
    removed = {"model.layers.0.self_attn": [1, 2], "model.layers.0.mlp": [3], "model.layers.1.mlp": [4]}
    wanted = with_zeroed_outputs(model, removed)
    remove(model, parts_of(model), masks_of(model, removed))
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (32, 32)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert (layer.weight[8:24] == 0).all()
        assert (layer.bias[8:24] == 0).all()
        assert layer.weight[:8].all()
    assert (attention.o_proj.weight[:, 8:24] == 0).all()
    assert model.config.num_attention_heads == 4
    assert model.config.intermediate_size == 79  # one of each block
    assert not checkpoint.not_saved(model)
    checkpoint.save(model, None, tmp_path / "zeros")
    loaded = checkpoint.load(tmp_path / "zeros", torch.float64)
    torch.testing.assert_close(exact_logits(loaded), wanted, atol=1e-10, rtol=0)


def test_a_number_of_heads_that_no_config_takes_is_said() -> None:
    """transformers wants a hidden width that is a multiple of the number of heads, whatever their width."""
    model = biased()
    alike = [heads(model, 0), heads(model, 1)]
    reason = refusal(model, alike, {part.name: 3 for part in alike})
    assert reason.startswith("no config takes num_attention_heads 3, num_key_value_heads 3, head_dim 8: ")
    assert "multiple" in reason
    assert "\n" not in reason
    assert not refusal(model, alike, {part.name: 2 for part in alike})
    assert refusal(model, alike, {alike[0].name: 2}) == (
        "blocks keep 2 to 4 of them, and a config has one number for all"
    )
    remove(model, parts_of(model), {part.name: torch.tensor([1.0, 0, 1, 1]) for part in alike})
    assert model.config.num_attention_heads == 4
    assert (model.model.layers[1].self_attn.o_proj.weight[:, 8:16] == 0).all()


def test_what_is_removed_leaves_the_rest_trainable_or_frozen_as_it_was() -> None:
    model = biased()
    model.model.layers[0].mlp.requires_grad_(False)
    for part in parts_of(model):
        keep(part, torch.arange(part.groups // 2))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {flags[name] for name in flags if "layers.0.mlp" in name} == {False}
    assert {flags[name] for name in flags if "layers.0.mlp" not in name} == {True}
    model(input_ids=tiny_batch(), labels=tiny_batch()).loss.backward()


def test_a_group_has_its_share_of_the_parameters() -> None:
    model = biased(kv_heads=2)
    for part in parts_of(model):
        before = sum(parameter.numel() for parameter in model.parameters())
        one = part.parameters
        keep(part, torch.arange(part.groups - 1))
        assert before - sum(parameter.numel() for parameter in model.parameters()) == one


def test_models_that_cannot_be_pruned_are_refused_in_one_line() -> None:
    for name in ("uniform", "lora"):
        model = build(name, {}).prepare(tiny_llama(), Context())
        with pytest.raises(UserError, match=r"^layers are factored or adapted already; put the .* first$"):
            parts_of(model)
    quantised = build("int8", {}).prepare(tiny_llama(), Context())
    with pytest.raises(UnsupportedError, match=r"^weights stored in fewer bits cannot be pruned; .* out$"):
        parts_of(quantised)


def test_the_support_is_right() -> None:
    """`logits` of a float64 model are rounded to float32, which the tests above may not use."""
    assert logits(biased()).dtype == torch.float32
    assert exact_logits(biased()).dtype == torch.float64

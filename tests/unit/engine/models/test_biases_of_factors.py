"""Factors with biases that their model has not: saved, loaded again, and exported as a plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness import factored
from harness.engine.models import checkpoint
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from tests.support.tiny import TinyText, logits, tiny_llama

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def compressed(model: nn.Module | None = None, factoriser: str = "pca", **options: Any) -> nn.Module:
    method = build("compress", {"factoriser": factoriser, "reduction": 0.5, **options})
    return method.prepare(model or tiny_llama(), Context(calibration=TinyText()))


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "factors.json").read_text())


@pytest.mark.parametrize("targets", [ALL, ("q_proj", "down_proj")])
def test_saved_factors_say_which_have_biases_and_are_loaded_with_them(
    targets: tuple[str, ...], tmp_path: Path
) -> None:
    model = compressed(targets=targets)
    checkpoint.save(model, None, tmp_path / "D")
    assert manifest(tmp_path / "D")["biased"] == list(factored.ranks(model))
    loaded = checkpoint.load(tmp_path / "D", torch.float32)
    assert logits(loaded).equal(logits(model))
    assert factored.biased(loaded) == factored.biased(model)
    assert not checkpoint.not_saved(model)


def test_without_biases_a_manifest_is_as_before(tmp_path: Path) -> None:
    checkpoint.save(compressed(factoriser="whiten"), None, tmp_path / "D")
    assert set(manifest(tmp_path / "D")) == {"format", "ranks"}


@pytest.mark.parametrize(
    ("targets", "settings"),
    [(ALL, (True, True)), (("v_proj",), (True, False)), (("up_proj",), (False, True))],
)
def test_30_a_dense_export_with_biases_is_a_plain_model_that_says_the_same(
    targets: tuple[str, ...], settings: tuple[bool, bool], tmp_path: Path
) -> None:
    model = compressed(targets=targets)
    wanted = logits(model)
    checkpoint.save(factored.merge(model), None, tmp_path / "D")
    loaded, notes = LlamaForCausalLM.from_pretrained(tmp_path / "D", output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert (loaded.config.attention_bias, loaded.config.mlp_bias) == settings
    assert torch.allclose(logits(loaded), wanted, atol=1e-5)


def test_30_what_has_biases_by_itself_keeps_its_config(tmp_path: Path) -> None:
    """As Qwen 2.5: q, k and v have biases that no setting of its config turns on."""
    torch.manual_seed(0)
    source = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    with torch.no_grad():
        source.model.layers[0].self_attn.q_proj.bias.normal_()
    model = compressed(source, targets=("q_proj", "k_proj"))
    wanted, config = logits(model), model.config.to_dict()
    assert factored.merge(model).config.to_dict() == config
    checkpoint.save(model, None, tmp_path / "D")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "D")
    assert torch.allclose(logits(loaded), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "source",
    [lambda: MistralForCausalLM(MistralConfig(**SIZES)), lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES))],
    ids=["Mistral", "Qwen2"],
)
def test_a_kind_of_model_that_has_no_such_biases_is_refused_and_left_as_it_was(source: Any) -> None:
    model = compressed(source(), targets=("o_proj",))
    before = factored.ranks(model)
    with pytest.raises(
        UserError, match=r"o_proj have a bias, and no dense \w+ForCausalLM has one there; keep"
    ):
        factored.merge(model)
    assert factored.ranks(model) == before


@pytest.mark.parametrize(
    "biased",
    [
        "model.layers.0.mlp.up_proj",
        ["model.layers.7.mlp.up_proj"],
        ["lm_head"],
        [["model.layers.0.mlp.up_proj"]],
        [3],
        {"model.layers.0.mlp.up_proj": True},
        None,
        7,
    ],
    ids=str,
)
def test_a_damaged_list_of_biases_is_refused_in_one_line(biased: Any, tmp_path: Path) -> None:
    checkpoint.save(compressed(), None, tmp_path / "D")
    path = tmp_path / "D" / "factors.json"
    path.write_text(json.dumps({**manifest(tmp_path / "D"), "biased": biased}))
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path / "D", torch.float32)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "not a manifest of factors" in str(caught.value)


def test_a_list_that_lacks_a_layer_does_not_fit_the_weights(tmp_path: Path) -> None:
    checkpoint.save(compressed(), None, tmp_path / "D")
    said = manifest(tmp_path / "D")
    (tmp_path / "D" / "factors.json").write_text(json.dumps({**said, "biased": said["biased"][1:]}))
    with pytest.raises(UserError, match=r"without a place in the model .*q_proj\.up\.bias"):
        checkpoint.load(tmp_path / "D", torch.float32)

"""What was measured is what is exported: for every method, on heads that are tied and others.

A run's model is saved, exported in every form and loaded again, by transformers alone where it can and by
lorebench; its perplexity is computed by a loop of this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from harness import factored, record
from harness.config import LocalModel, MethodChoice, OptimConfig, Run
from harness.engine.models import checkpoint
from harness.engine.models.export import export_run
from harness.engine.models.load import load_model
from harness.engine.quality import perplexity
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from harness.registry import REGISTRY
from tests.support.tiny import TinyText, tiny_batch, tiny_llama, train

CPU = torch.device("cpu")
SEQUENCES = [tiny_batch(100 + number, batch=1, length=9 + number)[0].tolist() for number in range(4)]
Stack = list[tuple[str, dict[str, Any]]]
STACKS: dict[str, Stack] = {
    "adarankgrad": [("adarankgrad", {"rank": 8, "period": 2})],
    "apollo": [("apollo", {"rank": 8, "period": 2})],
    "asvd": [
        (
            "asvd",
            {"allocator": {"type": "strs", "candidates": [0.5], "metric": "stable_rank"}, "train": "lrc"},
        )
    ],
    "bolaco": [
        (
            "bolaco",
            {"allocator": "uniform", "factoriser": "whiten", "multiple": 2, "train": "scales", "rank": 4},
        )
    ],
    "compress by components": [("compress", {"factoriser": "pca", "reduction": 0.5, "train": "lrc"})],
    "fira": [("fira", {"rank": 8, "period": 2})],
    "full": [("full", {})],
    "galore": [("galore", {"rank": 8, "period": 2})],
    "int8": [("int8", {}), ("full", {})],
    "int8, then lora": [("int8", {}), ("lora", {"rank": 4})],
    "int8, then lotr": [("int8", {}), ("lotr", {"rank": 4})],
    "lisa": [("lisa", {"layers": 1, "interval": 2})],
    "lora": [("lora", {"rank": 4})],
    "lorap": [("lorap", {"sparsity": 0.4}), ("lora", {"rank": 4})],
    "loraprune": [("loraprune", {"rank": 4, "period": 1, "updates": 3, "exempt_last": 0})],
    "lord": [("lord", {"multiple": 2, "factoriser": "whiten", "train": "lrc"})],
    "lotr": [("lotr", {"rank": 4})],
    "lora, others too": [("lora", {"rank": 4, "others": "train"})],
    "lowrank": [("lowrank", {"rank": 8})],
    "optim": [("optim", {"type": "SGD"})],
    "owlore": [("owlore", {"layers": 1, "interval": 2, "rank": 8, "sampling": "increase"})],
    "peft": [("peft", {"type": "OFT", "oft_block_size": 8})],
    "lqlora": [("lqlora", {"rank": 4, "budget": 3})],
    "qgalore": [("qgalore", {"rank": 8, "period": 2, "group": 128})],
    "qlora": [("qlora", {"rank": 4, "bits": 3, "block": 16})],
    "relora": [("relora", {"rank": 4, "period": 2, "warmup": 1})],
    "sltrain": [("sltrain", {"rank": 8, "delta": 0.1})],
    "svdllm": [("svdllm", {"train": "stages", "reduction": 0.5})],
    "uniform": [("uniform", {})],
    "velora": [("velora", {"num_groups": 4}), ("full", {})],
    "welore": [("welore", {})],
    "welore, then lora": [("welore", {"err": 0.5, "train": "none"}), ("lora", {"rank": 4})],
}
#: Its kind of model has biases in q, k and v alone.
NOT_DENSE = ("compress by components", "biases, grouped, tied", "dense")
#: Sizes of the tiny models: two layers, and biases that are not zero.
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}


def own_head(folder: Path) -> None:
    """Say that head and embedding are tied, though the file has a tensor for each."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))


def grouped_and_tied() -> nn.Module:
    return tiny_llama(kv_heads=2, tie=True)


def biased() -> nn.Module:
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True))
    return with_biases(model)


def qwen() -> nn.Module:
    """Biases of q, k and v alone, grouped queries, a tied head: as Qwen 2.5 of half a billion weights."""
    torch.manual_seed(4)
    return with_biases(
        Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True))
    )


@torch.no_grad()
def with_biases(model: nn.Module) -> nn.Module:
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            tensor.normal_(std=0.5)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Path], None] | None]] = {
    "untied": (tiny_llama, None),
    "tied": (lambda: tiny_llama(tie=True), None),
    "tied by config only": (tiny_llama, own_head),
    "grouped queries, tied": (grouped_and_tied, None),
    "biases": (biased, None),
    "biases, grouped, tied": (qwen, None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind of checkpoint as a folder."""
    made = {}
    for name, (model, change) in MODELS.items():
        made[name] = tmp_path_factory.mktemp("model")
        checkpoint.save(model(), None, made[name])
        if change is not None:
            change(made[name])
    return made


@torch.no_grad()
def independent_perplexity(model: Any) -> float:
    """Token after token, without batches: the exponential of the mean of -log p."""
    total, count = 0.0, 0
    for ids in SEQUENCES:
        values: Tensor = model(input_ids=torch.tensor([ids])).logits[0].double()
        for place in range(len(ids) - 1):
            total -= torch.log_softmax(values[place], 0)[ids[place + 1]].item()
            count += 1
    return math.exp(total / count)


def test_every_registered_method_takes_part() -> None:
    assert {name for stack in STACKS.values() for name, _ in stack} == set(REGISTRY)


def run_of(folder: Path, stack: Stack, path: Path) -> tuple[float, bool]:
    """Train a little, measure and save as a run does; return perplexity, and if linears are factors."""
    model: Any = load_model(
        LocalModel(source="local", path=str(folder)), dtype=torch.float32, device=CPU, seed=0
    ).model
    methods = [build(name, options) for name, options in stack]
    for method in methods:
        model = method.prepare(model, Context(seed=1, updates=4, calibration=TinyText()))
    steppers = [method.stepper(model, OptimConfig(lr=3e-3)) for method in methods]
    stepper = [found for found in steppers if found is not None][-1]
    model.train()
    train(model, stepper, 0, 3)
    recorded = perplexity.score(model, SEQUENCES, 2, CPU)
    for method in reversed(methods):
        model = method.export(model)
    checkpoint.save(model, None, path.with_suffix("") / "weights")
    content = {"suite": "test", "label": "x", "seed": 0, "repeat": 0, "tier": "embedded", "rerun": ""}
    run = Run(method=tuple(MethodChoice(name=name, options=options) for name, options in stack))
    ids = {"run_id": run.run_id, "config_id": run.config_id, "config": run.model_dump(mode="json")}
    record.write(record.Record(**content, **ids), path)
    return math.exp(recorded.nll_nats / recorded.tokens), bool(factored.ranks(model))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("stack", STACKS)
def test_the_exported_perplexity_is_the_recorded_one(
    folders: dict[str, Path], tmp_path: Path, kind: str, stack: str
) -> None:
    path = tmp_path / "run.json"
    recorded, has_factors = run_of(folders[kind], STACKS[stack], path)
    for form in ("dense", "factors") if has_factors else ("dense",):
        target = tmp_path / form
        if (stack, kind, form) == NOT_DENSE:
            with pytest.raises(UserError, match=r"o_proj have a bias, and no dense Qwen2ForCausalLM has one"):
                export_run(path, target, form)
            assert not target.exists()
            continue
        export_run(path, target, form)
        again: Any = load_model(
            LocalModel(source="local", path=str(target)), dtype=torch.float32, device=CPU, seed=0
        )
        assert independent_perplexity(again.model) == pytest.approx(recorded, rel=1e-5)
        if form == "dense":
            plain = AutoModelForCausalLM.from_pretrained(target)
            assert independent_perplexity(plain) == pytest.approx(recorded, rel=1e-5)
            stored = load_file(target / "model.safetensors")
            assert ("lm_head.weight" in stored) == (not plain.config.tie_word_embeddings)


def test_a_checkpoint_that_lost_its_head_is_refused_and_not_filled_with_noise(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    run_of(folders["untied"], STACKS["full"], path)
    file = tmp_path / "run" / "weights" / "model.safetensors"
    stored = load_file(file)
    del stored["lm_head.weight"]
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"missing lm_head\.weight"):
        export_run(path, tmp_path / "dense", "dense")
    assert not (tmp_path / "dense").exists()

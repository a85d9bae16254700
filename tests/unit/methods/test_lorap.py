"""LoRAP: published shapes, the channels that stay, the weighted SVD of a walk, and ranks after training.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig, Run
from harness.engine.forecast.count import count
from harness.engine.forecast.dry_run import simulate
from harness.engine.models import checkpoint
from harness.errors import UserError
from harness.factored import FactoredLinear
from harness.method import Batch, Context, Simulated
from harness.plugins import build
from methods.parts.pruning.shares import attention_ranks, removed_channels
from tests.support.tiny import TinyText, tiny_batch, tiny_llama, train

#: Rank of q and k, rank of v and o (None: dense), width of the MLP and kept share of all parameters of
#: LLaMA-2 7B, by sparsity in percent.
TABLE = {
    10: (1638, None, 9908, 0.904),
    20: (1228, None, 8807, 0.808),
    30: (819, None, 7706, 0.712),
    40: (614, 1842, 6605, 0.615),
    50: (512, 1536, 5504, 0.519),
    60: (409, 1228, 4404, 0.423),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def prepared(options: dict[str, Any], text: Any = None, **shape: Any) -> tuple[Any, Context]:
    context = Context(seed=1, calibration=text or TinyText())
    return build("lorap", options).prepare(tiny_llama(**shape).double(), context), context


@pytest.mark.parametrize("percent", TABLE)
def test_18_the_published_shapes_of_llama_2_7b(percent: int) -> None:
    config = LlamaConfig()  # that of LLaMA-2 7B but for its context
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert before == 6_738_415_616
    context = Context(simulated=Simulated())
    model = build("lorap", {"sparsity": percent / 100}).prepare(model, context)
    low, high, width, kept = TABLE[percent]
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        assert {attention.q_proj.rank, attention.k_proj.rank} == {low}
        for layer in (attention.v_proj, attention.o_proj):
            assert type(layer) is nn.Linear if high is None else layer.rank == high
        assert mlp.gate_proj.weight.shape == mlp.up_proj.weight.shape == (width, 4096)
        assert mlp.down_proj.weight.shape == (4096, width)
    after = sum(parameter.numel() for parameter in model.parameters())
    assert round(after / before, 3) == kept
    assert model.config.intermediate_size == context.facts["mlp_width"] == width
    assert context.facts["parameter_ratio"] == after / before
    assert context.facts["target_reduction"] == percent / 100
    assert context.facts["measured_reduction"]["all"] == pytest.approx(1 - after / before, abs=1e-12)
    linears = before - 2 * 32000 * 4096 - 65 * 4096
    lost = context.facts["measured_reduction"]["linears"]
    assert lost == pytest.approx((before - after) / linears, abs=1e-12)
    shares = dict.fromkeys(("attention", "mlp"), 1 - percent / 100)
    assert context.facts["kept"] == pytest.approx(shares, abs=1e-3)


@pytest.mark.parametrize("hidden", [64, 100, 4096, 5120])
@pytest.mark.parametrize("sparsity", [0.05, 0.2, 1 / 3, 0.34, 0.5, 0.9])
def test_18_v_and_o_are_dense_where_the_formula_gives_them_half_of_the_width(
    hidden: int, sparsity: float
) -> None:
    names = {f"b.{kind}": (hidden, hidden) for kind in ATTENTION}
    ranks = attention_ranks(names, sparsity, 3)
    dense = int(1.5 * int((1 - sparsity) * hidden / 2)) >= hidden / 2
    assert ("b.v_proj" not in ranks) == ("b.o_proj" not in ranks) == dense
    parameters = sum(2 * ranks[name] * hidden if name in ranks else hidden**2 for name in names)
    assert abs(parameters / (4 * hidden**2) - (1 - sparsity)) < 3 / hidden


@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_grouped_queries_keep_the_share_of_parameters_of_square_matrices(sparsity: float) -> None:
    widths = {"q_proj": 4096, "k_proj": 1024, "v_proj": 1024, "o_proj": 4096}
    shapes = {f"b.{kind}": (width, 4096) for kind, width in widths.items()}
    ranks = attention_ranks(shapes, sparsity, 3)
    for name, (out, width) in shapes.items():
        if name in ranks:
            favoured = name in ("b.v_proj", "b.o_proj")
            share = {0.2: 0.6, 0.5: 0.75 if favoured else 0.25}[sparsity]
            assert ranks[name] * (out + width) / (out * width) == pytest.approx(share, abs=2e-3)
    kept = sum(ranks[n] * sum(s) if n in ranks else s[0] * s[1] for n, s in shapes.items())
    assert kept / (2 * 4096**2 + 2 * 4096 * 1024) == pytest.approx(1 - sparsity, abs=2e-3)


def inputs_of(model: Any, name: str, text: Any) -> Tensor:
    """Inputs (tokens, in) of a layer in passes of a whole model."""
    caught: list[Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        for ids, _ in text.batches():
            model.eval()(input_ids=ids)
    hook.remove()
    return torch.cat(caught)


def wanted_channels(mlp: Any, before: Tensor, within: Tensor, sparsity: float, least: float) -> list[int]:
    """The channels that stay, by the definition, channel by channel."""
    scores = []
    for channel in range(mlp.gate_proj.out_features):
        score = 0.0
        for layer in (mlp.up_proj, mlp.gate_proj):
            weighted = layer.weight[channel] * before.square().sum(0).sqrt()
            score += float(weighted.norm().detach())
        column = mlp.down_proj.weight[:, channel] * within[:, channel].square().sum().sqrt()
        scores.append(score + float(column.norm().detach()))
    order = sorted(range(len(scores)), key=scores.__getitem__)
    gone = order[int(least * len(order)) : int((sparsity + least) * len(order))]
    return [channel for channel in range(len(order)) if channel not in gone]


@pytest.mark.parametrize("least", [0.0, 0.05])
def test_19_the_least_important_channels_stay_and_the_next_ones_go(least: float) -> None:
    """The channels of the first block, whose inputs no compression of an earlier block changes."""
    plain: Any = tiny_llama(hidden=48).double()
    mlp, text = plain.model.layers[0].mlp, TinyText()
    before = inputs_of(plain, "model.layers.0.mlp.gate_proj", text)
    within = inputs_of(plain, "model.layers.0.mlp.down_proj", text)
    kept = wanted_channels(mlp, before, within, 0.3, least)
    assert len(kept) == 120 - (int((0.3 + least) * 120) - int(least * 120))
    model, _ = prepared({"sparsity": 0.3, "least_kept": least}, hidden=48)
    smaller = model.model.layers[0].mlp
    assert smaller.gate_proj.weight.equal(mlp.gate_proj.weight[kept])
    assert smaller.up_proj.weight.equal(mlp.up_proj.weight[kept])
    assert smaller.down_proj.weight.equal(mlp.down_proj.weight[:, kept])
    gone = [channel for channel in range(120) if channel not in kept]
    with torch.no_grad():
        mlp.down_proj.weight[:, gone] = 0  # the same channels, as if they were zero
        torch.testing.assert_close(smaller(before), mlp(before), atol=1e-12, rtol=0)


def test_19_the_kept_width_is_what_the_formula_says() -> None:
    for width in (11008, 172, 10):
        for sparsity, least in ((0.2, 0.01), (0.5, 0.01), (0.33, 0.2), (0.9, 0.0)):
            gone = removed_channels(width, sparsity, least)
            assert len(gone) == int((sparsity + least) * width) - int(least * width)
            assert gone.start == int(least * width)


@pytest.mark.parametrize("shape", [{}, {"kv_heads": 2}], ids=str)
def test_attention_is_the_weighted_svd_of_what_the_compressed_blocks_before_it_give(
    shape: dict[str, Any],
) -> None:
    """Block 1 sees the outputs of the compressed block 0, and the finished model gives it the same inputs."""
    plain: Any = tiny_llama(**shape).double()
    model, context = prepared({"sparsity": 0.5}, **shape)
    for name in ("q_proj", "k_proj", "v_proj"):
        full = f"model.layers.1.self_attn.{name}"
        inputs = inputs_of(model, full, TinyText())
        weight, root = plain.get_submodule(full).weight.detach(), inputs.square().sum(0).sqrt()
        left, values, right = torch.linalg.svd(weight * root, full_matrices=False)
        rank = context.ranks[full]
        wanted = (left[:, :rank] * values[:rank]) @ right[:rank] / root
        made = model.get_submodule(full)
        assert made.rank == rank
        torch.testing.assert_close(made.merged().weight.detach(), wanted, atol=1e-10, rtol=0)


def trained_and_exported(
    options: dict[str, Any], on_top: str, more: dict[str, Any]
) -> tuple[Any, Any, Tensor]:
    """The model that a stack exports, the one that LoRA alone merges, and the logits while training."""
    stack = [build("lorap", options), build(on_top, more)]
    model: Any = tiny_llama().double()
    for method in stack:
        model = method.prepare(model, Context(seed=1, calibration=TinyText()))
    stepper = stack[1].stepper(model, OptimConfig(lr=1e-2))
    assert stepper is not None
    train(model.train(), stepper, 0, 5)
    with torch.no_grad():
        said = model.eval()(input_ids=tiny_batch()).logits
    merged = stack[1].export(model)
    dense = {name: weight.detach().clone() for name, weight in merged.named_parameters()}
    return stack[0].export(merged), dense, said


def test_20_what_lora_makes_of_dense_products_has_factors_of_its_rank_more_without_loss() -> None:
    options = {"sparsity": 0.6, "added_rank": 3}
    model, dense, said = trained_and_exported(options, "lora", {"rank": 3})
    _, context = prepared({"sparsity": 0.6})
    assert len(context.ranks) == 8
    for name, rank in context.ranks.items():
        layer, weight = model.get_submodule(name), dense[f"{name}.weight"]
        assert int(torch.linalg.matrix_rank(weight, rtol=1e-10)) == rank + 3
        assert isinstance(layer, FactoredLinear)
        assert layer.rank == rank + 3
        assert (layer.up.weight @ layer.down.weight - weight).norm() < 1e-8 * weight.norm()
    with torch.no_grad():
        again = model.eval()(input_ids=tiny_batch()).logits
    torch.testing.assert_close(again, said, atol=1e-8, rtol=0)
    assert not checkpoint.not_saved(model)


def test_20_what_lora_makes_of_factors_keeps_their_rank() -> None:
    model, _, said = trained_and_exported({"sparsity": 0.6}, "lora", {"rank": 3})
    _, context = prepared({"sparsity": 0.6})
    assert factored.ranks(model) == context.ranks
    with torch.no_grad():
        again = model.eval()(input_ids=tiny_batch()).logits
        torch.testing.assert_close(again, said, atol=1e-10, rtol=0)
        plain = checkpoint.reloaded(factored.merge(model))
        torch.testing.assert_close(plain(input_ids=tiny_batch()).logits, said, atol=1e-5, rtol=0)


def test_20_weights_that_training_gave_a_higher_rank_stay_dense() -> None:
    options = {"sparsity": 0.6, "added_rank": 3}
    model, dense, _ = trained_and_exported(options, "full", {})
    assert not factored.ranks(model)
    name = "model.layers.0.self_attn.q_proj"
    assert model.get_submodule(name).weight.equal(dense[f"{name}.weight"])


def test_the_text_decides_and_padding_does_not_count() -> None:
    class Padded(TinyText):
        def batches(self, count: int | None = None) -> Any:
            for ids, _ in super().batches(count):
                more = torch.cat([ids, torch.zeros_like(ids)], 1)
                yield Batch(more, torch.cat([ids, torch.full_like(ids, -100)], 1))

    first, second = (prepared({"sparsity": 0.5}, text)[0] for text in (TinyText(), Padded()))
    for (name, mine), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0, msg=name)

    class Other(TinyText):
        def batches(self, count: int | None = None) -> Any:
            return self.validation()

    other = prepared({"sparsity": 0.5}, Other())[0].state_dict()
    assert any(not tensor.allclose(other[name], atol=1e-3) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 0.995}, "sparsity and least_kept take up all channels; their sum must be below 1"),
        ({"sparsity": 1}, "sparsity"),
        ({"allocation": 0.5}, "allocation"),
        ({"added_rank": -1}, "added_rank"),
        ({"ratio": 0.2}, "ratio"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        build("lorap", options)
    assert "\n" not in str(refused.value)


def test_a_run_without_calibration_text_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^lorap: this needs calibration text, and the run has none$"):
        build("lorap", {}).prepare(tiny_llama(), Context())


@pytest.mark.parametrize(
    "method", [[{"lorap": {}}, {"lora": {"rank": 4}}], {"loraprune": {"rank": 4}}], ids=["lorap", "loraprune"]
)
def test_a_count_of_memory_gives_the_text_and_the_length_that_a_run_gives(method: Any) -> None:
    """`lorebench gate` and `lorebench check` count, outside of a run."""
    run = Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": 24},
            "train": {"stage": "finetune", "batch": 2},
            "method": method,
        }
    )
    predicted, counted = simulate(run, granularity=1).train, count(run).train
    assert predicted is not None
    assert counted is not None
    assert predicted.peak_allocated_bytes == counted.peak_allocated_bytes

"""Forecasts of memory: what is alive at the peak, what stands in for values, and what is refused."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig, Run, ShapeModel
from harness.engine.forecast.attribution import Attribution, kind_of
from harness.engine.forecast.dry_run import simulate
from harness.engine.forecast.fake_tensors import SimulatedMeter, world
from harness.engine.models import checkpoint
from harness.engine.models.load import apply_spectrum, build_empty, load_model, shape_config
from harness.errors import UnsupportedError, UserError
from harness.forecast import MemoryReport
from harness.method import Caps, Context, Method
from harness.plugins import build
from harness.spectrum import like_llama
from methods.parts.allocation.threshold import normalised
from methods.parts.optim.adamw import AdamWStepper
from methods.welore import WeLore, WeLoreConfig
from tests.support.tiny import tiny_llama

MIB = 1 << 20


def run_of(method: Any = "full", shape: str = "9m", length: int = 64, **settings: Any) -> Run:
    content: dict[str, Any] = {
        "model": {"source": "shape", "name": shape},
        "data": {"source": "random", "seq_len": length},
        "train": {"batch": 2},
        "method": method,
    }
    for key, value in settings.items():
        section, _, name = key.partition("__")
        content[section] = {**content[section], name: value} if name else value
    return Run.model_validate(content)


def groups(report: MemoryReport) -> dict[str, int]:
    assert report.peak is not None
    return report.peak.groups


# ------------------------------------------------------------------------------------ what is alive
def test_all_that_is_alive_at_the_peak_has_a_name() -> None:
    report = simulate(run_of(), granularity=1)
    alive = groups(report)
    assert sum(alive.values()) == report.peak_allocated_bytes
    assert report.train is not None
    assert alive["weights, trainable"] == report.train.weights_trainable_bytes == 4 * report.parameters_total
    assert alive["optimizer state"] == report.train.optimizer_bytes
    assert "other" not in alive
    assert alive.get("update workspace", 0) == 0


def test_the_logits_of_a_large_batch_are_what_fills_memory() -> None:
    """32,000 words x 2 x 256 tokens in float32 are 62.5 MiB, and the loss holds several of them."""
    report = simulate(run_of(length=256), granularity=1)
    assert report.peak is not None
    alive = groups(report)
    logits = alive["logits and loss"] + alive.get("logits and loss, backward", 0)
    one = 2 * 256 * 32000 * 4
    assert 2 * one <= logits <= 4.1 * one
    assert report.peak.part == "backward"
    assert logits > report.train.transient_bytes / 2  # type: ignore[union-attr]


def test_activations_belong_to_the_part_of_the_block_that_made_them() -> None:
    """Feed-forward keeps gate, up, silu(gate) and their product for backward, each of the inner width."""
    shape = shape_config("9m")
    tokens = 2 * 64
    kept = simulate(run_of(length=64, model={"source": "shape", "name": "9m", "vocab": 64}), granularity=1)
    wide = tokens * shape.intermediate_size * 4 * shape.num_hidden_layers
    assert 3 * wide <= groups(kept)["feed-forward"] <= 5 * wide
    assert groups(kept)["attention"] > 0


def test_a_refresh_has_a_workspace_of_its_own() -> None:
    """The decomposition of a gradient beside nothing else in the update: it decides the peak of that part."""
    plain = simulate(run_of("full"), granularity=1)
    projected = simulate(run_of({"galore": {"rank": 4, "refresh": "svd"}}), granularity=1)
    assert projected.train is not None
    assert plain.train is not None
    assert projected.train.refreshes_in_window == 1
    assert plain.train.refreshes_in_window == 0
    assert projected.train.optimizer_bytes < plain.train.optimizer_bytes


def test_sizes_are_rounded_up_as_by_the_allocator() -> None:
    exact, rounded = (simulate(run_of(shape="nano"), granularity=size) for size in (1, 512))
    assert rounded.peak_allocated_bytes > exact.peak_allocated_bytes
    assert rounded.peak_allocated_bytes % 512 == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "logits and loss"),
        ("lm_head", "logits and loss"),
        ("model.embed_tokens", "embedding"),
        ("model.layers.3.self_attn.q_proj.up", "attention"),
        ("model.layers.3.mlp.act_fn", "feed-forward"),
        ("model.layers.3.input_layernorm", "norms"),
        ("model.layers.3", "residual stream"),
    ],
)
def test_a_module_has_the_kind_of_its_innermost_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


# ------------------------------------------------------------------------------------ the fake world
def test_nothing_of_a_simulation_survives_it() -> None:
    apply = nn.Module._apply
    simulate(run_of("lora", shape="nano"))
    gc.collect()
    assert nn.Module._apply is apply
    assert gc.isenabled()
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), FakeTensor)]
    assert type(torch.ones(1)) is torch.Tensor


def test_a_value_that_is_read_is_one_and_a_condition_true() -> None:
    with world(SimulatedMeter(Attribution())):
        tensor = torch.zeros(3)
        assert tensor.sum().item() == 1.0
        assert bool(tensor.isnan().any()) is True
        assert int(torch.zeros(2, dtype=torch.long)[0]) == 1


def test_a_fake_module_can_be_converted() -> None:
    with world(SimulatedMeter(Attribution())):
        layer = nn.Linear(4, 2).to(torch.bfloat16)
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
        assert all(parameter.requires_grad for parameter in layer.parameters())


def test_an_error_within_leaves_the_world_in_order() -> None:
    with pytest.raises(RuntimeError, match="within"), world(SimulatedMeter(Attribution())):
        raise RuntimeError("within")
    assert type(torch.ones(1)) is torch.Tensor
    assert gc.isenabled()


# ---------------------------------------------------------------------------------- which models
def test_the_embedded_model_and_a_compression_are_simulated() -> None:
    run = run_of([{"welore": {"err": 0.5}}], model={"source": "embedded"}, train={"stage": "compress"})
    report = simulate(run)
    assert report.train is None
    assert report.peak is None
    assert set(report.phase_peak_allocated_bytes) == {"load", "prepare", "evaluate"}
    assert report.parameters_total < 1_046_400
    assert report.ranks == {"welore": f"published: {WeLore.approximations['published']}"}


def test_a_run_that_only_compresses_scores_a_batch_instead() -> None:
    """At the peak it holds 2 x 63 x 32,000 logits, and half as many in float32, with their log-softmax."""
    train = {"stage": "compress", "batch": 2, "dtype": "bfloat16"}
    report = simulate(run_of([{"uniform": {"err": 0.5}}], train=train), granularity=1)
    scored = report.scoring
    assert scored is not None
    assert scored.tokens == 2 * 63
    assert scored.weights_bytes == 2 * report.parameters_total
    held = scored.weights_bytes + scored.buffers_bytes + scored.transient_bytes
    assert scored.peak_allocated_bytes == report.phase_peak_allocated_bytes["evaluate"] == held
    assert sum(scored.peak.groups.values()) == held
    assert scored.peak.groups["weights"] == scored.weights_bytes
    logits = 2 * 63 * 32000 * 2 + 2 * 63 * 32000 * 4
    assert logits <= scored.peak.groups["logits and loss"] < 1.01 * logits
    assert {work.part for work in scored.work} == {"forward"}
    assert not report.work, "scoring is no update"


def test_scoring_is_no_part_of_the_peak_that_a_run_is_refused_for() -> None:
    """A run scores batches of its own, which may be smaller."""
    report = simulate(run_of(train={"stage": "compress", "batch": 64}))
    peaks = report.phase_peak_allocated_bytes
    assert peaks["evaluate"] > report.peak_allocated_bytes == max(peaks["load"], peaks["prepare"])


def test_a_run_that_trains_scores_nothing() -> None:
    report = simulate(run_of(shape="nano"))
    assert report.scoring is None
    assert "evaluate" not in report.phase_peak_allocated_bytes


def test_a_factored_folder_keeps_its_factors(tmp_path: Path) -> None:
    model = factored.restructure(tiny_llama(), {"model.layers.0.mlp.up_proj": 3})
    checkpoint.save(model, None, tmp_path)
    run = run_of(model={"source": "local", "path": str(tmp_path)})
    total = sum(parameter.numel() for parameter in model.parameters())
    assert simulate(run).parameters_total == total


def test_weights_of_13b_are_in_their_own_precision() -> None:
    """A real model of this size would be 26 GB: only that it is built, prepared and counted."""
    run = run_of("full", shape="llama-2-13b", model__layers=2, train__dtype="bfloat16", train__batch=1)
    report = simulate(run, granularity=1)
    assert report.train is not None
    assert report.train.weights_trainable_bytes == 2 * report.parameters_total
    assert report.phase_peak_allocated_bytes["load"] < 2.01 * report.parameters_total


# ------------------------------------------------------------------------------ ranks without values
def test_ranks_can_be_given_and_are_used(tmp_path: Path) -> None:
    layer = "model.layers.1.mlp.up_proj"
    report = simulate(run_of("welore", shape="nano"), ranks={"welore": {layer: 5}})
    shape = shape_config("nano")
    norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    assert report.parameters_trainable == 5 * (shape.hidden_size + shape.intermediate_size) + norms
    assert report.ranks == {"welore": "given ranks"}


class KeepsBytes(Method):
    """Stores a frozen parameter of whole numbers, as methods with packed weights do."""

    source = "this test"
    caps = Caps(stages=frozenset({"finetune", "pretrain"}))

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        codes = torch.zeros(1000, dtype=torch.uint8)
        model.register_parameter("codes", nn.Parameter(codes, requires_grad=False))
        return model

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        return AdamWStepper(model, optim)


def test_frozen_parameters_of_whole_numbers_are_weights_without_gradients() -> None:
    packed = simulate(run_of(f"{__name__}:KeepsBytes"), granularity=1)
    plain = simulate(run_of(), granularity=1)
    assert groups(packed)["weights, frozen"] == 1000
    assert packed.peak_allocated_bytes == plain.peak_allocated_bytes + 1000


def test_without_ranks_a_method_says_what_it_assumed() -> None:
    report = simulate(run_of([{"welore": {"train": "none"}}, "adarankgrad"], shape="nano"))
    assert report.ranks["welore"].startswith("published: ")
    assert report.ranks["adarankgrad"].startswith("upper: ")
    other = simulate(run_of("welore", shape="nano"), ranks="power-law")
    assert other.ranks["welore"].startswith("power-law: ")
    assert other.parameters_total != simulate(run_of("welore", shape="nano")).parameters_total


def test_smaller_given_ranks_make_smaller_states() -> None:
    run = run_of({"adarankgrad": {"rank": 16}}, shape="nano")
    names = [name for name, _ in build_empty(run.model, torch.float32).named_modules()]
    upper = simulate(run, granularity=1)
    lower = simulate(run, {"adarankgrad": dict.fromkeys(names, 4)}, granularity=1)
    assert upper.train is not None
    assert lower.train is not None
    assert lower.train.optimizer_bytes < upper.train.optimizer_bytes


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"other": {}}, r"the given ranks are not for welore \(they are for: other\)"),
        ({"welore": {"model.layers.0.mlp.up_proj": 33}}, "the given rank 33 of model.layers.0.mlp.up_proj"),
        ({"welore": {"model.layers.0.mlp.up_proj": 0}}, "the given rank 0 of model.layers.0.mlp.up_proj"),
        ({"welore": {"model.layers.9.mlp.up_proj": 3}}, "the given rank 3 of model.layers.9.mlp.up_proj"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(ranks: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulate(run_of("welore", shape="nano"), ranks)


def test_what_the_run_would_refuse_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="clip"):
        simulate(run_of(shape="nano", train__per_layer=True, train__clip=1.0))
    with pytest.raises(UserError, match="no shape 'nani'; did you mean 'nano'"):
        simulate(run_of(shape="nani"))


# ---------------------------------------------------------------------------------- shapes by size
def test_sizes_replace_those_of_the_named_shape() -> None:
    config = shape_config(ShapeModel(source="shape", name="9m", layers=7, vocab=100, context=99))
    assert (config.num_hidden_layers, config.vocab_size, config.max_position_embeddings) == (7, 100, 99)
    assert config.hidden_size == shape_config("9m").hidden_size


@pytest.mark.parametrize(("heads", "width"), [(3, 128), (128, 128), (4, 130)])
def test_heads_must_divide_the_width_into_even_parts(heads: int, width: int) -> None:
    with pytest.raises(UserError, match=rf"{heads} heads do not divide the width {width} into even parts"):
        shape_config(ShapeModel(source="shape", name="9m", heads=heads, hidden=width))


@pytest.mark.parametrize("size", [0, -4, 1 << 40, 2.5])
def test_absurd_sizes_are_refused(size: float) -> None:
    with pytest.raises(ValueError, match="hidden"):
        ShapeModel.model_validate({"source": "shape", "name": "9m", "hidden": size})


def test_sizes_that_are_not_given_are_no_part_of_an_identity() -> None:
    dumped = ShapeModel(source="shape", name="nano").model_dump(mode="json")
    assert dumped == {"source": "shape", "name": "nano", "tokenizer": None}


# ----------------------------------------------------------------------------------------- spectra
def llama_2_7b(part: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all linears in its blocks, their widths divided by `part`."""
    hidden, inner = 4096 // part, 11008 // part
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(32):
        place = f"model.layers.{block}"
        shapes |= {f"{place}.self_attn.{kind}_proj": (hidden, hidden) for kind in "qkvo"}
        shapes |= {f"{place}.mlp.{kind}_proj": (inner, hidden) for kind in ("gate", "up")}
        shapes[f"{place}.mlp.down_proj"] = (hidden, inner)
    return shapes


@pytest.mark.parametrize(
    ("err", "tau", "ratio"), [(0.3, 0.115, 0.85), (0.5, 0.175, 0.67), (0.6, 0.215, 0.56), (0.7, 0.26, 0.45)]
)
def test_assumed_spectra_nearly_give_what_was_published(err: float, tau: float, ratio: float) -> None:
    """LLaMA-2 7B: thresholds of the fine-tuning script, parameter ratios of v1 table 5."""
    shapes = llama_2_7b(part=8)
    spectra = {name: normalised(like_llama(min(shape), name, shapes)) for name, shape in shapes.items()}
    method = WeLore(WeLoreConfig(err=err))
    found = method.find_tau(shapes, spectra)
    kept = method.components(shapes, spectra, found)
    left = sum(kept[name] * sum(s) if name in kept else s[0] * s[1] for name, s in shapes.items())
    assert found == pytest.approx(tau, abs=0.045)
    assert left / sum(s[0] * s[1] for s in shapes.values()) == pytest.approx(ratio, abs=0.04)


def test_weights_with_a_spectrum_have_the_assumed_spectrum_and_their_own_norm() -> None:
    model: Any = tiny_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    apply_spectrum(model, seed=3)
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][:-1]
    for name in names:
        weight = model.get_submodule(name).weight
        seen = normalised(torch.linalg.svdvals(weight))
        assert seen == pytest.approx(normalised(like_llama(min(weight.shape), name, names)), abs=1e-4)
        assert weight.detach().norm() == pytest.approx(before[f"{name}.weight"].norm().item(), rel=1e-4)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(model.get_parameter(name), before[name])


def test_a_simulated_run_has_the_ranks_of_one_with_a_spectrum() -> None:
    model = ShapeModel(source="shape", name="9m", spectrum="llama")
    real: Any = load_model(model, dtype=torch.float32, device=torch.device("cpu"), seed=0).model
    assert isinstance(real, LlamaForCausalLM)
    build("welore", {}).prepare(real, Context())
    simulated = simulate(run_of("welore", model__spectrum="llama"))
    assert simulated.parameters_total == sum(parameter.numel() for parameter in real.parameters())


def test_a_report_survives_json() -> None:
    report = simulate(run_of(shape="nano"))
    assert MemoryReport.model_validate(json.loads(report.model_dump_json())) == report

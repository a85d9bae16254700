"""Bolaco: its settings, its post-training, and what is exported.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import factored
from harness.config import OptimConfig
from harness.errors import UserError
from harness.factored import FactoredLinear, factor
from harness.method import Context
from harness.plugins import build
from methods.parts.calibration.blocks import walk
from methods.parts.factors.factorisers import Pca
from methods.parts.layers.scaled_factors import ScaledFactors
from methods.parts.targets import LINEAR_KINDS, kind_of, target_linears
from tests.support.tiny import TinyText, logits, tiny_llama, train

QUICK: dict[str, Any] = {"allocator": {"type": "bayes", "evaluations": 3}, "multiple": 1}
SCALES: dict[str, Any] = {**QUICK, "train": "scales", "start": 1.0}


def prepared(**options: Any) -> tuple[Any, Any, Context]:
    context, method = Context(seed=1, calibration=TinyText()), build("bolaco", {**QUICK, **options})
    return method.prepare(tiny_llama(), context), method, context


def scaled(model: Any) -> dict[str, ScaledFactors]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, ScaledFactors)}


def test_the_papers_settings_are_the_defaults() -> None:
    config = build("bolaco", {}).config
    assert config.allocator.model_dump() == {
        "type": "bayes",
        "groups": 1,
        "dense": ("v_proj",),
        "range": (0.2, 1.001),
        "evaluations": 50,
        "initial": 3,
        "divergence": 4.096,
        "windows": None,
    }
    assert config.factoriser == Pca(groups=1)
    assert (config.reduction, config.multiple, config.train) == (0.2, 8, "none")
    assert (config.rank, config.rows, config.start) == (256, "leading", 0.1)


def test_14_the_model_is_within_its_budget_and_v_is_dense() -> None:
    model, _, context = prepared(multiple=2)
    assert context.facts["measured_reduction"]["linears"] >= 0.2
    assert {kind_of(name) for name in context.ranks} <= set(LINEAR_KINDS) - {"v_proj"}
    assert all(rank % 2 == 0 for rank in context.ranks.values())
    plain = tiny_llama()
    for name, layer in target_linears(model, ("v_proj",)).items():
        assert torch.equal(layer.weight, plain.get_submodule(name).weight)  # type: ignore[arg-type]


def test_12_groups_of_the_factoriser_reach_the_statistics() -> None:
    """Factors by pooled covariances are those of groups of sequences that a loop makes."""
    options = {"allocator": "uniform", "damping": 0.0}
    model, _, context = prepared(factoriser={"type": "pca", "groups": 4}, **options)
    naive, _, _ = prepared(factoriser="pca", **options)
    name = "model.layers.0.self_attn.o_proj"
    caught = []
    plain = tiny_llama().eval()
    layer = plain.get_submodule(name)
    layer.register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0].detach().flatten(0, 1).double())
    )
    with torch.no_grad():
        for ids, _ in TinyText().batches():
            plain(input_ids=ids)
    assert len(caught) == 4  # batches of two sequences, as the groups of two of eight
    weight = layer.weight.detach().double()
    pooled = sum(torch.cov((part @ weight.T).T, correction=0) for part in caught) / 4
    directions = torch.linalg.eigh(pooled).eigenvectors.flip(1)[:, : context.ranks[name]]
    found = model.get_submodule(name)
    product = found.up.weight.double() @ found.down.weight.double()
    assert torch.allclose(product, directions @ directions.T @ weight, atol=1e-5)
    other = naive.get_submodule(name)
    assert not torch.allclose(product, other.up.weight.double() @ other.down.weight.double(), atol=1e-3)


@pytest.mark.parametrize("rows", ["leading", "random"])
def test_17_post_training_starts_exactly_and_trains_the_scales_alone(rows: str) -> None:
    plain, _, _ = prepared()
    model, _, context = prepared(train="scales", rank=5, rows=rows)
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)
    layers = scaled(model)
    assert set(layers) == set(context.ranks)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = {f"{name}.{which}" for name in layers for which in ("outputs", "inner")}
    assert set(trained) == wanted
    assert all(p.abs().max() == 0 for name, p in trained.items() if name.endswith("outputs"))
    inner = [p for name, p in trained.items() if name.endswith("inner")]
    assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in inner)
    count = sum(p.numel() for p in trained.values())
    assert count == context.facts["scales"]
    shapes = {name: layer.weight.shape for name, layer in target_linears(tiny_llama(), LINEAR_KINDS).items()}
    assert count == sum(shapes[name][0] + min(5, rank) for name, rank in context.ranks.items())


def test_17_the_layer_computes_equation_9_and_folds_into_factors_of_the_same_rank() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dense = torch.nn.Linear(7, 9).double()
    up, down, offset, x = drawn(9, 5), drawn(5, 7), drawn(9), drawn(4, 7)
    layer = ScaledFactors(factor(dense, up, down, offset), 3, 0.1)
    with torch.no_grad():
        layer.outputs.copy_(drawn(9))
        layer.inner.copy_(drawn(3))
    b, d = torch.diag(layer.outputs), torch.diag(layer.inner)
    whole = up @ down + b @ up[:, :3] @ d @ down[:3]
    wanted = x @ whole.T + offset + dense.bias
    assert torch.allclose(layer(x), wanted)
    assert torch.allclose(layer.merged()(x), wanted)
    layer = ScaledFactors(factor(dense, up, down, offset), 3, 0.1)
    with torch.no_grad():
        layer.outputs.fill_(0.5)
    before = layer(x)
    plain = layer.folded()
    assert type(plain) is FactoredLinear
    assert plain.rank == 5
    assert torch.allclose(plain(x), before)


@pytest.mark.parametrize("rows", ["leading", "random"])
def test_what_is_exported_says_what_was_trained_at_the_same_ranks(rows: str) -> None:
    model, method, context = prepared(**{**SCALES, "rows": rows, "rank": 6})
    started = logits(model)
    train(model, method.stepper(model, OptimConfig(lr=1e-2)), 0, 5)
    wanted = logits(model)
    assert not torch.allclose(wanted, started, atol=1e-2)
    exported = method.export(model)
    assert not scaled(exported)
    assert factored.ranks(exported) == context.ranks
    assert torch.allclose(logits(exported), wanted, atol=1e-4)


def test_random_rows_follow_the_seed_and_the_name() -> None:
    inner = []
    for rows in ("leading", "random", "random"):
        model, _, _ = prepared(**{**SCALES, "rows": rows, "rank": 4})
        inner.append([layer.down.weight.clone() for layer in scaled(model).values()])
    leading, first, second = inner
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for one, other in zip(leading, first, strict=True):
        assert not torch.equal(one, other)
        assert torch.equal(one.sum(1).sort().values, other.sum(1).sort().values)


def test_the_stepper_is_of_what_trains() -> None:
    for train_what, wanted in (("none", None), ("lrc", 1), ("scales", 1)):
        model, method, _ = prepared(train=train_what)
        stepper = method.stepper(model, OptimConfig())
        assert (stepper is None) == (wanted is None)
    assert build("bolaco", SCALES).caps.own_updates
    assert not build("bolaco", QUICK).caps.own_updates


def test_more_groups_than_sequences_and_options_without_an_effect_are_refused() -> None:
    with pytest.raises(UserError, match=r"^9 groups of sequences cannot be made of 8; ask for fewer groups$"):
        prepared(factoriser={"type": "pca", "groups": 9}, allocator="uniform")
    with pytest.raises(UserError, match=r"`rank`, `rows` and `start` matter only with `train: scales`"):
        build("bolaco", {"rank": 64})


def test_completed_options_are_the_same_method() -> None:
    for options in ({}, SCALES):
        method = build("bolaco", options)
        assert build("bolaco", method.config.model_dump(mode="json")).config == method.config


def test_the_walk_closes_no_groups_by_default() -> None:
    model = tiny_llama()
    for block in walk(model, target_linears(model, LINEAR_KINDS), TinyText().batches()):
        assert not any(sums.closed for sums in block.values())

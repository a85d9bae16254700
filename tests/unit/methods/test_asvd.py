"""ASVD: its settings, and what becomes of a model.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

from math import prod

import pytest
import torch

from harness.errors import UserError
from harness.factored import FactoredLinear
from harness.method import Context, Simulated
from harness.plugins import build
from methods.parts.targets import LINEAR_KINDS, shapes_of, target_linears
from tests.support.tiny import TinyText, tiny_llama


def prepared(context: Context | None = None, **options: object) -> tuple[torch.nn.Module, Context]:
    context = context or Context(seed=1, calibration=TinyText())
    model = build("asvd", options).prepare(tiny_llama(kv_heads=2), context)
    return model, context


def test_the_papers_settings_are_the_defaults() -> None:
    config = build("asvd", {}).config
    assert config.allocator.model_dump() == {
        "type": "strs",
        "candidates": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "metric": "perplexity",
        "sequences": None,
    }
    assert config.factoriser.model_dump() == {"type": "asvd", "alpha": 0.5}
    assert (config.reduction, config.counted, config.multiple) == (0.2, "linears", 1)


def test_26_the_model_meets_its_reduction_and_keeps_its_output_head() -> None:
    before = shapes_of(target_linears(tiny_llama(kv_heads=2), LINEAR_KINDS))
    model, context = prepared()
    left = sum(layer.weight.numel() for layer in target_linears(model, LINEAR_KINDS).values())
    whole = sum(map(prod, before.values()))
    assert 0 <= 0.8 * whole - left < 80 + 32  # less than a rank of the largest matrix
    assert torch.equal(model.lm_head.weight, tiny_llama(kv_heads=2).lm_head.weight)  # type: ignore[union-attr]
    assert context.facts["evaluations"] == 14 * 6
    assert context.facts["measured_reduction"]["linears"] == pytest.approx(1 - left / whole)


def test_26_dense_layers_are_untouched_and_two_runs_give_one_model() -> None:
    (model, context), (again, _) = (prepared(reduction=0.1) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    plain = tiny_llama(kv_heads=2)
    dense = [name for name in target_linears(plain, LINEAR_KINDS) if name not in context.ranks]
    assert dense
    for name in dense:
        assert torch.equal(model.get_submodule(name).weight, plain.get_submodule(name).weight)  # type: ignore[arg-type]
    for name, rank in context.ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, FactoredLinear)
        assert layer.rank == rank


def test_the_factoriser_weights_the_search_as_it_weights_the_result() -> None:
    """With features of very different sizes the search by plain decompositions finds other ranks."""
    _, weighted = prepared(factoriser={"type": "asvd", "alpha": 2})
    _, plain = prepared(factoriser="svd")
    assert weighted.ranks != plain.ranks


def test_a_simulation_takes_equal_shares() -> None:
    _, context = prepared(Context(seed=1, simulated=Simulated()))
    _, uniform = prepared(Context(seed=1, calibration=TinyText()), allocator="uniform")
    assert context.ranks == uniform.ranks


def test_without_text_or_with_candidates_that_are_too_large_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"^strs: this needs calibration text, and the run has none$"):
        prepared(Context())
    allocator = {"type": "strs", "candidates": [0.9], "metric": "stable_rank"}
    with pytest.raises(UserError, match=r"^strs: the smallest candidates take away 1.*for 20\.0%; add"):
        prepared(allocator=allocator)

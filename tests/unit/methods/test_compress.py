"""Compression by pairs: what is recorded is what the model then has, and what cannot be met is said."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from harness.method import Context
from harness.plugins import build
from methods.parts.targets import LINEAR_KINDS, target_linears
from tests.support.tiny import TinyText, tiny_llama

FACTORISERS = ("svd", "asvd", "awsvd", "whiten", "pca")


def compressed(model: nn.Module, **options: Any) -> tuple[nn.Module, Context]:
    context = Context(seed=0, calibration=TinyText())
    return build("compress", options).prepare(model, context), context


def count(model: nn.Module) -> int:
    """Parameters of the module tree, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def targets(model: nn.Module) -> int:
    """Parameters of all that stands in place of the targets."""
    return count(model) - sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not any(f".{kind}." in name for kind in LINEAR_KINDS)
    )


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("counted", ["linears", "all"])
@pytest.mark.parametrize("factoriser", FACTORISERS)
def test_31_the_measured_reduction_is_that_of_the_module_tree(
    factoriser: str, counted: str, tie: bool
) -> None:
    model = tiny_llama(kv_heads=2, tie=tie)
    before, linears = count(model), targets(model)
    assert linears == sum(layer.weight.numel() for layer in target_linears(model, LINEAR_KINDS).values())
    model, context = compressed(model, factoriser=factoriser, counted=counted, reduction=0.2)
    measured = context.facts["measured_reduction"]
    assert measured["all"] == pytest.approx(1 - count(model) / before)
    assert measured["linears"] == pytest.approx(1 - targets(model) / linears)
    assert 0.2 <= measured[counted] < 0.23
    assert context.facts["parameter_ratio"] == pytest.approx(1 - measured["all"])
    assert context.facts["parameter_ratio_targets"] == pytest.approx(1 - measured["linears"])
    assert not [text for text in context.warnings if "the target was" in text]


@pytest.mark.parametrize(
    "options", [{"reduction": 0.999}, {"reduction": 0.6, "multiple": 16}, {"multiple": 64}]
)
def test_a_target_that_ranks_cannot_meet_is_said(options: dict[str, Any]) -> None:
    _, context = compressed(tiny_llama(), factoriser="svd", **options)
    reached, target = context.facts["measured_reduction"]["linears"], options.get("reduction", 0.2)
    assert reached < target
    (said,) = context.warnings
    assert said.startswith(f"compress: {reached:.4f} of linears went, and the target was {target:.4f}")


def test_factors_that_are_larger_than_what_they_replace_are_said() -> None:
    model = tiny_llama()
    before = count(model)
    model, context = compressed(model, factoriser="svd", counted="ranks", reduction=0.1)
    assert count(model) > before
    (said,) = context.warnings
    assert said.startswith("compress: the factors have more parameters than the matrices that they replace")

"""Compression by pairs: what is recorded is what the model then has, and what cannot be met is said."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from harness.errors import UserError
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
    multiple = options.get("multiple", 1)
    went = f"compress: {reached:.4f} of linears went, and the target was {target:.4f}"
    assert said == f"{went}; the lowest rank is {multiple}"


def test_ranks_that_take_more_than_the_target_are_said_without_a_reason() -> None:
    allocator = {"type": "per_type", "ranks": dict.fromkeys(LINEAR_KINDS, 2)}
    _, context = compressed(tiny_llama(), factoriser="svd", allocator=allocator)
    reached = context.facts["measured_reduction"]["linears"]
    assert context.warnings == [f"compress: {reached:.4f} of linears went, and the target was 0.2000"]


def test_factors_that_are_larger_than_what_they_replace_are_said() -> None:
    model = tiny_llama()
    before = count(model)
    model, context = compressed(model, factoriser="svd", counted="ranks", reduction=0.1)
    assert count(model) > before
    (said,) = context.warnings
    assert said.startswith("compress: the factors have more parameters than the matrices that they replace")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factoriser": "svd", "damping": 0.1}, "`damping` is of second moments, which svd does not read"),
        ({"factoriser": "asvd", "damping": 0.1}, "`damping` is of second moments, which asvd does not read"),
        ({"factoriser": "svd", "sequential": True}, "`sequential` is about text, which svd does not read"),
        ({"factoriser": "svd", "place": "host"}, "`place` is about text, which svd does not read"),
        (
            {"allocator": {"type": "strs", "metric": "stable_rank", "sequences": 3}},
            "`sequences` are of text, which `metric: stable_rank` does not read",
        ),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"{said}; leave it out$"):
        build("compress", options)


def test_options_about_text_are_taken_where_text_is_read_for_the_errors_alone() -> None:
    build("compress", {"factoriser": "svd", "errors": True, "sequential": True, "place": "host"})


def test_whether_text_is_read_follows_from_all_options() -> None:
    by_rank = {"type": "strs", "metric": "stable_rank"}
    assert not build("compress", {"factoriser": "svd", "allocator": by_rank}).caps.reads_text
    for options in ({"allocator": by_rank}, {"factoriser": "svd", "allocator": "owl"}, {"errors": True}):
        assert build("compress", options).caps.reads_text


@pytest.mark.parametrize("kind", ["lm_head", "embed_tokens", ""])
@pytest.mark.parametrize("tie", [False, True])
def test_what_is_never_a_target_is_refused_as_such(kind: str, tie: bool) -> None:
    method = build("compress", {"targets": [kind]})
    with pytest.raises(UserError, match=f"the model has no linear layer '{kind}'; "):
        method.prepare(tiny_llama(tie=tie), Context(calibration=TinyText()))

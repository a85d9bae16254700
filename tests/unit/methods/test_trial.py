"""Trying rank maps: what is evaluated is the model as it would be compressed, and the model stays.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.factored import factor, merge
from harness.method import Batch, Context
from methods.parts.allocation.allocator import Problem
from methods.parts.allocation.budget import Budget, Counted
from methods.parts.allocation.trial import Trial
from methods.parts.calibration.blocks import walk
from methods.parts.factors.decompositions import Decomposing
from methods.parts.factors.factorisers import Asvd, Factoriser, Pca, Svd, Whiten
from methods.parts.factors.method import parameters
from methods.parts.targets import LINEAR_KINDS, shapes_of, target_linears
from tests.support.tiny import TinyText, tiny_batch, tiny_llama

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def problem(model: Any = None, factoriser: Factoriser | None = None, counted: Counted = "linears") -> Problem:
    model = tiny_llama().double() if model is None else model
    layers, chosen = target_linears(model, LINEAR_KINDS), factoriser or Pca()
    budget = Budget(shapes_of(layers), parameters(model), 0.3, counted)
    context = Context(seed=1, calibration=TinyText())
    return Problem(model, layers, budget, Decomposing(chosen, damping=0), context)


def padded() -> list[Batch]:
    """Windows of text, the second row of each batch with padding."""
    found = []
    for step in (50, 51):
        ids = tiny_batch(step)
        labels = ids.clone()
        labels[1, 7:] = -100
        found.append(Batch(ids, labels))
    return found


def compressed(task: Problem, ranks: dict[str, int]) -> Any:
    """A copy of the model, factored by decompositions of these very ranks."""
    model = copy.deepcopy(task.model)
    layers = target_linears(model, LINEAR_KINDS)
    for found in walk(task.model, task.layers, TinyText().batches()):
        for name in found.keys() & ranks.keys():
            made = task.decomposing.factoriser.decompose(layers[name].weight, found[name], ranks[name])
            factors = made.factors(ranks[name])
            model.set_submodule(name, factor(layers[name], factors.up, factors.down, factors.offset))
    return model


@torch.no_grad()
def distributions(model: Any, batch: Batch) -> Iterator[tuple[int, Tensor, int]]:
    """The row, the log-probabilities and the token of every prediction that counts."""
    model.eval()
    for row, (ids, labels) in enumerate(zip(batch.ids, batch.labels, strict=True)):
        logits = model(input_ids=ids[None]).logits[0].double()
        for place in range(len(ids) - 1):
            if labels[place + 1] >= 0:
                yield row, logits[place] - logits[place].logsumexp(0), int(labels[place + 1])


def losses_of(model: Any, batches: list[Batch]) -> list[float]:
    return [-float(logs[token]) for batch in batches for _, logs, token in distributions(model, batch)]


@pytest.mark.parametrize("factoriser", [Svd(), Asvd(), Whiten(), Pca()], ids=lambda each: each.type)
def test_15_slices_of_one_decomposition_are_the_model_that_each_rank_map_makes(
    factoriser: Factoriser,
) -> None:
    task = problem(factoriser=factoriser)
    trial = Trial(task)
    for ranks in ({Q: 3}, {Q: 9, UP: 14}, dict.fromkeys(task.layers, 5)):
        wanted = losses_of(compressed(task, ranks), padded())
        found = trial.evaluate(ranks, padded())
        assert found.perplexity == pytest.approx(math.exp(sum(wanted) / len(wanted)), rel=1e-9)


def test_perplexities_are_those_of_a_loop_over_predictions_without_padding() -> None:
    task = problem()
    found = Trial(task).evaluate({UP: 4}, padded())
    model = compressed(task, {UP: 4})
    rows: list[list[float]] = []
    for batch in padded():
        said = list(distributions(model, batch))
        rows += [[-float(logs[token]) for row, logs, token in said if row == which] for which in (0, 1)]
    assert [len(row) for row in rows] == [11, 6, 11, 6] == found.tokens.tolist()
    assert found.losses.tolist() == pytest.approx([sum(row) for row in rows])
    assert found.perplexities.tolist() == pytest.approx([math.exp(sum(row) / len(row)) for row in rows])
    assert found.divergences is None


def test_the_divergence_is_that_of_the_uncompressed_model_from_the_compressed_one() -> None:
    """KL(compressed, uncompressed): the expectation is over what the compressed model says."""
    task, ranks = problem(), {Q: 2, UP: 3}
    ours, theirs = compressed(task, ranks), copy.deepcopy(task.model)
    forward, backward = [], []
    for batch in padded():
        pairs = zip(distributions(ours, batch), distributions(theirs, batch), strict=True)
        for (_, after, _), (_, before, _) in pairs:
            both = list(zip(after.tolist(), before.tolist(), strict=True))
            forward.append(sum(math.exp(p) * (p - q) for p, q in both))
            backward.append(sum(math.exp(q) * (q - p) for p, q in both))
    found = Trial(task).evaluate(ranks, padded(), divergence=True).divergence
    assert found == pytest.approx(sum(forward) / len(forward), rel=1e-8)
    assert found != pytest.approx(sum(backward) / len(backward), rel=1e-3)


def test_16_the_uncompressed_model_diverges_by_nothing_and_every_other_by_more() -> None:
    task = problem()
    trial = Trial(task)
    dense = trial.evaluate({}, padded(), divergence=True)
    wanted = losses_of(task.model, padded())
    assert dense.divergence == 0
    assert dense.perplexity == pytest.approx(math.exp(sum(wanted) / len(wanted)), rel=1e-12)
    for rank in (1, 6, 15):
        assert trial.evaluate(dict.fromkeys(task.layers, rank), padded(), divergence=True).divergence > 0


class StoppedError(Exception):
    """The text ends in an error."""


@pytest.mark.parametrize("stops", [False, True], ids=["", "stopped by an error"])
def test_the_model_is_the_same_afterwards_to_the_bit(stops: bool) -> None:
    model = tiny_llama()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.requires_grad_(False)
    task = problem(model)
    modules, modes = dict(model.named_modules()), {m: m.training for m in model.modules()}
    weights = {name: (p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}

    def text() -> Iterator[Batch]:
        yield from padded()
        if stops:
            raise StoppedError

    trial = Trial(task)
    modes_after_walk = {m: m.training for m in model.modules()}
    try:
        trial.evaluate(dict.fromkeys(task.layers, 3), text(), divergence=True)
    except StoppedError:
        assert stops
    assert list(model.named_modules()) == list(modules.items())
    assert {m: m.training for m in model.modules()} == modes_after_walk
    assert modes.keys() == modes_after_walk.keys()
    for name, parameter in model.named_parameters():
        same, values, trained = weights[name]
        assert parameter is same
        assert parameter.requires_grad == trained
        assert torch.equal(parameter, values)


def test_what_is_held_is_at_least_float32_and_ends_where_factors_cost_as_much_as_the_layer() -> None:
    for dtype, held in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        trial = Trial(problem(tiny_llama().to(dtype)))
        assert {found.directions.dtype for found in trial.decompositions.values()} == {held}
        assert trial.decompositions[Q].directions.shape == (32, 15)  # 16 (32 + 32) = 32 x 32
        assert trial.decompositions[UP].directions.shape == (80, 22)  # 22 (80 + 32) < 80 x 32 < 23 (80 + 32)
    with pytest.raises(ValueError, match=r"^rank 16 of .*q_proj: decomposed up to 15$"):
        trial.evaluate({Q: 16}, padded())
    by_ranks = Trial(problem(counted="ranks"), [Q])
    assert by_ranks.decompositions.keys() == {Q}
    assert by_ranks.decompositions[Q].directions.shape == (32, 31)


def test_a_loss_that_is_not_finite_is_an_infinite_perplexity() -> None:
    task = problem()
    trial = Trial(task)
    with torch.no_grad():
        task.model.lm_head.weight[0] = float("nan")  # type: ignore[union-attr, operator]
    found = trial.evaluate({Q: 3}, padded(), divergence=True)
    assert found.perplexity == found.divergence == math.inf


def test_biases_that_components_bring_take_part() -> None:
    """A merged copy with the same factors says the same; without the offsets it would not."""
    task, ranks = problem(), dict.fromkeys(problem().layers, 2)
    whole = losses_of(merge(compressed(task, ranks)), padded())
    found = Trial(task).evaluate(ranks, padded()).perplexity
    assert found == pytest.approx(math.exp(sum(whole) / len(whole)))

"""Allocators that search by evaluating candidates: `strs` and `bayes`.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.errors import UserError
from harness.method import Batch, Context
from methods.parts.allocation.allocator import Problem
from methods.parts.allocation.bayes import Bayes, Space, telling
from methods.parts.allocation.budget import Budget, Counted
from methods.parts.allocation.optimisation import Band, minimise
from methods.parts.allocation.strs import Harms, Strs, at_shares, search
from methods.parts.allocation.trial import Trial
from methods.parts.allocation.uniform import Uniform
from methods.parts.factors.decompositions import Decomposing
from methods.parts.factors.factorisers import Svd
from methods.parts.factors.method import parameters
from methods.parts.targets import LINEAR_KINDS, kind_of, shapes_of, target_linears
from tests.support.tiny import TinyText, tiny_llama

SHAPES = {"q": (64, 64), "k": (16, 64), "up": (160, 64), "down": (64, 160)}
CANDIDATES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def problem(
    reduction: float = 0.3,
    counted: Counted = "linears",
    multiple: int = 1,
    text: Any = None,
    seed: int = 1,
    **shape: Any,
) -> Problem:
    """A tiny model whose layers are decomposed without text, and text to search on."""
    model = tiny_llama(**shape)
    layers = target_linears(model, LINEAR_KINDS)
    budget = Budget(shapes_of(layers), parameters(model), reduction, counted, multiple)
    context = Context(seed=seed, calibration=TinyText() if text is None else text)
    return Problem(model, layers, budget, Decomposing(Svd()), context)


def cost(ranks: Mapping[str, int], budget: Budget) -> int:
    """Parameters, or ranks, of all matrices, by a loop."""
    found = 0
    for name, shape in budget.shapes.items():
        if budget.counted == "ranks":
            found += ranks.get(name, min(shape))
        else:
            found += ranks[name] * sum(shape) if name in ranks else prod(shape)
    return found


def random_harms(seed: int) -> Harms:
    """Harm that mostly falls with the share, as perplexities do."""
    draw = random.Random(seed)
    return {(name, share): 10 + draw.random() / share for name in SHAPES for share in CANDIDATES}


def of_cut(harms: Harms, cut: int) -> dict[str, float]:
    """The smallest share of each matrix that is allowed when the `cut` most harmful pairs are not."""
    allowed = sorted(harms, key=lambda pair: harms[pair], reverse=True)[cut:]
    return {
        name: min(share for other, share in allowed if other == name)
        for name in SHAPES
        if any(other == name for other, _ in allowed)
    }


# ------------------------------------------------------------------------------------------------ strs
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reduction", [0.05, 0.2, 0.35, 0.55])
def test_26_the_search_ends_within_one_step_of_the_target_on_the_side_that_was_asked_for(
    seed: int, reduction: float
) -> None:
    """The cut is the last of all whose ranks meet the budget, by trying every one."""
    harms, budget = random_harms(seed), Budget(SHAPES, 50_000, reduction)
    costs = [cost(at_shares(of_cut(harms, cut), budget), budget) for cut in range(len(harms) + 1)]
    assert costs == sorted(costs)
    shares, cut = search(harms, budget)
    assert cut == max(number for number, each in enumerate(costs) if each <= budget.target)
    assert shares == of_cut(harms, cut)
    assert cost(at_shares(shares, budget), budget) <= budget.target < costs[cut + 1]
    changed = [name for name in SHAPES if shares.get(name) != of_cut(harms, cut + 1).get(name)]
    assert len(changed) == 1
    assert (shares, cut) == search(dict(reversed(harms.items())), budget)


def test_27_equal_harms_give_equal_shares_and_an_infinite_one_a_dense_matrix() -> None:
    budget = Budget(SHAPES, 50_000, 0.33)
    equal = {(name, share): 7.0 for name in SHAPES for share in CANDIDATES}
    shares, _ = search(equal, budget)
    assert shares == dict.fromkeys(SHAPES, 0.6)
    for bad in (math.inf, math.nan):
        spoilt = equal | {("k", share): bad for share in CANDIDATES}
        assert search(spoilt, budget)[0] == dict.fromkeys(("q", "up", "down"), 0.6)


def told(harms: Harms) -> Strs:
    """A search by harms that are given instead of measured."""

    class Told(Strs):
        def _perplexities(self, problem: Problem) -> Harms:
            return harms

    return Told()


def test_27_equal_harms_end_in_the_uniform_ranks_and_dense_matrices_stay_dense() -> None:
    task = problem(0.33)
    equal = {(name, share): 7.0 for name in task.shapes for share in CANDIDATES}
    assert told(equal).allocate(task) == Uniform().allocate(task)
    first, *others = task.shapes
    spoilt = equal | {(first, share): math.inf for share in CANDIDATES}
    assert list(told(spoilt).allocate(task)) == others


@pytest.mark.parametrize("reduction", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("counted", ["linears", "all", "ranks"])
def test_the_last_step_meets_the_budget_exactly_and_keeps_dense_what_was_dense(
    counted: Counted, reduction: float
) -> None:
    task = problem(reduction, counted)
    draw = random.Random(3)
    harms = {(name, share): draw.random() for name in task.shapes for share in CANDIDATES}
    ranks, raw = told(harms).allocate(task), search(harms, task.budget)[0]
    largest = max(map(task.budget.unit, task.shapes))
    assert cost(ranks, task.budget) <= task.budget.target < cost(ranks, task.budget) + largest
    assert ranks.keys() <= raw.keys()
    assert all(rank >= at_shares(raw, task.budget)[name] for name, rank in ranks.items())
    facts = task.context.facts
    assert facts["searched_cost"] <= facts["budgeted_cost"] <= task.budget.target


def test_a_dense_matrix_stays_dense_where_the_search_meets_the_budget_by_rounding_alone() -> None:
    """Exact shares cost more than the rounded ranks, which are the whole budget: shares shrink a little."""
    task = problem(0.3)
    draw = random.Random(3)
    harms = {(name, share): draw.random() for name in task.shapes for share in CANDIDATES}
    harms |= {(name, share): math.inf for name in list(task.shapes)[::3] for share in CANDIDATES}
    shares, _ = search(harms, task.budget)
    spent = cost(at_shares(shares, task.budget), task.budget)
    tight = problem(1 - (spent + 0.5) / task.budget.whole_model)
    assert search(harms, tight.budget)[0] == shares
    ranks = told(harms).allocate(tight)
    assert ranks.keys() <= shares.keys()
    assert cost(ranks, tight.budget) <= tight.budget.target


def test_harm_is_the_perplexity_with_one_matrix_factored_and_all_others_dense() -> None:
    task = problem(0.3)
    found = Strs(candidates=(0.9, 0.5), sequences=4)._perplexities(task)
    assert set(found) == {(name, share) for name in task.layers for share in (0.5, 0.9)}
    assert not any("lm_head" in name for name, _ in found)
    assert task.context.facts["evaluations"] == 14 * 2
    name, layer = list(task.layers.items())[5]
    for share in (0.5, 0.9):
        model = tiny_llama()
        out, inputs = layer.weight.shape
        rank = int(share * out * inputs / (out + inputs))
        u, s, vh = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        with torch.no_grad():
            model.get_submodule(name).weight.copy_((u[:, :rank] * s[:rank]) @ vh[:rank])  # type: ignore[union-attr, operator]
            losses = [model(input_ids=ids, labels=labels).loss for ids, labels in TinyText().batches(4)]
        wanted = float(torch.stack(losses).double().mean().exp())
        assert found[name, share] == pytest.approx(wanted, rel=1e-5)


def test_stable_ranks_need_no_text() -> None:
    task = problem(0.3)
    task.context.calibration = None
    found = Strs(metric="stable_rank")._stable_ranks(task)
    for name, layer in task.layers.items():
        weight = layer.weight.detach().double()
        stable = float(weight.square().sum() / torch.linalg.matrix_norm(weight, 2) ** 2)
        for share in CANDIDATES:
            assert found[name, share] == pytest.approx(-math.sqrt(stable) * share**0.1, rel=1e-5)
    assert cost(Strs(metric="stable_rank").allocate(task), task.budget) <= task.budget.target
    assert task.context.facts["evaluations"] == 0


def test_a_search_by_perplexity_repeats_and_meets_the_budget() -> None:
    options = Strs(candidates=(0.5, 0.8))
    first, second = (options.allocate(task := problem(0.3)) for _ in range(2))
    assert first == second
    assert 0.3 <= task.budget.measured(first)["linears"] < 0.3 + 112 / task.budget.whole_model


@pytest.mark.parametrize(
    ("options", "reduction", "said"),
    [
        (
            {"candidates": (0.6, 0.9), "metric": "stable_rank"},
            0.5,
            "^strs: the smallest candidates take",
        ),
        ({}, 0.3, "^strs: this needs calibration text, and the run has none$"),
    ],
)
def test_strs_refuses_what_cannot_work(options: dict[str, Any], reduction: float, said: str) -> None:
    task = problem(reduction)
    task.context.calibration = None
    with pytest.raises(UserError, match=said):
        Strs(**options).allocate(task)


# ----------------------------------------------------------------------------------------------- bayes
@pytest.mark.parametrize("reduction", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("counted", ["linears", "all", "ranks"])
@pytest.mark.parametrize("options", [{}, {"groups": 3, "dense": ()}, {"groups": 2, "range": (0.3, 1.2)}])
@pytest.mark.parametrize("multiple", [1, 4])
def test_14_every_candidate_is_within_the_budget_after_rounding(
    reduction: float, counted: Counted, options: dict[str, Any], multiple: int
) -> None:
    task = problem(reduction, counted, multiple, layers=3, kv_heads=2)
    space = Space.of(task, Bayes(**options))
    points = space.sample(60, np.random.default_rng(0))
    assert len(points) == 60
    assert points.std(0).min() > 0.02
    for point in points:
        ranks = space.ranks(point)
        assert cost(ranks, task.budget) <= task.budget.target
        assert all(rank % multiple == 0 for rank in ranks.values())
        shares = space.shares(point)
        exact = sum(min(1, shares[name]) * task.budget.whole(name) for name in task.shapes)
        assert task.budget.target - 0.1 * task.budget.whole_model - 1e-6 <= exact <= task.budget.target + 1e-6


def test_14_candidates_whose_least_ranks_cost_more_than_the_budget_are_not_accepted() -> None:
    """A rank of 8 is half of a matrix (32, 32), so a share of 0.2 is rounded up to 0.5."""
    task, generator = problem(0.5, multiple=8), np.random.default_rng(0)
    space = Space.of(task, Bayes())
    drawn = space.band.sample(200, generator)
    fits = [cost(space.ranks(point), task.budget) <= task.budget.target for point in drawn]
    assert 0 < sum(fits) < 200
    assert space.holds(drawn).tolist() == fits
    for point in space.sample(100, generator):
        assert cost(space.ranks(point), task.budget) <= task.budget.target


def test_14_a_share_of_one_and_more_leaves_a_matrix_dense() -> None:
    task = problem(0.2)
    space = Space.of(task, Bayes())
    point = np.full(5, 0.5)
    point[[kind for _, kind in space.variables].index("up_proj")] = 1.0
    ranks = space.ranks(point)
    assert {kind_of(name) for name in ranks} == set(LINEAR_KINDS) - {"v_proj", "up_proj"}
    assert {rank for name, rank in ranks.items() if kind_of(name) == "o_proj"} == {8}  # 0.5 x 32 / 2


def test_variables_are_kinds_by_groups_of_consecutive_blocks_with_q_and_k_tied() -> None:
    space = Space.of(problem(layers=4), Bayes(groups=2, dense=("v_proj", "down_proj")))
    found = {
        key: [(name.split(".")[2], kind_of(name)) for name in names] for key, names in space.variables.items()
    }
    for group, blocks in enumerate((("0", "1"), ("2", "3"))):
        assert found.pop((group, "qk")) == [
            (block, kind) for block in blocks for kind in ("q_proj", "k_proj")
        ]
        for kind in ("o_proj", "gate_proj", "up_proj"):
            assert found.pop((group, kind)) == [(block, kind) for block in blocks]
    assert not found
    assert space.lengths == [1.0, 1.0, 0.8, 0.8] * 2


def test_the_costs_of_variables_are_those_of_the_paper_on_its_shapes() -> None:
    """2.6875 (gate + up + down) + 2 qk + 1 + o, in units of 4096^2, of 12.0625 a block (the paper's code)."""
    with torch.device("meta"):
        model = torch.nn.Module()
    shapes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096))
    shapes |= {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
    layers = {f"layers.0.{kind}": torch.nn.Linear(n, m, device="meta") for kind, (m, n) in shapes.items()}
    block = torch.nn.ModuleDict({kind: layers[f"layers.0.{kind}"] for kind in shapes})
    model.layers = torch.nn.ModuleList([block])
    model.config = tiny_llama(layers=1).config  # type: ignore[assignment]
    budget = Budget(shapes_of(layers), 10**9, 0.2)
    band = Space.of(Problem(model, layers, budget, Decomposing(Svd()), Context()), Bayes()).band
    assert (band.costs / 4096**2).tolist() == [2, 1, 2.6875, 2.6875, 2.6875]
    assert band.fixed / 4096**2 == 1
    assert band.most / 4096**2 == pytest.approx(0.8 * 12.0625)
    assert band.least / 4096**2 == pytest.approx(0.7 * 12.0625)


def toy(seed: int, variables: int = 5) -> tuple[Band, Any]:
    """A quadratic function with its minimum inside a band."""
    costs = np.linspace(1, 2.7, variables)
    band = Band(0.2, 1.001, costs, 0.7 * costs.sum(), 0.8 * costs.sum())
    centre, weights = band.sample(1, np.random.default_rng(seed + 100))[0], np.linspace(1, 3, variables)
    return band, lambda point: float((weights * (point - centre) ** 2).sum())


def minimised(seed: int, objective: Any = None, evaluations: int = 25) -> Any:
    band, quadratic = toy(seed)
    generator = np.random.default_rng(seed)
    return minimise(
        objective or quadratic,
        lambda count: band.sample(count, generator),
        band.holds,
        (0.2, 1.001),
        [1.0] * 5,
        evaluations,
        3,
        generator,
    )


@pytest.mark.parametrize("seed", range(3))
def test_15_the_search_beats_random_ones_at_equal_budget_and_stays_in_its_band(seed: int) -> None:
    band, quadratic = toy(seed)
    found = minimised(seed)
    drawn = np.random.default_rng(seed + 1000)
    lucky = [min(map(quadratic, band.sample(25, drawn))) for _ in range(20)]
    assert found.values.min() < min(lucky) / 2
    assert band.holds(found.points).all()
    assert len(found.values) == 25
    assert found.values.tolist() == [quadratic(point) for point in found.points]
    assert found.values[found.best] == found.values.min() <= found.values[:3].min()


def test_15_seeded_searches_repeat() -> None:
    first, second, other = (minimised(seed, evaluations=8) for seed in (0, 0, 1))
    assert first.points.tolist() == second.points.tolist()
    assert first.points.tolist() != other.points.tolist()


def test_values_that_are_not_finite_are_no_best_and_stop_nothing() -> None:
    _, quadratic = toy(0)
    bad = itertools.cycle([math.inf, None, math.nan])

    def objective(point: Any) -> float:
        value = next(bad)
        return quadratic(point) if value is None else value

    found = minimised(0, objective, 8)
    assert found.best == np.nanargmin(found.values)
    assert math.isinf(minimised(0, lambda _: math.inf, 4).values.min())


def test_points_that_miss_the_band_are_moved_into_it() -> None:
    """A band that one of a million random points hits: the box's mean cost is 0.6, the band ends at 0.3."""
    band = Band(0.2, 1.0, np.ones(20), 0.2 * 20, 0.3 * 20)
    points = band.sample(50, np.random.default_rng(0))
    assert band.holds(points).all()
    assert points.std(0).min() > 0.01
    with pytest.raises(UserError, match=r"^bayes: shares from 0.2 to 1 keep 20.0% to 100.0%, and the budget"):
        Band(0.2, 1.0, np.ones(20), 0.05 * 20, 0.15 * 20).sample(1, np.random.default_rng(0))


class Watched(Trial):
    """A trial that notes what it was asked."""

    asked: ClassVar[list[tuple[dict[str, int], list[Batch], float]]] = []

    def evaluate(self, ranks: Mapping[str, int], batches: Any, divergence: bool = False) -> Any:
        found = super().evaluate(ranks, batches, divergence)
        value = found.perplexity + (4.096 * found.divergence if divergence else 0)
        self.asked.append((dict(ranks), list(batches), value))
        return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, int], list[Batch], float]]:
    monkeypatch.setattr("methods.parts.allocation.bayes.Trial", Watched)
    monkeypatch.setattr(Watched, "asked", [])
    return Watched.asked


def test_15_the_result_is_no_worse_than_the_best_initial_candidate_and_repeats(asked: Any) -> None:
    options = Bayes(evaluations=8)
    ranks = options.allocate(task := problem(0.3))
    values = [value for _, _, value in asked]
    assert len(values) == 9 == task.context.facts["evaluations"]
    assert task.context.facts["objective"] == pytest.approx(min(values[:8]))
    assert task.context.facts["objective_at_budget"] == pytest.approx(values[8])
    result = next(value for seen, _, value in asked if seen == ranks)
    assert result <= min(values[:3])
    assert all(cost(seen, task.budget) <= task.budget.target for seen, _, _ in asked)
    assert options.allocate(problem(0.3)) == ranks
    first = [seen for seen, _, _ in asked[:3]]
    options.allocate(problem(0.3, seed=2))
    assert [seen for seen, _, _ in asked[-9:-6]] != first


def test_candidates_are_judged_on_the_validation_text_alone(asked: Any) -> None:
    Bayes(evaluations=3).allocate(problem(0.3))
    wanted = [ids.tolist() for ids, _ in TinyText().validation()]
    for _, batches, _ in asked:
        assert [ids.tolist() for ids, _ in batches] == wanted


@pytest.mark.parametrize("worse", [False, True])
def test_the_best_candidate_is_scaled_up_to_the_budget_unless_that_is_worse(
    worse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []

    def score(self: Bayes, trial: Trial, windows: Any, ranks: Any) -> float:
        seen.append(dict(ranks))
        return 10.0 - cost(ranks, task.budget) / 1e6 if not worse else 10.0 + cost(ranks, task.budget) / 1e6

    monkeypatch.setattr(Bayes, "_score", score)
    task = problem(0.3)
    ranks = Bayes(evaluations=6).allocate(task)
    if worse:
        assert ranks == min(seen, key=lambda each: cost(each, task.budget))
        assert task.context.warnings == [
            text for text in task.context.warnings if text.startswith("bayes: the best candidate is worse")
        ]
        assert len(task.context.warnings) == 1
    else:
        assert ranks == seen[-1]
        assert not task.context.warnings
        assert 0 <= task.budget.target - cost(ranks, task.budget) < 112


def test_without_a_weight_of_the_divergence_the_objective_is_the_perplexity(asked: Any) -> None:
    task = problem(0.3)
    Bayes(evaluations=2, divergence=0).allocate(task)
    assert task.context.facts["objective"] == pytest.approx(min(value for _, _, value in asked[:2]))
    text = list(TinyText().validation())
    both = Trial(task).evaluate(asked[0][0], text, divergence=True)
    assert asked[0][2] == pytest.approx(both.perplexity)
    weighted = Bayes(divergence=3)._score(Trial(task), text, asked[0][0])
    assert weighted == pytest.approx(both.perplexity + 3 * both.divergence)


def test_the_windows_whose_perplexity_varies_most_are_searched_on(asked: Any) -> None:
    task = problem(0.3)
    Bayes(evaluations=3, windows=3).allocate(task)
    assert task.context.facts["evaluations"] == 20 + 3 + 1 == len(asked)
    everything = list(TinyText().validation())
    rows = torch.cat([ids for ids, _ in everything])
    trial = Trial(task)
    scores = [trial.evaluate(seen, everything) for seen, _, _ in asked[:20]]
    perplexities = np.array([found.perplexities.tolist() for found in scores])
    wanted = sorted(np.argsort(-perplexities.std(0, ddof=1))[:3].tolist())
    for _, batches, _ in asked[20:]:
        assert torch.equal(torch.cat([ids for ids, _ in batches]), rows[wanted])
        assert [len(ids) for ids, _ in batches] == [2, 1]
    assert len({tuple(sorted(seen.items())) for seen, _, _ in asked[:20]}) == 20


def test_windows_keep_their_labels() -> None:
    task = problem(0.3)
    text = [Batch(ids, torch.where(ids > 30, ids, -100)) for ids, _ in TinyText().validation()]
    chosen = telling(Trial(task), np.array([[0.5] * 5, [0.9] * 5]), Space.of(task, Bayes()).ranks, text, 8)
    for one, other in zip(chosen, text, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, other.labels)


class NoText(TinyText):
    """Text without enough for validation."""

    def validation(self) -> Iterator[Batch]:
        raise UserError("calibration: too few")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 3}, "^bayes: 3 groups are more than the 2 blocks of the model$"),
        ({"windows": 9}, "^bayes: 9 windows are more than the 8 for validation; ask for fewer"),
        ({"dense": ("vproj",)}, "^bayes: dense: no target is a 'vproj'; did you mean 'v_proj'"),
        (
            {"dense": LINEAR_KINDS},
            "^bayes: every target is named in allocator.dense; leave some",
        ),
        ({"range": (0.9, 1.0)}, r"^bayes: shares from 0\.9 to 1 keep 9"),
    ],
)
def test_bayes_refuses_what_cannot_work(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Bayes(evaluations=2, **options).allocate(problem(0.4))


def test_bayes_refuses_ranks_that_no_budget_buys_and_text_that_is_too_short() -> None:
    with pytest.raises(UserError, match=r"^bayes: at least one multiple as rank of each matrix costs more"):
        Bayes(evaluations=2).allocate(problem(0.6, multiple=14))
    with pytest.raises(UserError, match=r"^calibration: too few$"):
        Bayes().allocate(problem(text=NoText()))
    task = problem()
    task.context.calibration = None
    with pytest.raises(UserError, match=r"^bayes: this needs calibration text, and the run has none$"):
        Bayes().allocate(task)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"range": (0.5, 0.5)}, "the least share 0.5 is not below the largest, 0.5"),
        ({"evaluations": 0}, "greater than 0"),
        ({"divergence": -1}, "greater than or equal to 0"),
    ],
)
def test_options_of_bayes_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Bayes(**given)


@pytest.mark.parametrize("given", [{"candidates": ()}, {"candidates": (1.0,)}, {"metric": "fisher"}])
def test_options_of_strs_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Strs(**given)

"""LQ-LoRA: invariants of its decomposition, its allocation beside brute force, and its adapters."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Batch, Context, Simulated
from harness.plugins import build
from methods.parts.fisher import fisher_diagonals
from methods.parts.quantisation.allocation import allocate
from methods.parts.quantisation.decomposition import Decomposition, decompose, weighted_factors
from methods.parts.quantisation.layouts import candidates
from methods.parts.quantisation.normal_float import Layout, normal_floats
from methods.parts.targets import target_linears
from tests.support.tiny import TinyText, logits, tiny_batch, tiny_llama, train
from tests.unit.methods.test_qlora import stored_weights, weights

NF3 = Layout(bits=3)


def decaying(out: int = 64, inputs: int = 96) -> Tensor:
    """A matrix whose singular values fall, as those of trained weights."""
    u, _, vh = torch.linalg.svd(weights(out, inputs, 3), full_matrices=False)
    return u * torch.arange(1, min(out, inputs) + 1).float() ** -1.0 @ vh


# ------------------------------------------------------------------------------------ decomposition
@pytest.mark.parametrize("weight", [weights(), decaying()], ids=["normal", "decaying"])
def test_invariant_1_more_turns_never_miss_more_and_less_than_rounding_alone(weight: Tensor) -> None:
    errors = [decompose(weight, 8, NF3, turns, name="x").error for turns in (1, 2, 4, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < (weight - normal_floats(weight, NF3).floats(torch.float32)).norm().item()
    found = decompose(weight, 8, NF3, 100, name="x")
    assert found.turns < 100
    missed = weight - found.left @ found.right - found.stored.floats(torch.float32)
    assert found.error == pytest.approx(missed.norm().item(), rel=1e-5)
    assert found.whole == pytest.approx(weight.norm().item(), rel=1e-5)


def test_the_kept_pair_is_that_before_the_first_rise_beside_a_plain_loop() -> None:
    weight = weights(16, 24)  # so small that all SVDs are exact
    left_over, errors = weight, []
    while len(errors) < 2 or errors[-1] < errors[-2]:
        u, s, vh = torch.linalg.svd(left_over, full_matrices=False)
        product = u[:, :8] * s[:8] @ vh[:8]
        stored = normal_floats(weight - product, NF3).floats(torch.float32)
        errors.append((weight - product - stored).norm().item())
        left_over = weight - stored
    found = decompose(weight, 8, NF3, 100, name="x")
    assert found.turns == len(errors) - 1
    assert found.error == pytest.approx(min(errors), rel=1e-4)


def test_invariant_3_rank_0_is_rounding_alone_and_full_rank_misses_nothing() -> None:
    weight = weights()
    none = decompose(weight, 0, NF3, 100, name="x")
    assert none.stored.floats(torch.float32).equal(normal_floats(weight, NF3).floats(torch.float32))
    assert decompose(weight, 64, NF3, 1, name="x").error == pytest.approx(0.0, abs=1e-5)


def test_invariant_4_equal_weights_of_entries_change_nothing() -> None:
    weight = weights()
    plain = decompose(weight, 8, NF3, 3, name="x")
    same = decompose(weight, 8, NF3, 3, name="x", fisher=torch.full_like(weight, 4.0))
    torch.testing.assert_close(same.left @ same.right, plain.left @ plain.right, atol=1e-6, rtol=1e-4)
    assert same.error == pytest.approx(2 * plain.error, rel=1e-4)


def test_invariant_4_weights_of_rank_one_give_the_weighted_optimum() -> None:
    """Beside a search of the least weighted error from several starts."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    matrix, fisher = random(8, 8), (0.1 + random(8, 1) ** 2) * (0.1 + random(1, 8) ** 2)
    left, right = weighted_factors(matrix, 2, fisher, 0)
    found = []
    for _ in range(3):
        a, b = random(8, 2).requires_grad_(True), random(2, 8).requires_grad_(True)
        search = torch.optim.LBFGS([a, b], max_iter=1000, tolerance_change=0, line_search_fn="strong_wolfe")

        def loss(a: Tensor = a, b: Tensor = b, search: Any = search) -> Tensor:
            search.zero_grad()
            value = (fisher * (matrix - a @ b).square()).sum()
            value.backward()
            return value

        search.step(loss)
        found.append(loss().item())
    ours = (fisher * (matrix - left @ right).square()).sum().item()
    assert ours == pytest.approx(min(found), rel=1e-5)


def test_entries_without_weight_are_stored_all_the_same() -> None:
    fisher = torch.ones(64, 96)
    fisher[3], fisher[:, 5] = 0.0, 0.0
    found = decompose(weights(), 8, NF3, 3, name="x", fisher=fisher)
    for part in (found.left, found.right, found.stored.floats(torch.float32)):
        assert part.isfinite().all()
    assert np.isfinite(decompose(weights(), 8, NF3, 3, name="x", fisher=torch.zeros(64, 96)).error)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    weight = weights()
    weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"layers\.0\.x holds NaN"):
        decompose(weight, 8, NF3, 1, name="layers.0.x")


# --------------------------------------------------------------------------------------- allocation
@pytest.mark.parametrize("seed", range(8))
def test_invariant_6_the_allocation_is_that_of_brute_force(seed: int) -> None:
    random, rows = np.random.default_rng(seed), np.arange(3)
    sizes = random.integers(2, 9, (3, 4)) * random.integers(100, 10_000, (3, 1)).astype(float)
    costs = random.random((3, 4)) * 10.0 ** random.integers(-9, 3)
    budget = random.uniform(sizes.min(1).sum(), sizes.max(1).sum())
    chosen = allocate(costs, sizes, budget)
    assert sizes[rows, chosen].sum() <= budget
    assert costs[rows, chosen].sum() == pytest.approx(
        min(
            costs[rows, list(choice)].sum()
            for choice in itertools.product(range(4), repeat=3)
            if sizes[rows, list(choice)].sum() <= budget
        )
    )


def test_a_barred_choice_is_not_taken_and_an_impossible_budget_is_an_error() -> None:
    costs, sizes = np.array([[0.0, np.inf, 5.0]]), np.array([[9.0, 1.0, 4.0]])
    assert allocate(costs, sizes, 10.0) == [0]
    assert allocate(costs, sizes, 4.0) == [2]
    with pytest.raises(ValueError, match="least sizes"):
        allocate(costs, sizes, 3.0)


def test_a_budget_that_sizes_meet_to_the_bit_is_kept() -> None:
    sizes = np.array([[2.0, 3.0, 4.0]] * 5) * 1e9
    costs = np.array([[4.0, 2.0, 1.0]] * 5)
    chosen = allocate(costs, sizes, 15e9)
    assert sizes[np.arange(5), chosen].sum() <= 15e9
    assert costs[np.arange(5), chosen].sum() == 10.0


def test_invariant_6_a_budget_that_the_solver_would_exceed_by_its_tolerance_is_kept() -> None:
    """Sizes that exceed it by one in 15 billion, which is nothing to a solver of 1e-6."""
    sizes = np.array([[2.0, 3.0, 4.0]] * 5) * 1e9
    costs = np.array([[4.0, 2.0, 1.0]] * 5)
    chosen = allocate(costs, sizes, 15e9 - 1)
    assert sizes[np.arange(5), chosen].sum() == 14e9
    assert costs[np.arange(5), chosen].sum() == 12.0


def test_the_candidates_of_the_paper_are_432() -> None:
    assert len(candidates("paper")) == len(set(candidates("paper"))) == 432
    assert len(candidates("few")) == 24


# ------------------------------------------------------------------------------------------- Fisher
def test_fisher_diagonals_are_mean_squares_of_the_gradients_of_single_sequences_without_padding() -> None:
    model: Any = tiny_llama()
    ids = tiny_batch(1, batch=5)
    layers = target_linears(model, ("q_proj", "down_proj"))
    model.model.embed_tokens.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    padded = torch.where(torch.arange(ids.shape[1]) < torch.tensor([[12], [5], [12], [2], [12]]), ids, -100)
    batches = iter([Batch(ids[:2], padded[:2]), Batch(ids[2:], padded[2:])])
    found = fisher_diagonals(model.train(), layers, batches, 4)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    wanted = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for whole, length in zip(ids[:4], (12, 5, 12, 2), strict=True):
        sequence = whole[:length]
        values = torch.log_softmax(model(input_ids=sequence[None]).logits[0], -1)
        loss = -values[:-1].gather(1, sequence[1:, None]).mean()
        grads = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
        for name, grad in zip(layers, grads, strict=True):
            wanted[name] += grad.square() / 4
    for name in layers:
        torch.testing.assert_close(found[name], wanted[name])


# --------------------------------------------------------------------------------------- the method
def prepared(context: Context | None = None, **options: Any) -> Any:
    return build("lqlora", {"rank": 4, **options}).prepare(tiny_llama(), context or Context(seed=1))


def test_invariant_7_it_begins_as_stored_weights_and_factors_and_the_stored_ones_stay() -> None:
    model = prepared(bits=3)
    for name, layer in target_linears(tiny_llama(), ("q_proj", "up_proj")).items():
        found = decompose(layer.weight, 4, NF3, 100, name=name, seed=1)
        ours = model.get_submodule(name)
        values = found.stored.floats(torch.float32)
        assert ours.base_layer.weight.data.floats(torch.float32).equal(values)
        beside = ours.lora_B["default"].weight @ ours.lora_A["default"].weight * ours.scaling["default"]
        torch.testing.assert_close(beside, found.left @ found.right, atol=1e-6, rtol=1e-4)
    before = {name: copy.deepcopy(stored) for name, stored in stored_weights(model).items()}
    stepper = build("lqlora", {"rank": 4}).stepper(model, OptimConfig(lr=1e-2))
    assert stepper is not None
    train(model, stepper, 0, 4)
    for name, stored in stored_weights(model).items():
        assert all(a.equal(b) for a, b in zip(stored.parts(), before[name].parts(), strict=True))


def test_with_rank_0_it_is_the_method_qlora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 8 of the dossier, and invariant 3: the same stored weights, and adapters that add nothing."""

    def without_rank(weight: Tensor, rank: int, *given: Any, **named: Any) -> Decomposition:
        found = decompose(weight, 0, *given, **named)
        left, right = weight.new_zeros(weight.shape[0], rank), weight.new_zeros(rank, weight.shape[1])
        return replace(found, left=left, right=right)

    monkeypatch.setattr("methods.lqlora.decompose", without_rank)
    model = prepared(bits=3)
    plain = build("qlora", {"rank": 4, "bits": 3}).prepare(tiny_llama(), Context(seed=1))
    ours, theirs = stored_weights(model), stored_weights(plain)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 14
    for name, stored in ours.items():
        assert all(a.equal(b) for a, b in zip(stored.parts(), theirs[name].parts(), strict=True))
    assert logits(model).equal(logits(plain))


def test_invariants_2_and_3_with_full_rank_the_model_is_what_it_was() -> None:
    """Invariant 2 is about weights that are not quantised, for which there is no option: `bits` is 8 at most.

    With full rank, factors hold all, and there is nothing left to quantise.
    """
    torch.testing.assert_close(logits(prepared(rank=32)), logits(tiny_llama()), atol=1e-5, rtol=1e-4)


def test_a_larger_rank_misses_less() -> None:
    contexts = [Context(seed=1), Context(seed=1)]
    for context, rank in zip(contexts, (1, 16), strict=True):
        prepared(context, bits=2, rank=rank)
    errors = [context.facts["decomposition_error"] for context in contexts]
    assert 0 < errors[1] < errors[0] < 1


@pytest.mark.parametrize("budget", [2.75, 3.25, 4.0])
def test_a_budget_is_kept_and_used(budget: float) -> None:
    context = Context(seed=1)
    stored = stored_weights(prepared(context, budget=budget)).values()
    assert sum(8 * each.stored_bytes for each in stored) <= budget * sum(each.numel() for each in stored)
    assert 0.97 * budget < context.facts["bits_per_weight"] <= budget
    assert len(context.facts["layouts"]) == 14
    assert len(set(context.facts["layouts"].values())) > 1


def test_invariant_6_a_budget_misses_less_than_any_one_layout_within_it() -> None:
    budget, spent = 3.3, Context(seed=1)
    prepared(spent, budget=budget, turns=1)
    within = 0
    for bits, block in ((2, 16), (2, 64), (3, 64), (4, 64)):
        alike = Context(seed=1)
        prepared(alike, bits=bits, block=block, scale_dtype="float16", turns=1)
        if alike.facts["bits_per_weight"] <= budget:
            within += 1
            assert spent.facts["decomposition_error"] <= alike.facts["decomposition_error"] * (1 + 1e-6)
    assert within == 3


def test_text_weights_the_errors_and_without_text_it_says_that_it_does_not() -> None:
    weighted, plain, without = Context(seed=1, calibration=TinyText()), Context(seed=1), Context(seed=1)
    prepared(weighted, fisher=6)
    prepared(plain)
    prepared(without, fisher=6)
    assert weighted.facts["decomposition_error"] != plain.facts["decomposition_error"]
    assert without.facts["decomposition_error"] == plain.facts["decomposition_error"]
    assert any("without text" in warning for warning in without.warnings)


def test_a_forecast_fills_the_budget_without_values() -> None:
    context = Context(seed=1, simulated=Simulated())
    prepared(context, budget=3.0)
    assert 0.97 * 3.0 < context.facts["bits_per_weight"] <= 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 3, "bits": 2}, "`bits` matters only without a budget"),
        ({"search_turns": 3}, "`search_turns` matters only with a budget"),
        ({"budget": 0}, "budget"),
        ({"budget": 1.0}, r"budget 1 is too small for any model; give 2\.0635 or more"),
        ({"budget": 2.03, "candidates": "paper"}, r"is too small for any model; give 2\.0323 or more"),
        ({"fisher": 0}, "fisher"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("lqlora", options)


def test_a_budget_that_is_too_small_is_refused_with_the_least() -> None:
    with pytest.raises(UserError, match=r"budget 2\.07 is too small for this model; give 2\.\d+ or more"):
        prepared(budget=2.07)

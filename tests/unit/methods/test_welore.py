"""WeLore's rules on spectra: which matrices are low-rank, and to which rank.

The number in a test's name is that of the invariant in the method's dossier.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness import factored
from harness.errors import UnsupportedError, UserError
from harness.method import Context
from harness.plugins import build
from methods.parts.allocation.threshold import normalised
from methods.parts.factors.svd_cache import truncated_svd
from methods.parts.targets import LINEAR_KINDS
from methods.welore import WeLore
from tests.support.tiny import logits, tiny_llama

ERRS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
FILTERS = (0.0, 0.4999)


def welore(**options: Any) -> WeLore:
    method = build("welore", options)
    assert isinstance(method, WeLore)
    return method


def uneven_llama(seed: int = 0, **shape: Any) -> nn.Module:
    """A model whose matrices decay at different speeds, as trained ones do, so that some are low-rank."""
    model = tiny_llama(seed=seed, **shape)
    generator = torch.Generator().manual_seed(seed)
    for weight in targets(model).values():
        u, s, vh = torch.linalg.svd(weight.data, full_matrices=False)
        speed = 0.5 + 9 * torch.rand((), generator=generator)
        weight.data = u * (s * torch.exp(-speed * torch.arange(len(s)) / len(s))) @ vh
    return model


def targets(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the seven kinds, found by another rule than the method's."""
    ends = tuple(f"{kind}.weight" for kind in LINEAR_KINDS)
    return {name.removesuffix(".weight"): p for name, p in model.named_parameters() if name.endswith(ends)}


def singular_values(weight: Tensor) -> Tensor:
    """By the same routine as the method's: others differ in the last bits, and ranks hang on order."""
    return torch.linalg.svdvals(weight.detach().float())


def brute_force(model: nn.Module, err: float, min_ratio: float) -> tuple[dict[str, int], float, list[float]]:
    """The published rule tried at every threshold that matters: ranks of LRCs, their ERR, all ERRs."""
    scaled = {}
    for name, weight in targets(model).items():
        sigma = singular_values(weight).numpy().astype(np.float64)
        scaled[name] = (sigma - sigma.min()) / (sigma.max() - sigma.min())
    total = sum(len(values) for values in scaled.values())
    tried = []
    for tau in sorted({float(value) for values in scaled.values() for value in values}):
        pruned = {name: int((values < tau).sum()) for name, values in scaled.items()}
        lrc = {name: p for name, p in pruned.items() if p / len(scaled[name]) > min_ratio}
        reached = sum(lrc.values()) / total
        tried.append((reached, {name: len(scaled[name]) - p for name, p in lrc.items()}))
    best = min(tried, key=lambda item: abs(item[0] - err))
    return best[1], best[0], [item[0] for item in tried]


def prepared(model: nn.Module, **options: Any) -> tuple[nn.Module, Context]:
    context = Context()
    return welore(**options).prepare(model, context), context


# ------------------------------------------------------------------------------- factors (20 to 22)
def random_weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40)])
def test_20_factors_of_full_rank_compute_what_the_dense_layer_does(shape: tuple[int, int]) -> None:
    weight = random_weight(*shape)
    up, down = truncated_svd("layer", weight, 24)
    dense = nn.Linear(shape[1], shape[0], bias=False)
    dense.weight.data = weight
    x = torch.randn(5, shape[1])
    torch.testing.assert_close(factored.factor(dense, up, down)(x), dense(x), rtol=1e-5, atol=1e-4)
    assert (up @ down - weight).norm() / weight.norm() < 2e-6


def test_20_bfloat16_factors_of_full_rank_are_near_the_dense_weight() -> None:
    weight = random_weight(256, 688)
    up, down = (part.to(torch.bfloat16).float() for part in truncated_svd("layer", weight, 256))
    assert (up @ down - weight).norm() / weight.norm() < 3e-3


@pytest.mark.parametrize("rank", [1, 7, 23])
def test_21_the_truncation_error_is_that_of_eckart_and_young(rank: int) -> None:
    weight = random_weight(40, 24)
    up, down, values = *truncated_svd("layer", weight, rank), torch.linalg.svdvals(weight)
    rest = weight - up @ down
    torch.testing.assert_close(rest.square().sum(), values[rank:].square().sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.linalg.matrix_norm(rest, 2), values[rank], rtol=1e-4, atol=0)


def test_22_both_factors_carry_the_root_of_the_singular_values() -> None:
    weight = random_weight(40, 24)
    up, down = truncated_svd("layer", weight, 9)
    expected = torch.diag(torch.linalg.svdvals(weight)[:9])
    torch.testing.assert_close(up.T @ up, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(down @ down.T, expected, atol=1e-4, rtol=1e-5)


# -------------------------------------------------------------------------- threshold (23 to 26)
@given(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=30))
def test_23_normalised_values_lie_between_0_and_1_and_ascend(values: list[float]) -> None:
    scaled = normalised(torch.tensor(values))
    assert all(0 <= value <= 1 for value in scaled)
    assert scaled == sorted(scaled)
    assert scaled[-1] == 1
    assert scaled[0] == (0 if max(values) > min(values) else 1)


@pytest.mark.parametrize("change", [lambda w: -3 * w, lambda w: 1e-4 * w, lambda w: w.T])
def test_23_normalised_values_do_not_depend_on_scale_or_orientation(change: Any) -> None:
    weight = random_weight(40, 24)
    other = normalised(torch.linalg.svdvals(change(weight)))
    assert other == pytest.approx(normalised(torch.linalg.svdvals(weight)), abs=1e-5)


def test_23_a_constant_spectrum_is_kept_whole() -> None:
    model = tiny_llama()
    for weight in targets(model).values():
        nn.init.eye_(weight)
    changed, context = prepared(model, err=0.5, min_ratio=0)
    assert not factored.ranks(changed)
    assert context.facts["measured_err"] == 0
    assert any("0.0000; the target was 0.5000" in warning for warning in context.warnings)


def spectra_of(model: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, list[float]]]:
    weights = targets(model)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    values = {name: normalised(singular_values(weight)) for name, weight in weights.items()}
    return shapes, values


@pytest.mark.parametrize("min_ratio", FILTERS)
@pytest.mark.parametrize("guard", [False, True])
def test_24_reduction_never_falls_as_the_threshold_grows(min_ratio: float, guard: bool) -> None:
    method = welore(min_ratio=min_ratio, factor_below_break_even=guard)
    shapes, spectra = spectra_of(uneven_llama())
    pruned = dict.fromkeys(shapes, 0)
    for tau in np.linspace(0, 1.1, 111):
        kept = method.components(shapes, spectra, float(tau))
        now = {name: min(shapes[name]) - kept.get(name, min(shapes[name])) for name in shapes}
        assert all(now[name] >= pruned[name] for name in shapes)
        pruned = now


@pytest.mark.parametrize("min_ratio", FILTERS)
def test_24_threshold_0_prunes_nothing_and_beyond_1_all_but_one_rank(min_ratio: float) -> None:
    method = welore(min_ratio=min_ratio)
    shapes, spectra = spectra_of(uneven_llama())
    assert method.components(shapes, spectra, 0.0) == {}
    assert method.components(shapes, spectra, 1.5) == dict.fromkeys(shapes, 1)


def test_24_a_value_equal_to_the_threshold_is_kept() -> None:
    shapes, spectra = {"q_proj": (4, 4)}, {"q_proj": [0.0, 0.25, 0.5, 1.0]}
    assert welore(min_ratio=0).components(shapes, spectra, 0.5) == {"q_proj": 2}


def test_24_a_matrix_at_the_ratio_is_no_low_rank_component() -> None:
    shapes, spectra = {"q_proj": (4, 4)}, {"q_proj": [0.0, 0.25, 0.5, 1.0]}
    assert welore(min_ratio=0.5).components(shapes, spectra, 0.5) == {}
    assert welore(min_ratio=0.49).components(shapes, spectra, 0.5) == {"q_proj": 2}


@pytest.mark.parametrize("err", ERRS)
@pytest.mark.parametrize("min_ratio", FILTERS)
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_25_26_ranks_are_those_of_the_published_rule_at_the_best_threshold(
    err: float, min_ratio: float, kv_heads: int
) -> None:
    expected, reached, _ = brute_force(uneven_llama(kv_heads=kv_heads), err, min_ratio)
    model, context = prepared(uneven_llama(kv_heads=kv_heads), err=err, min_ratio=min_ratio)
    assert factored.ranks(model) == expected == context.ranks
    assert sorted(context.facts["lrc"]) == sorted(expected)
    assert context.facts["measured_err"] == pytest.approx(reached, abs=1e-12)
    assert context.facts["attempted_err"] == err


@pytest.mark.parametrize("err", ERRS)
def test_25_without_filter_tau_is_the_quantile_of_the_pooled_values(err: float) -> None:
    _, context = prepared(uneven_llama(), err=err, min_ratio=0)
    _, spectra = spectra_of(uneven_llama())
    pooled = np.sort(np.concatenate([np.array(values) for values in spectra.values()]))
    assert np.mean(pooled < context.facts["tau"]) == pytest.approx(err, abs=1 / len(pooled))
    assert context.facts["measured_err"] == pytest.approx(err, abs=1 / len(pooled))
    assert np.quantile(pooled, err, method="closest_observation") == pytest.approx(
        context.facts["tau"], abs=np.diff(pooled).max()
    )


@pytest.mark.parametrize("err", ERRS)
def test_26_with_the_filter_the_measured_reduction_is_within_half_a_jump(err: float) -> None:
    _, _, reachable = brute_force(uneven_llama(), err, 0.4999)
    jump = max(np.diff([0, *reachable]))
    _, context = prepared(uneven_llama(), err=err)
    assert abs(context.facts["measured_err"] - err) <= jump / 2 + 1e-12
    assert not [warning for warning in context.warnings if "reduction" in warning]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=9), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.sampled_from(FILTERS),
)
def test_26_no_threshold_comes_nearer_than_the_one_found(
    values: list[list[float]], err: float, min_ratio: float
) -> None:
    spectra = {str(index): normalised(torch.tensor(one)) for index, one in enumerate(values)}
    shapes = {name: (len(one), len(one)) for name, one in spectra.items()}
    method = welore(err=err, min_ratio=min_ratio)

    def miss(tau: float) -> float:
        kept = method.components(shapes, spectra, tau)
        pruned = sum(len(spectra[name]) - rank for name, rank in kept.items())
        return abs(pruned / sum(map(len, spectra.values())) - err)

    found = method.find_tau(shapes, spectra)
    assert miss(found) <= min(miss(tau) for one in spectra.values() for tau in one) + 1e-12


def test_a_given_threshold_is_used_as_it_is_and_err_stays_the_label() -> None:
    shapes, spectra = spectra_of(uneven_llama())
    _, context = prepared(uneven_llama(), err=0.5, tau=0.175)
    expected = welore().components(shapes, spectra, 0.175)
    assert (context.facts["tau"], context.facts["attempted_err"]) == (0.175, 0.5)
    assert context.ranks == expected


# ------------------------------------------------------------------------------ sizes (27), rank (31)
@pytest.mark.parametrize(
    "options", [{}, {"min_ratio": 0.0}, {"min_ratio": 0.0, "factor_below_break_even": True}]
)
@pytest.mark.parametrize("shape", [{}, {"tie": True, "kv_heads": 2}], ids=["plain", "tied, grouped queries"])
def test_27_parameters_add_up(options: dict[str, Any], shape: dict[str, Any]) -> None:
    dense = uneven_llama(**shape)
    before = sum(parameter.numel() for parameter in dense.parameters())
    weights = targets(dense)
    model, context = prepared(uneven_llama(**shape), err=0.4, **options)
    kept = context.ranks
    assert 0 < len(kept) <= len(weights)
    inside = sum(
        kept[name] * sum(weight.shape) if name in kept else weight.numel() for name, weight in weights.items()
    )
    rest = before - sum(weight.numel() for weight in weights.values())
    assert sum(parameter.numel() for parameter in model.parameters()) == inside + rest
    facts = context.facts
    assert facts["parameter_ratio"] == (inside + rest) / before
    assert facts["parameter_ratio_targets"] == facts["flop_ratio_targets"] == inside / (before - rest)
    head = 64 * 32
    assert facts["flop_ratio"] == (inside + head) / (before - rest + head)
    if options.get("factor_below_break_even"):
        assert all(
            rank * sum(weights[name].shape) < math.prod(weights[name].shape) for name, rank in kept.items()
        )


def test_27_without_the_guard_factors_may_be_larger_and_that_is_said() -> None:
    _, loose = prepared(uneven_llama(), err=0.1, min_ratio=0)
    _, guarded = prepared(uneven_llama(), err=0.1, min_ratio=0, factor_below_break_even=True)
    assert loose.facts["parameter_ratio_targets"] > 1
    assert any("more parameters" in warning for warning in loose.warnings)
    assert guarded.facts["parameter_ratio_targets"] < 1
    assert not guarded.warnings


def test_27_what_the_guard_leaves_dense_is_left_untouched() -> None:
    before = targets(uneven_llama())
    model, context = prepared(uneven_llama(), err=0.2, min_ratio=0, factor_below_break_even=True)
    after = targets(model)
    assert 0 < len(after) < len(before)
    assert not set(after) & set(context.ranks)
    assert all(weight.equal(before[name]) for name, weight in after.items())


def test_kept_ranks_are_averaged_by_kind_and_a_dense_matrix_counts_whole() -> None:
    _, context = prepared(uneven_llama(), err=0.5)
    names = targets(uneven_llama())
    for kind in LINEAR_KINDS:
        ranks = [context.ranks.get(name, 32) for name in names if name.endswith(kind)]
        assert context.facts["kept_rank_by_kind"][kind] == sum(ranks) / 2


def low_rank_llama(rank: int) -> nn.Module:
    model = tiny_llama()
    for weight in targets(model).values():
        u, s, vh = torch.linalg.svd(weight.data, full_matrices=False)
        weight.data = u[:, :rank] * s[:rank] @ vh[:rank]
    return model


@pytest.mark.parametrize("method", [{"err": 0.5}, {"err": 0.7, "min_ratio": 0}])
def test_31_a_model_of_low_rank_loses_its_empty_tail_first_and_says_the_same(method: dict[str, Any]) -> None:
    wanted = logits(low_rank_llama(rank=6))
    model, context = prepared(low_rank_llama(rank=6), **method)
    assert min(context.ranks.values()) >= 6
    assert context.facts["measured_err"] > 0.45
    torch.testing.assert_close(logits(model), wanted, atol=2e-4, rtol=1e-4)


# -------------------------------------------------------------------------------- uniform (30)
@pytest.mark.parametrize("err", ERRS)
def test_30_uniform_takes_the_same_share_from_every_matrix(err: float) -> None:
    context = Context()
    model = build("uniform", {"err": err}).prepare(tiny_llama(kv_heads=1), context)
    sizes = {name: min(weight.shape) for name, weight in targets(tiny_llama(kv_heads=1)).items()}
    assert factored.ranks(model) == {name: size - int(err * size) for name, size in sizes.items()}
    for name, rank in context.ranks.items():
        assert 0 <= err - (sizes[name] - rank) / sizes[name] < 1 / sizes[name]
    assert context.facts["measured_err"] == sum(int(err * size) for size in sizes.values()) / sum(
        sizes.values()
    )


@pytest.mark.parametrize("err", [0.25, 0.5, 0.75])
def test_30_welore_discards_no_more_normalised_mass_than_uniform(err: float) -> None:
    _, spectra = spectra_of(uneven_llama())
    uniform, welore_ = Context(), Context()
    build("uniform", {"err": err}).prepare(uneven_llama(), uniform)
    welore(err=err, min_ratio=0).prepare(uneven_llama(), welore_)
    assert uniform.facts["measured_err"] == welore_.facts["measured_err"] == err

    def discarded(ranks: dict[str, int]) -> float:
        return sum(
            sum(values[: len(values) - ranks.get(name, len(values))]) for name, values in spectra.items()
        )

    assert discarded(welore_.ranks) < discarded(uniform.ranks)


def test_uniform_prepares_a_model_without_values_and_welore_says_why_it_cannot() -> None:
    with torch.device("meta"):
        model, other = tiny_llama(), tiny_llama()
    build("uniform", {"err": 0.5}).prepare(model, Context())
    assert set(factored.ranks(model).values()) == {16}
    with pytest.raises(UnsupportedError, match="values of the weights"):
        welore().prepare(other, Context())


# ---------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("name", ["welore", "uniform"])
@pytest.mark.parametrize("err", [0, 1, -0.1, 1.5, math.nan])
def test_a_reduction_outside_0_and_1_is_refused(name: str, err: float) -> None:
    with pytest.raises(UserError, match=f"method {name}: err: "):
        build(name, {"err": err})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0}, "tau"),
        ({"min_ratio": 1}, "min_ratio"),
        ({"train": "all"}, "train"),
        ({"er": 0.5}, "'err'"),
    ],
)
def test_other_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        welore(**options)


def test_a_model_that_is_factored_already_is_refused() -> None:
    model, _ = prepared(uneven_llama(), err=0.5)
    with pytest.raises(UserError, match="factored already"):
        build("uniform", {}).prepare(model, Context())


def test_a_weight_with_nan_is_an_error_that_names_it() -> None:
    model = tiny_llama()
    targets(model)["model.layers.1.mlp.up_proj"].data[0, 0] = math.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj holds NaN"):
        prepared(model)

"""Who decides how much of each matrix is kept: published ranks, a threshold, outliers.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness import factored
from harness.errors import UserError
from harness.method import Context, Simulated
from harness.plugins import build
from methods.parts.allocation.owl import recentred, spread
from methods.parts.allocation.threshold import normalised
from methods.parts.calibration.outliers import score
from methods.parts.targets import LINEAR_KINDS
from tests.support.tiny import TinyText, tiny_llama

COUNTED = ("ranks", "linears", "all")
PER_TYPE = {"type": "per_type", "keep": {"q_proj": 0.4, "k_proj": 0.4, "gate_proj": 0.6, "down_proj": 0.8}}
ALLOCATORS = {
    "per_type": PER_TYPE,
    "lord": {"type": "per_type", "preset": "lord"},
    "bolaco_5x4": {"type": "per_type", "preset": "bolaco_5x4"},
    "welore": {"type": "welore"},
    "owl": {"type": "owl", "threshold": 2},
    "owl, strong": {"type": "owl", "threshold": 2, "strength": 0.6},
}


def uneven_llama(layers: int = 4, **shape: Any) -> nn.Module:
    """A model whose matrices decay at different speeds, and whose blocks have different outliers."""
    model = tiny_llama(layers=layers, **shape)
    generator = torch.Generator().manual_seed(1)
    for weight in targets(model).values():
        u, s, vh = torch.linalg.svd(weight.data, full_matrices=False)
        speed = 0.5 + 9 * torch.rand((), generator=generator)
        weight.data = u * (s * torch.exp(-speed * torch.arange(len(s)) / len(s))) @ vh
    for block, grown in enumerate(torch.rand(layers, generator=generator).tolist()):
        model.get_submodule(f"model.layers.{block}.mlp.up_proj").weight.data[:3] *= 1 + 9 * grown
    return model


def targets(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the seven kinds, found by another rule than the method's."""
    ends = tuple(f"{kind}.weight" for kind in LINEAR_KINDS)
    return {name.removesuffix(".weight"): p for name, p in model.named_parameters() if name.endswith(ends)}


def block_of(name: str) -> int:
    return int(name.split(".")[2])


def compressed(
    model: nn.Module, allocator: Any, calibration: TinyText | None = None, **options: Any
) -> tuple[nn.Module, Context]:
    context = Context(calibration=calibration or TinyText())
    options = {"factoriser": "svd", **options, "allocator": allocator}
    return build("compress", options).prepare(model, context), context


def taken(model: nn.Module, ranks: dict[str, int]) -> dict[str, float]:
    """The share that is removed, as it is counted three ways, by a loop over the matrices."""
    weights = targets(model)
    gone = {name: w.numel() - ranks[name] * sum(w.shape) for name, w in weights.items() if name in ranks}
    lost = sum(min(w.shape) - ranks[name] for name, w in weights.items() if name in ranks)
    return {
        "ranks": lost / sum(min(w.shape) for w in weights.values()),
        "linears": sum(gone.values()) / sum(w.numel() for w in weights.values()),
        "all": sum(gone.values()) / sum(p.numel() for p in model.parameters()),
    }


# ------------------------------------------------------------------------------------------ budgets
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("reduction", [0.3, 0.4])
def test_14_the_budget_is_met_after_rounding(
    allocator: str, counted: str, multiple: int, reduction: float
) -> None:
    options = {"reduction": reduction, "counted": counted, "multiple": multiple}
    model, context = compressed(uneven_llama(), ALLOCATORS[allocator], **options)
    dense = uneven_llama()
    found = taken(dense, context.ranks)
    assert factored.ranks(model) == context.ranks
    assert context.facts["measured_reduction"] == pytest.approx(found)
    unit = {"ranks": 1, "linears": 112, "all": 112}[counted]  # of the largest matrix, 80 x 32
    parameters = sum(p.numel() for p in dense.parameters())
    whole = {"ranks": 28 * 32, "linears": sum(w.numel() for w in targets(dense).values()), "all": parameters}
    assert reduction - 1e-9 <= found[counted] < reduction + multiple * unit / whole[counted]
    assert all(rank % multiple == 0 for rank in context.ranks.values())
    larger = "the factors have more parameters than the matrices"
    assert [larger in text for text in context.warnings] == [True] * (found["linears"] < 0)


@pytest.mark.parametrize("counted", ["linears", "all"])
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_14_a_matrix_that_keeps_all_is_left_untouched(allocator: str, counted: str) -> None:
    """And none is replaced by factors that are no smaller."""
    before = targets(uneven_llama())
    reduction = 0.02 if allocator in ("welore", "owl, strong") else 0.2
    model, context = compressed(uneven_llama(), ALLOCATORS[allocator], reduction=reduction, counted=counted)
    after = targets(model)
    assert set(after) == set(before) - set(context.ranks)
    assert all(weight.equal(before[name]) for name, weight in after.items())
    assert after or allocator == "owl"
    for name, rank in context.ranks.items():
        assert rank * sum(before[name].shape) < before[name].numel()


# ------------------------------------------------------------------------------- shares by kind of layer
def test_kinds_keep_their_proportions_and_a_kind_that_is_left_out_stays_dense() -> None:
    _, context = compressed(uneven_llama(), PER_TYPE, reduction=0.3)
    share = {
        name: context.ranks[name] * sum(weight.shape) / weight.numel()
        for name, weight in targets(uneven_llama()).items()
        if name in context.ranks
    }
    kinds = {name.rpartition(".")[2] for name in share}
    assert kinds == set(PER_TYPE["keep"])  # type: ignore[arg-type]
    base = share["model.layers.0.mlp.down_proj"]
    assert share["model.layers.2.self_attn.q_proj"] / base == pytest.approx(0.5, abs=0.07)  # of 16 ranks
    assert share["model.layers.2.mlp.gate_proj"] / base == pytest.approx(0.75, abs=0.05)
    explicit = {"type": "per_type", "keep": {**PER_TYPE["keep"], "o_proj": 1, "up_proj": 1.0}}  # type: ignore[dict-item]
    assert compressed(uneven_llama(), explicit, reduction=0.3)[1].ranks == context.ranks


def test_a_list_is_about_groups_of_consecutive_blocks() -> None:
    rows = [{"q_proj": 8}, {"q_proj": 4, "up_proj": 3}]
    _, context = compressed(uneven_llama(layers=4), {"type": "per_type", "ranks": rows})
    place = "model.layers.{}.self_attn.q_proj"
    up = {f"model.layers.{block}.mlp.up_proj": 3 for block in (2, 3)}
    assert context.ranks == {place.format(block): rank for block, rank in enumerate((8, 8, 4, 4))} | up
    _, uneven = compressed(uneven_llama(layers=3), {"type": "per_type", "ranks": rows})
    assert [uneven.ranks[place.format(block)] for block in range(3)] == [8, 8, 4]


def test_given_ranks_are_taken_as_they_are_and_a_reduction_that_differs_is_said() -> None:
    allocator = {"type": "per_type", "ranks": {"q_proj": 5, "down_proj": 20}}
    _, context = compressed(uneven_llama(), allocator, reduction=0.5)
    assert set(context.ranks.values()) == {5, 20}
    found = taken(uneven_llama(), context.ranks)["linears"]
    assert context.warnings == [f"compress: {found:.4f} of linears went, and the target was 0.5000"]
    assert compressed(uneven_llama(), allocator, reduction=round(found, 3))[1].warnings == []


# --------------------------------------------------------------------------------------- published ranks
def llama(hidden: int, inner: int, blocks: int, heads: int, kv_heads: int | None = None) -> nn.Module:
    """A LLaMA-2 without memory."""
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=hidden,
                intermediate_size=inner,
                num_hidden_layers=blocks,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads or heads,
                vocab_size=32000,
            )
        )


SIZES = {"7B": (4096, 11008, 32, 32), "13B": (5120, 13824, 40, 40)}


def published(size: str, preset: str, reduction: float, **options: Any) -> tuple[nn.Module, Context]:
    """A model whose factors have biases, as the principal components of the papers do."""
    context = Context(simulated=Simulated())
    options = {"factoriser": "pca", "reduction": reduction, **options}
    method = build("compress", {**options, "allocator": {"type": "per_type", "preset": preset}})
    return method.prepare(llama(*SIZES[size]), context), context


@pytest.mark.parametrize(
    ("size", "preset", "reduction", "billions"),
    [
        ("7B", "bolaco_5x1", 0.2, 5.435),
        ("7B", "bolaco_5x4", 0.2, 5.439),
        ("7B", "bolaco_5x1", 0.3, 4.792),
        ("7B", "bolaco_5x4", 0.3, 4.790),
        ("7B", "lord", 0.2, 5.436),
        ("7B", "lord", 0.3, 4.791),
        ("13B", "bolaco_5x1", 0.2, 10.45),
        ("13B", "bolaco_5x1", 0.3, 9.19),
    ],
)
def test_13_published_ranks_have_the_published_number_of_parameters(
    size: str, preset: str, reduction: float, billions: float
) -> None:
    model, context = published(size, preset, reduction)
    digits = 3 if size == "7B" else 2
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, digits) == billions
    assert context.facts["preset_ranks"] is True
    assert context.facts["measured_reduction"]["linears"] == pytest.approx(reduction, abs=0.0022)
    assert not context.warnings


def test_13_published_ranks_are_those_that_are_printed() -> None:
    def of_block(context: Context, block: int) -> list[int | None]:
        place = f"model.layers.{block}"
        names = [f"{place}.self_attn.{kind}_proj" for kind in "qkvo"]
        names += [f"{place}.mlp.{kind}_proj" for kind in ("gate", "up", "down")]
        return [context.ranks.get(name) for name in names]

    _, context = published("7B", "bolaco_5x4", 0.2)
    assert of_block(context, 7) == [680, 680, None, 1728, 2960, None, None]
    assert of_block(context, 8) == [968, 968, None, 1888, 2536, 2640, 2632]
    assert of_block(context, 23) == [408, 408, None, 1488, None, 2272, 2864]
    assert of_block(context, 31) == [656, 656, None, 496, 2824, 2448, 2280]
    _, context = published("7B", "lord", 0.2)
    assert of_block(context, 5) == [1432, 1432, None, 1632, 2384, 2384, 2384]
    _, context = published("7B", "lord", 0.3)
    assert of_block(context, 5) == [1120, 1120, None, 1432, 2088, 2088, 2088]
    _, context = published("13B", "bolaco_5x1", 0.2)
    assert of_block(context, 39) == [864, 864, None, 2400, 2880, None, 3128]
    _, context = published("13B", "bolaco_5x1", 0.3)
    assert of_block(context, 0) == [640, 640, None, 1576, 2976, 2912, 2880]


@pytest.mark.parametrize(
    ("reduction", "options"),
    [
        (0.5, {}),
        (0.2, {"counted": "all"}),
        (0.2, {"multiple": 16}),
        (0.2, {"targets": ["q_proj", "up_proj"]}),
    ],
)
def test_elsewhere_a_preset_keeps_its_proportions_and_meets_the_budget(
    reduction: float, options: dict[str, Any]
) -> None:
    _, context = published("7B", "bolaco_5x1", reduction, **options)
    assert context.facts["preset_ranks"] is False
    assert context.facts["preset_reduction"] == (0.3 if reduction == 0.5 else 0.2)
    measured = context.facts["measured_reduction"][options.get("counted", "linears")]
    assert reduction <= measured < reduction + 1e-4
    q = context.ranks["model.layers.9.self_attn.q_proj"] / 2048
    up = context.ranks["model.layers.9.mlp.up_proj"] * 15104 / (4096 * 11008)
    wanted = (656 / 2048) / (2352 * 15104) if reduction == 0.5 else (744 / 2048) / (2408 * 15104)
    assert q / up == pytest.approx(wanted * 4096 * 11008, rel=0.02)


def test_a_preset_of_four_groups_fits_two_blocks() -> None:
    _, context = compressed(uneven_llama(layers=2), ALLOCATORS["bolaco_5x4"], reduction=0.2)
    assert context.facts["preset_ranks"] is False
    assert "model.layers.0.mlp.up_proj" not in context.ranks  # dense in the first group
    assert "model.layers.1.mlp.gate_proj" not in context.ranks  # and this in the third


# ------------------------------------------------------------------------------------------- threshold
@pytest.mark.parametrize("counted", COUNTED)
def test_a_threshold_takes_the_smallest_normalised_singular_values_of_the_model(counted: str) -> None:
    _, context = compressed(uneven_llama(), "welore", reduction=0.45, counted=counted)
    tau, weights = context.facts["tau"], targets(uneven_llama())
    spectra = {name: normalised(torch.linalg.svdvals(w.detach())) for name, w in weights.items()}

    def ranks(threshold: float) -> dict[str, int]:
        kept = {name: sum(value >= threshold for value in values) for name, values in spectra.items()}
        smaller = {name: kept[name] * sum(w.shape) < w.numel() for name, w in weights.items()}
        if counted == "ranks":
            smaller = {name: kept[name] < min(w.shape) for name, w in weights.items()}
        return {name: rank for name, rank in kept.items() if smaller[name]}

    assert context.ranks == ranks(tau)
    below = max(value for values in spectra.values() for value in values if value < tau)
    assert taken(uneven_llama(), ranks(below))[counted] < 0.45 <= taken(uneven_llama(), ranks(tau))[counted]
    assert set(context.spectra) == set(spectra)


def test_ranks_at_a_threshold_are_rounded_down_to_multiples() -> None:
    _, context = compressed(uneven_llama(), "welore", reduction=0.45, multiple=4)
    for name, weight in targets(uneven_llama()).items():
        values = normalised(torch.linalg.svdvals(weight.detach()))
        kept = max(4, sum(value >= context.facts["tau"] for value in values) // 4 * 4)
        assert context.ranks.get(name) == (kept if kept * sum(weight.shape) < weight.numel() else None)


def test_equal_singular_values_that_no_threshold_parts_are_said() -> None:
    model = tiny_llama()
    for weight in targets(model).values():
        nn.init.eye_(weight)
    with pytest.raises(UserError, match=r"^welore: a threshold takes away at most 0\.0% of linears, because"):
        compressed(model, "welore", reduction=0.5)


# -------------------------------------------------------------------------------------------- outliers
def by_hand(model: nn.Module, threshold: float) -> list[float]:
    """The percentage of outliers of each block, of all entries of its seven matrices in one vector, with
    norms sqrt(mean over sequences of ||X||^2)."""
    inputs: dict[str, list[Tensor]] = {}
    for name in targets(model):
        model.get_submodule(name).register_forward_hook(
            lambda _, given, __, name=name: inputs.setdefault(name, []).append(given[0].flatten(0, -2))
        )
    with torch.no_grad():
        for ids, _ in TinyText().batches():
            model(input_ids=ids)
    found = []
    for block in range(4):
        entries: list[float] = []
        for name, weight in targets(model).items():
            if block_of(name) == block:
                norms = (torch.cat(inputs[name]).double().square().sum(0) / TinyText.count).sqrt()
                entries += (weight.double().abs() * norms).flatten().tolist()
        mean = sum(entries) / len(entries)
        found.append(100 * sum(entry > threshold * mean for entry in entries) / len(entries))
    return found


def test_owl_counts_outliers_as_a_loop_over_all_entries_does() -> None:
    model, context = compressed(uneven_llama().double(), {"type": "owl", "threshold": 4}, reduction=0.4)
    wanted = by_hand(uneven_llama().double(), 4)
    assert context.facts["outlier_scores"] == pytest.approx(wanted, abs=1e-6)
    assert len(set(wanted)) == 4
    low, high = min(wanted), max(wanted)
    raised = [0.16 * (each - low) / (high - low) for each in wanted]
    shares = [each - sum(raised) / 4 + 0.6 for each in raised]
    assert context.facts["block_shares"] == pytest.approx(shares, abs=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())
    for name, weight in targets(uneven_llama()).items():
        kept = context.ranks[name] * sum(weight.shape) / weight.numel()
        assert kept == pytest.approx(shares[block_of(name)], abs=sum(weight.shape) / weight.numel())


@pytest.mark.parametrize("scores", [[0.0, 1.0, 3.0], [5.0, 4.0, 4.5, 9.0, 0.1], [2.0, 2.0, 8.0]])
@pytest.mark.parametrize("strength", [0.08, 0.2])
def test_28_the_mean_stays_and_the_range_is_twice_the_strength(scores: list[float], strength: float) -> None:
    shares = spread(scores, 0.5, strength)
    assert sum(shares) / len(shares) == pytest.approx(0.5)
    assert max(shares) - min(shares) == pytest.approx(2 * strength)
    assert sorted(range(len(scores)), key=shares.__getitem__) == sorted(
        range(len(scores)), key=scores.__getitem__
    )


@pytest.mark.parametrize("counted", ["linears", "all"])
def test_28_a_block_whose_share_is_cut_at_1_stays_dense_and_the_others_make_up_for_it(counted: str) -> None:
    _, context = compressed(
        uneven_llama(), {"type": "owl", "threshold": 2, "strength": 0.6}, reduction=0.2, counted=counted
    )
    dense = uneven_llama()
    weights = targets(dense)
    held = sum(w.numel() for w in weights.values())
    whole = held if counted == "linears" else sum(p.numel() for p in dense.parameters())
    shares = context.facts["block_shares"]
    assert sum(shares) / 4 == pytest.approx(1 - 0.2 * whole / held, abs=1e-6)
    assert min(shares) < 0.8
    cut = {block for block, share in enumerate(shares) if share == 1}
    assert cut
    assert not {block_of(name) for name in context.ranks} & cut


@pytest.mark.parametrize("scores", [[1.5] * 3, [0.0] * 3, [7.0]])
def test_28_equal_scores_and_a_single_block_are_uniform(scores: list[float]) -> None:
    assert spread(scores, 0.7, 0.08) == [0.7] * len(scores)


@pytest.mark.parametrize(
    ("shares", "mean", "least"),
    [
        ([1.04, 0.9, 0.85, 0.81], 0.9, 0.05),
        ([-0.1, 0.1, 0.3], 0.1, 0.02),
        ([1.3, -0.3], 0.5, 0.1),
        ([0.4, 0.6], 0.5, 0.1),
    ],
)
def test_28_where_shares_are_cut_their_mean_stays(shares: list[float], mean: float, least: float) -> None:
    found = recentred(shares, mean, least)
    assert sum(found) / len(found) == pytest.approx(mean, abs=1e-12)
    assert all(least <= each <= 1 for each in found)
    inside = [(one, other) for one, other in zip(found, shares, strict=True) if least < one < 1]
    assert len({round(one - other, 9) for one, other in inside}) <= 1


def test_28_scores_do_not_depend_on_the_size_of_a_blocks_weights_or_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(30, 20, generator=generator) ** 3, torch.rand(20, generator=generator)) for _ in "qkv"
    ]
    wanted = score(pairs, 4)
    assert 0 < wanted < 25
    assert score([(1e3 * weight, norms) for weight, norms in pairs], 4) == pytest.approx(wanted)
    assert score([(weight, norms / 50) for weight, norms in pairs], 4) == pytest.approx(wanted)


@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("multiple", [1, 8])
def test_29_without_strength_owl_is_uniform(counted: str, multiple: int) -> None:
    options = {"reduction": 0.37, "counted": counted, "multiple": multiple}
    _, uniform = compressed(uneven_llama(), "uniform", **options)
    _, mine = compressed(uneven_llama(), {"type": "owl", "threshold": 2, "strength": 0}, **options)
    assert mine.ranks == uniform.ranks


def test_29_at_an_equal_target_owl_takes_as_many_ranks_as_uniform() -> None:
    options = {"reduction": 0.5, "counted": "ranks"}
    _, uniform = compressed(uneven_llama(), "uniform", **options)
    _, mine = compressed(uneven_llama(), {"type": "owl", "threshold": 2}, **options)
    assert mine.facts["measured_err"] == uniform.facts["measured_err"] == 0.5
    assert mine.ranks != uniform.ranks


def test_a_simulation_takes_equal_shares_for_those_that_look_at_values() -> None:
    for allocator in ("welore", "owl"):
        context = Context(simulated=Simulated())
        with torch.device("meta"):
            model = tiny_llama()
        method = build("compress", {"allocator": allocator})
        assert method.caps.value_dependent
        method.prepare(model, context)
        uniform = compressed(tiny_llama(), "uniform")[1]
        assert context.ranks == uniform.ranks


# -------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("allocator", "said"),
    [
        ({"keep": {"q_prj": 0.5}}, "keep names 'q_prj', which is no target; did you mean 'q_proj'"),
        ({"ranks": {"lm_head": 8}}, "ranks names 'lm_head', which is no target"),
        ({"ranks": {"q_proj": 40}}, r"rank 40 of model\.layers\.0\.self_attn\.q_proj, which is 32 x 32, does "
         "not make it smaller; give at most 15, or leave the kind out"),
        ({"ranks": {"q_proj": 16}}, "rank 16 .* give at most 15"),
        ({"keep": [{"q_proj": 0.5}] * 3}, "keep has 3 groups of blocks, and the model has 2 blocks"),
        ({"keep": {"q_proj": 0.5}}, "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj stay dense and "
         r"are 91\.\d% of the targets, so 0\.2 of linears cannot go"),
    ],
)  # fmt: skip
def test_shares_and_ranks_that_fit_no_layer_are_refused(allocator: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^per_type: {said}"):
        compressed(tiny_llama(), {"type": "per_type", **allocator})


def test_given_ranks_must_be_multiples() -> None:
    allocator = {"type": "per_type", "ranks": {"q_proj": 5}}
    with pytest.raises(UserError, match=r"^per_type: rank 5 of .* is no multiple of 4; give at most 12, or"):
        compressed(tiny_llama(), allocator, multiple=4)
    with pytest.raises(UserError, match=r"^per_type: rank 5 of .* does not make it smaller; leave the kind"):
        compressed(tiny_llama(), allocator, multiple=16)


def test_a_preset_refuses_kinds_that_it_does_not_know() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.add_module("router", nn.Linear(32, 32))
    options = {"targets": ["q_proj", "router"], "factoriser": "svd"}
    with pytest.raises(UserError, match=r"^per_type: preset lord has nothing for 'router'; give `keep` or"):
        compressed(model, ALLOCATORS["lord"], **options)


def test_dense_kinds_that_leave_less_than_the_least_ranks_of_the_others_are_refused() -> None:
    """40 % of the linears are dense, and the others at rank 4 need 12 % more."""
    with pytest.raises(UserError, match=r"so 0\.55 of linears cannot go; let them keep less, or"):
        compressed(uneven_llama(), PER_TYPE, reduction=0.55, multiple=4)


@pytest.mark.parametrize(
    ("allocator", "said"),
    [
        ("per_type", "give one of `keep`, `ranks` and `preset`, not none"),
        ({"type": "per_type", "preset": "lord", "keep": {"q_proj": 1}}, "not keep and preset"),
        ({"type": "per_type", "preset": "bolaco"}, "'lord', 'bolaco_5x1' or 'bolaco_5x4'"),
        ({"type": "per_type", "keep": {"q_proj": 1.5}}, "at most 1"),
        ({"type": "per_type", "keep": {"q_proj": 0}}, "above 0"),
        ({"type": "per_type", "keep": {"q_proj": "0.5"}}, "a number, not '0.5'"),
        ({"type": "per_type", "ranks": {"q_proj": 1.5}}, "a whole number"),
        ({"type": "per_type", "ranks": []}, "at least 1"),
        ({"type": "owl", "strength": -0.1}, "strength: give a number of at least 0"),
        ({"type": "owl", "threshold": 0.5}, "threshold: give a number of at least 1"),
        ("wanda", "'uniform', 'per_type', 'welore', 'owl'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(allocator: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        build("compress", {"allocator": allocator})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_owl_needs_text() -> None:
    with pytest.raises(UserError, match=r"^owl: this needs calibration text, and the run has none$"):
        build("compress", {"allocator": "owl", "factoriser": "svd"}).prepare(tiny_llama(), Context())

"""Sizes by published ranks and rules, and what published procedures do, beside loops of their own."""

from __future__ import annotations

import random
from math import prod
from typing import Any

import numpy as np
import pytest

from benchmarks.papers.calculations import evaluate, procedures
from harness.errors import UserError
from tests.unit.benchmarks.test_calculations import value

SEVEN = {
    "20 % 5x1": "744 1616 2512 2408 NA",
    "20 % 5x4": (
        "680 1728 2960 NA NA / 968 1888 2536 2640 2632 / 408 1488 NA 2272 2864 / 656 496 2824 2448 2280"
    ),
    "30 % 5x1": "656 1392 2128 2352 2312",
    "30 % 5x4": (
        "1016 1632 2376 2384 2384 / 840 1632 2384 2376 2384 / 408 992 2376 2384 2384 / 408 560 2384 1896 1792"
    ),
    "20 % LORD": "1432 1632 2384 2384 2384",
    "30 % LORD": "1120 1432 2088 2088 2088",
}
THIRTEEN = {"20 %": "696 1920 2304 NA 2504", "30 %": "512 1264 2384 2328 2304"}
DENSE = 6_738_415_616


def by_hand(ranks: str, hidden: int, wide: int, layers: int, bias: bool) -> tuple[int, int]:
    """Parameters of the seven matrices of all blocks, factored and dense, block by block."""
    groups = [text.split() for text in ranks.split("/")]
    found = dense = 0
    for layer in range(layers):
        qk, o, gate, up, down = groups[layer * len(groups) // layers]
        for rank, out, inputs in (
            (qk, hidden, hidden),
            (qk, hidden, hidden),
            ("NA", hidden, hidden),
            (o, hidden, hidden),
            (gate, wide, hidden),
            (up, wide, hidden),
            (down, hidden, wide),
        ):
            dense += out * inputs
            found += out * inputs if rank == "NA" else int(rank) * (out + inputs) + (out if bias else 0)
    return found, dense


# ------------------------------------------------------------------------------------ ranks as printed
@pytest.mark.parametrize(
    ("name", "billions", "share"),
    [
        ("20 % 5x1", 5.435, 0.7985),
        ("20 % 5x4", 5.439, 0.7992),
        ("30 % 5x1", 4.792, 0.6993),
        ("30 % 5x4", 4.790, 0.6989),
        ("20 % LORD", 5.436, 0.7987),
        ("30 % LORD", 4.791, 0.6990),
    ],
)
def test_published_ranks_have_their_known_sizes_at_7b(name: str, billions: float, share: float) -> None:
    found, dense = by_hand(SEVEN[name], 4096, 11008, 32, bias=True)
    of = {"shape": "llama-2-7b", "ranks": SEVEN[name]}
    assert value("factored_parameters", unit="elements", **of) == DENSE - dense + found
    assert round(value("factored_parameters", **of), 3) == billions
    plain = by_hand(SEVEN[name], 4096, 11008, 32, bias=False)[0]
    linears = value("factored_parameters", biases=False, give="linears", **of)
    assert linears == pytest.approx(plain / dense, rel=1e-11)
    assert round(linears, 4) == share
    total = value("factored_parameters", give="share", **of)
    assert total == pytest.approx((DENSE - dense + found) / DENSE, rel=1e-11)


@pytest.mark.parametrize(
    ("target", "kept", "share", "on_seven", "converted", "billions"),
    [
        ("20 %", 0.8, 0.700, 0.7986, "864 2400 2880 NA 3128", 10.45),
        ("30 %", 0.7, 0.576, 0.6991, "640 1576 2976 2912 2880", 9.19),
    ],
)
def test_ranks_printed_for_13b_fit_7b(
    target: str, kept: float, share: float, on_seven: float, converted: str, billions: float
) -> None:
    of: dict[str, Any] = {"ranks": THIRTEEN[target], "biases": False, "give": "linears"}
    found, dense = by_hand(THIRTEEN[target], 5120, 13824, 40, bias=False)
    assert value("factored_parameters", shape="13B", **of) == pytest.approx(found / dense, rel=1e-11)
    assert round(found / dense, 3) == share
    assert round(value("factored_parameters", shape="llama-2-7b", **of), 4) == on_seven
    assert value("ranks_keep", shape="13B", ranks=THIRTEEN[target], kept=kept) is False
    assert value("ranks_keep", shape="llama-2-7b", ranks=THIRTEEN[target], kept=kept) is True
    printed = {"ranks": THIRTEEN[target], "of": "llama-2-7b"}
    assert value("ranks_of_other_shape", shape="13B", **printed) == converted
    assert round(value("factored_parameters", shape="13B", ranks=converted), 2) == billions


def test_ranks_that_are_no_multiples_of_eight_are_seen() -> None:
    off = SEVEN["20 % 5x1"].replace("744", "745")
    assert value("ranks_keep", shape="llama-2-7b", ranks=off, kept=0.8) is False


def test_ranks_of_lord_follow_from_its_shares() -> None:
    for (attention, rest), down, near in (
        ((0.7, 0.8), SEVEN["20 % LORD"], "1432 1640 2392 2392 2392"),
        ((0.55, 0.7), SEVEN["30 % LORD"], "1128 1432 2088 2088 2088"),
    ):
        kept = {"q": attention, "k": attention, **dict.fromkeys(("o", "gate", "up", "down"), rest)}
        assert value("ranks_at_shares", shape="llama-2-7b", kept=kept) == down
        assert value("ranks_at_shares", shape="llama-2-7b", kept=kept, rounding="nearest") == near


def test_a_matrix_without_a_share_is_dense() -> None:
    assert value("ranks_at_shares", shape="60m", kept={"o": 0.5}, multiple=1) == "NA 128 NA NA NA"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("factored_parameters", {"shape": "7b", "ranks": "8 8 8 8"}, "'8 8 8 8' are not five of q and k, o"),
        ("factored_parameters", {"shape": "7b", "ranks": "8 8 8 8 -8"}, "write as 8 8 16 16 NA"),
        ("factored_parameters", {"shape": "7b", "ranks": " / ".join(["8 8 8 8 8"] * 3)}, "3 groups do not"),
        ("ranks_at_shares", {"shape": "7b", "kept": {"qk": 0.5}}, "no matrix 'qk'"),
        ("uniform_parameters", {"shape": "7b", "kept": 1.5}, "kept"),
    ],
)
def test_ranks_that_are_none_are_refused_in_one_line(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        evaluate(name, arguments)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------------ sizes by a rule
MATRICES = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]


@pytest.mark.parametrize("kept", [0.8, 0.6, 0.4, 0.2])
def test_a_uniform_share_is_taken_of_every_matrix(kept: float) -> None:
    linears = 32 * sum(int(m * n * kept / (m + n)) * (m + n) for m, n in MATRICES)
    total = linears + DENSE - 32 * sum(map(prod, MATRICES))
    of = {"shape": "7b", "kept": kept}
    assert value("uniform_parameters", unit="elements", **of) == total
    head = int(32000 * 4096 * kept / 36096) * 36096 - 32000 * 4096
    assert value("uniform_parameters", head=True, unit="elements", **of) == total + head
    assert value("uniform_bytes", unit="GiB", **of) == pytest.approx(2 * total / 2**30, rel=1e-11)


def test_bytes_of_svd_llm_are_printed_in_two_units() -> None:
    gib = [
        round(value("uniform_bytes", shape="7b", kept=kept, unit="GiB"), 2) for kept in (0.8, 0.6, 0.4, 0.2)
    ]
    assert gib == [10.14, 7.72, 5.31, 2.90]
    assert value("uniform_bytes", shape="7b", kept=1, unit="bytes") == 2 * DENSE


def test_a_share_of_ranks_can_be_more_parameters_than_before() -> None:
    ranks = 32 * sum(int(0.8 * min(m, n)) * (m + n) for m, n in MATRICES)
    found = value("uniform_parameters", shape="7b", kept=0.8, counted="ranks", unit="elements")
    assert found == ranks + DENSE - 32 * sum(map(prod, MATRICES)) > DENSE


@pytest.mark.parametrize(
    ("removed", "qk", "vo", "width", "share"),
    [
        (0.1, 1638, "dense", 9908, 0.904),
        (0.2, 1228, "dense", 8807, 0.808),
        (0.3, 819, "dense", 7706, 0.712),
        (0.4, 614, 1842, 6605, 0.615),
        (0.5, 512, 1536, 5504, 0.519),
        (0.6, 409, 1228, 4404, 0.423),
    ],
)
def test_sizes_of_lorap_are_the_known_ones(
    removed: float, qk: int, vo: Any, width: int, share: float
) -> None:
    of = {"shape": "7b", "removed": removed}
    found = [value("lorap_size", of=kind, **of) for kind in ("q and k", "v and o", "width")]
    assert found == [qk, vo, width]
    total = DENSE
    for _ in range(32):
        for rank in (qk, qk, vo, vo):
            total -= 0 if rank == "dense" else 4096 * 4096 - rank * 2 * 4096
        total -= 3 * (11008 - width) * 4096
    assert value("lorap_parameters", **of) == pytest.approx(total / 10**9, rel=1e-11)
    assert round(value("lorap_parameters", give="share", **of), 3) == share
    assert value("lorap_parameters", give="linears", **of) == pytest.approx(1 - removed, abs=1e-3)


# ----------------------------------------------------------------------------------------- schedule
@pytest.mark.parametrize("steps", [500, 1000, 1172, 4000])
def test_half_of_the_heads_is_never_pruned(steps: int) -> None:
    """Masks that only grow, update by update."""
    pruned = {32: 0, 11008: 0}
    for step in range(1, steps + 1):
        rising = (step - 0.1 * steps) / (0.8 * steps)
        share = 0.0 if rising <= 0 else 0.5 if rising >= 1 else 0.5 * (1 - (1 - rising) ** 3)
        if step % 10 == 0 and 0 < share < 0.5:
            pruned = {groups: max(lost, int(groups * share)) for groups, lost in pruned.items()}
    assert pruned[32] == 15
    assert pruned[11008] in (5502, 5503)
    for groups, lost in pruned.items():
        assert value("pruned_groups", groups=groups, ratio=0.5, steps=steps) == lost
        assert value("pruned_groups", groups=groups, ratio=0.5, steps=steps, reached=True) == groups // 2


def test_half_of_all_parameters_is_never_pruned() -> None:
    gone = 28 * (15 * 128 * 4 * 4096 + 5503 * 3 * 4096)
    of = {"shape": "7b", "ratio": 0.5, "steps": 1000}
    assert value("pruned_parameters", **of) == pytest.approx(100 * gone / DENSE, rel=1e-11)
    assert round(value("pruned_parameters", **of), 1) == 41.2
    assert value("pruned_parameters", give="left", **of) == pytest.approx((DENSE - gone) / 10**9, rel=1e-11)
    assert round(value("pruned_parameters", give="left", **of), 2) == 3.96
    assert round(value("pruned_parameters", reached=True, **of), 2) == 42.05


# -------------------------------------------------------------------------------------------- search
def test_the_last_cut_that_was_tried_may_be_above_the_target_and_the_found_one_never_is() -> None:
    for seed in range(5):
        of = {"layers": 12, "seed": seed}
        assert value("search_end", **of) > 0
        assert value("search_end", give="worst", **of) > 0
        assert value("search_end", use="converged", **of) == 0
        assert value("search_end", use="converged", give="worst", **of) == 0
    assert value("search_end", layers=12, give="targets") == 40


def test_a_search_ends_one_step_beside_the_cut_that_a_scan_finds() -> None:
    draw = random.Random(7)
    entries = [(layer, share, draw.random()) for layer in range(9) for share in procedures.CANDIDATES]
    entries.sort(key=lambda entry: -entry[2])
    sizes = []
    for cut in range(len(entries)):
        kept = [100] * 9
        for layer, share, _ in entries[cut:]:
            kept[layer] = min(kept[layer], share)
        sizes.append(sum(kept))
    for target in procedures.TARGETS:
        last = max((cut for cut, size in enumerate(sizes[:-1]) if size <= 9 * target), default=0)
        assert procedures.searched(entries, 9, target, "converged") == sizes[last]
        assert procedures.searched(entries, 9, target, "last tried") in sizes[last : last + 2]


# --------------------------------------------------------------------------------------------- merge
def parts() -> list[list[list[float]]]:
    draw = random.Random(3)
    return [[[draw.gauss(place, 1) for place in range(4)] for _ in range(size)] for size in (5, 1, 8, 3)]


def test_merging_rightly_is_the_scatter_of_all() -> None:
    every = np.array([vector for part in parts() for vector in part])
    truth = (every - every.mean(0)).T @ (every - every.mean(0))
    np.testing.assert_allclose(procedures.merged(parts(), less_new_mean=False), truth, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        procedures.scatter([vector for part in parts() for vector in part]), truth, rtol=1e-12, atol=1e-12
    )


def test_merging_by_the_new_mean_damps_what_lies_between_parts() -> None:
    arrays = [np.array(part) for part in parts()]
    expected, seen = np.zeros((4, 4)), np.zeros((0, 4))
    for part in arrays:
        old, own = len(seen), len(part)
        expected += (part - part.mean(0)).T @ (part - part.mean(0))
        if old:
            apart = part.mean(0) - seen.mean(0)
            damped = (old / (old + own)) ** 2
            expected += damped * old * own / (old + own) * np.outer(apart, apart)
        seen = np.concatenate([seen, part])
    np.testing.assert_allclose(
        procedures.merged(parts(), less_new_mean=True), expected, rtol=1e-12, atol=1e-12
    )


def test_what_a_merge_loses_grows_with_the_distance_of_means() -> None:
    shares = [value("merged_trace", shift=shift) for shift in (0.01, 1, 3)]
    assert 95 < shares[0] < 100  # means of 16 vectors are never equal
    assert shares == sorted(shares, reverse=True)
    assert value("merged_trace", sequences=1) == pytest.approx(100)
    assert value("merged_trace", sequences=1, give="error") == 0

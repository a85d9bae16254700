"""What a compression ratio means, and ranks that meet it."""

from __future__ import annotations

import itertools
import math
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from methods.parts.allocation.budget import Budget, Counted

SHAPES = {"q": (64, 64), "k": (16, 64), "up": (160, 64), "down": (64, 160)}
LINEARS = sum(map(prod, SHAPES.values()))
RANKS = sum(map(min, SHAPES.values()))
OTHERS = 5000


def budget(reduction: float, counted: Counted = "linears", multiple: int = 1) -> Budget:
    return Budget(SHAPES, LINEARS + OTHERS, reduction, counted, multiple)


def removed(ranks: dict[str, int]) -> tuple[int, int]:
    """Parameters and ranks that go, by a loop over the matrices."""
    weights, gone = 0, 0
    for name, (out, width) in SHAPES.items():
        if name in ranks:
            weights += out * width - ranks[name] * (out + width)
            gone += min(out, width) - ranks[name]
    return weights, gone


@pytest.mark.parametrize("reduction", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("counted", ["ranks", "linears", "all"])
def test_equal_shares_meet_a_target_from_below_as_it_is_counted(counted: Counted, reduction: float) -> None:
    mine = budget(reduction, counted)
    ranks = mine.ranks(dict.fromkeys(SHAPES, 1.0))
    weights, gone = removed(ranks)
    found = mine.measured(ranks)
    assert found == pytest.approx(
        {"ranks": gone / RANKS, "linears": weights / LINEARS, "all": weights / (LINEARS + OTHERS)}
    )
    step = {"ranks": 1 / RANKS, "linears": 224 / LINEARS, "all": 224 / (LINEARS + OTHERS)}
    assert reduction <= found[counted] + 1e-12 < reduction + step[counted] + 1e-12


def test_of_what_rounding_leaves_over_nothing_more_can_be_bought() -> None:
    mine = budget(0.3)
    ranks = mine.ranks({"q": 0.5, "k": 0.9, "up": 0.7, "down": 0.8})
    assert mine.cost(ranks) <= mine.target < mine.cost(ranks) + max(map(sum, SHAPES.values()))


def test_shares_keep_their_proportions() -> None:
    shares = {"q": 0.2, "k": 0.4, "up": 0.3, "down": 0.5}
    ranks = budget(0.6).ranks(shares)
    kept = {name: rank * sum(SHAPES[name]) / prod(SHAPES[name]) for name, rank in ranks.items()}
    for one, other in itertools.pairwise(SHAPES):
        rounding = 2 * max(sum(SHAPES[name]) / prod(SHAPES[name]) for name in SHAPES)
        assert kept[one] / kept[other] == pytest.approx(shares[one] / shares[other], rel=3 * rounding)


def test_a_matrix_whose_share_is_whole_stays_dense_and_the_others_pay_for_it() -> None:
    mine = budget(0.2)
    ranks = mine.ranks({"q": 100.0, "k": 1.0, "up": 1.0, "down": 1.0})
    assert set(ranks) == {"k", "up", "down"}
    assert mine.measured(ranks)["linears"] == pytest.approx(0.2, abs=0.01)
    assert all(rank * sum(SHAPES[name]) < prod(SHAPES[name]) for name, rank in ranks.items())


def test_ranks_are_multiples_and_at_least_one() -> None:
    ranks = budget(0.4, multiple=8).ranks(dict.fromkeys(SHAPES, 1.0))
    assert all(rank % 8 == 0 for rank in ranks.values())
    tight = budget(0.999, multiple=8).ranks(dict.fromkeys(SHAPES, 1.0))
    assert set(tight.values()) == {8}


def test_a_target_beyond_what_the_matrices_hold_is_refused() -> None:
    share = f"{LINEARS / (LINEARS + OTHERS):.1%}"
    with pytest.raises(
        UserError, match=f"^reduction 0.9 of all parameters .* {share} of them; ask for less$"
    ):
        budget(0.9, "all")


def cheapest(mine: Budget, name: str) -> int:
    """What a matrix costs at its least rank, or dense where that is no more."""
    return min(min(mine.multiple, *mine.shapes[name]) * mine.unit(name), mine.whole(name))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.floats(1e-3, 1e3)), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.sampled_from(["ranks", "linears", "all"]),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 500),
)
def test_14_any_shares_meet_the_target_from_below_within_one_step_of_the_largest_matrix(
    drawn: list[tuple[int, int, float]], reduction: float, counted: Counted, multiple: int, others: int
) -> None:
    shapes = {str(index): (out, width) for index, (out, width, _) in enumerate(drawn)}
    linears = sum(map(prod, shapes.values()))
    assume(counted != "all" or reduction * (linears + others) < linears)
    mine = Budget(shapes, linears + others, reduction, counted, multiple)
    ranks = mine.ranks({str(index): share for index, (_, _, share) in enumerate(drawn)})
    cost, least = mine.cost(ranks), sum(cheapest(mine, name) for name in shapes)
    step = multiple * max(map(mine.unit, shapes))
    if least <= mine.target:
        assert mine.target - step - 1e-6 < cost <= mine.target + 1e-6
    else:
        assert cost == least
    for name, rank in ranks.items():
        assert rank % multiple == 0 or rank == min(shapes[name])
        assert 0 < rank * mine.unit(name) < mine.whole(name)


def test_a_matrix_of_a_small_share_gets_its_least_rank_at_the_cost_of_the_others() -> None:
    """In proportion `k` gets 0.7 of 105.9 ranks and the others 35.07 each: with 1 for `k` 106."""
    mine = budget(1 - 105.9 / RANKS, "ranks")
    ranks = mine.ranks({"q": 1.0, "k": 0.0798, "up": 1.0, "down": 1.0})
    assert ranks["k"] == 1
    assert sum(ranks.values()) == 105


def test_a_share_of_infinity_stays_dense_and_the_others_keep_their_proportions() -> None:
    mine = budget(0.4)
    ranks = mine.ranks({"q": math.inf, "k": 0.5, "up": 0.5, "down": 0.5})
    assert set(ranks) == {"k", "up", "down"}
    assert abs(ranks["up"] - ranks["down"]) <= 1
    assert mine.measured(ranks)["linears"] == pytest.approx(0.4, abs=224 / LINEARS)


@pytest.mark.parametrize("counted", ["linears", "all"])
def test_biases_that_factors_come_with_are_counted(counted: Counted) -> None:
    mine = Budget(SHAPES, LINEARS + OTHERS, 0.3, counted, biased=frozenset(SHAPES))
    ranks = mine.ranks(dict.fromkeys(SHAPES, 1.0))
    weights, _ = removed(ranks)
    weights -= sum(SHAPES[name][0] for name in ranks)
    found = mine.measured(ranks)
    assert found["linears"] == pytest.approx(weights / LINEARS)
    assert found["all"] == pytest.approx(weights / (LINEARS + OTHERS))
    assert 0.3 <= found[counted] + 1e-12 < 0.3 + 224 / LINEARS
    assert mine.most("k") == max(rank for rank in range(20) if rank * 80 + 16 < 16 * 64)

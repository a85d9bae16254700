"""What a compression ratio means, and ranks that meet it."""

from __future__ import annotations

import itertools
from math import prod

import pytest

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

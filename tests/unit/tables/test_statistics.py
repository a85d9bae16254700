"""The statistics of the gate against sampled truth: how often they cry wolf, and how much they miss."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats

from harness.tables.statistics import (
    ALPHA,
    LEAST_PERPLEXITY_CHANGE,
    holm,
    interleaved,
    mcnemar,
    paired_bootstrap,
    paired_t,
    shift,
    t_quantile,
)

#: Relative standard deviation from run to run on one machine, as measured: 1.1 to 1.7 %.
NOISE = (0.011, 0.017)
RUNS = 5


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


# ----------------------------------------------------------------------------------------- seeds
@pytest.mark.parametrize("degrees", [*range(1, 31), 99, 100, 1001])
def test_the_quantile_of_t_is_that_of_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(1 - ALPHA / 2, degrees), rel=1e-9)


def test_the_interval_over_seeds_is_that_of_scipys_paired_test() -> None:
    random = np.random.default_rng(4)
    for seeds in (2, 3, 4, 5, 10, 40):
        base, other = 1 + 0.1 * random.standard_normal((2, seeds))
        truth = scipy.stats.ttest_rel(other, base)
        interval = truth.confidence_interval(1 - ALPHA)
        found = paired_t(list(base), list(other))
        assert found.change == pytest.approx(math.exp(np.mean(other - base)) - 1)
        assert (found.low, found.high) == pytest.approx(
            (math.exp(interval.low) - 1, math.exp(interval.high) - 1)
        )
        assert found.certain == (truth.pvalue < ALPHA)


def test_of_twenty_rows_that_equal_the_baseline_about_one_looks_different() -> None:
    random = np.random.default_rng(5)
    seeds, rows = 0.1 * random.standard_normal(3), 4000
    alarms = [
        paired_t(list(1 + seeds), list(1 + seeds + 0.01 * random.standard_normal(3))).certain
        for _ in range(rows)
    ]
    assert share(alarms) == pytest.approx(1 / 20, abs=0.012)


def test_equal_differences_are_certain_only_where_nothing_depends_on_the_seed() -> None:
    exact = paired_t([1.0, 1.0, 1.0], [1.1, 1.1, 1.1])
    assert exact.certain
    assert exact.low == exact.high == pytest.approx(math.exp(0.1) - 1)
    lucky = paired_t([1.0, 1.5, 2.0], [1.25, 1.75, 2.25])
    assert not lucky.certain
    assert (lucky.low, lucky.high) == (-1, math.inf)
    same = paired_t([1.0, 1.5, 2.0], [1.0, 1.5, 2.0])
    assert (same.low, same.change, same.high) == (0, 0, 0)
    assert not same.certain
    rounded = paired_t([0.1 + 0.2] * 3, [0.3, 0.1 + 0.2, 0.3])
    assert not rounded.certain


def test_a_difference_that_only_one_side_moves_has_the_spread_of_that_side() -> None:
    found = paired_t([1.0, 1.1, 1.2], [2.0, 2.0, 2.0])
    reach = scipy.stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert math.log1p(found.high) - math.log1p(found.change) == pytest.approx(reach)


def test_huge_losses_give_bounds_without_an_error() -> None:
    found = paired_t([0.0, 1.0, 2.0], [900.0, 1000.0, 1e5])
    assert found.high == found.change == math.inf


# ------------------------------------------------------------------------------------- throughput
def slower(
    random: np.random.Generator, noise: float, factor: float, runs: int = RUNS, drift: float = 0
) -> bool:
    """Whether a candidate of this speed is found slower, when the machine changes by `drift` half way."""
    machine = np.where(np.arange(runs) < runs // 2, 1.0, 1.0 + drift)
    base, candidate = 1000 * machine * (1 + noise * random.standard_normal((2, runs)))
    found = shift(base, factor * candidate)
    return found.certain and found.slower


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("drift", [0, -0.27, 0.05])
def test_equal_speed_raises_an_alarm_in_less_than_one_percent(noise: float, drift: float) -> None:
    random = np.random.default_rng(1)
    assert share([slower(random, noise, 1.0, drift=drift) for _ in range(2000)]) <= 0.01


@pytest.mark.parametrize("noise", NOISE)
def test_a_loss_of_ten_percent_is_nearly_always_seen(noise: float) -> None:
    random = np.random.default_rng(2)
    assert share([slower(random, noise, 0.90) for _ in range(2000)]) >= 0.9


def test_a_loss_of_one_percent_is_no_verdict() -> None:
    random = np.random.default_rng(3)
    assert share([slower(random, 0.011, 0.99) for _ in range(2000)]) <= 0.02


def test_separation_alone_and_size_alone_are_not_enough() -> None:
    steady = [1000.0, 1001, 1002, 1003, 1004]
    assert shift(steady, [980.0, 981, 982, 983, 984]).separated
    assert not shift(steady, [980.0, 981, 982, 983, 984]).certain
    assert shift(steady, [900.0, 901, 902, 903, 1002]).large
    assert not shift(steady, [900.0, 901, 902, 903, 1002]).certain
    assert shift(steady, [900.0, 901, 902, 903, 904]).certain


def test_a_base_that_scatters_raises_the_threshold() -> None:
    steady, wild = shift([100.0] * 5, [90.0] * 5), shift([90.0, 95, 100, 105, 110], [80.0] * 5)
    assert steady.threshold == pytest.approx(0.03)
    assert wild.threshold == pytest.approx(3 * 1.4826 * 0.05)


def test_turns_are_taken_when_no_side_has_three_in_a_row() -> None:
    assert interleaved([False, True] * 5)
    assert interleaved([False, True, True, False] * 3)
    assert not interleaved([False, True, True, True, False, True, False, False, True, False])


# ------------------------------------------------------------------------------------- perplexity
def test_the_interval_covers_the_true_change_as_often_as_it_says() -> None:
    """Windows of unequal difficulty, which both models share; the truth is a change of 0.01 nats a token."""
    random, covered, tokens = np.random.default_rng(4), [], np.full(200, 50)
    for _ in range(200):
        base = 50 * random.gamma(4, 0.5, 200)
        moved = base + 50 * (0.01 + 0.05 * random.standard_normal(200))
        found = paired_bootstrap(base, moved, tokens)
        covered.append(found.low <= math.expm1(0.01) <= found.high)
    assert 0.90 <= share(covered) <= 0.99


def test_models_of_equal_worth_are_told_apart_in_less_than_one_percent() -> None:
    random, alarms, tokens = np.random.default_rng(5), [], np.full(300, 24)
    for _ in range(200):
        base = 24 * random.gamma(4, 0.2, 300)
        found = paired_bootstrap(base, base + 24 * 0.01 * random.standard_normal(300), tokens)
        alarms.append(found.certain and found.change > LEAST_PERPLEXITY_CHANGE)
    assert share(alarms) <= 0.01


def test_a_change_of_one_percent_is_seen_where_windows_scatter_by_more() -> None:
    random, seen, tokens = np.random.default_rng(6), [], np.full(300, 24)
    for _ in range(100):
        base = 24 * random.gamma(4, 0.2, 300)
        found = paired_bootstrap(base, base + 24 * (0.01 + 0.05 * random.standard_normal(300)), tokens)
        seen.append(found.certain and found.change > LEAST_PERPLEXITY_CHANGE)
    assert share(seen) >= 0.95


def test_the_interval_is_the_same_each_time_and_windows_weigh_by_their_tokens() -> None:
    base, moved, tokens = [10.0, 30.0] * 20, [11.0, 30.0] * 20, [10, 90] * 20
    found = paired_bootstrap(base, moved, tokens)
    assert found == paired_bootstrap(base, moved, tokens)
    assert found.change == pytest.approx(math.expm1(20 / 2000))


# --------------------------------------------------------------------------------------- accuracy
def test_mcnemar_is_the_exact_binomial_of_the_pairs_that_differ() -> None:
    """By hand: 1 of 10 one way is 2 * (1 + 10) / 2^10; none that differ say nothing."""
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0


def test_holm_is_its_published_recursion() -> None:
    """By hand: sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_six_tasks_without_a_difference_raise_any_alarm_in_at_most_five_percent() -> None:
    random, alarms = np.random.default_rng(7), []
    for _ in range(1000):
        lost, won = random.multinomial(200, [0.05, 0.05, 0.90], size=6)[:, :2].T
        adjusted = holm([mcnemar(*pair) for pair in zip(lost.tolist(), won.tolist(), strict=True)])
        alarms.append(min(adjusted) <= ALPHA)
    assert share(alarms) <= ALPHA


def test_a_task_that_loses_fifteen_points_of_two_hundred_is_seen_among_six() -> None:
    random, seen = np.random.default_rng(8), []
    for _ in range(300):
        lost, won = random.multinomial(200, [0.18, 0.03, 0.79])[:2].tolist()
        seen.append(holm([mcnemar(lost, won), *[0.5] * 5])[0] <= ALPHA)
    assert share(seen) >= 0.95


def test_more_lost_answers_are_never_less_evidence() -> None:
    values = [mcnemar(lost, 5) for lost in range(5, 40)]
    assert all(after <= before for before, after in pairwise(values))

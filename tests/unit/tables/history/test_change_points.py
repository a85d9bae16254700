"""The change points of the history against sampled truth: false alarms, power, places."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.tables.history import divergence
from harness.tables.history.change_points import attainable, change_points
from harness.tables.history.divergence import LEAST_SIDE
from harness.tables.statistics import ALPHA, LEAST_SPEED_CHANGE

#: The spread from run to run that was seen on one machine within a day.
SPREADS = (0.011, 0.017)


def series(seed: int, count: int, spread: float) -> np.ndarray:
    return np.log1p(spread * np.random.default_rng(seed).normal(size=count))


def plainly(values: np.ndarray) -> tuple[float, int]:
    """The divergence by its definition, over all splits, up to each later split and to the end."""
    best = (-np.inf, 0)
    cuts = range(LEAST_SIDE, len(values) - LEAST_SIDE + 1)
    for cut, end in itertools.product(cuts, (*cuts, len(values))):
        x, y = values[:cut], values[cut:end]
        if len(y) < LEAST_SIDE:
            continue
        m, n = len(x), len(y)
        within = [abs(z[:, None] - z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
        divergence = 2 * abs(x[:, None] - y).mean() - sum(within)
        best = max(best, (m * n / (m + n) * divergence, cut))
    return best


def ranked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of values among all, and the gaps between ranks."""
    levels, ranks = np.unique(values, return_inverse=True)
    return ranks.reshape(values.shape), np.diff(levels)


def test_the_divergence_is_the_paper_s_by_its_definition() -> None:
    for seed in range(20):
        values = series(seed, 14, 1e-2)
        cuts = np.arange(LEAST_SIDE, len(values) - LEAST_SIDE + 1)
        found, cut = divergence.largest(*ranked(values[None]), cuts)
        largest, place = plainly(values)
        assert found[0] == pytest.approx(largest)
        assert cuts[cut[0]] == place


def test_several_series_at_once_diverge_as_each_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    several = np.random.default_rng(3).normal(size=(10, 14))
    monkeypatch.setattr(divergence, "CACHED", 3 * 10 * several.size)  # three series at a time
    cuts = np.arange(LEAST_SIDE, 14 - LEAST_SIDE + 1)
    found, places = divergence.largest(*ranked(several), cuts)
    for values, statistic, place in zip(several, found, places, strict=True):
        largest, cut = plainly(values)
        assert statistic == pytest.approx(largest)
        assert cuts[place] == cut


@pytest.mark.parametrize("rounded", [False, True], ids=["all different", "many equal"])
@pytest.mark.parametrize("runs", [1, 4])
def test_no_series_diverges_more_than_its_bound(runs: int, rounded: bool) -> None:
    random = np.random.default_rng(runs)
    several = random.normal(size=(30, 40)) ** 3
    several[::5, 17:] += 3
    several = several.round() if rounded else several
    cuts = np.arange(runs, 40 - LEAST_SIDE + 1, runs)
    cuts = cuts[cuts >= LEAST_SIDE]
    bounds = divergence.bound(*ranked(several), cuts)
    largest = divergence.largest(*ranked(several), cuts)[0]
    assert (bounds >= largest).all()
    if runs == 1:
        assert (bounds >= [plainly(values)[0] for values in several]).all()


def test_bounds_save_work_and_change_no_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    values, places, blocks = series(4, 60, 0.02), [n // 3 for n in range(60)], [0, 1, 2] * 20
    values[30:] += 0.05
    exact, counted = divergence.largest, list[int]()

    def counting(ranks: np.ndarray, *rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted.append(len(ranks))
        return exact(ranks, *rest)

    monkeypatch.setattr(divergence, "largest", counting)
    found, few = change_points(values, places, blocks), sum(counted)
    counted.clear()
    monkeypatch.setattr(divergence, "bound", lambda ranks, *_: np.full(len(ranks), np.inf))
    assert change_points(values, places, blocks) == found != []
    assert few < sum(counted) / 2


@pytest.mark.parametrize("spread", SPREADS)
def test_noise_alone_has_a_significant_change_in_at_most_one_series_of_twenty(spread: float) -> None:
    count = 300
    alarms = sum(bool(change_points(series(seed, 12, spread), range(12))) for seed in range(count))
    assert 0 < alarms <= count * ALPHA + 2 * np.sqrt(count * ALPHA * (1 - ALPHA))


def test_noise_of_several_runs_a_commit_raises_no_more_alarms() -> None:
    places = [number // 3 for number in range(15)]
    alarms = sum(bool(change_points(series(seed, 15, 0.017), places)) for seed in range(300))
    assert alarms <= 300 * ALPHA + 2 * np.sqrt(300 * ALPHA * (1 - ALPHA))


@pytest.mark.parametrize("spread", SPREADS)
def test_five_runs_a_side_show_a_step_of_ten_percent_where_it_is(spread: float) -> None:
    found = 0
    for seed in range(100):
        values = series(seed, 10, spread)
        values[5:] += np.log(0.9)
        found += [change.at for change in change_points(values, range(10))] == [5]
    assert found >= 95


def test_a_level_that_comes_back_is_two_steps() -> None:
    values = series(1, 30, 0.011)
    values[10:20] += np.log(0.85)
    assert [change.at for change in change_points(values, range(30))] == [10, 20]


def test_a_change_lies_between_commits_and_never_within_one() -> None:
    values = series(2, 16, 0.011)
    values[6:] += 0.3  # within the second commit of four runs each
    assert {change.at for change in change_points(values, [n // 4 for n in range(16)])} <= {4, 8, 12}


def test_what_differs_between_seeds_is_no_change() -> None:
    """Seed 1 alone was run from the third commit on: higher, as it always is."""
    seeds = [0, 0, 0, 0, 1, 1, 1, 1]
    values = np.where(np.array(seeds) == 1, 1.0, 0.0) + series(3, 8, 0.01)
    assert change_points(values, range(8))
    assert not change_points(values, range(8), seeds)


def test_the_same_values_are_searched_alike_every_time() -> None:
    values = series(5, 20, 0.02)
    values[12:] += 0.03
    assert change_points(values, range(20)) == change_points(values, range(20))


def test_values_that_are_all_equal_have_no_change() -> None:
    assert change_points([1.0] * 12, range(12)) == []


@pytest.mark.parametrize(
    ("places", "blocks", "enough"),
    [
        (range(8), [0] * 8, True),
        (range(7), [0] * 7, False),
        ([0] * 5 + [1] * 5, [0] * 10, True),
        ([0] * 8, [0] * 8, False),
        ([0, 0, 0, 1, 1, 1], [0, 1, 2] * 2, False),
        ([n // 3 for n in range(12)], [0, 1, 2] * 4, True),
    ],
)
def test_a_design_that_can_never_be_significant_is_known(
    places: list[int], blocks: list[int], enough: bool
) -> None:
    """Completely separated values are the best there can be: they are significant where it says so."""
    assert (attainable(list(places), blocks) <= ALPHA) == enough
    middle = list(places)[len(blocks) // 2]
    separated = [float(place >= middle) + number * 1e-6 for number, place in enumerate(places)]
    assert bool(change_points(separated, list(places), blocks)) == enough


def test_the_least_effect_leaves_fewer_alarms_than_the_level() -> None:
    """What the history says of noise: a change of medians by 3 % beside a significant change point."""
    alarms = 0
    for seed in range(300):
        values = series(seed, 12, 0.017)
        for change in change_points(values, range(12))[:1]:
            moved = np.exp(np.median(values[change.at :]) - np.median(values[: change.at])) - 1
            alarms += abs(moved) > LEAST_SPEED_CHANGE
    assert alarms <= 0.02 * 300

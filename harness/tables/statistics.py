"""Statistics of the regression gate and of verdicts on rows: pure functions of numbers, each with its source.

Tested against sampled truth: how often each raises a false alarm, and how small a change it detects.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Error rate of the tests on accuracy, all of a comparison together, and of the interval of perplexity.
ALPHA = 0.05
#: A smaller change of perplexity is none, however certain.
LEAST_PERPLEXITY_CHANGE = 0.002
#: Seeds below which no verdict on a row is given: with two, a t interval is 13 standard errors wide.
LEAST_SEEDS = 3
#: Differences of ln perplexity that are equal but for rounding.
ROUNDING = 1e-12
#: A smaller change of throughput is none, however certain.
LEAST_SPEED_CHANGE = 0.03
#: Makes the median absolute deviation of normal values their standard deviation, 1 / Phi^-1(3/4).
MAD_TO_SD = 1.4826
#: Runs of each side below which a verdict about throughput is withheld.
LEAST_RUNS = 5
#: Windows below which an interval by resampling would be too narrow.
LEAST_WINDOWS = 20
RESAMPLES = 2000
#: Indices that a resampling holds at a time.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A relative change of perplexity, -1 <= change, with its 95 % interval."""

    change: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    base_nats: Sequence[float], candidate_nats: Sequence[float], tokens: Sequence[int], seed: int = 0
) -> Interval:
    """Return the change of perplexity between two models on the same windows, with its percentile interval.

    A window is drawn with both of its negative log-likelihoods (nats, sums over `tokens` predictions), so
    what makes a text hard for both cancels. It generalizes to other text of the kind, not to other seeds.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, sections 8.2 and 13.3; for models
    compared on one test set, Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation.
    """
    import numpy as np

    moved = np.asarray(candidate_nats, dtype=np.float64) - np.asarray(base_nats, dtype=np.float64)
    weights = np.asarray(tokens, dtype=np.float64)
    random, count = np.random.default_rng(seed), len(moved)
    means = []
    rows = max(1, CHUNK // count)
    for first in range(0, RESAMPLES, rows):
        drawn = random.integers(count, size=(min(rows, RESAMPLES - first), count))
        means.append(moved[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (ALPHA / 2, 1 - ALPHA / 2))
    change = moved.sum() / weights.sum()
    return Interval(*(float(np.expm1(value)) for value in (change, low, high)))


def paired_t(base_nats: Sequence[float], candidate_nats: Sequence[float]) -> Interval:
    """Return the change of perplexity between two rows over seeds, with its t interval.

    Both sides give ln perplexity (nats) for the same seeds, in the same order, at least two, so what a seed
    does to both cancels. It generalizes to other seeds, not to other text. Source: Student 1908, The Probable
    Error of a Mean, on the differences of pairs.

    Where all differences are equal, their spread says nothing about other seeds, unless neither side depends
    on the seed: where the base is the same for all, so is the candidate, and the difference is exact, with an
    interval of no width. Equal differences of values that do move with the seed are a coincidence, and the
    interval has no bounds; where all are zero, both sides are the same, whatever the seed.
    """
    differences = [after - before for before, after in zip(base_nats, candidate_nats, strict=True)]
    centre = statistics.fmean(differences)
    if max(differences) - min(differences) > ROUNDING:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        reach = t_quantile(len(differences) - 1) * error
    else:
        centre = centre if abs(centre) > ROUNDING else 0.0
        constant = max(base_nats) - min(base_nats) <= ROUNDING
        reach = 0.0 if constant or not centre else math.inf
    return Interval(*(growth(nats) for nats in (centre, centre - reach, centre + reach)))


def growth(nats: float) -> float:
    """Return the relative change of perplexity for a change of its logarithm."""
    try:
        return math.expm1(nats)
    except OverflowError:
        return math.inf


@functools.cache
def t_quantile(degrees: int) -> float:
    """Return the value that Student's t exceeds in size with probability ALPHA, for whole degrees of freedom.

    By bisection of the finite series for P(|t| < value) in the angle atan(value / sqrt(degrees)): Abramowitz
    & Stegun 1964, Handbook of Mathematical Functions, 26.7.3 and 26.7.4. scipy takes 0.3 s to import.
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _t_within(middle, degrees) < 1 - ALPHA else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _t_within(angle: float, degrees: int) -> float:
    odd, cosine = degrees % 2, math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for number in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (number - 1) / number
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def mcnemar(lost: int, won: int) -> float:
    """Return the exact two-sided p value that as many answers became wrong (`lost`) as right (`won`).

    Answers that stayed the same are no evidence. Source: McNemar 1947, Note on the sampling error of the
    difference between correlated proportions; the exact form is the binomial test of the pairs that differ.
    """
    if lost + won == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + won, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, in the order given: reject where at most the error rate.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


@dataclass(frozen=True)
class Shift:
    """The shift of throughput: candidate over base by medians, and the threshold for a change.

    `separated`: every value of one side lies beyond every value of the other.
    """

    ratio: float
    threshold: float
    separated: bool

    @property
    def certain(self) -> bool:
        """Whether it is more than noise, in either direction."""
        return self.separated and self.large

    @property
    def large(self) -> bool:
        """Whether the medians alone are further apart than noise explains."""
        return abs(self.ratio - 1) > self.threshold

    @property
    def slower(self) -> bool:
        """Whether the candidate is the slower side."""
        return self.ratio < 1


def shift(base: Sequence[float], candidate: Sequence[float]) -> Shift:
    """Compare throughputs of interleaved runs on one machine.

    The threshold is the larger of 3 % and three robust standard deviations of the base's runs about their
    median, relative to it (median absolute deviation: Hampel 1974, The influence curve and its role in
    robust estimation). Without a difference, n values of each side separate completely with probability
    2 / C(2n, n): 0.8 % for five (Mann & Whitney 1947, the extreme value of their statistic).
    """
    centre = statistics.median(base)
    deviation = statistics.median(abs(value - centre) for value in base) / centre
    separated = max(candidate) < min(base) or min(candidate) > max(base)
    threshold = max(LEAST_SPEED_CHANGE, 3 * MAD_TO_SD * deviation)
    return Shift(statistics.median(candidate) / centre, threshold, separated)


def interleaved(sides: Sequence[bool]) -> bool:
    """Return whether no side has three runs in a row, given runs by start, True for one side."""
    return all(len(set(sides[first : first + 3])) > 1 for first in range(len(sides) - 2))

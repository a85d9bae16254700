"""Detect change points of noisy values by E-divisive with means and its permutation test.

Source: Matteson & James 2014, A nonparametric approach for multiple change point analysis of multivariate
data, Journal of the American Statistical Association 109 (505): the energy divergence with exponent 1, the
hierarchical search and its permutation test. Used for performance by Daly et al. 2020, The Use of Change
Point Detection to Identify Software Performance Regressions in a Continuous Integration System, ICPE. Tested
against sampled truth: how often it raises a false alarm, and how small a step it sees.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.tables.compare.statistics import ALPHA

METHOD = "E-divisive with means (Matteson & James 2014)"
#: Least number of values on each side of a change: two bad runs in a row are none.
LEAST_SIDE = 3
PERMUTATIONS = 999
#: Only the newest values of a longer series are searched: distances grow with the square.
MOST_VALUES = 200
#: Decides how many permutations are made at a time.
CHUNK = 2_000_000
#: Counts that a processor's cache holds, which makes them faster by far.
CACHED = 1 << 17
#: Sums of the same distances in another order may differ by so much.
ROUNDING = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A change of level in front of the value `at`, with its p value by permutation, None without a test."""

    at: int
    p_value: float | None = None


def change_points(
    values: Sequence[float], places: Sequence[int], blocks: Sequence[int] | None = None, seed: int = 0
) -> list[Change]:
    """Return all significant changes, each at the first value of a place (a commit), in order.

    `places` never falls. Values of one block (a seed) are exchanged among themselves only, so that what makes
    a block high at every place is no change; without blocks all are exchanged. The best split over all
    segments is tested until one is not significant at 5 %, so that a series without changes has any with
    that probability.
    """
    found: list[Change] = []
    blocks = [0] * len(values) if blocks is None else blocks
    levels, ranks = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    series = _Values(ranks, np.diff(levels), np.asarray(places), np.asarray(blocks))
    segments = [(0, len(values))]
    random = np.random.default_rng(seed)
    while True:
        best = [series.best(*segment) for segment in segments]
        place = max(range(len(best)), key=lambda index: best[index][0])
        statistic, at = best[place]
        if not statistic > 0:
            break
        p_value = series.p_value(segments, statistic, random)
        if p_value > ALPHA:
            break
        found.append(Change(at, p_value))
        start, end = segments[place]
        segments[place : place + 1] = [(start, at), (at, end)]
    return sorted(found, key=lambda change: change.at)


def attainable(places: Sequence[int], blocks: Sequence[int]) -> float:
    """Return the smallest p value that any values of this design could reach.

    Values that separate completely do so in one arrangement of each block and in its mirror image.
    """
    cuts = [at for at in range(1, len(places)) if places[at] != places[at - 1]]
    smallest = 1.0
    for at in cuts:
        before, after = Counter(blocks[:at]), Counter(blocks[at:])
        if min(at, len(places) - at) >= LEAST_SIDE:
            ways = math.prod(math.comb(before[block] + after[block], before[block]) for block in before)
            smallest = min(smallest, 2 / ways)
    return smallest


@dataclass(frozen=True)
class _Values:
    """A series with its commits and blocks: the ranks of its values, and the gaps between these ranks."""

    ranks: NDArray[np.int64]
    gaps: Floats
    places: NDArray[np.int64]
    blocks: NDArray[np.int64]

    def best(self, start: int, end: int) -> tuple[float, int]:
        """Return the largest divergence of a segment and the index of the value that it splits before."""
        cuts = self._cuts(start, end)
        if not len(cuts):
            return 0.0, start
        statistic, cut = _divergence(self.ranks[None, start:end], self.gaps, cuts)
        return float(statistic[0]), start + int(cuts[cut[0]])

    def p_value(
        self, segments: Sequence[tuple[int, int]], statistic: float, random: np.random.Generator
    ) -> float:
        """Return how often exchanged values diverge as much: (1 + as extreme) / (1 + permutations).

        Ends as soon as it is certain that the answer is above the level, and is then a lower bound of it.
        """
        extreme, done = 0, 0
        largest = max(end - start for start, end in segments)
        rows = max(1, min(PERMUTATIONS, 128, CHUNK // largest**2))
        while done < PERMUTATIONS and extreme + 1 <= ALPHA * (PERMUTATIONS + 1):
            count = min(rows, PERMUTATIONS - done)
            highest = np.zeros(count)
            for start, end in segments:
                cuts = self._cuts(start, end)
                if len(cuts):
                    exchanged = self._exchanged(start, end, count, random)
                    highest = np.maximum(highest, _divergence(exchanged, self.gaps, cuts)[0])
            extreme += int((highest >= statistic * (1 - ROUNDING)).sum())
            done += count
        return (1 + extreme) / (1 + PERMUTATIONS)

    def _cuts(self, start: int, end: int) -> NDArray[np.int64]:
        """Return where a segment may be split: at commits, with enough values on both sides."""
        at = np.flatnonzero(np.diff(self.places[start:end])) + 1
        return at[(at >= LEAST_SIDE) & (at <= end - start - LEAST_SIDE)]

    def _exchanged(self, start: int, end: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the ranks of a segment, permuted within its blocks, shape (count, values)."""
        found = np.repeat(self.ranks[None, start:end], count, axis=0)
        for block in np.unique(self.blocks[start:end]):
            of_block = np.flatnonzero(self.blocks[start:end] == block)
            found[:, of_block] = random.permuted(found[:, of_block], axis=1)
        return found


def _divergence(
    ranks: NDArray[np.int64], gaps: Floats, cuts: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the largest scaled divergence of each row of (rows, values), and the index of its cut.

    Q = m n / (m + n) * (2 mean |x - y| - mean |x - x'| - mean |y - y'|), for x up to the cut and y from there
    up to a later cut or the end, so that a level that comes back is seen as well (tau and kappa of the
    paper).
    """
    count = ranks.shape[1]
    ends = np.append(cuts, count)
    m, n = ends[:, None].astype(np.float64), (ends[None, :] - ends[:, None]).astype(np.float64)
    allowed = n >= LEAST_SIDE
    n[~allowed] = 2.0
    scale = m * n / (m + n)
    first, second = scale / (m * (m - 1)), scale / (n * (n - 1))
    both = 2 * scale / (m * n) + 2 * second
    best, cut = np.empty(len(ranks)), np.empty(len(ranks), dtype=np.int64)
    step = max(1, CACHED // (len(ends) * (len(gaps) + 1)))
    for start in range(0, len(ranks), step):
        # Over all before one edge and before the other: with x, y in both parts and its own sums twice.
        sums = _distances(ranks[start : start + step], gaps, ends)
        own = np.einsum("rii->ri", sums)
        statistic = both * sums
        statistic -= (both + first - second) * own[:, :, None]
        statistic -= second * own[:, None, :]
        statistic[:, ~allowed] = -np.inf
        largest = statistic.max(axis=2)
        best[start : start + step], cut[start : start + step] = largest.max(axis=1), largest.argmax(axis=1)
    return best, cut


def _distances(ranks: NDArray[np.int64], gaps: Floats, ends: NDArray[np.int64]) -> Floats:
    """Return the sums of distances between the values before each end and those before each other end.

    The shape is (rows, ends, ends). Of m values, a of them up to some gap, and n values, b of them up to it,
    a (n - b) + (m - a) b pairs have this gap between them. So sums over gaps take the place of a distance for
    each pair.
    """
    rows, parts, levels = len(ranks), len(ends), len(gaps) + 1
    places = np.repeat(np.arange(parts), np.diff(ends, prepend=0)) + np.arange(rows)[:, None] * parts
    flat = (ranks * (rows * parts) + places).ravel()
    ones = np.ones(flat.size)
    held = np.bincount(flat, ones, minlength=levels * rows * parts).reshape(levels, rows, parts)
    _add_up(held)
    _add_up(held.transpose(2, 0, 1))
    below = held[:-1].transpose(1, 2, 0)
    one_sided = (below @ gaps)[:, :, None] * ends
    weighted = below * np.sqrt(gaps)
    found: Floats = one_sided + one_sided.transpose(0, 2, 1)
    found -= 2 * (weighted @ weighted.transpose(0, 2, 1))
    return found


def _add_up(values: NDArray[Any]) -> None:
    """Replace values by their sums along the first axis; faster by far than `cumsum` where that is short."""
    for before, here in pairwise(values):
        here += before

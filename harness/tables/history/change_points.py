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

import numpy as np
from numpy.typing import NDArray

from harness.tables.compare.statistics import ALPHA

METHOD = "E-divisive with means (Matteson & James 2014)"
#: Least number of values on each side of a change: two bad runs in a row are none.
LEAST_SIDE = 3
PERMUTATIONS = 999
#: Only the newest values of a longer series are searched: distances grow with the square.
MOST_VALUES = 200
#: Distances that are held at a time.
CHUNK = 2_000_000
#: Distances that a processor's cache holds, which makes them faster by far.
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
    series = _Values(np.asarray(values, dtype=np.float64), np.asarray(places), np.asarray(blocks))
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
    """A series with its commits and blocks."""

    values: Floats
    places: NDArray[np.int64]
    blocks: NDArray[np.int64]

    def best(self, start: int, end: int) -> tuple[float, int]:
        """Return the largest divergence of a segment and the index of the value that it splits before."""
        cuts = self._cuts(start, end)
        if not len(cuts):
            return 0.0, start
        statistic, cut = _divergence(self.values[None, start:end], cuts)
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
                    highest = np.maximum(
                        highest, _divergence(self._exchanged(start, end, count, random), cuts)[0]
                    )
            extreme += int((highest >= statistic * (1 - ROUNDING)).sum())
            done += count
        return (1 + extreme) / (1 + PERMUTATIONS)

    def _cuts(self, start: int, end: int) -> NDArray[np.int64]:
        """Return where a segment may be split: at commits, with enough values on both sides."""
        at = np.flatnonzero(np.diff(self.places[start:end])) + 1
        return at[(at >= LEAST_SIDE) & (at <= end - start - LEAST_SIDE)]

    def _exchanged(self, start: int, end: int, count: int, random: np.random.Generator) -> Floats:
        """Return permutations of a segment within its blocks, shape (count, values)."""
        found = np.repeat(self.values[None, start:end], count, axis=0)
        for block in np.unique(self.blocks[start:end]):
            of_block = np.flatnonzero(self.blocks[start:end] == block)
            found[:, of_block] = random.permuted(found[:, of_block], axis=1)
        return found


def _divergence(values: Floats, cuts: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the largest scaled divergence of each row of (rows, values), and the index of its cut.

    Q = m n / (m + n) * (2 mean |x - y| - mean |x - x'| - mean |y - y'|), for x up to the cut and y from there
    up to a later cut or the end, so that a level that comes back is seen as well (tau and kappa of the
    paper).
    """
    rows, count = values.shape
    edges = np.concatenate(([0], cuts))
    blocks = np.empty((rows, len(edges), len(edges)))
    step = max(1, CACHED // count**2)
    for first in range(0, rows, step):
        some = values[first : first + step]
        distances = np.subtract(some[:, :, None], some[:, None, :])
        np.abs(distances, out=distances)
        blocks[first : first + step] = np.add.reduceat(
            np.add.reduceat(distances, edges, axis=1), edges, axis=2
        )
    sums = blocks.cumsum(axis=1).cumsum(axis=2)  # over all before the next edge
    ends = np.append(cuts, count).astype(np.float64)
    m, n = ends[:, None], ends[None, :] - ends[:, None]
    own = np.einsum("rii->ri", sums)
    between = sums - own[:, :, None]
    second = own[:, None, :] - own[:, :, None] - 2 * between
    allowed = (np.arange(len(ends))[:, None] < np.arange(len(ends))[None, :]) & (n >= LEAST_SIDE)
    n = np.where(allowed, n, 2.0)
    within = own[:, :, None] / (m * (m - 1)) + second / (n * (n - 1))
    statistic = np.where(allowed, m * n / (m + n) * (2 * between / (m * n) - within), -np.inf)
    best = statistic.max(axis=2)
    cut = best.argmax(axis=1)
    return best[np.arange(rows), cut], cut

"""Detect change points of noisy values by E-divisive with means and its permutation test.

Source: Matteson & James 2014, A nonparametric approach for multiple change point analysis of multivariate
data, Journal of the American Statistical Association 109 (505): the energy divergence with exponent 1, the
hierarchical search and its permutation test. Used for performance by Daly et al. 2020, The Use of Change
Point Detection to Identify Software Performance Regressions in a Continuous Integration System, ICPE. Tested
against sampled truth: how often it raises a false alarm, and how small a step it sees.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from harness.tables.history import divergence
from harness.tables.history.divergence import LEAST_SIDE, Floats, Ranks
from harness.tables.statistics import ALPHA

METHOD = "E-divisive with means (Matteson & James 2014)"
PERMUTATIONS = 999
#: Only the newest values of a longer series are searched: distances grow with the square.
MOST_VALUES = 200
#: Decides how many permutations are made at a time.
CHUNK = 2_000_000
#: Sums of the same distances in another order may differ by so much.
ROUNDING = 1e-9


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
    blocks = [0] * len(values) if blocks is None else blocks
    levels, ranks = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    series = _Values(ranks, np.diff(levels), np.asarray(places), np.asarray(blocks))
    divergence.keep_memory()
    with _libraries().limit(limits=1, user_api="blas"):
        return _search(series, np.random.default_rng(seed))


@functools.cache
def _libraries() -> ThreadpoolController:
    """Return the libraries of numpy: on matrices this small, their threads wait for each other."""
    return ThreadpoolController()


def _search(series: _Values, random: np.random.Generator) -> list[Change]:
    """Split the segment with the largest divergence, until that is not significant."""
    found: list[Change] = []
    segments = [(0, len(series.ranks))]
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

    ranks: Ranks
    gaps: Floats
    places: Ranks
    blocks: Ranks

    def best(self, start: int, end: int) -> tuple[float, int]:
        """Return the largest divergence of a segment and the index of the value that it splits before."""
        cuts = self._cuts(start, end)
        if not len(cuts):
            return 0.0, start
        statistic, cut = divergence.largest(self.ranks[None, start:end], self.gaps, cuts)
        return float(statistic[0]), start + int(cuts[cut[0]])

    def p_value(
        self, segments: Sequence[tuple[int, int]], statistic: float, random: np.random.Generator
    ) -> float:
        """Return how often exchanged values diverge as much: (1 + as extreme) / (1 + permutations).

        Ends as soon as it is certain that the answer is above the level, and is then a lower bound of it.
        """
        extreme, done, threshold = 0, 0, statistic * (1 - ROUNDING)
        largest = max(end - start for start, end in segments)
        rows = max(1, min(PERMUTATIONS, 128, CHUNK // largest**2))
        while done < PERMUTATIONS and extreme + 1 <= ALPHA * (PERMUTATIONS + 1):
            count = min(rows, PERMUTATIONS - done)
            reached = np.zeros(count, dtype=np.bool_)
            for start, end in segments:
                cuts = self._cuts(start, end)
                if len(cuts):
                    exchanged = self._exchanged(start, end, count, random)
                    left = np.flatnonzero(~reached)
                    if not extreme:  # where none is as extreme, few bounds are
                        left = left[divergence.bound(exchanged[left], self.gaps, cuts) >= threshold]
                    reached[left] = divergence.largest(exchanged[left], self.gaps, cuts)[0] >= threshold
            extreme += int(reached.sum())
            done += count
        return (1 + extreme) / (1 + PERMUTATIONS)

    def _cuts(self, start: int, end: int) -> Ranks:
        """Return where a segment may be split: at commits, with enough values on both sides."""
        at = np.flatnonzero(np.diff(self.places[start:end])) + 1
        return at[(at >= LEAST_SIDE) & (at <= end - start - LEAST_SIDE)]

    def _exchanged(self, start: int, end: int, count: int, random: np.random.Generator) -> Ranks:
        """Return the ranks of a segment, permuted within its blocks, shape (count, values)."""
        state, blocks = json.dumps(random.bit_generator.state), self.blocks[start:end].tobytes()
        orders, random.bit_generator.state = _orders(state, blocks, count)
        return self.ranks[start:end][orders]


@functools.lru_cache(maxsize=256)
def _orders(state: str, blocks: bytes, count: int) -> tuple[Ranks, Mapping[str, Any]]:
    """Return places permuted within blocks, shape (count, values), and the state of the generator afterwards.

    Series of one design, as the quantities of a row, ask for the same.
    """
    random = np.random.default_rng(0)
    random.bit_generator.state = json.loads(state)
    of = np.frombuffer(blocks, dtype=np.int64)
    orders = np.tile(np.arange(len(of)), (count, 1))
    for block in np.unique(of):
        of_block = np.flatnonzero(of == block)
        orders[:, of_block] = random.permuted(orders[:, of_block], axis=1)
    return orders, random.bit_generator.state

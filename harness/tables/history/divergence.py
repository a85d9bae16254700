"""Compute the energy divergence of the parts of many series at all splits at once, and cheaper bounds of it.

Source: Matteson & James 2014 (see `change_points.py`); Székely & Rizzo 2013, Energy statistics: a class of
statistics based on distances, Journal of Statistical Planning and Inference 143 (8), for its form as an
integral over distribution functions.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Least number of values on each side of a change: two bad runs in a row are none.
LEAST_SIDE = 3
#: Counts that a processor's cache holds, which makes them faster by far.
CACHED = 1 << 17
#: Groups of neighbouring levels that a bound counts in place of levels.
CELLS = 12
#: Bytes of the largest block that is kept when freed.
KEPT = 16 << 20

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]


def largest(ranks: Ranks, gaps: Floats, cuts: Ranks) -> tuple[Floats, Ranks]:
    """Return the largest scaled divergence of each row of (rows, values), and the index of its cut.

    Q = m n / (m + n) * (2 mean |x - y| - mean |x - x'| - mean |y - y'|), for x up to the cut and y from there
    up to a later cut or the end, so that a level that comes back is seen as well (tau and kappa of the
    paper).
    """
    ends, m, n, allowed = _splits(ranks.shape[1], cuts)
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


def bound(ranks: Ranks, gaps: Floats, cuts: Ranks) -> Floats:
    """Return an upper bound of the largest scaled divergence of each row; several times faster.

    With the distribution functions F and G of both parts, Q <= 2 m n / (m + n) * integral of (F - G)^2.
    Levels are put into cells, of which only the shares f and g are needed: within a cell, F and G lie between
    their values at its ends, so F - G differs from d, that of their middles, by at most (f + g) / 2. As
    (a + b)^2 <= 3/2 a^2 + 3 b^2, and f + g = 2 f + (g - f), (F - G)^2 <= 3/2 d^2 + 9/4 (f - g)^2 + 9/2 f^2.
    Where H is of both parts, F - G = (m + n) / n * (F - H), and the same holds for d and f - g.
    """
    ends, m, n, allowed = _splits(ranks.shape[1], cuts)
    parts = len(ends)
    cells = np.arange(len(gaps) + 1) * CELLS // (len(gaps) + 1)
    places = CELLS * np.repeat(np.arange(parts), np.diff(ends, prepend=0))
    average = np.tri(parts) / ends[:, None]
    widths = np.sqrt(np.bincount(cells[:-1], gaps, minlength=CELLS))
    middles = (np.tri(CELLS).T - np.eye(CELLS) / 2) * widths
    wanted = np.hstack([np.sqrt(1.5) * middles, 1.5 * np.diag(widths)])
    scale = np.where(allowed, 2 * m * n / (m + n), 0.0)
    moved = scale * ((m + n) / n) ** 2
    found = np.empty(len(ranks))
    step = max(1, CACHED // parts**2)
    for start in range(0, len(ranks), step):
        held = cells[ranks[start : start + step]] + places
        rows = len(held)
        held += (parts * CELLS) * np.arange(rows)[:, None]
        counts = np.bincount(held.ravel(), minlength=rows * parts * CELLS).astype(np.float64)
        shares = average @ counts.reshape(rows, parts, CELLS)
        vectors = (shares.reshape(-1, CELLS) @ wanted).reshape(rows, parts, -1)
        squares = np.einsum("rpc,rpc->rp", vectors, vectors)[:, :, None]
        ones = np.ones_like(squares)
        left, right = np.dstack([vectors, squares, ones]), np.dstack([-2 * vectors, ones, squares])
        bounds = left @ right.transpose(0, 2, 1)
        bounds *= moved
        bounds += (4.5 * scale) * (shares**2 @ widths**2)[:, :, None]
        found[start : start + step] = bounds.reshape(rows, -1).max(axis=1)
    return found


@functools.cache
def keep_memory() -> None:
    """Keep memory that is freed, once per process: else the system clears it again for each of many arrays.

    After a block of its own was freed, glibc takes those up to this size from memory that it keeps
    (M_MMAP_THRESHOLD of mallopt(3)); elsewhere this does nothing.
    """
    np.empty(KEPT, dtype=np.int8)


def _splits(count: int, cuts: Ranks) -> tuple[Ranks, Floats, Floats, NDArray[np.bool_]]:
    """Return the ends of parts, the values before the first and up to the second, and which have enough."""
    ends = np.append(cuts, count)
    m, n = ends[:, None].astype(np.float64), (ends[None, :] - ends[:, None]).astype(np.float64)
    allowed = n >= LEAST_SIDE
    n[~allowed] = 2.0
    return ends, m, n, allowed


def _distances(ranks: Ranks, gaps: Floats, ends: Ranks) -> Floats:
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

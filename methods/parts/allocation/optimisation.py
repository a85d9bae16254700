"""Minimise a costly function of a few shares under a budget, by a Gaussian process of what was seen.

Each next point is the one of greatest expected improvement (Jones et al., 1998, doi 10.1023/A:1008306431147,
equation 15) among random points and points near the best one, under a process with a Matern 5/2 kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError

Array = np.ndarray

#: Random points and points near the best one that compete for the next evaluation.
RANDOM, NEAR = 2000, 1000
#: How far points near the best one are from it, in parts of the range of a variable.
DISTANCES = (0.2, 0.05, 0.0125)
#: Draws for one point before those that miss the band are moved into it.
DRAWS = 20
#: Limits of the kernel's length scales, in parts of the range of a variable.
LENGTHS = (1.2e-3, 10.0)


@dataclass(frozen=True)
class Band:
    """Points (variables,) in a box whose cost lies in a band: sum of costs x min(1, share), plus `fixed`."""

    low: float
    high: float
    costs: Array
    least: float
    most: float
    fixed: float = 0.0

    def cost(self, points: Array) -> Array:
        """Return the costs (points,) of points (points, variables)."""
        return np.asarray(self.fixed + np.minimum(1, points) @ self.costs)

    def holds(self, points: Array) -> Array:
        """Return which points (points, variables) lie in the box and in the band."""
        cost = self.cost(points)
        inside = np.all((points >= self.low) & (points <= self.high), axis=1)
        return np.asarray(inside & (cost >= self.least) & (cost <= self.most))

    def sample(self, count: int, generator: np.random.Generator) -> Array:
        """Return random points (count, variables) of the band.

        They are uniform in the box and kept where they hit the band. Where too few do, as with many
        variables, the others are moved towards a corner of the box until their cost is a random one of it.
        UserError where no point of the box is in the band.
        """
        ends = np.array([[self.low], [self.high]]).repeat(len(self.costs), 1)
        cheapest, dearest = self.cost(ends)
        if cheapest > self.most or dearest < self.least:
            whole = self.fixed + self.costs.sum()
            raise UserError(
                f"bayes: shares from {self.low:g} to {self.high:g} keep {cheapest / whole:.1%} to "
                f"{dearest / whole:.1%}, and the budget leaves {self.most / whole:.1%}; change "
                "allocator.range or name fewer kinds in allocator.dense"
            )
        drawn = generator.uniform(self.low, self.high, (count * DRAWS, len(self.costs)))
        hits = drawn[self.holds(drawn)][:count]
        rest = drawn[: count - len(hits)]
        wanted = generator.uniform(max(self.least, cheapest), min(self.most, dearest), len(rest))
        return np.concatenate([hits, self._moved(rest, wanted)])

    def _moved(self, points: Array, wanted: Array) -> Array:
        """Return the points on the ways to the cheapest or the dearest corner that have these costs."""
        down = self.cost(points) > wanted
        corners = np.where(down, self.low, self.high)[:, None].repeat(points.shape[1], 1)
        cheap, dear = (np.where(down[:, None], *pair) for pair in ((corners, points), (points, corners)))
        for _ in range(60):
            middle = (cheap + dear) / 2
            within = (self.cost(middle) <= wanted)[:, None]
            cheap, dear = np.where(within, middle, cheap), np.where(within, dear, middle)
        return cheap


@dataclass(frozen=True)
class History:
    """Points (evaluations, variables) in the order of their evaluation, and their values (evaluations,)."""

    points: Array
    values: Array

    @property
    def best(self) -> int:
        """The number of the evaluation with the least value; values that are not finite count as infinite."""
        return int(np.nan_to_num(self.values, nan=np.inf, posinf=np.inf).argmin())


def minimise(
    objective: Callable[[Array], float],
    sample: Callable[[int], Array],
    holds: Callable[[Array], Array],
    bounds: tuple[float, float],
    lengths: Sequence[float],
    evaluations: int,
    initial: int,
    generator: np.random.Generator,
) -> History:
    """Evaluate `initial` points of `sample`, then the most promising ones up to `evaluations` in all.

    `sample` returns so many allowed points (count, variables), `holds` says which ones are. `bounds` are the
    range of each variable; `lengths` are the kernel's length scales to begin with, in parts of that range.
    """
    points = list(sample(min(initial, evaluations)))
    values = [objective(point) for point in points]
    while len(points) < evaluations:
        seen = History(np.array(points), np.array(values))
        competing = np.concatenate([sample(RANDOM), _near(seen, bounds, holds, generator)])
        gain = _expected_improvement(seen, competing, bounds, lengths)
        points.append(competing[gain.argmax()])
        values.append(objective(points[-1]))
    return History(np.array(points), np.array(values))


def _near(
    seen: History,
    bounds: tuple[float, float],
    holds: Callable[[Array], Array],
    generator: np.random.Generator,
) -> Array:
    """Return allowed points near the best one, with some of its variables changed."""
    best, (low, high) = seen.points[seen.best], bounds
    spread = np.repeat(DISTANCES, NEAR)[:, None] * (high - low)
    changed = generator.random((len(spread), len(best))) < 0.5
    moved = np.clip(best + changed * spread * generator.standard_normal(changed.shape), low, high)
    return moved[holds(moved)]


def _expected_improvement(
    seen: History, competing: Array, bounds: tuple[float, float], lengths: Sequence[float]
) -> Array:
    """Return by how much each point is expected to be better than the best one that was seen."""
    from scipy.special import ndtr
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern, WhiteKernel

    finite = np.isfinite(seen.values)
    if not finite.any():
        return np.ones(len(competing))
    values = np.where(finite, seen.values, seen.values[finite].max())
    low, high = bounds
    kernel = Matern(list(lengths), LENGTHS, nu=2.5) + WhiteKernel(1e-6, (1e-10, 1e-1))
    process = GaussianProcessRegressor(kernel, normalize_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its limit is no fault
        process.fit((seen.points - low) / (high - low), values)
    mean, deviation = process.predict((competing - low) / (high - low), return_std=True)
    deviation = np.maximum(deviation, 1e-12)
    better = values.min() - mean
    scaled = better / deviation
    density = np.exp(-(scaled**2) / 2) / np.sqrt(2 * np.pi)
    found: Array = better * ndtr(scaled) + deviation * density
    return found

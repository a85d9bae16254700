"""Fits by least squares, each with the worst relative distance of a point, so that a bad fit shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Power:
    """y = factor * x ** exponent, fitted to the logarithms; `worst` is the largest |fit / y - 1|."""

    factor: float
    exponent: float
    worst: float


@dataclass(frozen=True)
class Affine:
    """y = constant + slope * x; `worst` is the largest |fit / y - 1|."""

    constant: float
    slope: float
    worst: float


def power(x: Sequence[float], y: Sequence[float]) -> Power:
    """Fit a power law to at least two points with different, positive x; ValueError for anything else."""
    points = np.array([x, y], dtype=np.float64)
    if (points <= 0).any():
        raise ValueError("a power law is fitted to positive values alone")
    slope, constant = _line(*np.log(points))
    factor = float(np.exp(constant))
    return Power(factor, slope, _worst(factor * points[0] ** slope, points[1]))


def affine(x: Sequence[float], y: Sequence[float]) -> Affine:
    """Fit a line to at least two points with different x, y not 0; ValueError for anything else."""
    points = np.array([x, y], dtype=np.float64)
    slope, constant = _line(*points)
    return Affine(constant, slope, _worst(constant + slope * points[0], points[1]))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and constant of the least squares; x is centred, so that large values cost no digits."""
    if len(set(x)) < 2:
        raise ValueError(f"a fit needs at least two different points, given x = {x.tolist()}")
    middle = x.mean()
    slope = float(((x - middle) * (y - y.mean())).sum() / ((x - middle) ** 2).sum())
    return slope, float(y.mean() - slope * middle)


def _worst(fitted: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(fitted / y - 1).max())

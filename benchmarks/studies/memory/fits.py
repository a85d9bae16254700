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
    points = _points(x, y)
    if (points <= 0).any():
        raise ValueError("a power law is fitted to positive values alone")
    logarithms = np.log(points)
    slope, constant = _line(logarithms[0], logarithms[1])
    factor = float(np.exp(constant))
    return Power(factor, slope, _worst(factor * points[0] ** slope, points[1]))


def affine(x: Sequence[float], y: Sequence[float]) -> Affine:
    """Fit a line to at least two points with different x, y not 0; ValueError for anything else."""
    points = _points(x, y)
    slope, constant = _line(points[0], points[1])
    return Affine(constant, slope, _worst(constant + slope * points[0], points[1]))


def _points(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    points = np.array([x, y], dtype=np.float64)
    if len(set(x)) < 2:
        raise ValueError(f"a fit needs at least two different points, given x = {list(x)}")
    return points


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and constant of the least squares; x is centred, so that large values cost no digits."""
    middle = x.mean()
    slope = float(((x - middle) * (y - y.mean())).sum() / ((x - middle) ** 2).sum())
    return slope, float(y.mean() - slope * middle)


def _worst(fitted: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(fitted / y - 1).max())

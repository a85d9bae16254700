"""One threshold on normalised singular values for all matrices, and the search for the one that is asked for.

Singular values are scaled to [0, 1] per matrix; what lies below the threshold goes (Jaiswal et al., WeLore,
ICML 2025, arXiv 2407.11239).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

#: Normalised singular values of each matrix by name, ascending.
Spectra = Mapping[str, list[float]]


def normalised(values: Tensor | Sequence[float]) -> list[float]:
    """Return singular values of one matrix, scaled to [0, 1], ascending; equal ones are all 1."""
    found = sorted(values.double().tolist() if isinstance(values, Tensor) else values)
    low, high = found[0], found[-1]
    return [(value - low) / (high - low) if high > low else 1.0 for value in found]


def kept_ranks(spectra: Spectra, tau: float) -> dict[str, int]:
    """Return how many values of each matrix are at or above a threshold, at least one."""
    return {name: max(1, len(values) - bisect_left(values, tau)) for name, values in spectra.items()}


def around(spectra: Spectra, reduction: Callable[[float], float], target: float) -> list[float]:
    """Return the last threshold whose reduction is below a target and the first whose reduction is not.

    Ascending; only one where the other does not exist. The reduction must never fall as tau grows. It then
    steps only behind the values themselves, so bisection over the pooled values is exact.
    """
    candidates = sorted({value for values in spectra.values() for value in values})
    first = bisect_left(candidates, target, key=reduction)
    return candidates[max(0, first - 1) : first + 1]

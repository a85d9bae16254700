"""How many entries of weights, seen with their inputs, are outliers (Yin et al., OWL, ICML 2024, arXiv
2310.05175, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def score(pairs: Sequence[tuple[Tensor, Tensor]], threshold: float) -> float:
    """Return the percentage of entries |W| |X| above `threshold` times the mean of all.

    A pair is a weight (out, in) and the norms of its inputs (in), in any unit that all pairs share. One
    matrix of entries exists at a time.
    """
    entries = sum(weight.numel() for weight, _ in pairs)
    mean = sum(float((weight.abs() * norms).double().sum()) for weight, norms in pairs) / entries
    above = sum(int((weight.abs() * norms > threshold * mean).sum()) for weight, norms in pairs)
    return 100 * above / entries

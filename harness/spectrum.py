"""Singular values: assumed where only the shape of a model is known, and thinned for records.

`like_llama`: the i-th of n values of a matrix is bulk (1 - u) + (1 - bulk) / i with u = (i - 1) / (n - 1), a
head that falls as a power law down to a bulk that falls linearly to 0. How high the bulk begins depends on
the kind of layer and on its depth. The heights were chosen so that the thresholds and parameter ratios
published for LLaMA-2 7B and 13B (Jaiswal et al., arXiv 2407.11239, tables 4 and 5, and their code) nearly
come out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

#: Height of the bulk by kind: query and key lose most of their ranks, value, up and down fewest.
BULK = {
    "q_proj": 0.185,
    "k_proj": 0.195,
    "o_proj": 0.265,
    "gate_proj": 0.275,
    "v_proj": 0.42,
    "up_proj": 0.38,
    "down_proj": 0.40,
}
OTHER_KINDS = 0.30
#: The outermost blocks are lower in rank than those in the middle, by this share of the height; and no two
#: blocks are alike, since equal values would leave it to rounding which of them a threshold parts.
EDGE, SLOPE = 0.3, 0.02


def like_llama(size: int, name: str, names: Collection[str]) -> list[float]:
    """Return `size` values, descending from 1, for a layer by its dotted name among all `names`."""
    height = _bulk(name, 1 + max(map(_block, names)))
    steps = max(1, size - 1)
    return [height * (1 - index / steps) + (1 - height) / (index + 1) for index in range(size)]


def power_law(size: int, name: str = "", names: Collection[str] = ()) -> list[float]:
    """Return 1 / i for every matrix alike."""
    return [1 / (index + 1) for index in range(size)]


def _bulk(name: str, blocks: int) -> float:
    height = BULK.get(name.rpartition(".")[2], OTHER_KINDS)
    depth = 2 * _block(name) / max(1, blocks - 1) - 1
    return height * (1 + EDGE / 3 - EDGE * depth**4 + SLOPE * depth)


def _block(name: str) -> int:
    """Return the number of a layer's block, 0 outside of blocks."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else 0


#: How many values of each spectrum a record has: as many as a chart can show.
SPECTRUM_POINTS = 33


def thinned_spectrum(values: Iterable[float]) -> list[float]:
    """Return singular values over the largest, descending, at `SPECTRUM_POINTS` evenly spaced places.

    Both ends are included; all values where there are fewer; to four significant digits.
    """
    ordered = sorted(values, reverse=True)
    last, count = len(ordered) - 1, min(len(ordered), SPECTRUM_POINTS)
    places = [round(number * last / max(1, count - 1)) for number in range(count)]
    scale = ordered[0] if ordered and ordered[0] > 0 else 1.0
    return [float(f"{ordered[place] / scale:.4g}") for place in places]

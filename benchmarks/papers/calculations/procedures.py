"""What published procedures do in small cases: a schedule, a search, a merge of covariances.

Each is written from its description; numbers that stand for measurements are made up from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt
from random import Random
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.papers.calculations.parameters import parameters, size
from benchmarks.papers.calculations.value import Value, in_unit

Ratio = Annotated[float, Field(gt=0, lt=1)]
Vector = Sequence[float]
#: A layer, a share in percent that it may keep, and the perplexity that this alone would cost.
Entry = tuple[int, int, float]
#: LoRAPrune: shares of the updates before pruning begins and after it ends; updates between two prunings.
WARMUP, COOLDOWN, EVERY = 0.1, 0.1, 10
#: Shares that ASVD tries for each layer, in percent.
CANDIDATES = (40, 50, 60, 70, 80, 90)
#: Targets that the search is tried at, in percent.
TARGETS = range(50, 90)


# --------------------------------------------------------------------------------- LoRAPrune's schedule
def pruned_groups(groups: PositiveInt, ratio: Ratio, steps: PositiveInt, reached: bool = False) -> Value:
    """Count the groups of a module that LoRAPrune masks in so many updates.

    It masks int(groups r) of them at every tenth update while 0 < r < ratio, with r the cubic schedule
    (arXiv 2305.18403; the official code). `reached` is the target, round(groups ratio).
    """
    if reached:
        return Value(round(groups * ratio), "groups", f"round({groups} x {ratio:g})")
    tried = (_scheduled(step, steps, ratio) for step in range(EVERY, steps + 1, EVERY))
    found = max((int(groups * now) for now in tried if 0 < now < ratio), default=0)
    how = f"the most of int({groups} r) over every tenth of {steps} updates with 0 < r < {ratio:g}"
    return Value(found, "groups", how)


def pruned_parameters(
    shape: str,
    ratio: Ratio,
    steps: PositiveInt,
    reached: bool = False,
    give: Literal["percent", "left"] = "percent",
) -> Value:
    """Return what LoRAPrune takes away of all parameters in percent, or what is left in billions.

    The first tenth of the blocks, rounded down, and the last one stay whole.
    """
    hidden, wide, layers, heads = (
        int(size(shape, what).value) for what in ("hidden", "intermediate", "layers", "heads")
    )
    pruned = layers - int(0.1 * layers) - 1
    lost_heads, lost_channels = (
        int(pruned_groups(groups, ratio, steps, reached).value) for groups in (heads, wide)
    )
    block = lost_heads * 4 * hidden * (hidden // heads) + lost_channels * 3 * hidden
    total = float(parameters(shape, unit="elements").value)
    how = f"without {lost_heads} of {heads} heads and {lost_channels} of {wide} channels"
    how += f" in {pruned} of {layers} blocks"
    if give == "left":
        return Value(in_unit(total - pruned * block, "billion"), "billion", how)
    return Value(100 * pruned * block / total, "percent", f"{how}, over all parameters")


def _scheduled(step: int, steps: int, ratio: float) -> float:
    """Return the share to prune at an update: 0, then rising by a cubic law, then the ratio."""
    begin, end = WARMUP * steps, (1 - COOLDOWN) * steps
    if step <= begin:
        return 0.0
    if step >= end:
        return ratio
    return ratio - ratio * (1 - (step - begin) / (end - begin)) ** 3


# ---------------------------------------------------------------------------------------- ASVD's search
def search_end(
    layers: PositiveInt,
    seed: int = 0,
    use: Literal["last tried", "converged"] = "last tried",
    give: Literal["above", "targets", "worst"] = "above",
) -> Value:
    """Return how ASVD's search ends beside its target, over 40 targets and made-up sensitivities.

    Entries (layer, share, perplexity) are sorted by perplexity, the highest first; from a cut on all are
    allowed, and a layer keeps its least allowed share. The cut is bisected for the first that keeps more than
    the target (ASVD, arXiv 2312.05821). The official code builds the model of the cut that it tried last,
    `converged` takes the one before the first that keeps more. `above`: at how many targets the model keeps
    more than the target; `worst`: by how many percentage points at most.
    """
    draw = Random(seed)
    entries = [
        (layer, share, draw.uniform(1, 9) * (100 - share)) for layer in range(layers) for share in CANDIDATES
    ]
    entries.sort(key=lambda entry: -entry[2])
    ends = [searched(entries, layers, target, use) - target * layers for target in TARGETS]
    over = [end / layers for end in ends if end > 0]
    value, unit = {
        "above": (len(over), "targets"),
        "targets": (len(ends), "targets"),
        "worst": (max(over, default=0.0), "percentage points"),
    }[give]
    how = f"{layers} layers of one size, targets of 50 to 89 %, sensitivities made up with seed {seed}, {use}"
    return Value(value, unit, how)


def searched(entries: Sequence[Entry], layers: int, target: int, use: str) -> int:
    """Return what the model of the final cut keeps: the sum over layers of percentages, which are whole."""
    low, high, cut = 0, len(entries) - 1, 0
    while low < high:
        cut = (low + high) // 2
        if _kept(entries[cut:], layers) > target * layers:
            high = cut
        else:
            low = cut + 1
    return _kept(entries[cut if use == "last tried" else max(low - 1, 0) :], layers)


def _kept(allowed: Sequence[Entry], layers: int) -> int:
    """Sum over layers the least share that is allowed, 100 where none is."""
    least = dict.fromkeys(range(layers), 100)
    for layer, share, _ in allowed:
        least[layer] = min(least[layer], share)
    return sum(least.values())


# --------------------------------------------------------------------------------------- Bolaco's merge
def merged_trace(
    sequences: PositiveInt = 8,
    tokens: PositiveInt = 16,
    width: PositiveInt = 6,
    shift: PositiveFloat = 1.0,
    seed: int = 0,
    give: Literal["share", "error"] = "share",
) -> Value:
    """Return what Bolaco's merge of running covariances leaves of the true one, in percent.

    Entries are standard normal, and each sequence adds its own mean, normal with standard deviation `shift`.
    The merge of two parts takes the mean of a part less the new mean, where it should take it less the old
    one (the official code). `share` is the trace over the true trace, `error` the Frobenius norm of the
    difference over that of the truth.
    """
    draw = Random(seed)
    parts = []
    for _ in range(sequences):
        means = [shift * draw.gauss(0, 1) for _ in range(width)]
        parts.append([[mean + draw.gauss(0, 1) for mean in means] for _ in range(tokens)])
    truth = scatter([token for part in parts for token in part])
    found = merged(parts, less_new_mean=True)
    value = _trace(found) / _trace(truth) if give == "share" else _norm(found, truth) / _norm(truth)
    how = f"{sequences} sequences of {tokens} vectors of {width}, seed {seed}, means apart by {shift:g}"
    return Value(100 * value, "percent", how)


def merged(parts: Sequence[Sequence[Vector]], less_new_mean: bool) -> list[list[float]]:
    """Return the scatter of all vectors, merged part by part.

    `less_new_mean` merges as the official code does, else rightly (Chan, Golub and LeVeque 1983).
    """
    width = len(parts[0][0])
    total, mean, count = [[0.0] * width for _ in range(width)], [0.0] * width, 0
    for part in parts:
        own, new = _mean(part), len(part)
        after = [(count * a + new * b) / (count + new) for a, b in zip(mean, own, strict=True)]
        apart = [b - a for a, b in zip(after if less_new_mean else mean, own, strict=True)]
        within = scatter(part)
        weight = count * new / (count + new)
        for i in range(width):
            for j in range(width):
                total[i][j] += within[i][j] + weight * apart[i] * apart[j]
        mean, count = after, count + new
    return total


def scatter(vectors: Sequence[Vector]) -> list[list[float]]:
    """Return the sum of outer products of vectors less their mean."""
    mean = _mean(vectors)
    apart = [[value - middle for value, middle in zip(vector, mean, strict=True)] for vector in vectors]
    width = range(len(mean))
    return [[fsum(vector[i] * vector[j] for vector in apart) for j in width] for i in width]


def _mean(vectors: Sequence[Vector]) -> list[float]:
    return [fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def _trace(matrix: Sequence[Vector]) -> float:
    return fsum(row[place] for place, row in enumerate(matrix))


def _norm(matrix: Sequence[Vector], less: Sequence[Vector] | None = None) -> float:
    """Return the Frobenius norm of a matrix, less another where one is given."""
    other = less or [[0.0] * len(row) for row in matrix]
    pairs = zip(matrix, other, strict=True)
    return sqrt(fsum((a - b) ** 2 for row, beside in pairs for a, b in zip(row, beside, strict=True)))

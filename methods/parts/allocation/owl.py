"""Shares of blocks by the outliers among the entries of their weights, seen with their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from methods.parts.allocation.allocator import Allocator, Problem
from methods.parts.calibration.blocks import walk
from methods.parts.calibration.outliers import score

#: Halvings after which an interval of float64 has no smaller half.
HALVINGS = 64


class Owl(Allocator):
    """One share for all matrices of a block, more where more entries are outliers (Yin et al., OWL, ICML
    2024, arXiv 2310.05175, section 3.3).

    The paper leaves out weights, not ranks; that the shares are of ranks or of parameters is ours. So is that
    their mean stays where one is cut at 1 or at the least rank.
    """

    type: Literal["owl"] = "owl"
    value_dependent: ClassVar[bool] = True

    strength: Annotated[float, Field(ge=0, lt=1)] = 0.08
    """Half of the difference between the largest and the smallest share (lambda); 0 is `uniform`."""

    threshold: Annotated[float, Field(ge=1)] = 5.0
    """How many times the mean of its block an outlier is (M): 5 as in the published commands; the default of
    the code is 3."""

    @property
    def reads_text(self) -> bool:
        """Return that it does."""
        return True

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return ranks by the shares of the blocks; UserError without text.

        A target outside of blocks has the mean share.
        """
        scores, budget = self.scores(problem), problem.budget
        mean = budget.target / budget.whole_model
        spreading = spread(list(scores.values()), mean, self.strength)
        shares = dict(zip(scores, recentred(spreading, mean, budget.least), strict=True))
        problem.context.facts.update(
            outlier_scores=[round(each, 6) for each in scores.values()],
            block_shares=[round(each, 6) for each in shares.values()],
        )
        kept = {name: shares[block] for name, block in problem.block_of.items()}
        return budget.ranks({name: kept.get(name, mean) for name in problem.shapes})

    @torch.no_grad()
    def scores(self, problem: Problem) -> dict[int, float]:
        """Return the percentage of outliers of each block with targets, on inputs as the whole model makes
        them."""
        blocks = walk(problem.model, problem.layers, problem.text("owl").batches(), second_moments=False)
        found = {}
        for block, inputs in enumerate(blocks):
            pairs = []
            for name, sums in inputs.items():
                weight = problem.layers[name].weight
                dtype = torch.promote_types(weight.dtype, torch.float32)
                pairs.append((weight, sums.mean_square.sqrt().to(dtype)))
            if pairs:
                found[block] = score(pairs, self.threshold)
        return found


def spread(scores: Sequence[float], mean: float, strength: float) -> list[float]:
    """Return shares in proportion to scores, `2 strength` from the smallest to the largest, around a mean.

    Equal scores give equal shares.
    """
    low, high = min(scores), max(scores)
    if high == low:
        return [mean] * len(scores)
    raised = [2 * strength * (each - low) / (high - low) for each in scores]
    centre = sum(raised) / len(raised)
    return [each - centre + mean for each in raised]


def recentred(shares: Sequence[float], mean: float, least: float) -> list[float]:
    """Return shares cut to [least, 1] and moved by one number so that their mean stays, as far as it can."""

    def cut(by: float) -> list[float]:
        return [min(1.0, max(least, each + by)) for each in shares]

    if all(least <= each <= 1 for each in shares):
        return list(shares)
    low, high = least - max(shares), 1 - min(shares)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(cut(middle)) < mean * len(shares) else (low, middle)
    return cut(high)

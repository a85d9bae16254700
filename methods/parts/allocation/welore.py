"""Ranks by one threshold on the normalised singular values of all matrices."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.errors import UserError
from methods.parts.allocation.allocator import Allocator, Problem
from methods.parts.allocation.threshold import around, kept_ranks, normalised


class WeLoreThreshold(Allocator):
    """Drop every singular value, scaled to [0, 1] per matrix, below one threshold (WeLore, ICML 2025, arXiv
    2407.11239): the smallest one that meets the budget."""

    type: Literal["welore"] = "welore"
    value_dependent: ClassVar[bool] = True

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return ranks at the threshold, rounded down to multiples; the budget is met from below.

        Where parameters are counted a matrix stays dense until its factors are smaller. UserError where so
        many values of a matrix are equal that no threshold takes enough.
        """
        budget, found = problem.budget, problem.singular_values
        problem.context.add_spectra({name: values.tolist() for name, values in found.items()})
        spectra = {name: normalised(values) for name, values in found.items()}

        def ranks(tau: float) -> dict[str, int]:
            kept = kept_ranks(spectra, tau)
            return budget.rounded({name: max(1, rank // budget.multiple) for name, rank in kept.items()})

        tau = around(spectra, lambda tau: -budget.cost(ranks(tau)), -budget.target)[-1]
        chosen = ranks(tau)
        least = budget.rounded(dict.fromkeys(spectra, 1))
        if budget.cost(chosen) > budget.target and chosen != least:
            taken = budget.measured(chosen)[budget.counted]
            raise UserError(
                f"welore: a threshold takes away at most {taken:.1%} of {budget.counted}, because singular "
                "values of a matrix are equal; ask for less, or use another allocator"
            )
        problem.context.facts["tau"] = tau
        return chosen

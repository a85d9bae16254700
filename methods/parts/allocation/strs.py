"""Sensitivity-based truncation rank search (Yuan et al., ASVD, 2023, arXiv 2312.05821, algorithm 1).

Every matrix is tried at every candidate share, alone. All (matrix, share) pairs are sorted from the most to
the least harmful, and a cut forbids the most harmful ones: a matrix takes its smallest share that is allowed,
else it stays dense. Departs from the paper's code: the cut is where the bisection has converged, not where it
last looked; pairs that are equally harmful at one share are allowed together; a pair whose perplexity is not
finite is never allowed; the output head never takes part.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import inf, isfinite
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.errors import UserError
from methods.parts.allocation.allocator import Allocator, Problem
from methods.parts.allocation.budget import Budget
from methods.parts.allocation.trial import Trial

#: Shares of a matrix that may be kept.
Candidate = Annotated[float, Field(gt=0, lt=1)]
#: Harm that is done by keeping a share of a matrix, by (name, share).
Harms = Mapping[tuple[str, float], float]
#: The share of a dense matrix.
WHOLE = inf


class Strs(Allocator):
    """Search shares by how much each matrix alone does harm."""

    type: Literal["strs"] = "strs"
    value_dependent: ClassVar[bool] = True

    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of a matrix that are tried, as the budget counts them."""

    metric: Literal["perplexity", "stable_rank"] = "perplexity"
    """What harm is: the `perplexity` of the calibration text, by one evaluation for each matrix and each
    candidate; or, without text, -sqrt(stable rank) share^0.1, by which a matrix of high `stable_rank` is cut
    first, as in the paper's code."""

    sequences: Annotated[int, Field(gt=0)] | None = None
    """Sequences of calibration text for each perplexity; null is all that the run declares."""

    @model_validator(mode="after")
    def _options_that_act(self) -> Self:
        if self.sequences is not None and not self.reads_text:
            raise ValueError(
                "`sequences` are of text, which `metric: stable_rank` does not read; leave it out"
            )
        return self

    @property
    def reads_text(self) -> bool:
        """Return whether perplexities say what does harm."""
        return self.metric == "perplexity"

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return the ranks that the search ends with, scaled up to the budget.

        The search stops within one (matrix, share) step below the budget. All its shares then grow by one
        factor, so that the target is met as by any other allocator; what is dense stays so. UserError where
        the smallest candidates cost more than the budget.
        """
        budget = problem.budget
        harms = self._stable_ranks(problem) if self.metric == "stable_rank" else self._perplexities(problem)
        shares, position = search(harms, budget)
        problem.context.facts.update(cut=position, searched_cost=budget.cost(at_shares(shares, budget)))
        problem.context.facts.update(budgeted_cost=int(budget.target))
        return budget.ranks({name: shares.get(name, WHOLE) for name in budget.shapes})

    def _pairs(self, budget: Budget) -> Iterator[tuple[str, float]]:
        """Yield what is tried: each matrix with each share of it."""
        for name in budget.shapes:
            yield from ((name, share) for share in sorted({*self.candidates}))

    def _perplexities(self, problem: Problem) -> Harms:
        text = problem.text("strs")
        pairs = list(self._pairs(problem.budget))
        problem.context.facts["evaluations"] = len(pairs)
        trial, found = Trial(problem), {}
        for name, share in pairs:
            ranks = at_shares({name: share}, problem.budget)
            found[name, share] = trial.evaluate(ranks, text.batches(self.sequences)).perplexity
        return found

    def _stable_ranks(self, problem: Problem) -> Harms:
        problem.context.facts["evaluations"] = 0
        squares = {name: values.double().square() for name, values in problem.singular_values.items()}
        stable = {name: float((values.sum() / values.max()).sqrt()) for name, values in squares.items()}
        return {(name, share): -stable[name] * share**0.1 for name, share in self._pairs(problem.budget)}


def at_shares(shares: Mapping[str, float], budget: Budget) -> dict[str, int]:
    """Return the ranks of matrices that keep these shares, rounded down to multiples but at least one.

    Those that would cost as much as a dense one are left out, as are those with a share of 1 and more.
    """
    found = {}
    for name, share in shares.items():
        if share < 1:
            room = share * budget.whole(name) - budget.fixed(name)
            steps = int(room / budget.unit(name) / budget.multiple)
            rank = max(1, steps) * budget.multiple
            if budget.price(name, rank) < budget.whole(name):
                found[name] = rank
    return found


def search(harms: Harms, budget: Budget) -> tuple[dict[str, float], int]:
    """Return the share of each matrix that is not dense, and the cut that it follows from.

    Cuts lie between groups of pairs that are equally harmful at one share; the cut is how many groups are
    forbidden. It is the last one whose ranks meet the budget. UserError where none does.
    """
    allowed = [(pair, harm) for pair, harm in harms.items() if isfinite(harm)]
    ordered = sorted(allowed, key=lambda each: (-each[1], each[0][1]))
    groups = [
        [pair for pair, _ in same] for _, same in groupby(ordered, key=lambda each: (each[1], each[0][1]))
    ]
    costs = range(len(groups) + 1)
    cut = bisect_right(
        costs, budget.target, key=lambda cut: budget.cost(at_shares(smallest(groups[cut:]), budget))
    )
    if not cut:
        least = 1 - budget.cost(at_shares(smallest(groups), budget)) / budget.whole_model
        raise UserError(
            f"strs: the smallest candidates take away {least:.1%} at most, and the budget asks for "
            f"{1 - budget.target / budget.whole_model:.1%}; add smaller ones to allocator.candidates"
        )
    return smallest(groups[cut - 1 :]), cut - 1


def smallest(groups: Sequence[Sequence[tuple[str, float]]]) -> dict[str, float]:
    """Return the smallest share of each matrix among pairs."""
    found: dict[str, float] = {}
    for name, share in (pair for group in groups for pair in group):
        found[name] = min(share, found.get(name, share))
    return found

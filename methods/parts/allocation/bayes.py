"""Bayesian optimisation of shares by kind of layer (Ji et al., Bolaco, 2024, arXiv 2405.10616, section 3.2).

The blocks are cut into groups of consecutive ones. In each, q and k share one variable, and every other kind
of layer has its own: the share of a matrix that is kept, 1 and more being dense. Departs from the paper's
code so that any model and budget will do: costs follow from the shapes, choices from text that no result is
measured on, and every candidate is within the budget as its ranks are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from harness.errors import UserError, nearest
from harness.method import Batch
from methods.parts.allocation.allocator import Allocator, Problem
from methods.parts.allocation.optimisation import Array, Band, minimise
from methods.parts.allocation.strs import WHOLE, at_shares
from methods.parts.allocation.trial import Trial
from methods.parts.sampling.schedule import layers_of
from methods.parts.targets import LINEAR_KINDS, kind_of

#: Random allocations by which the most telling windows are found.
PROBES = 20
#: How far below the budget a candidate may be, as a share of all targets.
BELOW = 0.1
#: Length scales to begin with: attention 1.0, feed-forward 0.8 (appendix of the paper).
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")

Positive = Annotated[int, Field(gt=0)]


class Bayes(Allocator):
    """Search shares by kind and group of blocks on the validation text."""

    type: Literal["bayes"] = "bayes"
    value_dependent: ClassVar[bool] = True

    groups: Positive = 1
    """Groups of consecutive blocks with shares of their own: 1 is the paper's 5x1, 4 its 5x4."""

    dense: tuple[str, ...] = ("v_proj",)
    """Kinds of layers that stay dense."""

    range: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0)]] = (0.2, 1.001)
    """The least and the largest share; 1 and more leaves a matrix dense."""

    evaluations: Positive = 50
    """Candidates that are evaluated."""

    initial: Positive = 3
    """How many of them are random; each later one follows from those before it."""

    divergence: Annotated[float, Field(ge=0)] = 4.096
    """Weight of KL(compressed, uncompressed), in nats a token, beside the perplexity. The paper's code takes
    1e-3 of the sum over 4096 tokens, which is this; 0 saves the passes of the uncompressed model."""

    windows: Positive | None = None
    """Search on so many of the validation windows: those whose perplexity varies most over 20 random
    allocations (the paper takes 100). Null takes all."""

    @field_validator("range")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"the least share {value[0]:g} is not below the largest, {value[1]:g}")
        return value

    @property
    def reads_text(self) -> bool:
        """Return that it does."""
        return True

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return the best ranks that the search evaluated, or these scaled up to the budget if not worse.

        A candidate may be up to 0.1 of the targets below the budget. In the end all shares of the best one
        grow by one factor, so that the target is met as by any other allocator; that is evaluated, too, and
        taken unless it is worse, which gives a warning. UserError where no candidate fits the budget.
        """
        context, windows = problem.context, self._validation(problem)
        space, generator = Space.of(problem, self), np.random.default_rng(context.seed)
        probes = 0 if self.windows is None else PROBES
        context.facts["evaluations"] = self.evaluations + probes + 1
        trial = Trial(problem, space.names)
        if self.windows is not None:
            windows = telling(trial, space.sample(PROBES, generator), space.ranks, windows, self.windows)
        score = partial(self._score, trial, windows)
        history = minimise(
            lambda point: score(space.ranks(point)),
            partial(space.sample, generator=generator),
            space.holds,
            self.range,
            space.lengths,
            self.evaluations,
            self.initial,
            generator,
        )
        best, value = history.points[history.best], float(history.values[history.best])
        if not np.isfinite(value):
            raise UserError("bayes: no candidate has a finite perplexity; ask for a smaller reduction")
        filled = problem.budget.ranks(space.shares(best))
        after = score(filled)
        context.facts.update(objective=value, objective_at_budget=after if np.isfinite(after) else None)
        if after <= value:
            return filled
        context.warn(
            f"bayes: the best candidate is worse at the whole budget ({after:.6g} against {value:.6g}), so "
            "more is taken away than was asked for"
        )
        return space.ranks(best)

    def _validation(self, problem: Problem) -> list[Batch]:
        """Return the windows to search on; UserError where there is no text, or too little."""
        found = list(problem.text("bayes").validation())
        count = sum(len(batch.ids) for batch in found)
        if self.windows is not None and self.windows > count:
            raise UserError(
                f"bayes: {self.windows} windows are more than the {count} for validation; ask for fewer "
                "(allocator.windows) or give more (calibration.validation)"
            )
        return found

    def _score(self, trial: Trial, windows: Sequence[Batch], ranks: Mapping[str, int]) -> float:
        """Return the objective: perplexity, plus the weighted divergence."""
        found = trial.evaluate(ranks, windows, divergence=self.divergence > 0)
        return found.perplexity + (self.divergence * found.divergence if self.divergence else 0)


@dataclass(frozen=True)
class Space:
    """Which matrices each variable is about, and which points the budget allows."""

    problem: Problem
    variables: dict[tuple[int, str], list[str]]
    """Names of matrices by group and kind."""

    band: Band

    @classmethod
    def of(cls, problem: Problem, options: Bayes) -> Space:
        """Return the space for a problem; UserError for options that do not fit it."""
        budget, kinds = problem.budget, {kind_of(name) for name in problem.shapes}
        for kind in options.dense:
            if kind not in kinds | {*LINEAR_KINDS}:
                raise UserError(f"bayes: dense: no target is a {kind!r}; {nearest(kind, kinds)}")
        group_of = _groups(problem, options.groups)
        variables: dict[tuple[int, str], list[str]] = {}
        for name in problem.shapes:
            kind = kind_of(name)
            if name in group_of and kind not in options.dense:
                tied = "qk" if kind in ("q_proj", "k_proj") else kind
                variables.setdefault((group_of[name], tied), []).append(name)
        if not variables:
            raise UserError("bayes: every target is named in allocator.dense; leave some to be factored")
        costs = np.array([sum(map(budget.whole, names)) for names in variables.values()], dtype=float)
        fixed, least = budget.whole_model - costs.sum(), budget.target - BELOW * budget.whole_model
        band = Band(*options.range, costs, least, budget.target, fixed)
        return cls(problem, dict(sorted(variables.items(), key=lambda each: each[0][0])), band)

    @property
    def names(self) -> list[str]:
        """Return the names of the matrices that may be factored."""
        return [name for names in self.variables.values() for name in names]

    @property
    def lengths(self) -> list[float]:
        """Return the length scale of each variable to begin with."""
        return [0.8 if kind in FEED_FORWARD else 1.0 for _, kind in self.variables]

    def shares(self, point: Array) -> dict[str, float]:
        """Return the share of every target, dense ones whole."""
        shares = dict.fromkeys(self.problem.shapes, WHOLE)
        for share, names in zip(point.tolist(), self.variables.values(), strict=True):
            shares.update(dict.fromkeys(names, share if share < 1 else WHOLE))
        return shares

    def ranks(self, point: Array) -> dict[str, int]:
        """Return the ranks of a point (variables,), rounded down; dense matrices are left out."""
        return at_shares(self.shares(point), self.problem.budget)

    def holds(self, points: Array) -> Array:
        """Return which points (points, variables) are in the band and within the budget as rounded."""
        budget = self.problem.budget
        fits = self.band.holds(points)
        for number in fits.nonzero()[0] if self._may_round_up else ():
            fits[number] = budget.cost(self.ranks(points[number])) <= budget.target
        return fits

    @property
    def _may_round_up(self) -> bool:
        """Whether a least rank may cost more than the share that it is for."""
        budget, least = self.problem.budget, self.band.low
        return any(least * budget.whole(name) < budget.price(name, budget.multiple) for name in self.names)

    def sample(self, count: int, generator: np.random.Generator) -> Array:
        """Return allowed random points (count, variables); UserError where there are none."""
        found = self.band.sample(count, generator)
        if not self._may_round_up:
            return found
        for _ in range(20):
            kept = found[self.holds(found)]
            if len(kept) >= count:
                return kept[:count]
            found = np.concatenate([kept, self.band.sample(count, generator)])
        raise UserError(
            "bayes: at least one multiple as rank of each matrix costs more than the budget; take a smaller "
            "multiple, or ask for a smaller reduction"
        )


def _groups(problem: Problem, groups: int) -> dict[str, int]:
    """Return the group of consecutive blocks that each target is in; UserError for too many groups."""
    blocks = list(layers_of(problem.model))
    if groups > len(blocks):
        raise UserError(f"bayes: {groups} groups are more than the {len(blocks)} blocks of the model")
    group_of = {
        id(module): number * groups // len(blocks)
        for number, block in enumerate(blocks)
        for module in block.modules()
    }
    return {name: group_of[id(layer)] for name, layer in problem.layers.items() if id(layer) in group_of}


def telling(
    trial: Trial,
    points: Iterable[Array],
    ranks: Callable[[Array], dict[str, int]],
    batches: Sequence[Batch],
    count: int,
) -> list[Batch]:
    """Return the windows whose perplexity varies most over allocations, in their order, batched as before."""
    found = torch.stack([trial.evaluate(ranks(point), batches).perplexities for point in points])
    spread = found.std(0).nan_to_num(nan=torch.inf)
    chosen = spread.argsort(descending=True, stable=True)[:count].sort().values
    rows = [Batch(*row) for batch in batches for row in zip(batch.ids, batch.labels, strict=True)]
    size, kept = len(batches[0].ids), [rows[number] for number in chosen.tolist()]
    return [
        Batch(*(torch.stack(each) for each in zip(*kept[first : first + size], strict=True)))
        for first in range(0, count, size)
    ]

"""Shares or ranks that each kind of layer keeps, as they are given or published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from harness.errors import UserError, nearest
from methods.parts.allocation.allocator import Allocator, Problem
from methods.parts.allocation.published import LLAMA_7B, MULTIPLE, PUBLISHED, Preset, Table
from methods.parts.targets import kind_of

T = TypeVar("T")

_as_list = BeforeValidator(lambda value: [value] if isinstance(value, Mapping) else value)
Kept = Annotated[float, Field(gt=0, le=1, strict=True)]
Rank = Annotated[int, Field(gt=0, strict=True)]


class PerType(Allocator):
    """Keep a share or a rank of each kind of layer; give exactly one of `keep`, `ranks` and `preset`.

    A list in place of a section is about groups of as many consecutive blocks each, the first one first.
    """

    type: Literal["per_type"] = "per_type"

    keep: Annotated[tuple[dict[str, Kept], ...], _as_list, Field(min_length=1)] | None = None
    """Share that each kind keeps, in relation to the others: all below 1 are scaled by one factor, so that
    the budget is met. A kind that keeps 1, or is left out, stays dense."""

    ranks: Annotated[tuple[dict[str, Rank], ...], _as_list, Field(min_length=1)] | None = None
    """Rank of each kind, as it is; a kind that is left out stays dense. `reduction` only labels the run."""

    preset: Preset | None = None
    """Published for LLaMA-2: `lord`, or Bolaco's `bolaco_5x1` and `bolaco_5x4`. Its ranks are taken as they
    are for LLaMA-2 7B and 13B (but for 5x4, 7B only) where 0.2 or 0.3 of all `linears` go. Elsewhere the
    shares of parameters that the nearest table keeps are scaled, as `keep`, so that the budget is met."""

    @model_validator(mode="after")
    def _one_of_three(self) -> PerType:
        given = [name for name in ("keep", "ranks", "preset") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"per_type: give one of `keep`, `ranks` and `preset`, not {got}")
        return self

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return the ranks; UserError for an unknown kind, a rank that a matrix cannot have or that makes
        nothing smaller, more groups than blocks, and dense kinds that leave nothing for the others.
        """
        if self.ranks is not None:
            return self._given(problem, self.ranks)
        if self.preset is not None:
            return self._published(problem, self.preset)
        assert self.keep is not None
        _check(problem, "keep", self.keep)
        return _scaled(problem, self.keep)

    def _given(self, problem: Problem, rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
        _check(problem, "ranks", rows)
        budget = problem.budget
        chosen = {name: row[kind] for name, kind, row in _by_block(problem, rows) if kind in row}
        for name, rank in chosen.items():
            most = min(min(budget.shapes[name]), budget.most(name))
            most -= most % budget.multiple
            if rank > most or rank % budget.multiple:
                shape = " x ".join(map(str, budget.shapes[name]))
                wrong = (
                    f", which is {shape}, does not make it smaller"
                    if rank > most
                    else f" is no multiple of {budget.multiple}"
                )
                give = f"give at most {most}, or leave the kind out" if most else "leave the kind out"
                raise UserError(f"per_type: rank {rank} of {name}{wrong}; {give}")
        return chosen

    def _published(self, problem: Problem, preset: Preset) -> dict[str, int]:
        kinds = {kind_of(name) for name in problem.shapes}
        for kind in sorted(kinds - set(LLAMA_7B.shapes)):
            raise UserError(f"per_type: preset {preset} has nothing for {kind!r}; give `keep` or `ranks`")
        tables = PUBLISHED[preset]
        fitting = [table for table in tables if _fits(problem, table)]
        reduction = problem.budget.reduction
        table = min(fitting or tables, key=lambda table: abs(table.reduction - reduction))
        same = math.isclose(table.reduction, reduction) and problem.budget.counted == "linears"
        exact = bool(fitting) and same and MULTIPLE % problem.budget.multiple == 0
        problem.context.facts.update(preset_reduction=table.reduction, preset_ranks=exact)
        if not exact:
            return _scaled(problem, table.shares())
        rows = _by_block(problem, table.rows)
        return {name: rank for name, kind, row in rows if (rank := row[kind]) is not None}


def _fits(problem: Problem, table: Table) -> bool:
    """Return whether the targets are all linears of the model of a table."""
    shapes, model = problem.shapes, table.model
    return len(shapes) == len(model.shapes) * model.blocks and all(
        shape == model.shapes.get(kind_of(name)) for name, shape in shapes.items()
    )


def _check(problem: Problem, option: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError for a kind that is no target, and for more groups than blocks."""
    kinds = {kind_of(name) for name in problem.shapes}
    for kind in (kind for row in rows for kind in row if kind not in kinds):
        raise UserError(f"per_type: {option} names {kind!r}, which is no target; {nearest(kind, kinds)}")
    if len(rows) > 1 and len(rows) > problem.blocks:
        raise UserError(
            f"per_type: {option} has {len(rows)} groups of blocks, and the model has {problem.blocks} "
            "blocks; give at most one a block"
        )


def _by_block(problem: Problem, rows: Sequence[Mapping[str, T]]) -> list[tuple[str, str, Mapping[str, T]]]:
    """Return the name and kind of each target, and the row of its block; outside of blocks the first row."""
    if len(rows) == 1:
        return [(name, kind_of(name), rows[0]) for name in problem.shapes]
    group = {name: block * len(rows) // problem.blocks for name, block in problem.block_of.items()}
    return [(name, kind_of(name), rows[group.get(name, 0)]) for name in problem.shapes]


def _scaled(problem: Problem, rows: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Return ranks in proportion to shares that meet the budget; 1, or none, stays dense."""
    budget = problem.budget
    shares = {name: row.get(kind, 1.0) for name, kind, row in _by_block(problem, rows)}
    ranks = budget.ranks({name: math.inf if share >= 1 else share for name, share in shares.items()})
    dense = [name for name, share in shares.items() if share >= 1]
    if dense and budget.cost(ranks) > budget.target:
        kinds = ", ".join(dict.fromkeys(map(kind_of, dense)))
        held = sum(map(budget.whole, dense)) / budget.whole_model
        raise UserError(
            f"per_type: {kinds} stay dense and are {held:.1%} of the targets, so {budget.reduction:g} of "
            f"{budget.counted} cannot go; let them keep less, or ask for less"
        )
    return ranks

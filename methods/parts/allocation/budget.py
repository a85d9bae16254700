"""What a compression ratio means: a target, how it is counted, and ranks that meet it.

Papers call five different things a ratio. Here it is the share that goes, of the ranks of all target
matrices, of their parameters, or of all parameters of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from harness.errors import UserError
from methods.parts.targets import Shapes

#: What is counted: ranks of the targets, parameters of the targets, all parameters of the model.
Counted = Literal["ranks", "linears", "all"]


@dataclass(frozen=True)
class Budget:
    """A share `reduction` to be taken away from matrices of these shapes (out, in).

    `parameters` are those of the whole model before, `multiple` divides every rank. A matrix that keeps all
    of its share stays dense, and so it has no rank.
    """

    shapes: Shapes
    parameters: int
    reduction: float
    counted: Counted = "linears"
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.target <= 0:
            linears = self.whole_model
            raise UserError(
                f"reduction {self.reduction:g} of all parameters is more than the targets hold, which are "
                f"{linears / self.parameters:.1%} of them; ask for less"
            )

    def unit(self, name: str) -> int:
        """Return what one rank of a matrix costs."""
        return 1 if self.counted == "ranks" else sum(self.shapes[name])

    def whole(self, name: str) -> int:
        """Return what a dense matrix costs."""
        return min(self.shapes[name]) if self.counted == "ranks" else prod(self.shapes[name])

    @property
    def whole_model(self) -> int:
        """What all matrices cost when dense."""
        return sum(map(self.whole, self.shapes))

    @property
    def target(self) -> float:
        """What all matrices may cost together."""
        counted = self.parameters if self.counted == "all" else self.whole_model
        return self.whole_model - self.reduction * counted

    def cost(self, ranks: Mapping[str, int]) -> int:
        """Return what ranks cost; a matrix without one is dense."""
        return sum(
            ranks[name] * self.unit(name) if name in ranks else self.whole(name) for name in self.shapes
        )

    def ranks(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Return ranks in proportion to the shares that matrices keep, which together meet the target.

        Shares are scaled by one factor so that they do, no matrix above all of itself. Ranks are rounded down
        to multiples, and what that leaves over goes to the matrices that lost most by it; the cost is never
        above the target but where every matrix is at its least rank, one `multiple`.
        """
        kept = self._scaled(shares)
        exact = {
            name: share * self.whole(name) / self.unit(name) / self.multiple
            for name, share in kept.items()
            if share < 1
        }
        steps = {name: max(1, int(value)) for name, value in exact.items()}
        left = self.target - self.cost({name: step * self.multiple for name, step in steps.items()})
        for name in sorted(exact, key=lambda name: steps[name] - exact[name]):
            price = self.unit(name) * self.multiple
            if price <= left and exact[name] > steps[name]:
                steps[name] += 1
                left -= price
        ranks = {name: min(step * self.multiple, min(self.shapes[name])) for name, step in steps.items()}
        return {name: rank for name, rank in ranks.items() if rank * self.unit(name) < self.whole(name)}

    def _scaled(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Return min(1, c share) with the c for which the costs of all matrices are the target."""
        rising = sorted(self.shapes, key=lambda name: -shares[name])  # those that are whole first
        whole, rest = 0.0, sum(shares[name] * self.whole(name) for name in rising)
        factor = 1.0
        for name in rising:
            factor = (self.target - whole) / rest if rest > 0 else 0.0
            if factor * shares[name] <= 1:
                break
            whole += self.whole(name)
            rest -= shares[name] * self.whole(name)
        return {name: min(1.0, factor * share) for name, share in shares.items()}

    def measured(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """Return what is taken away by ranks, as a share of each of the three."""
        by_ranks, by_linears = (
            Budget(self.shapes, self.parameters, self.reduction, counted, 1)
            for counted in ("ranks", "linears")
        )
        removed = by_linears.whole_model - by_linears.cost(ranks)
        return {
            "ranks": 1 - by_ranks.cost(ranks) / by_ranks.whole_model,
            "linears": removed / by_linears.whole_model,
            "all": removed / self.parameters,
        }

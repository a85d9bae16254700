"""Weight refactorization and momentum reset: factors B A that are balanced, and moments set to zero.

Glentis et al., 2025, arXiv 2505.22922. Every `refactor_period` updates the factors of a product become those
of its SVD B A = U S V^T, B = U sqrt(S) and A = sqrt(S) V^T: the model says the same, and both factors have
the same size along each direction. Every `reset_period` updates the moments of AdamW begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.errors import UnsupportedError
from harness.method import Caps, Method, MethodConfig, StepInfo
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from methods.parts.quantisation.tensor import writable
from methods.parts.replicas import take_from_first

Period = Annotated[int, Field(gt=0)]
#: Weights B (out, rank) and A (rank, in) of one product.
Factors = tuple[Tensor, Tensor]

#: What rounding makes of a singular value of zero, at most, in units of the precision of the largest: up to 2
#: for random factors of ranks 8 to 512.
ROUNDING = 10

#: For the `source` of a method.
SOURCE = (
    "`refactor_period` and `reset_period` are weight refactorization and momentum reset of Glentis et al., "
    "2025, arXiv 2505.22922. Its abstract leaves open what was decided here: a reset takes all that trains, "
    "since momentum is the optimizer's, and by default both moments with their count; new factors have the "
    "signs of the old ones; where the product is zero one factor keeps its length."
)


class RefactoringConfig(MethodConfig):
    """Options of all methods that train products of two factors; off, they are as if they were not there."""

    refactor_period: Period | None = Field(default=None, exclude_if=lambda period: period is None)
    """Updates from one refactorization to the next: B A = U S V^T is split into U sqrt(S) and sqrt(S) V^T,
    the same product of balanced factors. Null leaves the factors as they train."""

    reset_period: Period | None = Field(default=None, exclude_if=lambda period: period is None)
    """Updates from one reset of AdamW's moments to the next, for all that trains. Null keeps them."""

    reset_moments: Literal["both", "first"] = Field(default="both", exclude_if=lambda which: which == "both")
    """What a reset sets to zero: `both` moments and the count of their bias correction, as if AdamW began
    anew, or the `first` alone (the momentum), which then grows without a correction."""

    @model_validator(mode="after")
    def _a_reset_has_a_period(self) -> RefactoringConfig:
        if self.reset_period is None and self.reset_moments != "both":
            raise ValueError("`reset_moments` matters only with `reset_period`; give both or neither")
        return self


class FactorTraining(Method):
    """Train all parameters of a model with factors; a subclass makes them and says which they are."""

    Config: ClassVar[type[MethodConfig]] = RefactoringConfig
    config: RefactoringConfig

    @property
    def caps(self) -> Caps:
        """Return a refactorization as the refresh; a reset costs less than an update and is none."""
        ours = self.config.refactor_period is not None or self.config.reset_period is not None
        return Caps(period=self.config.refactor_period, own_updates=ours, **TRAIN_OPTIONS)

    def factors(self, model: nn.Module) -> list[Factors]:
        """Return B (out, rank) and A (rank, in) of each product of a prepared model."""
        raise NotImplementedError

    def stepper(self, model: nn.Module, optim: OptimConfig) -> AdamWStepper:
        """Return AdamW over all parameters, which refactors and resets where the options say so."""
        if self.config.refactor_period is not None:
            return RefactoringStepper(
                model, optim, self.config, self.factors(model), self.config.refactor_period
            )
        if self.config.reset_period is not None:
            return ResettingStepper(model, optim, self.config)
        return AdamWStepper(model, optim)


class ResettingStepper(AdamWStepper):
    """AdamW whose moments are set to zero at the end of every `reset_period`-th update."""

    def __init__(self, model: nn.Module, optim: OptimConfig, config: RefactoringConfig) -> None:
        super().__init__(model, optim)
        self.config, self.updates = config, 0

    def step(self) -> StepInfo:
        """Update what has not been updated inside backward, and reset when it is due."""
        info = super().step()
        self.updates += 1
        period = self.config.reset_period
        if period is not None and self.updates % period == 0:
            for state in self.states.values():
                self.adam.reset(state, self.config.reset_moments)
        return info

    def state_dict(self) -> dict[str, Any]:
        """Return moments and the count of updates."""
        return {"moments": super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore copies of a saved state."""
        super().load_state_dict(state["moments"])
        self.updates = state["updates"]


class RefactoringStepper(ResettingStepper):
    """AdamW that balances factors at the end of every `period`-th update, one product after the other.

    Moments that are not reset stay where they are, though the coordinates of the factors turn under them.
    UnsupportedError where a factor does not train.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        config: RefactoringConfig,
        factors: Iterable[Factors],
        period: int,
    ) -> None:
        super().__init__(model, optim, config)
        self.factors, self.period, self.due = list(factors), period, period
        trained = {id(parameter) for parameter in self.parameters.values()}
        if any(id(factor) not in trained for pair in self.factors for factor in pair):
            raise UnsupportedError(
                "refactor_period replaces both factors of a product, and another method of the stack leaves "
                "one of them at rest; leave out refactor_period"
            )

    def step(self) -> StepInfo:
        """Update, and refactor when it is due."""
        info = super().step()
        refreshed = self.updates == self.due
        if refreshed:
            for up, down in self.factors:
                refactor(up, down)
            self.due += self.period
        return replace(info, refreshed=refreshed, refresh_next=self.updates + 1 == self.due)

    def refresh_soon(self) -> None:
        """Refactor at the end of the next update, and a period after it again."""
        self.due = self.updates + 1

    def state_dict(self) -> dict[str, Any]:
        """Return moments, the count of updates, and the update that refactors."""
        return {**super().state_dict(), "due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore copies of a saved state."""
        super().load_state_dict(state)
        self.due = state["due"]


@torch.no_grad()
def refactor(up: Tensor, down: Tensor) -> None:
    """Balance factors (out, rank) and (rank, in) in place; those that are not finite stay as they are.

    Replicas take the factors of process 0, since the rounding of a decomposition is arbitrary.
    """
    with writable(up) as left, writable(down) as right:
        try:
            new = balanced(left, right)
        except torch.linalg.LinAlgError:
            new = left, right
        for factor, value in zip((left, right), new, strict=True):
            factor.copy_(value)
        take_from_first((left.detach(), right.detach()))


def balanced(up: Tensor, down: Tensor) -> Factors:
    """Return factors u sqrt(s) (out, rank) and sqrt(s) vh (rank, in) of the product up @ down = u diag(s) vh.

    The SVD is that of the (rank, rank) product of the triangles of both factors, so that no (out, in) matrix
    is made; in float32 at least. The rank is at most `out` and `in`. Each column of `up` with its row of
    `down` points as they did before. torch.linalg.LinAlgError where the decomposition fails.

    Where a singular value is zero both parts would be zero, and so would be their gradients for all time.
    There the factor that is longer along its singular vector keeps its length, and the other is zero.
    """
    exact = torch.promote_types(up.dtype, torch.float32)
    left, upper = torch.linalg.qr(up.to(exact))
    right, lower = torch.linalg.qr(down.to(exact).T)
    u, s, vh = torch.linalg.svd(upper @ lower.T)
    along_u, along_v = u.T @ upper, vh @ lower  # row j: up^T (left u_j) and down (right v_j)
    of_up, of_down = (torch.linalg.vector_norm(rows, dim=1) for rows in (along_u, along_v))
    nothing, root, zero = s <= ROUNDING * torch.finfo(exact).eps * s[:1], s.sqrt(), torch.zeros_like(s)
    up_stays = of_up > of_down
    of_up = torch.where(nothing, torch.where(up_stays, of_up, zero), root)
    of_down = torch.where(nothing, torch.where(up_stays, zero, of_down), root)
    pointing = of_up * along_u.diagonal() + of_down * along_v.diagonal()
    sign = torch.where(pointing < 0, -1.0, 1.0).to(exact)
    return left @ (u * (sign * of_up)), (vh * (sign * of_down)[:, None]) @ right.T

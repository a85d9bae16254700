"""Adam in a low-rank subspace of the gradient: what the methods share that project gradients.

For each chosen matrix a step is: maybe a new subspace (`find`, with the moments carried over), project
the gradient, Adam on the coordinates, map the step back and add it. All other parameters get AdamW.
A subclass says when subspaces are refreshed and what happens then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import StepInfo
from methods.parts.optim.adam import Arithmetic
from methods.parts.optim.adamw import AdamWStepper, gradient, moment_tensors
from methods.parts.projection.matrix import Matrices, Matrix
from methods.parts.projection.moments import Rule, carried
from methods.parts.projection.projector import Projector


class ProjectedStepper(AdamWStepper):
    """AdamW, in a subspace for the matrices in `matrices` (by parameter name)."""

    #: What becomes of the moments when a subspace is replaced; factor of the step; where eps and decay act.
    rule: Rule = "keep"
    scale: float = 1.0
    arithmetic: Arithmetic = "torch"

    def __init__(self, model: nn.Module, optim: OptimConfig, matrices: dict[str, Matrix]) -> None:
        super().__init__(model, optim)
        self.matrices = Matrices({name: m for name, m in matrices.items() if name in self.parameters})
        self.updates = 0
        self._moved: dict[str, int] = {}
        self._counts = 0, 0  # refreshes and skipped gradients before this step

    def find(self, name: str, matrix: Matrix, gradient: Tensor) -> Projector | None:
        """A new projector from a finite gradient, or None to keep the old one."""
        raise NotImplementedError

    def after_refresh(self, matrix: Matrix, old: Projector | None) -> None:
        """Set `next_refresh`; the update under way is `self.updates`."""
        matrix.next_refresh = self.updates + matrix.period

    def after_projection(self, name: str, matrix: Matrix, coordinates: Tensor) -> None:
        """See the coordinates of a gradient."""

    def after_step(self) -> None:
        """Decide about the coming update when all matrices have had this one."""

    def step(self) -> StepInfo:
        """Update whatever has not been updated inside backward; say what happened."""
        info = super().step()
        self.after_step()
        self.updates += 1
        counts = self.matrices.counts()
        refreshes, skipped = (now - before for now, before in zip(counts, self._counts, strict=True))
        moved, self._moved, self._counts = self._moved, {}, counts
        return replace(
            info,
            refreshed=refreshes > 0,
            refresh_next=any(matrix.next_refresh <= self.updates for matrix in self.matrices.values()),
            ranks=moved or None,
            refreshes=refreshes,
            skipped=skipped,
        )

    def refresh_soon(self) -> None:
        """Let the coming update find new subspaces out of turn, so that a short run shows what one costs."""
        for matrix in self.matrices.values():
            matrix.next_refresh = self.updates

    @torch.no_grad()
    def update(self, names: Sequence[str], **rules: float) -> None:
        """Update these parameters from their gradients; `rules` are for those that are not projected."""
        plain = [name for name in names if name not in self.matrices]
        if self.arithmetic == "torch":
            super().update(plain, **rules)
        else:
            super().update(plain, **self._without_decay())
            for name in plain:
                self.parameters[name].mul_(1 - self.lr * self.optim.weight_decay)
        for name in names:
            if name in self.matrices:
                self._update_matrix(name, self.matrices[name])

    def _update_matrix(self, name: str, matrix: Matrix) -> None:
        weight, grad = self.parameters[name], gradient(self.parameters[name])
        if matrix.next_refresh <= self.updates and not self._refresh(name, matrix, grad):
            return
        assert matrix.projector is not None
        coordinates = matrix.projector.project(grad)
        self.after_projection(name, matrix, coordinates)
        if name not in self.states:
            self.states[name] = self.adam.new_state(coordinates)
        decay = 1 - self.lr * self.optim.weight_decay
        if decay != 1 and self.arithmetic == "torch":
            weight.mul_(decay)
        move = torch.zeros_like(coordinates)
        self.adam.update([move], [coordinates], [self.states[name]], self.lr, **self._without_decay())
        matrix.projector.add_back(weight, move, self.scale)
        if decay != 1 and self.arithmetic == "official":
            weight.mul_(decay)

    def _without_decay(self) -> dict[str, float]:
        return {"eps": self.adam.eps(self.arithmetic, self.updates + 1), "weight_decay": 0.0}

    def _refresh(self, name: str, matrix: Matrix, grad: Tensor) -> bool:
        """Replace the subspace; False when the gradient is not finite and the matrix is left alone.

        Looking at values stalls a GPU, so only refreshes do it. The old basis then serves on until the
        next refresh; without one the next gradient is tried.
        """
        old, finite = matrix.projector, bool(torch.stack(torch.aminmax(grad)).isfinite().all())
        try:
            new = self.find(name, matrix, grad) if finite else None
        except torch.linalg.LinAlgError:
            new = None
        if new is None:
            matrix.skipped += not finite
            matrix.next_refresh = self.updates + (1 if old is None else matrix.period)
            return finite and old is not None
        if old is not None and name in self.states:
            self.states[name] = carried(self.adam, self.states[name], self.rule, old, new, grad)
        if old is None or old.rank != new.rank:
            self._moved[name.removesuffix(".weight")] = new.rank
        matrix.projector, matrix.rank = new, new.rank
        matrix.refreshes += 1
        self.after_refresh(matrix, old)
        return True

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the moments of every parameter and, of projected ones, `<parameter>.left` and `.right`."""
        yield from moment_tensors(self.states)
        yield from self.matrices.tensors()

    def state_dict(self) -> dict[str, Any]:
        """Moments, subspaces and clocks."""
        moments, matrices = super().state_dict(), self.matrices.state_dict()
        return {"moments": moments, "matrices": matrices, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over copies of the saved state; names that are not trained here raise ValueError."""
        super().load_state_dict(state["moments"])
        self.matrices.load_state_dict(state["matrices"], self.parameters)
        self.updates, self._counts = state["updates"], self.matrices.counts()

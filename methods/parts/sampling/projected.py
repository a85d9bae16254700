"""Sampled layers whose gradients are projected: what happens to their subspaces at a switch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from harness.method import StepInfo
from methods.parts.projection.method import ProjectedStepper
from methods.parts.projection.projector import Projector
from methods.parts.sampling.method import SampledStepper

Returning = Literal["stale", "refresh"]


class SampledProjectedStepper(SampledStepper, ProjectedStepper):
    """A stepper with subspaces for the layers that train; the clock of a subspace rests with its layer.

    Decompositions alone count as refreshes. A subspace that was dropped is found anew in the first update of
    its layer; one that was kept is where `returning` is `refresh`.
    """

    def __init__(self, *arguments: Any, returning: Returning | None, **keywords: Any) -> None:
        self.returning = returning
        self.room: dict[str, Projector] = {}  # in place of bases that are to be kept and not found yet
        super().__init__(*arguments, **keywords)
        self._new = {
            name: replace(matrix, notes=dict(matrix.notes)) for name, matrix in self.matrices.items()
        }

    def step(self) -> StepInfo:
        """Update, and say whether subspaces were found, and whether some are due in the next update."""
        info = super().step()
        due = any(self.matrices[name].next_refresh <= self.updates for name in self._active_matrices())
        return replace(info, refreshed=bool(info.refreshes), refresh_next=due)

    def refresh_soon(self) -> None:
        """Begin the next interval with the next update, and find all of its subspaces anew."""
        self.next_interval()
        for name in self._active_matrices():
            self.matrices[name].next_refresh = self.updates

    def next_interval(self) -> None:
        """Stop the clocks of layers that rest, and start those of layers that return."""
        before = self._active_matrices()
        for name in before:
            matrix = self.matrices[name]
            matrix.notes["due_in"] = matrix.next_refresh - self.updates
        super().next_interval()
        for name in self._active_matrices():
            matrix = self.matrices[name]
            due_in = matrix.notes.pop("due_in", 0)
            returns = name not in before
            matrix.next_refresh = self.updates + (0 if returns and self.returning == "refresh" else due_in)

    def new_projector(self, name: str, *rest: Any) -> Projector | None:
        """Return a projector in the room that was made for it."""
        self.room.pop(name, None)
        return super().new_projector(name, *rest)

    def forget(self, names: Iterable[str]) -> None:
        """Free what is stored of parameters, subspaces included, which are found at the next update."""
        for name in names:
            super().forget([name])
            self._counts.pop(name, None)
            if name in self.matrices:
                self.matrices[name] = replace(self._new[name], notes=dict(self._new[name].notes))

    def make_room(self, names: Iterable[str]) -> None:
        """Create moments, and tensors as large as the bases, before the first update."""
        for name in names:
            if name not in self.matrices:
                super().make_room([name])
                continue
            self._make_room_for_bases(name)
            self.states[name] = self.adam.new_state(self.room[name].empty(self.parameters[name]))

    def _make_room_for_bases(self, name: str) -> None:
        weight, matrix = self.parameters[name], self.matrices[name]
        exact = torch.promote_types(weight.dtype, torch.float32)
        dtype = exact if self.precision == "float32" else weight.dtype
        sides = ("left", "right") if matrix.side == "both" else (matrix.side,)
        lengths = dict(zip(("left", "right"), weight.shape, strict=True))
        bases = {side: weight.new_zeros((lengths[side], matrix.rank), dtype=dtype) for side in sides}
        self.room[name] = Projector(**bases)

    def _active_matrices(self) -> list[str]:
        return [name for name in self.matrices if self.parameters[name].requires_grad]

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield also the room for bases."""
        yield from super().state_tensors()
        for name, room in self.room.items():
            yield from ((f"{name}.{side}", basis) for side, basis in room.tensors().items())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore copies of a saved state, and room for bases that were not found yet."""
        super().load_state_dict(state)
        self.room = {}
        for name, matrix in self.matrices.items():
            if self.sampling.states == "keep" and matrix.projector is None:
                self._make_room_for_bases(name)

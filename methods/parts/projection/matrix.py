"""One projected matrix: its subspace and its clock; and how large its states are beside Adam's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from methods.parts.optim.adamw import copied
from methods.parts.projection.projector import Projection, Projector, Side, side_of


@dataclass
class Matrix:
    """A projected matrix; times are updates counted from 0, `notes` are plain values that a method keeps."""

    side: Side
    rank: int
    period: int
    projector: Projector | None = None
    next_refresh: int = 0
    refreshes: int = 0
    skipped: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        bases = {} if self.projector is None else self.projector.tensors()
        return {**vars(self), "projector": bases, "notes": deepcopy(self.notes)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> Matrix:
        """Undo `state_dict`, with copies of the tensors."""
        bases = copied(state["projector"], device)
        projector = Projector(**bases) if bases else None
        return cls(**{**state, "projector": projector, "notes": deepcopy(state["notes"])})


class Matrices(dict[str, Matrix]):
    """The projected matrices of a model by parameter name, with what concerns them all."""

    def counts(self) -> tuple[int, int]:
        """Refreshes and skipped gradients so far."""
        return sum(m.refreshes for m in self.values()), sum(m.skipped for m in self.values())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield `<parameter>.left` and `.right`, as far as they are there."""
        for name, matrix in self.items():
            if matrix.projector is not None:
                yield from ((f"{name}.{side}", basis) for side, basis in matrix.projector.tensors().items())

    def state_dict(self) -> dict[str, Any]:
        """Subspaces and clocks."""
        return {name: matrix.state_dict() for name, matrix in self.items()}

    def load_state_dict(self, state: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Take over copies; ValueError when other matrices were projected."""
        if unknown := sorted(state.keys() ^ self.keys()):
            raise ValueError(f"other matrices were projected when this state was saved: {', '.join(unknown)}")
        for name, saved in state.items():
            self[name] = Matrix.from_state_dict(saved, parameters[name].device)


def state_elements(shape: tuple[int, ...], rank: int, projection: Projection) -> int:
    """Numbers kept for one matrix: its bases and two moments of its coordinates (GaLore, table 1)."""
    out, inputs = shape
    rank = min(rank, *shape)
    side = side_of(shape, projection)
    if side == "both":
        return rank * (out + inputs) + 2 * rank * rank
    return rank * out + 2 * rank * inputs if side == "left" else rank * inputs + 2 * rank * out


def state_facts(shapes: Mapping[str, tuple[int, ...]], rank: int, projection: Projection) -> dict[str, int]:
    """Numbers kept for all projected matrices at a rank, and what Adam would keep for them."""
    return {
        "projected_matrices": len(shapes),
        "state_elements": sum(state_elements(shape, rank, projection) for shape in shapes.values()),
        "adam_state_elements": sum(2 * prod(shape) for shape in shapes.values()),
    }

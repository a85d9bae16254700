"""AdaRankGrad's refresh beside that of GaLore (PyPI: galore-torch), there being no code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.studies.peers.bench import Case, Duel
from benchmarks.studies.peers.galore import PEER, SHAPES, TINY, one_matrix, setting, share_captured
from methods.parts.optim.adamw import State
from methods.parts.projection.moments import carry_over
from methods.parts.projection.projector import Projector

TARGET = 0.15


def cases(quick: bool) -> Iterator[Case]:
    """Yield one refresh for each shape; ours includes choosing the rank and mapping the moments."""
    for name, (out, inputs, rank) in (TINY if quick else SHAPES).items():
        shape = f"{name}: {out} x {inputs}, upper rank {rank}, float32"
        work, peer = "refresh, rank and moments", f"refresh of {PEER}"
        heavy = out * inputs > 2**23
        yield Case("adarankgrad", work, shape, peer, partial(refresh, out, inputs, rank), TARGET, heavy)


def refresh(out: int, inputs: int, rank: int) -> Duel:
    """Refresh from our own subspace of an older gradient to that of the current one."""
    scene = setting(out, inputs, rank)
    _, stepper = one_matrix(torch.zeros(out, inputs), rank, "adarankgrad")
    ((name, matrix),) = stepper.matrices.items()
    old = matrix.projector = stepper.new_projector(name, matrix, scene.older)
    assert old is not None
    coordinates = old.project(scene.older)
    state = stepper.adam.new_state(coordinates)
    stepper.adam.update([torch.zeros_like(coordinates)], [coordinates], [state], 1.0)

    def ours() -> tuple[Projector, State]:
        new = stepper.new_projector(name, matrix, scene.gradient)
        assert new is not None
        return new, carry_over(stepper.adam, state, stepper.rule, old, new, scene.gradient)

    new, _ = ours()
    total = float(scene.gradient.double().square().sum())
    kept = share_captured(new, scene) * float(scene.exact.project(scene.gradient).double().square().sum())
    facts = {
        "rank": f"{old.rank} to {new.rank} of {rank}",
        "share of the gradient kept": f"{kept / total:.3f}",
    }
    return Duel(ours, scene.peer, facts)

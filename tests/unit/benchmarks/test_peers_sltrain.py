"""The comparison of SLTrain with the official arithmetic can be run, and both sides do the same work."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies.peers.bench import Case
from benchmarks.studies.peers.sltrain import SHAPES, TINY, cases


@pytest.mark.parametrize("case", list(cases(quick=True)), ids=lambda case: case.work)
def test_both_sides_run_and_have_the_same_gradients(case: Case) -> None:
    duel = case.set_up()
    torch.testing.assert_close(duel.ours(), duel.peer(), atol=1e-5, rtol=1e-4)
    assert float(duel.facts["largest relative gradient difference"]) < 1e-5


def test_ours_keeps_input_and_int32_positions_the_peer_wider_ones_and_a_scaled_copy() -> None:
    (case,) = cases(quick=True)
    facts = case.set_up().facts
    outputs, inputs, rank, delta = TINY["tiny"]
    x, copy, positions = 8 * inputs, rank * inputs, int(delta * outputs * inputs)
    assert int(facts["saved bytes, ours"]) == 4 * x + 4 * positions
    assert int(facts["saved bytes, peer"]) == 4 * x + 4 * copy + 8 * positions


def test_every_shape_has_a_case() -> None:
    assert len(list(cases(quick=False))) == len(SHAPES)

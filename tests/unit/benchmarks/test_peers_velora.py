"""The comparisons of VeLoRA with its peers can be run, and both sides do the same work."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies.peers.bench import Case
from benchmarks.studies.peers.velora import SHAPES, cases, official_gradient


@pytest.mark.parametrize("case", list(cases(quick=True)), ids=lambda case: case.work)
def test_both_sides_run_and_agree(case: Case) -> None:
    duel = case.set_up()
    ours, peer = duel.ours(), duel.peer()
    torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-4)
    assert float(duel.facts["largest relative difference"]) < 1e-5


def test_the_peer_needs_a_gradient_per_sequence_and_ours_no_more_than_the_result() -> None:
    facts = next(case for case in cases(quick=True) if case.target is not None).set_up().facts
    ours, peer, result, inputs = (
        int(facts[key])
        for key in (
            "peak bytes, result included, ours",
            "peak bytes, result included, peer",
            "bytes of the result",
            "bytes of the input",
        )
    )
    assert ours < result + inputs
    assert peer >= inputs + 2 * result


def test_the_official_arithmetic_is_the_gradient_of_a_rebuilt_input() -> None:
    v = torch.tensor([0.6, 0.8])
    projected, grad_output = torch.randn(3, 4, 5), torch.randn(3, 4, 7)
    rebuilt = torch.stack([projected * 0.6, projected * 0.8], dim=-1).reshape(12, 10)
    expected = torch.einsum("to,td->od", grad_output.reshape(12, 7), rebuilt)
    torch.testing.assert_close(official_gradient(grad_output, projected, v), expected)


def test_every_shape_can_be_cut_into_its_groups() -> None:
    assert not [name for name, (_, width, groups) in SHAPES.items() if width % groups]
    assert len(list(cases(quick=False))) == 2 * len(SHAPES)

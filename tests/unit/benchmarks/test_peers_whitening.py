"""The comparison of the kernel with the published route of whitening, and the bytes of its statistics."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies.peers import whitening
from benchmarks.studies.peers.bench import Case
from benchmarks.studies.peers.whitening import SHAPES, TINY, cases


@pytest.mark.parametrize("case", list(cases(quick=True)), ids=lambda case: f"{case.shape}, {case.peer}")
def test_both_sides_run_and_have_the_same_error(case: Case) -> None:
    duel = case.set_up()
    (up, down), (other_up, other_down) = duel.ours(), duel.peer()
    assert up.shape == other_up.shape
    assert torch.allclose(up @ down, other_up @ other_down, atol=1e-4)
    assert float(duel.facts["errors of the outputs differ by"]) <= 1e-6


def test_other_factors_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = whitening.published
    monkeypatch.setattr(whitening, "published", lambda w, p, rank, dtype: honest(w, p, rank - 1, dtype))
    with pytest.raises(ValueError, match="different work"):
        whitening.whitening(12, 20, 5, torch.float64)


def test_the_error_is_that_of_a_loop_over_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(6, 9, generator=generator), torch.randn(40, 9, generator=generator)
    up, down = torch.randn(6, 2, generator=generator), torch.randn(2, 9, generator=generator)
    wanted = sum(float((weight @ x - up @ (down @ x)).square().sum()) for x in inputs)
    assert whitening.error(weight, up, down, inputs.T @ inputs) == pytest.approx(wanted, rel=1e-5)


def test_a_block_of_7b_has_four_sums_in_float32_and_two_vectors_each(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = 2 * 8 * (3 * 4096 + 11008)
    assert whitening.block_bytes() == 4 * (3 * 4096**2 + 11008**2) + vectors < 700_000_000
    monkeypatch.setattr(whitening, "MOST_BYTES", 600_000_000)
    with pytest.raises(ValueError, match="more than 600,000,000"):
        whitening.block_bytes()


def test_every_shape_has_a_case_of_both_precisions_at_a_fifth_less_parameters() -> None:
    found = list(cases(quick=False))
    assert len(found) == 2 * len(SHAPES)
    assert all(case.heavy for case in found)
    assert [case.target for case in found] == [0.6, None] * 3
    assert not any(case.heavy for case in cases(quick=True))
    assert len(list(cases(quick=True))) == 2 * len(TINY)
    assert [case.shape.rpartition(" ")[2] for case in found][::2] == ["1638", "2388", "2388"]

"""Q-GaLore beside GaLore and beside plain loops: rounded bases, lazy refreshes, int8 weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import OptimConfig
from harness.engine.measure.components import components
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from methods.parts.projection.projector import Projector
from methods.parts.quantisation.gridded import gridded
from methods.parts.quantisation.tensor import Quantised
from tests.unit.methods.test_apollo import goes_on_bit_for_bit, made, same_inside_backward
from tests.unit.methods.test_galore import (
    LR,
    SHAPES,
    Targets,
    advance,
    assert_close,
    copies,
    matrices,
    noise,
    noisy,
    official,
    orthogonal,
    saved_and_loaded,
)

#: Matrices and bases of rank 4 that groups of 16 divide.
GROUPED = (16, 8), (8, 16), (12, 12)
SMALL: dict[str, Any] = {"rank": 4, "group": 16}
UNQUANTISED: dict[str, Any] = {"weights": "float", "basis_bits": None, "lazy": None}


# ------------------------------------------------------------------------------------ where it is GaLore
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"moments": "rotate", "refresh": "gram"},
        {"arithmetic": "official", "projection": "reverse_std", "signs": "free"},
        {"stagger": True, "refresh": "randomized"},
        {"projection": "full"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_1_unquantised_it_is_galore_bit_for_bit(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    optim = {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-6}
    runs = [
        made(name, *SHAPES, dtype=dtype, optim=optim, **own, **options)
        for name, own in (("galore", {}), ("qgalore", UNQUANTISED))
    ]
    infos = [advance(*run, 0, 10) for run in runs]
    assert infos[0] == infos[1]
    for mine, theirs in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert mine.equal(theirs)


def test_with_float_bases_it_is_galore_on_int8_weights_bit_for_bit() -> None:
    stacked: Any = Targets(*GROUPED, dtype=torch.float32)
    for name, options in (("int8", {"group": 16}), ("galore", {"rank": 4, "period": 4})):
        method = build(name, {"targets": ["q_proj"], **options})
        stacked = method.prepare(stacked, Context(seed=5))
    stepper = method.stepper(stacked, OptimConfig(lr=LR))
    model, own = made("qgalore", *GROUPED, dtype=torch.float32, **SMALL, basis_bits=None, lazy=None)
    advance(stacked, stepper, 0, 10)
    advance(model, own, 0, 10)
    for mine, theirs in zip(model.weights, stacked.weights, strict=True):
        assert isinstance(mine, Quantised)
        assert mine.equal(theirs)


# ---------------------------------------------------------------------------------------------- the bases
def rounded(basis: Tensor, bits: int, group: int, code: bool) -> Tensor:
    """A basis with each entry at a point of the grid of its group, by one loop over the groups.

    `code` is the paper's: zero is a point.
    """
    found, levels = [], 2**bits - 1
    for row in basis.reshape(-1, group).tolist():
        low, high = min(row), max(row)
        step = max(high - low, 1e-5) / levels
        zero = min(max(-round(low / step), 0), levels)
        if code:
            codes = [min(max(round(value / step) + zero, 0), levels) for value in row]
            found.append([(place - zero) * step for place in codes])
        else:
            found.append([low + round((value - low) / step) * step for value in row])
    return torch.tensor(found, dtype=basis.dtype).view(basis.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("write_back", ["float32", "official"])
def test_a_basis_is_that_of_galore_rounded_when_it_is_found(bits: int, write_back: str) -> None:
    galore = made("galore", *GROUPED, rank=4)
    model, stepper = made("qgalore", *GROUPED, **SMALL, basis_bits=bits, lazy=None, write_back=write_back)
    for run in (galore, (model, stepper)):
        advance(*run, 0, 1)
    for mine, theirs in zip(matrices(stepper), matrices(galore[1]), strict=True):
        for side, basis in theirs.projector.tensors().items():  # type: ignore[union-attr]
            found = mine.projector.tensors()[side]  # type: ignore[union-attr]
            assert isinstance(found, Quantised)
            wanted = rounded(basis, bits, 16, write_back == "official")
            assert_close([found.floats(torch.float64)], [wanted], 1e-6)


def test_a_basis_in_4_bits_is_as_far_from_orthonormal_as_computed_by_others() -> None:
    """Section 1.3 of the dossier: error 0.109, largest deviation 0.03 to 0.04, spectral norm 1.08."""
    basis = torch.linalg.qr(noise((512, 128), 1)).Q.float()
    found = gridded(basis, 256, 4).floats(torch.float32)
    assert float((found - basis).norm() / basis.norm()) == pytest.approx(0.109, abs=0.01)
    deviation = found.T @ found - torch.eye(128)
    assert 0.025 < float(deviation.abs().max()) < 0.05
    assert float(torch.linalg.matrix_norm(found, 2)) == pytest.approx(1.08, abs=0.02)


def test_an_update_is_that_of_the_papers_code_with_the_rounded_basis() -> None:
    """Weights in float, a right basis that stays: section 1.1, steps 5 to 7, beside a plain loop."""
    optim = {"weight_decay": 0.2, "eps": 1e-3}
    model, stepper = made(
        "qgalore", (9, 9), optim=optim, rank=3, scale=0.5, weights="float", group=9, basis_bits=8,
        arithmetic="official",
    )  # fmt: skip
    basis = gridded(orthogonal(9, 4)[:, :3], 9, 8)
    (matrix,) = matrices(stepper)
    matrix.projector, matrix.next_refresh = Projector(right=basis), 10**9
    (before,) = copies(model.weights)
    advance(model, stepper, 0, 10)
    grads = [noisy(step, 0, (9, 9)) for step in range(10)]
    assert_close(model.weights, [official(before, grads, basis.floats(torch.float64), 0.5)])


def test_invariant_8_the_bytes_are_those_of_codes_scales_and_moments() -> None:
    model, stepper = made("qgalore", *GROUPED, dtype=torch.float32, **SMALL)
    advance(model, stepper, 0, 1)
    weights = sum(rows * columns for rows, columns in GROUPED)
    bases = 4 * (8 + 8 + 12)
    moments = 2 * 4 * (16 + 16 + 12)
    others = 5 * 6 + 6
    found = components(model, stepper.state_tensors())
    assert found.weights_trainable_bytes == weights * (1 + 8 / 16) + 4 * others
    steps = 4 * (3 + 2)
    assert found.optimizer_bytes == bases * (1 / 2 + 8 / 16) + 4 * moments + 2 * 4 * others + steps


# ----------------------------------------------------------------------------------------- lazy refreshes
def refreshes(model: Targets, stepper: Any, updates: int, gradient: Any, first: int = 0) -> list[int]:
    return [
        step
        for step in range(first, updates)
        if advance(model, stepper, step, step + 1, gradient)[0].refreshes
    ]


def resting(_: int, index: int, shape: tuple[int, ...]) -> Tensor:
    return noisy(0, index, shape)


def turning(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Every period of 3 another direction, at right angles to the last."""
    result = torch.zeros(shape, dtype=torch.float64)
    if len(shape) == 2:
        for place in range(2):
            result[(place + 2 * (step // 3)) % 4, (place + 2 * (step // 3)) % 4] = 2.0 - place
    return result


@pytest.mark.parametrize("similarity", ["vector", "subspace"])
def test_invariant_5_refreshes_become_rarer_for_subspaces_that_rest_alone(similarity: str) -> None:
    """At 0, T, … 5 T, then 6 T, 8 T, 16 T, 32 T; with other subspaces at every multiple of T."""
    options = {**SMALL, "rank": 2, "period": 3, "similarity": similarity}
    for gradient, multiples in ((resting, [0, 1, 2, 3, 4, 5, 6, 8, 16, 32]), (turning, list(range(34)))):
        model, stepper = made("qgalore", (16, 8), dtype=torch.float32, **options)
        assert refreshes(model, stepper, 100, gradient) == [3 * multiple for multiple in multiples]


@pytest.mark.parametrize(("similarity", "period"), [("vector", 3), ("subspace", 6)])
def test_a_sign_that_flips_keeps_the_cosine_of_the_papers_code_down(similarity: str, period: int) -> None:
    model, stepper = made("qgalore", (16, 8), **SMALL, period=3, similarity=similarity, signs="free")
    find, flips = stepper.new_projector, [1.0]

    def flipping(*args: Any) -> Projector:
        flips.append(-flips[-1])
        return Projector(**{side: flips[-1] * basis for side, basis in find(*args).tensors().items()})

    stepper.new_projector = flipping
    advance(model, stepper, 0, 16, resting)
    assert [matrix.period for matrix in matrices(stepper)] == [period]


def test_the_queue_is_not_cleared_and_needs_five_refreshes() -> None:
    model, stepper = made("qgalore", (16, 8), **SMALL, period=2)
    (matrix,) = matrices(stepper)
    periods = []
    for step in range(26):
        advance(model, stepper, step, step + 1, resting)
        periods.append(matrix.period)
    assert periods == [2] * 10 + [4] * 2 + [8] * 4 + [16] * 10


# --------------------------------------------------------------------------------------------- the states
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nearest, rotated": {"rounding": "nearest", "moments": "rotate"},
    "code, bfloat16": {
        "arithmetic": "official",
        "precision": "gradient",
        "signs": "free",
        "write_back": "official",
        "dtype": torch.bfloat16,
    },
    "8 bits": {"bits": 8, "rank": 48},
    "16 bits, float weights": {"bits": 16, "weights": "float", "basis_bits": 8},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_updates_inside_backward_are_the_same_bit_for_bit(variant: dict[str, Any]) -> None:
    same_inside_backward("qgalore", variant)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_9_a_run_saved_between_refreshes_goes_on_bit_for_bit(variant: dict[str, Any]) -> None:
    goes_on_bit_for_bit("qgalore", variant)


def test_invariant_9_the_queue_of_similarities_goes_on_from_where_it_was_saved() -> None:
    """Saved with three of five in it: two more refreshes, and the period doubles."""
    options: dict[str, Any] = {**SMALL, "period": 2}
    model, stepper = made("qgalore", *GROUPED, dtype=torch.float32, **options)
    advance(model, stepper, 0, 7, resting)
    assert {len(matrix.notes["overlaps"]) for matrix in matrices(stepper)} == {3}
    saved = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    resumed, again = made("qgalore", *GROUPED, dtype=torch.float32, **options)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["stepper"])
    refreshed = [refreshes(*run, 14, resting, first=7) for run in ((model, stepper), (resumed, again))]
    assert refreshed == [[8, 10, 12], [8, 10, 12]]
    assert {matrix.period for matrix in matrices(stepper)} == {8}
    assert [vars(matrix)["period"] for matrix in matrices(again)] == [8] * len(GROUPED)
    for mine, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        assert mine.equal(theirs)


# -------------------------------------------------------------------------------------------- the options
def test_its_period_is_promised_where_it_is_fixed() -> None:
    for options, period in (({}, None), ({"lazy": None}, 7)):
        caps = build("qgalore", {"period": 7, **options}).caps
        assert (caps.period, caps.mean_period) == (period, 7 if period is None else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int4"}, "weights"),
        ({"basis_bits": 2}, "basis_bits"),
        ({"group": 9}, "`basis_bits` 4 needs an even `group`, not 9"),
        ({"similarity": "cosine"}, "similarity"),
        ({"moments": "reset", "signs": "free"}, "`signs` matters only where moments are kept"),
        ({"cos_threshold": 0.4}, "unknown key 'cos_threshold'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method qgalore: {message}") as caught:
        build("qgalore", options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"group": 10},
            r"group 10 does not divide the 128 elements of blocks.0.q_proj \(16, 8\); use a divisor",
        ),
        (
            {"group": 32, "rank": 3},
            r"group 32 does not divide the 24 elements of the right basis of blocks.0.q_proj \(8, 3\); use a "
            r"divisor of 24, such as 8",
        ),
    ],
)
def test_groups_that_do_not_divide_weights_or_bases_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"qgalore: {message}"):
        made("qgalore", (16, 8), **options)

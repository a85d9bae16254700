"""Adam's moments under a new subspace: each rule by its formula, and what every rule keeps."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from harness.config import OptimConfig
from methods.parts.optim.adamw import Adam, State
from methods.parts.projection.moments import Rule, carry_over
from methods.parts.projection.projector import Projector, Side

OUT, IN, STEP = 10, 12, 7
RULES: tuple[Rule, ...] = get_args(Rule)
#: The rules that map moments by the change of basis.
MAPPING: tuple[Rule, ...] = ("square", "ldadam", "paper")
#: Those that never mix up variances of different signs.
SAFE: tuple[Rule, ...] = ("square", "ldadam")
SIDES: tuple[Side, ...] = get_args(Side)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(rows, columns, seed=seed)).Q


def projector(side: Side, left: Tensor, right: Tensor) -> Projector:
    return Projector(left if side != "right" else None, right if side != "left" else None)


def random_projector(side: Side, rank: int, seed: int) -> Projector:
    return projector(side, orthonormal(OUT, rank, seed), orthonormal(IN, rank, seed + 1))


def turned(old: Projector, turn: Tensor) -> Projector:
    """The same subspace in other coordinates."""
    return Projector(**{side: basis @ turn for side, basis in old.tensors().items()})


def adam(bits: Any = None) -> Adam:
    return Adam(OptimConfig(state_bits=bits))


def new_state(shape: tuple[int, int], seed: int = 0) -> State:
    """Moments that Adam could have: the corrected second one is above the square of the corrected first."""
    first = 0.1 * noise(*shape, seed=seed)
    spread = noise(*shape, seed=seed + 1).square()
    corrections = [1 - beta**STEP for beta in (0.9, 0.999)]
    second = ((first / corrections[0]).square() + spread) * corrections[1]
    return {"step": torch.tensor(float(STEP)), "exp_avg": first, "exp_avg_sq": second}


def shape_of(side: Side, rank: int) -> tuple[int, int]:
    return {"left": (rank, IN), "right": (OUT, rank), "both": (rank, rank)}[side]


def carry(rule: Rule, old: Projector, new: Projector, state: State) -> tuple[Tensor, Tensor]:
    """Both moments in the coordinates of `new`."""
    result = carry_over(adam(), state, rule, old, new, torch.zeros(OUT, IN, dtype=torch.float64))
    assert float(result["step"]) == STEP
    return result["exp_avg"], result["exp_avg_sq"]


def changes(side: Side, old: Projector, new: Projector) -> tuple[Tensor, Tensor]:
    """R of both sides by its definition Q_new^T Q_old, the identity where a side is not projected."""
    left = torch.eye(OUT, dtype=torch.float64)
    right = torch.eye(IN, dtype=torch.float64)
    if side != "right":
        assert old.left is not None
        assert new.left is not None
        left = new.left.T @ old.left
    if side != "left":
        assert old.right is not None
        assert new.right is not None
        right = new.right.T @ old.right
    return left, right


# -------------------------------------------------------------------------------------- by its formula
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ranks", [(4, 4), (5, 3), (3, 5)], ids=["same", "shrinks", "grows"])
def test_first_moments_are_mapped_by_the_change_of_basis_under_every_mapping_rule(
    side: Side, ranks: tuple[int, int]
) -> None:
    old, new = random_projector(side, ranks[0], 1), random_projector(side, ranks[1], 3)
    state = new_state(shape_of(side, ranks[0]))
    left, right = changes(side, old, new)
    for rule in MAPPING:
        first, _ = carry(rule, old, new, dict(state))
        torch.testing.assert_close(first, left @ state["exp_avg"] @ right.T)


@pytest.mark.parametrize("side", SIDES)
def test_square_maps_second_moments_by_squared_coefficients(side: Side) -> None:
    old, new = random_projector(side, 5, 1), random_projector(side, 3, 3)
    state = new_state(shape_of(side, 5))
    left, right = changes(side, old, new)
    _, second = carry("square", old, new, dict(state))
    torch.testing.assert_close(second, (left * left) @ state["exp_avg_sq"] @ (right * right).T)


@pytest.mark.parametrize("side", SIDES)
def test_ldadam_maps_mean_and_variance_apart_without_their_bias(side: Side) -> None:
    old, new = random_projector(side, 5, 1), random_projector(side, 3, 3)
    state = new_state(shape_of(side, 5))
    left, right = changes(side, old, new)
    mean, square = state["exp_avg"] / (1 - 0.9**STEP), state["exp_avg_sq"] / (1 - 0.999**STEP)
    variance = (left * left) @ (square - mean**2) @ (right * right).T
    wanted = (variance + (left @ mean @ right.T) ** 2).abs() * (1 - 0.999**STEP)
    _, second = carry("ldadam", old, new, dict(state))
    torch.testing.assert_close(second, wanted)


def test_ldadam_keeps_the_second_moment_of_a_gradient_without_noise_the_square_of_its_first() -> None:
    old, new = random_projector("left", 5, 1), random_projector("left", 3, 3)
    state = new_state((5, IN))
    state["exp_avg_sq"] = (state["exp_avg"] / (1 - 0.9**STEP)) ** 2 * (1 - 0.999**STEP)
    first, second = carry("ldadam", old, new, state)
    torch.testing.assert_close(second / (1 - 0.999**STEP), (first / (1 - 0.9**STEP)) ** 2)


@pytest.mark.parametrize("side", SIDES)
def test_paper_maps_second_moments_like_the_first_and_clamps_what_turns_negative(side: Side) -> None:
    old, new = random_projector(side, 5, 1), random_projector(side, 3, 3)
    state = new_state(shape_of(side, 5))
    left, right = changes(side, old, new)
    printed = left @ state["exp_avg_sq"] @ right.T
    assert (printed < 0).any(), "as printed the rule gives negative second moments"
    _, second = carry("paper", old, new, dict(state))
    torch.testing.assert_close(second, printed.clamp(min=0))


def test_keep_leaves_the_very_tensors_where_they_are() -> None:
    old, new = random_projector("right", 4, 1), random_projector("right", 4, 3)
    state = new_state((OUT, 4))
    result = carry_over(adam(), state, "keep", old, new, torch.zeros(OUT, IN, dtype=torch.float64))
    assert result is state


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("rule", "rank"), [("reset", 4), ("reset", 2), ("keep", 2), ("keep", 6)])
def test_reset_forgets_all_but_the_step_count_and_so_does_keep_where_the_rank_changes(
    rule: Rule, rank: int, side: Side
) -> None:
    old, new = random_projector(side, 4, 1), random_projector(side, rank, 3)
    first, second = carry(rule, old, new, new_state(shape_of(side, 4)))
    assert first.shape == second.shape == shape_of(side, rank)
    assert not first.any()
    assert not second.any()


# -------------------------------------------------------------------------------------- what they keep
@pytest.mark.parametrize("rule", MAPPING)
@pytest.mark.parametrize("side", SIDES)
def test_a4_an_unchanged_subspace_leaves_both_moments_as_they_are(rule: Rule, side: Side) -> None:
    old = random_projector(side, 4, 1)
    state = new_state(shape_of(side, 4))
    first, second = carry(rule, old, old, dict(state))
    torch.testing.assert_close(first, state["exp_avg"])
    torch.testing.assert_close(second, state["exp_avg_sq"])


@pytest.mark.parametrize("side", SIDES)
def test_a4_flips_of_sign_flip_first_moments_and_leave_second_ones_but_for_the_printed_rule(
    side: Side,
) -> None:
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    old = random_projector(side, 4, 1)
    new = turned(old, torch.diag(signs))
    state = new_state(shape_of(side, 4))
    pattern = {"left": signs[:, None], "right": signs[None, :], "both": signs[:, None] * signs}[side]
    for rule in SAFE:
        first, second = carry(rule, old, new, dict(state))
        torch.testing.assert_close(first, state["exp_avg"] * pattern)
        torch.testing.assert_close(second, state["exp_avg_sq"])
    _, second = carry("paper", old, new, dict(state))
    torch.testing.assert_close(second, (state["exp_avg_sq"] * pattern).clamp(min=0))


@pytest.mark.parametrize("rule", MAPPING)
@pytest.mark.parametrize("side", SIDES)
def test_a4_a_permuted_basis_permutes_both_moments(rule: Rule, side: Side) -> None:
    order = torch.tensor([2, 0, 3, 1])
    old = random_projector(side, 4, 1)
    new = turned(old, torch.eye(4, dtype=torch.float64)[:, order])
    state = new_state(shape_of(side, 4))
    wanted = dict(state)
    for key in ("exp_avg", "exp_avg_sq"):
        if side != "right":
            wanted[key] = wanted[key][order]
        if side != "left":
            wanted[key] = wanted[key][:, order]
    first, second = carry(rule, old, new, dict(state))
    torch.testing.assert_close(first, wanted["exp_avg"])
    torch.testing.assert_close(second, wanted["exp_avg_sq"])


@pytest.mark.parametrize("rule", MAPPING)
@pytest.mark.parametrize("side", SIDES)
def test_a4_turning_the_basis_within_its_subspace_changes_no_first_moment_of_the_full_space(
    rule: Rule, side: Side
) -> None:
    def in_full_space(projector: Projector, coordinates: Tensor) -> Tensor:
        full = torch.zeros(OUT, IN, dtype=torch.float64)
        projector.add_back(full, coordinates, 1.0)
        return full

    old = random_projector(side, 4, 1)
    new = turned(old, orthonormal(4, 4, seed=9))
    state = new_state(shape_of(side, 4))
    first, _ = carry(rule, old, new, dict(state))
    torch.testing.assert_close(first.norm(), state["exp_avg"].norm())
    torch.testing.assert_close(in_full_space(new, first), in_full_space(old, state["exp_avg"]))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ranks", [(4, 4), (6, 2), (2, 6), (1, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_a4_a_change_of_subspace_never_makes_first_moments_larger(
    side: Side, ranks: tuple[int, int], seed: int
) -> None:
    old, new = random_projector(side, ranks[0], 20 + seed), random_projector(side, ranks[1], 40 + seed)
    state = new_state(shape_of(side, ranks[0]), seed)
    for rule in MAPPING:
        first, _ = carry(rule, old, new, dict(state))
        assert first.norm() <= state["exp_avg"].norm() * (1 + 1e-12)


@pytest.mark.parametrize("rule", MAPPING)
def test_a4_nothing_survives_into_a_subspace_orthogonal_to_the_old_one(rule: Rule) -> None:
    basis = orthonormal(OUT, 6)
    old, new = Projector(left=basis[:, :3]), Projector(left=basis[:, 3:])
    first, second = carry(rule, old, new, new_state((3, IN)))
    assert first.abs().max() < 1e-12
    assert second.abs().max() < 1e-12


def test_square_spreads_second_moments_over_a_larger_subspace_without_loss() -> None:
    """Squared coefficients of a unit vector sum to one."""
    basis = orthonormal(OUT, 6)
    old = Projector(left=basis[:, :3])
    new = turned(Projector(left=basis), orthonormal(6, 6, seed=4))
    state = new_state((3, IN))
    _, second = carry("square", old, new, dict(state))
    torch.testing.assert_close(second.sum(dim=0), state["exp_avg_sq"].sum(dim=0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ranks", [(4, 4), (6, 2), (2, 6)])
def test_a5_second_moments_stay_finite_and_are_never_negative(
    rule: Rule, side: Side, ranks: tuple[int, int]
) -> None:
    """Also where the first moment has outrun the second, as it does when a gradient grows suddenly."""
    for seed in range(5):
        old, new = random_projector(side, ranks[0], 20 + seed), random_projector(side, ranks[1], 40 + seed)
        for factor, lag in ((1e-30, 1.0), (1.0, 1.0), (1e15, 1.0), (1.0, 1e-3)):
            state = new_state(shape_of(side, ranks[0]), seed)
            state["exp_avg"] *= factor
            state["exp_avg_sq"] *= lag * factor**2
            first, second = carry(rule, old, new, state)
            assert first.isfinite().all()
            assert second.isfinite().all()
            assert (second >= 0).all()


@pytest.mark.parametrize("rule", MAPPING)
def test_a9_left_and_right_give_transposed_moments(rule: Rule) -> None:
    bases = [orthonormal(OUT, rank, seed) for rank, seed in ((5, 1), (3, 2))]
    state = new_state((5, IN))
    transposed = {key: value.T if value.dim() else value for key, value in state.items()}
    left = carry(rule, Projector(left=bases[0]), Projector(left=bases[1]), dict(state))
    gradient = torch.zeros(IN, OUT, dtype=torch.float64)
    right = carry_over(
        adam(), transposed, rule, Projector(right=bases[0]), Projector(right=bases[1]), gradient
    )
    torch.testing.assert_close(left[0], right["exp_avg"].T)
    torch.testing.assert_close(left[1], right["exp_avg_sq"].T)


# ------------------------------------------------------------------------------------------ precisions
def filled(bits: int, exact: State) -> tuple[Adam, State]:
    """A state in a precision that holds these moments."""
    kept = adam(bits)
    return kept, kept.with_moments(exact, exact["exp_avg"], exact["exp_avg_sq"], exact["exp_avg"])


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-6), (16, 1e-2), (8, 0.1)])
@pytest.mark.parametrize("rule", MAPPING)
def test_moments_of_any_precision_are_mapped_as_their_values_say_and_keep_it(
    bits: int, tolerance: float, rule: Rule
) -> None:
    """Tolerances in units of the largest moment; 8 bits hold about two digits of each block's largest."""
    out, rank, width = 128, 48, 100
    old, new = (Projector(left=orthonormal(out, r, seed).float()) for r, seed in ((rank, 1), (45, 2)))
    exact = {key: value.float() for key, value in new_state((rank, width)).items()}
    gradient = torch.zeros(out, width)
    kept, state = filled(bits, exact)
    dtypes = {key: state[key].dtype for key in ("exp_avg", "exp_avg_sq")}
    wanted = carry_over(adam(), exact, rule, old, new, gradient)
    result = carry_over(kept, state, rule, old, new, gradient)
    assert {key: result[key].dtype for key in dtypes} == dtypes
    assert int(result["step"]) == STEP
    for found, key in zip(kept.moments(result), dtypes, strict=True):
        assert found.shape == (45, width)
        largest = float(wanted[key].abs().max())
        torch.testing.assert_close(found, wanted[key], rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("ranks", [(48, 8), (8, 48)], ids=["shrinks", "grows"])
def test_a_state_in_8_bits_crosses_the_size_below_which_32_bits_are_kept(ranks: tuple[int, int]) -> None:
    bases = [orthonormal(128, max(ranks)).float()[:, :rank] for rank in ranks]
    old, new = (Projector(left=basis) for basis in bases)
    exact = {key: value.float() for key, value in new_state((ranks[0], 100)).items()}
    kept, state = filled(8, exact)
    result = carry_over(kept, state, "square", old, new, torch.zeros(128, 100))
    assert state["exp_avg"].dtype == (torch.uint8 if ranks[0] == 48 else torch.float32)
    assert result["exp_avg"].dtype == (torch.uint8 if ranks[1] == 48 else torch.float32)
    assert int(result["step"]) == STEP
    shared = min(ranks)
    for found, key in zip(kept.moments(result), ("exp_avg", "exp_avg_sq"), strict=True):
        largest = float(exact[key].abs().max())
        torch.testing.assert_close(found[:shared], exact[key][:shared], rtol=0, atol=0.05 * largest)
        assert (found[shared:].abs() < 1e-5).all()

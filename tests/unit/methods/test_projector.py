"""How subspaces are found, and what a projector does with them."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from methods.parts.projection.projector import Finder, Projection, Projector, find_projector, leading, side_of
from methods.parts.targets import random_stream

FINDERS: tuple[Finder, ...] = get_args(Finder)
SHAPES = [(40, 16), (16, 40), (24, 24)]
CPU = torch.device("cpu")


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=stream(seed), dtype=torch.float64)).Q


def with_values(shape: tuple[int, int], values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A float64 matrix of these singular values, with its left and right singular vectors."""
    left, right = (orthonormal(side, len(values), seed + 100 * i) for i, side in enumerate(shape))
    return (left * values) @ right.T, left, right


def power_law(count: int, exponent: float) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) ** -exponent


def onto(basis: Tensor) -> Tensor:
    """The orthogonal projection onto the span of orthonormal columns: free of their signs and order."""
    return basis.double() @ basis.double().T


def energy(basis: Tensor, matrix: Tensor) -> float:
    return float((basis.double().T @ matrix.double()).square().sum())


def error_of_orthonormality(basis: Tensor) -> float:
    return float((basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)).abs().max())


# ------------------------------------------------------------------------------------------- finders
@pytest.mark.parametrize("how", FINDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_invariant_06_columns_are_orthonormal_and_span_the_leading_singular_subspace(
    how: Finder, shape: tuple[int, int]
) -> None:
    values = torch.tensor([9.0, 8, 7, 6, 0.05, 0.04, 0.03, 0.02, 0.01], dtype=torch.float64)
    matrix, left, right = with_values(shape, values)
    for given, vectors in ((matrix, left), (matrix.T, right)):
        columns, found = leading(given.float(), 4, how, stream())
        assert columns.shape == (given.shape[0], 4)
        assert columns.dtype == found.dtype == torch.float32
        assert error_of_orthonormality(columns) < 1e-5
        torch.testing.assert_close(onto(columns), onto(vectors[:, :4]), atol=1e-4, rtol=0)
        torch.testing.assert_close(found, values[:4].float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("how", FINDERS)
def test_a_float64_matrix_is_decomposed_in_float64(how: Finder) -> None:
    matrix, left, _ = with_values((40, 16), torch.tensor([5.0, 4, 3, 1e-9], dtype=torch.float64))
    columns, values = leading(matrix, 3, how, stream())
    assert columns.dtype == values.dtype == torch.float64
    assert error_of_orthonormality(columns) < 1e-13
    torch.testing.assert_close(onto(columns), onto(left[:, :3]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("how", FINDERS)
def test_a_bfloat16_matrix_is_decomposed_in_float32(how: Finder) -> None:
    columns, values = leading(torch.randn(20, 12, generator=stream()).bfloat16(), 4, how, stream())
    assert columns.dtype == values.dtype == torch.float32
    assert error_of_orthonormality(columns) < 1e-5


@pytest.mark.parametrize("how", FINDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_columns_and_values_descend(how: Finder, shape: tuple[int, int]) -> None:
    matrix, _, _ = with_values(shape, power_law(12, 1.0))
    columns, values = leading(matrix, 6, how, stream())
    energies = (columns.T @ matrix).square().sum(dim=1)
    assert all(first >= second for first, second in pairwise(values.tolist()))
    assert all(first > second for first, second in pairwise(energies.tolist()))


@pytest.mark.parametrize("how", FINDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_invariant_15_a_width_beyond_the_short_side_gives_the_short_side(
    how: Finder, shape: tuple[int, int]
) -> None:
    matrix = torch.randn(shape, generator=stream(), dtype=torch.float64)
    columns, values = leading(matrix, 1000, how, stream())
    assert columns.shape == (shape[0], min(shape))
    assert values.shape == (min(shape),)
    torch.testing.assert_close(columns @ (columns.T @ matrix), matrix)


@pytest.mark.parametrize("how", FINDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_lower_rank_than_asked_for_still_gets_orthonormal_columns(
    how: Finder, shape: tuple[int, int]
) -> None:
    for values in (torch.tensor([3.0, 2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)):
        matrix, _, _ = with_values(shape, values)
        columns, _ = leading(matrix.float(), 8, how, stream())
        assert columns.shape == (shape[0], 8)
        assert error_of_orthonormality(columns) < 1e-5
        torch.testing.assert_close(onto(columns) @ matrix, matrix, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", FINDERS)
def test_the_basis_lies_in_one_row_major_block_without_the_columns_that_nobody_keeps(how: Finder) -> None:
    """What is broadcast over NCCL must be contiguous, and bytes are counted by storage."""
    for given in (torch.randn(40, 16, generator=stream()), torch.randn(16, 40, generator=stream()).T):
        columns, values = leading(given, 3, how, stream())
        assert columns.is_contiguous()
        assert columns.untyped_storage().nbytes() == 40 * 3 * 4
        assert values.untyped_storage().nbytes() == 3 * 4


def test_the_gram_matrix_is_as_good_as_the_svd_down_to_the_root_of_the_precision() -> None:
    matrix, left, _ = with_values((40, 16), torch.tensor([1.0, 0.1, 1e-2, 1e-7], dtype=torch.float64))
    columns, _ = leading(matrix.float(), 3, "gram", stream())
    torch.testing.assert_close(onto(columns), onto(left[:, :3]), atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------- randomized iteration
@pytest.mark.parametrize("shape", [(128, 48), (48, 128), (96, 96)])
@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_randomized_iteration_captures_what_the_svd_captures_of_a_power_law(
    shape: tuple[int, int], exponent: float
) -> None:
    """Cold, and warm from the subspace that the same spectrum had before the matrix moved."""
    before, _, _ = with_values(shape, power_law(min(shape), exponent), seed=3)
    drift = torch.randn(shape, generator=stream(4), dtype=torch.float64)
    matrix = before + 0.1 * drift * before.norm() / drift.norm()
    best = energy(leading(matrix, 16, "svd", stream())[0], matrix)
    cold = energy(leading(before, 16, "randomized", stream(5))[0], before)
    assert cold >= 0.999 * energy(leading(before, 16, "svd", stream())[0], before)
    old = leading(before, 16, "svd", stream())[0]
    warm = energy(leading(matrix, 16, "randomized", stream(5), old)[0], matrix)
    assert warm >= 0.999 * best
    assert warm > energy(old, matrix)


def test_iterating_on_from_an_old_basis_beats_a_cold_start_when_the_matrix_has_hardly_moved() -> None:
    """On a slow spectrum (exponent 0.5), where a cold start loses two hundredths of the energy."""
    matrix, left, _ = with_values((96, 96), power_law(96, 0.5))
    best = energy(left[:, :16], matrix)
    cold = energy(leading(matrix, 16, "randomized", stream())[0], matrix)
    warm = energy(leading(matrix, 16, "randomized", stream(), left[:, :16])[0], matrix)
    assert cold < 0.995 * best
    assert warm > (1 - 1e-6) * best


def test_an_old_basis_of_another_subspace_does_little_harm() -> None:
    matrix, _, _ = with_values((96, 96), power_law(96, 1.0))
    warm = leading(matrix, 16, "randomized", stream(), orthonormal(96, 16, seed=9))[0]
    assert energy(warm, matrix) > 0.99 * energy(leading(matrix, 16, "svd", stream())[0], matrix)


def test_an_old_basis_that_the_matrix_annihilates_is_as_good_as_a_cold_start() -> None:
    """The old basis lies on rows that are exactly zero now, so iterating on it alone would give nothing."""
    matrix = torch.zeros(64, 64)
    matrix[16:] = torch.randn(48, 64, generator=stream())
    old = torch.eye(64)[:, :16]
    best = energy(leading(matrix, 16, "svd", stream())[0], matrix)
    assert energy(leading(matrix, 16, "randomized", stream(1), old)[0], matrix) > 0.93 * best


@pytest.mark.parametrize("width", [3, 30])
def test_an_old_basis_may_have_another_rank_and_precision(width: int) -> None:
    matrix, left, _ = with_values((40, 32), torch.tensor([5.0] * 6 + [0.01] * 6, dtype=torch.float64))
    old = orthonormal(40, width, seed=2).bfloat16()
    columns, _ = leading(matrix.float(), 6, "randomized", stream(), old)
    assert columns.dtype == torch.float32
    torch.testing.assert_close(onto(columns), onto(left[:, :6]), atol=1e-3, rtol=0)


def test_randomness_comes_from_a_stream_of_its_own() -> None:
    matrix = torch.randn(64, 64, generator=stream())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = leading(matrix, 8, "randomized", random_stream(0, "a.weight", 5, CPU))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert leading(matrix, 8, "randomized", random_stream(0, "a.weight", 5, CPU))[0].equal(first)
    for other in ((1, "a.weight", 5), (0, "b.weight", 5), (0, "a.weight", 6)):
        assert not leading(matrix, 8, "randomized", random_stream(*other, CPU))[0].equal(first)


# ------------------------------------------------------------------------------------------ projector
@pytest.mark.parametrize(
    ("projection", "sides"),
    [
        ("std", ("right", "left", "right")),
        ("reverse_std", ("left", "right", "left")),
        ("left", ("left", "left", "left")),
        ("right", ("right", "right", "right")),
        ("full", ("both", "both", "both")),
    ],
)
def test_the_side_follows_from_the_shape_alone(projection: Projection, sides: tuple[str, ...]) -> None:
    """Tall, wide, square: section 1.1's table."""
    assert tuple(side_of(shape, projection) for shape in SHAPES) == sides


def projectors(rows: int, columns: int, rank: int, seed: int = 0) -> list[Projector]:
    left, right = orthonormal(rows, rank, seed), orthonormal(columns, rank, seed + 50)
    return [Projector(left=left), Projector(right=right), Projector(left=left, right=right)]


def pick(projector: Projector, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Both bases, the identity where a side is not projected."""
    eyes = (torch.eye(side, dtype=torch.float64) for side in (rows, columns))
    left, right = (
        eye if basis is None else basis
        for basis, eye in zip((projector.left, projector.right), eyes, strict=True)
    )
    return left, right


@pytest.mark.parametrize("side", range(3), ids=["left", "right", "both"])
def test_projecting_and_adding_back_follow_their_formulas(side: int) -> None:
    projector = projectors(20, 12, 5)[side]
    left, right = pick(projector, 20, 12)
    gradient = torch.randn(20, 12, generator=stream(), dtype=torch.float64)
    coordinates = projector.project(gradient)
    torch.testing.assert_close(coordinates, left.T @ gradient @ right)
    weight = torch.randn(20, 12, generator=stream(1), dtype=torch.float64)
    wanted = weight - 0.3 * left @ coordinates @ right.T
    projector.add_back(weight, coordinates, -0.3)
    torch.testing.assert_close(weight, wanted)


@pytest.mark.parametrize("side", range(3), ids=["left", "right", "both"])
def test_adding_back_to_a_narrower_weight_rounds_once(side: int) -> None:
    projector = projectors(20, 12, 5)[side]
    narrow = Projector(**{name: basis.float() for name, basis in projector.tensors().items()})
    weight = torch.randn(20, 12, generator=stream()).bfloat16()
    coordinates = narrow.project(torch.randn(20, 12, generator=stream(1)).bfloat16())
    assert coordinates.dtype == torch.float32
    exact = weight.float()
    narrow.add_back(exact, coordinates, 0.25)
    narrow.add_back(weight, coordinates, 0.25)
    assert weight.dtype == torch.bfloat16
    assert ((weight.float() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("side", range(3), ids=["left", "right", "both"])
def test_changes_turn_old_coordinates_into_the_new_ones_of_the_same_matrix(side: int) -> None:
    """Where both subspaces hold a matrix, its coordinates are mapped exactly; ranks may differ."""
    old = projectors(20, 12, 4)[side]
    wider = {
        name: torch.linalg.qr(torch.cat([orthonormal(len(basis), 3, seed=70), basis], dim=1)).Q
        for name, basis in old.tensors().items()
    }
    new = Projector(**wider)
    inside = torch.zeros(20, 12, dtype=torch.float64)
    old.add_back(inside, old.project(torch.randn(20, 12, generator=stream(), dtype=torch.float64)), 1.0)
    before, after = old.project(inside), new.project(inside)
    left, right = new.changes_from(old)
    assert (left is None) == (old.left is None)
    assert (right is None) == (old.right is None)
    mapped = before if left is None else left @ before
    mapped = mapped if right is None else mapped @ right
    torch.testing.assert_close(mapped, after)


@pytest.mark.parametrize("side", range(3), ids=["left", "right", "both"])
def test_overlap_is_one_for_a_turned_basis_and_zero_for_an_orthogonal_one(side: int) -> None:
    left, right = orthonormal(20, 8, 0), orthonormal(12, 8, 1)

    def made(columns: list[int], turn: Tensor | None = None) -> Projector:
        turn = torch.eye(len(columns), dtype=torch.float64) if turn is None else turn
        both = {"left": left[:, columns] @ turn, "right": right[:, columns] @ turn}
        return Projector(**{name: both[name] for name in (["left"], ["right"], ["left", "right"])[side]})

    old = made([0, 1, 2, 3])
    signs_and_order = -orthonormal(4, 4, 5)
    assert made([0, 1, 2, 3], signs_and_order).overlap(old) == pytest.approx(1, abs=1e-6)
    assert made([4, 5, 6, 7]).overlap(old) == pytest.approx(0, abs=1e-6)
    assert made([0, 5, 6, 7]).overlap(old) == pytest.approx(0.25, abs=1e-6)
    assert made([0, 1]).overlap(old) == pytest.approx(1, abs=1e-6)


def test_the_overlap_of_two_sides_is_the_lesser() -> None:
    left, right = orthonormal(20, 4, 0), orthonormal(12, 8, 1)
    old, new = Projector(left, right[:, :4]), Projector(left, right[:, 3:7])
    assert new.overlap(old) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("how", FINDERS)
@pytest.mark.parametrize("projection", get_args(Projection))
@pytest.mark.parametrize("shape", SHAPES)
def test_invariant_05_a_gradient_of_low_rank_survives_projection(
    how: Finder, projection: Projection, shape: tuple[int, int]
) -> None:
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    gradient = with_values(shape, values)[0].float()
    projector, _ = find_projector(gradient, side_of(shape, projection), 4, how, stream())
    back = torch.zeros_like(gradient)
    projector.add_back(back, projector.project(gradient), 1.0)
    assert (back - gradient).norm() < 1e-5 * gradient.norm()


def test_invariant_15_square_coordinates_of_a_full_rank_go_back_on_the_side_they_came_from() -> None:
    """With `reverse_std`, wide and full rank the coordinates are square, so their shape says nothing."""
    gradient = torch.randn(16, 40, generator=stream(), dtype=torch.float64)
    projector, _ = find_projector(gradient, side_of((16, 40), "reverse_std"), 16, "svd", stream())
    coordinates = projector.project(gradient)
    assert coordinates.shape == (16, 16)
    back = torch.zeros_like(gradient)
    projector.add_back(back, coordinates, 1.0)
    torch.testing.assert_close(back, gradient)

"""The kernel of all factorisers: what it minimises, also where statistics are singular.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness.errors import UserError
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.factorisers import (
    FACTORISERS,
    Asvd,
    Awsvd,
    Factoriser,
    Pca,
    Svd,
    Whiten,
    relative_error,
)
from methods.parts.factors.kernel import Factors

#: (out, in): both routes of the kernel, and a square one.
SHAPES = [(12, 20), (20, 12), (16, 16)]
ALL: list[Factoriser] = [each() for each in FACTORISERS]


def drawn(shape: tuple[int, int], tokens: int = 200, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """A weight (out, in) and inputs (tokens, in) with a mean and correlated features, in float64."""
    generator = torch.Generator().manual_seed(7)
    out, width = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    inner = rank or width
    return normal(out, width), normal(tokens, inner) @ normal(inner, width) + 2 * normal(width)


def summed(inputs: Tensor, second_moments: bool = True) -> InputStatistics:
    found = InputStatistics(inputs.shape[1], second_moments)
    found.add(inputs)
    return found


def outputs(factors: Factors, inputs: Tensor) -> Tensor:
    found = inputs @ factors.down.T @ factors.up.T
    return found if factors.offset is None else found + factors.offset


def error(factors: Factors, weight: Tensor, inputs: Tensor) -> float:
    """Mean squared error of the outputs of a token, by a loop that knows nothing of the kernel."""
    return float((outputs(factors, inputs) - inputs @ weight.T).square().sum(1).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factoriser", ALL, ids=lambda each: each.type)
def test_01_all_ranks_give_the_dense_output(factoriser: Factoriser, shape: tuple[int, int]) -> None:
    weight, inputs = drawn(shape)
    factors = factoriser.decompose(weight, summed(inputs)).factors(min(shape))
    assert torch.allclose(outputs(factors, inputs), inputs @ weight.T, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_02_whitening_leaves_out_the_tail_of_the_singular_values_of_w_s(shape: tuple[int, int]) -> None:
    """||W X - W_k X||^2 is the sum of the squares of the singular values of W S behind k, S S^T = X X^T."""
    weight, inputs = drawn(shape)
    lower = torch.linalg.cholesky(inputs.T @ inputs)
    tail = torch.linalg.svdvals(weight @ lower).square().flip(0).cumsum(0).flip(0)
    found = Whiten().decompose(weight, summed(inputs))
    errors = [error(found.factors(k), weight, inputs) * len(inputs) for k in range(1, min(shape))]
    assert errors == pytest.approx(tail[1:].tolist(), rel=1e-9)
    assert errors == sorted(errors, reverse=True)
    assert [found.error(k) * len(inputs) for k in range(1, min(shape))] == pytest.approx(errors, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_03_whitening_is_the_truncation_of_the_outputs_applied_back(shape: tuple[int, int]) -> None:
    weight, inputs = drawn(shape)
    u, s, vh = torch.linalg.svd(weight @ inputs.T, full_matrices=False)
    factors = Whiten().decompose(weight, summed(inputs)).factors(5)
    assert torch.allclose(outputs(factors, inputs).T, (u[:, :5] * s[:5]) @ vh[:5], atol=1e-9)
    official = whitened_by_cholesky(weight, inputs, 5)
    assert torch.allclose(factors.up @ factors.down, official, atol=1e-9)


def whitened_by_cholesky(weight: Tensor, inputs: Tensor, rank: int) -> Tensor:
    """SVD-LLM as published: W S = U diag(s) V^T, and V^T S^-1 as second factor."""
    lower = torch.linalg.cholesky(inputs.T @ inputs)
    u, s, vh = torch.linalg.svd(weight @ lower, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank] @ torch.linalg.inv(lower)


def product(factoriser: Factoriser, weight: Tensor, inputs: InputStatistics, rank: int = 5) -> Tensor:
    found = factoriser.decompose(weight, inputs).factors(rank)
    return found.up @ found.down


@pytest.mark.parametrize("shape", SHAPES)
def test_04_simple_statistics_make_factorisers_equal(shape: tuple[int, int]) -> None:
    weight, _ = drawn(shape)
    width = shape[1]
    plain = product(Svd(), weight, summed(torch.eye(width, dtype=torch.float64)))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(plain, (u[:, :5] * s[:5]) @ vh[:5], atol=1e-9)
    alike, _ = torch.linalg.qr(drawn((width, width))[0])  # orthogonal tokens of one length
    assert torch.allclose(product(Whiten(), weight, summed(3 * alike)), plain, atol=1e-9)
    scales = torch.linspace(0.5, 3, width, dtype=torch.float64)
    apart = summed(torch.diag(scales))  # second moments are diagonal
    assert torch.allclose(product(Whiten(), weight, apart), product(Awsvd(), weight, apart), atol=1e-9)
    assert not torch.allclose(product(Awsvd(), weight, apart), plain, atol=1e-3)
    assert torch.allclose(product(Asvd(alpha=0), weight, apart), plain, atol=1e-9)
    constant = summed(torch.full((4, width), 2.0, dtype=torch.float64))
    assert torch.allclose(product(Asvd(), weight, constant), plain, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_05_about_the_mean_the_error_is_what_is_discarded_and_the_mean_is_kept(
    shape: tuple[int, int],
) -> None:
    weight, inputs = drawn(shape)
    found = Pca().decompose(weight, summed(inputs))
    scatter = torch.cov((inputs @ weight.T).T, correction=0)
    tail = torch.linalg.eigvalsh(scatter).cumsum(0).flip(0)
    for rank in (1, 4, 7):
        factors = found.factors(rank)
        assert error(factors, weight, inputs) == pytest.approx(float(tail[rank]), rel=1e-8)
        assert torch.allclose(outputs(factors, inputs).mean(0), (inputs @ weight.T).mean(0), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 6, 10])
def test_06_errors_on_the_calibration_text_come_in_the_order_of_the_theorem(
    shape: tuple[int, int], rank: int
) -> None:
    weight, inputs = drawn(shape)
    sums = summed(inputs)
    errors = {each.type: error(each.decompose(weight, sums).factors(rank), weight, inputs) for each in ALL}
    assert errors["pca"] <= errors["whiten"]
    assert all(errors["whiten"] <= errors[other] + 1e-9 for other in ("svd", "asvd", "awsvd"))
    assert errors["whiten"] < 0.999 * min(errors["svd"], errors["asvd"], errors["awsvd"])


@pytest.mark.parametrize("shape", SHAPES)
def test_07_singular_statistics_still_give_the_optimum(shape: tuple[int, int]) -> None:
    """Fewer tokens than features, and a feature that is always 0: Cholesky fails there."""
    weight, inputs = drawn(shape, tokens=8)
    inputs[:, 3] = 0
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(inputs.T @ inputs)
    found = Whiten().decompose(weight, summed(inputs))
    tail = torch.linalg.svdvals(weight @ inputs.T).square()
    for rank in (1, 4, 8, 9):
        factors = found.factors(rank)
        assert factors.up.isfinite().all()
        assert factors.down.isfinite().all()
        assert error(factors, weight, inputs) * 8 == pytest.approx(float(tail[rank:].sum()), abs=1e-8)
    slightly = Whiten().decompose(weight, summed(inputs), damping=1e-12).factors(4)
    assert error(slightly, weight, inputs) == pytest.approx(error(found.factors(4), weight, inputs), rel=1e-6)


def test_08_statistics_do_not_depend_on_batches_order_or_shards_nor_factors_on_scale() -> None:
    weight, inputs = drawn((12, 20))
    once, parts, shards = summed(inputs), InputStatistics(20), [InputStatistics(20) for _ in range(2)]
    for part in inputs.flip(0).split(7):
        parts.add(part)
    for shard, part in zip(shards, inputs.split(150), strict=True):
        shard.add(part)
    shards[0].merge(shards[1])
    empty = InputStatistics(20)
    empty.merge(once)
    for other in (parts, shards[0], empty):
        assert other.tokens == once.tokens == 200
        for mine, theirs in (
            (other.products, once.products),
            (other.total, once.total),
            (other.absolute, once.absolute),
        ):
            assert torch.allclose(mine, theirs, rtol=1e-12)
    for factoriser in ALL:
        scaled = product(factoriser, weight, summed(100 * inputs))
        assert torch.allclose(scaled, product(factoriser, weight, once), atol=1e-9)


@pytest.mark.parametrize("factoriser", ALL, ids=lambda each: each.type)
@pytest.mark.parametrize("shape", SHAPES)
def test_09_permuted_inputs_and_rotated_outputs_give_permuted_and_rotated_factors(
    shape: tuple[int, int], factoriser: Factoriser
) -> None:
    weight, inputs = drawn(shape)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(1))
    turned, _ = torch.linalg.qr(drawn((shape[0], shape[0]))[0])
    plain = product(factoriser, weight, summed(inputs))
    permuted = product(factoriser, weight[:, order], summed(inputs[:, order]))
    assert torch.allclose(permuted, plain[:, order], atol=1e-9)
    assert torch.allclose(product(factoriser, turned @ weight, summed(inputs)), turned @ plain, atol=1e-9)


@pytest.mark.parametrize("second_moments", [True, False])
def test_sums_are_those_of_a_loop_over_tokens(second_moments: bool) -> None:
    _, inputs = drawn((12, 20))
    found = summed(inputs, second_moments)
    for feature in (0, 7, 19):
        values = [float(token[feature]) for token in inputs]
        assert float(found.mean[feature]) == pytest.approx(sum(values) / 200)
        assert float(found.mean_magnitude[feature]) == pytest.approx(sum(map(abs, values)) / 200)
        assert float(found.mean_square[feature]) == pytest.approx(sum(v * v for v in values) / 200)
    if second_moments:
        both = sum(float(token[2] * token[5]) for token in inputs) / 200
        assert float(found.second_moment()[2, 5]) == pytest.approx(both)
        assert torch.allclose(found.covariance(), torch.cov(inputs.T, correction=0), atol=1e-9)


def test_slices_of_one_decomposition_are_what_a_decomposition_of_each_rank_gives() -> None:
    for shape in SHAPES:
        weight, inputs = drawn(shape)
        whole = Pca().decompose(weight, summed(inputs))
        for rank in (2, 6):
            alone, sliced = (
                Pca().decompose(weight, summed(inputs), most=rank).factors(rank),
                whole.factors(rank),
            )
            assert torch.allclose(alone.up @ alone.down, sliced.up @ sliced.down, atol=1e-10)


def test_both_factors_have_the_same_length_along_each_direction() -> None:
    weight, inputs = drawn((12, 20))
    found = Whiten().decompose(weight, summed(inputs)).factors(6)
    assert torch.allclose(found.up.norm(dim=0), found.down.norm(dim=1))


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight, inputs = drawn((12, 20))
    weight[3, 3] = float("nan")
    with pytest.raises(UserError, match=r"^the weight of layers\.0 holds NaN or infinity"):
        Svd().decompose(weight, summed(inputs), name="layers.0")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("factoriser", [Asvd(), Awsvd(), Whiten(), Pca()], ids=lambda each: each.type)
def test_inputs_that_are_not_finite_are_refused(factoriser: Factoriser, bad: float) -> None:
    weight, inputs = drawn((12, 20))
    inputs = inputs.clone()
    inputs[3, 3] = bad
    with pytest.raises(UserError, match=r"^the inputs of layers\.0 hold NaN or infinity on the calibration"):
        factoriser.decompose(weight, summed(inputs), name="layers.0")


def test_an_error_that_is_no_number_is_not_none_at_all() -> None:
    weight, inputs = drawn((12, 20))
    factors = Svd().decompose(weight, summed(inputs)).factors(6)
    inputs[3, 3] = float("nan")
    assert math.isnan(relative_error(weight, factors, summed(inputs)))


def test_large_weights_and_weights_that_train_have_plain_finite_factors() -> None:
    weight = torch.nn.Parameter(1e19 * drawn((12, 20))[0].float())
    found = Svd().decompose(weight, summed(drawn((12, 20))[1])).factors(6)
    assert found.up.isfinite().all()
    assert found.down.isfinite().all()
    assert not found.down.requires_grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factoriser", ALL, ids=lambda each: each.type)
def test_the_relative_error_is_that_of_the_outputs(factoriser: Factoriser, shape: tuple[int, int]) -> None:
    weight, inputs = drawn(shape)
    sums = summed(inputs)
    factors = factoriser.decompose(weight, sums).factors(5)
    whole = float((inputs @ weight.T).square().sum(1).mean())
    wanted = (error(factors, weight, inputs) / whole) ** 0.5
    assert relative_error(weight, factors, sums) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("sizes", [(50, 50, 50, 50), (120, 60, 20)])
def test_12_the_pooled_covariance_is_the_average_of_those_of_groups(sizes: tuple[int, ...]) -> None:
    """Over tokens; where groups are equally long that is the plain average. One group: the covariance."""
    weight, inputs = drawn((12, 20))
    inputs[: sizes[0]] += 5  # so that means of groups differ
    sums, wanted = InputStatistics(20), torch.zeros(20, 20, dtype=torch.float64)
    for part in inputs.split(list(sizes)):
        for batch in part.split(7):
            sums.add(batch)
        sums.close()
        wanted += torch.cov(part.T, correction=0) * len(part) / 200
    assert torch.allclose(sums.pooled_covariance(), wanted, atol=1e-9)
    assert torch.allclose(sums.covariance(), torch.cov(inputs.T, correction=0), atol=1e-9)
    assert not torch.allclose(sums.covariance(), wanted, atol=0.1)
    assert torch.allclose(summed(inputs).pooled_covariance(), sums.covariance(), atol=1e-9)
    pooled = Pca(groups=4).decompose(weight, sums).factors(12)
    assert torch.allclose(outputs(pooled, inputs), inputs @ weight.T, atol=1e-9)


def test_12_merged_groups_are_those_of_one_pass_and_what_is_open_is_a_group() -> None:
    _, inputs = drawn((12, 20))
    inputs[:60] += 5
    once, shards = InputStatistics(20), [InputStatistics(20), InputStatistics(20)]
    for part in inputs.split([60, 100, 40]):
        once.add(part)
        once.close()
    once.close()  # nothing is open
    assert len(once.closed) == 3
    for shard, parts in zip(shards, (inputs[:60].split(60), inputs[60:].split([100, 40])), strict=True):
        for part in parts:
            shard.add(part)
            if len(part) != 40:
                shard.close()
    shards[0].merge(shards[1])
    assert len(shards[0].closed) == 2
    assert torch.allclose(shards[0].pooled_covariance(), once.pooled_covariance(), rtol=1e-12)
    empty = InputStatistics(20)
    empty.merge(once)
    assert torch.allclose(empty.pooled_covariance(), once.pooled_covariance(), rtol=1e-12)

"""Moments that are kept over a refresh, and the signs of a new basis, which rounding decides where free."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from methods.adarankgrad import AdaRankGradStepper
from methods.parts.projection.method import ProjectedStepper
from methods.parts.projection.projector import Projector
from tests.unit.methods.test_galore import Targets, advance, copies, made, orthogonal

SHAPES = ((48, 24), (24, 48), (32, 32))
PERIOD = 4
STEPS = 3 * PERIOD + 3  # three refreshes after the first, and updates in the last subspace


@functools.cache
def drifting(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """A float32 gradient whose singular vectors turn slowly and whose singular values are far apart."""
    if len(shape) == 1:
        return torch.ones(shape)
    wide = max(shape)
    generator = torch.Generator().manual_seed(100 + index)
    left, turn = (torch.randn(wide, wide, generator=generator, dtype=torch.float64) for _ in range(2))
    turning = torch.linalg.matrix_exp(0.02 * step * (turn - turn.T) / wide**0.5)
    basis = torch.linalg.qr(left).Q @ turning
    values = 0.7 ** torch.arange(min(shape), dtype=torch.float64)
    return ((basis[: shape[0], : min(shape)] * values) @ basis[: shape[1], : min(shape)].T).float()


def perturbed(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """The same with an error in the last place of each element."""
    generator = torch.Generator().manual_seed(7 + step)
    return drifting(step, index, shape) * (1 + 1e-7 * torch.randn(shape, generator=generator))


@contextmanager
def other_decomposition(change: Callable[..., Any]) -> Iterator[None]:
    """Decompose by `change(svd, matrix)`."""
    real = torch.linalg.svd
    torch.linalg.svd = lambda matrix, **_: change(real, matrix)
    try:
        yield
    finally:
        torch.linalg.svd = real


def transposed(svd: Callable[..., Any], matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = svd(matrix.T, full_matrices=False)
    return right.T, values, left.T


def flipped(svd: Callable[..., Any], matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As valid as any other: pairs of singular vectors with signs from the bits of the matrix."""
    left, values, right = svd(matrix, full_matrices=False)
    signs = torch.where((matrix.abs().sum() * 1e6).long() >> torch.arange(len(values)) & 1 == 0, -1.0, 1.0)
    return left * signs, values, right * signs[:, None]


@contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(**options: Any) -> list[Tensor]:
    gradient = options.pop("gradient", drifting)
    model, stepper = made(*SHAPES, dtype=torch.float32, rank=6, period=PERIOD, **options)
    advance(model, stepper, 0, STEPS, gradient)
    return copies(model.weights)


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in zip(one, other, strict=True))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"refresh": "gram"},
    {"refresh": "randomized"},
    {"projection": "reverse_std"},
    {"projection": "full", "optim": {"eps": 1e-2}},  # coordinates that are rounding alone stay small
    {"stagger": True},
    {"lazy": 0.5},
    {"optim": {"state_bits": 32, "weight_decay": 0.1}, "arithmetic": "official"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_kept_moments_repeat_whatever_signs_a_decomposition_gives(variant: dict[str, Any]) -> None:
    plain = trained(**variant)
    with two_threads():
        assert apart(trained(**variant), plain) < 1e-5
    assert apart(trained(**variant, gradient=perturbed), plain) < 1e-5
    for change in (transposed, flipped):
        with other_decomposition(change):
            assert apart(trained(**variant), plain) < 1e-5


def test_with_free_signs_as_in_the_papers_code_runs_part() -> None:
    plain = trained(signs="free")
    with other_decomposition(flipped):
        assert apart(trained(signs="free"), plain) > 1e-2


def rule(old: Tensor, new: Tensor) -> Tensor:
    """The columns of `new`, each turned as its counterpart in `old` points, by plain loops over numbers."""
    result = new.clone()
    for column in range(min(old.shape[1], new.shape[1])):
        product = sum(float(old[row, column]) * float(new[row, column]) for row in range(len(old)))
        if product < 0:
            result[:, column] = -new[:, column]
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("before", "after"), [(4, 4), (5, 3), (2, 4)])
def test_each_column_is_turned_by_its_product_with_the_old_one(
    before: int, after: int, dtype: torch.dtype
) -> None:
    old, new = (orthogonal(9, seed).to(dtype) for seed in (1, 2))
    old, new = old[:, :before].clone(), new[:, :after].clone()
    new[:, 1] = 0  # at a right angle to all: stays
    for side in ("left", "right"):
        found = Projector(**{side: new.clone()})
        found.align(Projector(**{side: old}))
        assert found.tensors()[side].equal(rule(old, new))
    both = Projector(left=new.clone(), right=-new.clone())
    both.align(Projector(left=old, right=old))
    assert both.tensors()["left"].equal(rule(old, new))
    assert both.tensors()["right"].equal(rule(old, -new))


def test_a_basis_is_turned_in_place_so_that_no_memory_is_kept() -> None:
    basis = orthogonal(9, 1)[:, :4].clone()
    Projector(left=basis).align(Projector(left=-basis.clone()))
    assert basis.equal(-orthogonal(9, 1)[:, :4])


def adapted(moments: str, **options: Any) -> list[Tensor]:
    """Weights that AdaRankGrad has trained; its ranks fall as the gradient loses directions."""
    model = Targets(*SHAPES, dtype=torch.float32)
    settings = {"targets": ["q_proj"], "rank": 6, "period": PERIOD, "refresh": "svd", "energy": 0.9}
    method = build("adarankgrad", {**settings, "moments": moments, **options})
    method.prepare(model, Context(seed=5))
    stepper = method.stepper(model, OptimConfig(lr=0.02))
    assert isinstance(stepper, ProjectedStepper)
    advance(model, stepper, 0, STEPS, drifting)
    return copies(model.weights)


def test_adarankgrads_kept_moments_repeat_too() -> None:
    plain, free = adapted("keep"), adapted("keep", signs="free")
    with other_decomposition(flipped):
        assert apart(adapted("keep"), plain) < 1e-5
        assert apart(adapted("keep", signs="free"), free) > 1e-2


@pytest.mark.parametrize("moments", ["rotate", "reset"])
def test_signs_are_for_kept_moments_alone(moments: str) -> None:
    assert build("galore", {"moments": moments}).version == 1
    with pytest.raises(UserError, match="`signs` matters only where moments are kept; leave it out"):
        build("galore", {"moments": moments, "signs": "aligned"})


def on_a_quadratic(moments: str) -> float:
    """The distance to the minimum of |W - target|^2 / 2 after 300 updates, relative to that at the start."""
    model = Targets((16, 12), dtype=torch.float64)
    (weight,) = model.weights
    target = orthogonal(16, 3)[:, :12] * torch.linspace(1, 4, 12, dtype=torch.float64)
    method = build("adarankgrad", {"targets": ["q_proj"], "rank": 12, "period": 5, "moments": moments})
    context = Context(seed=5)
    method.prepare(model, context)
    assert any("moments: paper" in warning for warning in context.warnings) == (moments == "paper")
    stepper = method.stepper(model, OptimConfig(lr=1.0))
    assert isinstance(stepper, AdaRankGradStepper)
    start = float((weight.detach() - target).norm())
    for step in range(300):
        stepper.set_lr(0.2 * (1 - step / 300))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = weight.detach() - target
        stepper.step()
        stepper.zero_grad()
    return float((weight.detach() - target).norm()) / start


def test_second_moments_as_printed_diverge_on_a_quadratic_and_a_run_is_warned_of_it() -> None:
    found = {moments: on_a_quadratic(moments) for moments in ("square", "ldadam", "reset", "paper")}
    assert max(found[moments] for moments in ("square", "ldadam", "reset")) < 1e-2
    assert found["paper"] > 10

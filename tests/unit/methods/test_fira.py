"""Fira on gradients that are known: its residual, its limiter, and where it is GaLore or APOLLO."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from tests.unit.methods.test_apollo import (
    goes_on_bit_for_bit,
    growing,
    made,
    moves,
    same_inside_backward,
    trained_beside_the_equations,
)
from tests.unit.methods.test_galore import (
    LR,
    SHAPES,
    TALL,
    WIDE,
    Targets,
    advance,
    assert_close,
    copies,
    distance,
    matrices,
)


# ------------------------------------------------------------------------------------------ the update
@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("scaling", ["channel", "tensor"])
@pytest.mark.parametrize("residual_alpha", [1.0, 0.25])
def test_it_is_the_update_of_its_equations_of_paper_and_code(
    official: bool, scaling: str, residual_alpha: float
) -> None:
    """13 updates with three refreshes; `residual_alpha` is 1 in the paper and `scale` in the code."""
    equations = {"scaling": scaling, "official": official, "eps": 1e-3, "decay": 0.2}
    options = {"scaling": scaling, "scale": 0.25, "residual_alpha": residual_alpha}
    equations |= {"alpha": 0.25, "residual_alpha": residual_alpha}
    trained_beside_the_equations("fira", 13, equations, **options)


GALORE_TOO: list[dict[str, Any]] = [
    {},
    {"scale": 1.0, "refresh": "gram", "moments": "rotate"},
    {"arithmetic": "official", "projection": "reverse_std", "signs": "free"},
    {"stagger": True, "refresh": "randomized"},
    {"lazy": 0.5},
]


@pytest.mark.parametrize("options", GALORE_TOO, ids=str)
def test_invariant_with_phi_0_it_is_galore(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    factors = "methods.parts.projection.scaling.scaling_factors"
    monkeypatch.setattr(factors, lambda step, *_: step.new_zeros(1, 1))
    galore, fira = (
        made(name, *SHAPES, optim={"weight_decay": 0.1}, **options) for name in ("galore", "fira")
    )
    for step in range(10):
        infos = [advance(*each, step, step + 1, growing)[0] for each in (galore, fira)]
        assert infos[0] == infos[1]
    assert_close(fira[0].weights, galore[0].weights)


def test_invariant_at_full_rank_with_scale_1_the_residual_is_0_and_it_is_galore() -> None:
    galore, fira = (made(name, *SHAPES, rank=12, scale=1.0) for name in ("galore", "fira"))
    advance(*galore, 0, 10)
    advance(*fira, 0, 10)
    assert_close(fira[0].weights, galore[0].weights, 1e-8)
    code = made("fira", *SHAPES, rank=12, scale=0.25, residual_alpha=0.25)
    advance(*code, 0, 10)
    assert distance(copies(code[0].weights), copies(galore[0].weights)) > 1e-3


@pytest.mark.parametrize("scaling", ["channel", "tensor"])
def test_invariant_the_residual_is_orthogonal_to_the_subspace_in_the_paper_and_not_in_the_code(
    scaling: str,
) -> None:
    """Factors of columns commute with a projector on the left, those of rows with one on the right."""
    for residual_alpha, orthogonal in ((1.0, True), (0.25, False)):
        model, stepper = made("fira", *SHAPES, period=9, scaling=scaling, residual_alpha=residual_alpha)
        stepper.scale = 0.0  # the residual alone moves the weights
        for found in moves(model, stepper, 6):
            for matrix, residual in zip(matrices(stepper), found, strict=True):
                share = matrix.projector.project(residual).norm() / residual.norm()
                assert (share < 1e-5) == orthogonal


def test_invariant_the_norm_of_the_residual_never_grows_by_more_than_the_limiter_allows() -> None:
    for limiter in (1.01, None):
        model, stepper = made("fira", *SHAPES, limiter=limiter)
        stepper.scale = 0.0
        found = moves(model, stepper, 12, growing)
        for index in range(len(SHAPES)):
            norms = [float(step[index].norm()) for step in found]
            ratio = max(later / earlier for earlier, later in itertools.pairwise(norms))
            assert ratio == pytest.approx(1.01) if limiter else ratio > 1.3


@pytest.mark.parametrize("scaling", ["channel", "tensor"])
def test_invariant_scaling_alone_is_apollo_with_svd(scaling: str) -> None:
    """Without Adam's step in the subspace, and with the whole gradient as residual (Fira's ablation)."""
    fira = made("fira", *SHAPES, scaling=scaling, residual_alpha=0.0)
    fira[1].scale = 0.0
    apollo = made("apollo", *SHAPES, scaling=scaling, projector="svd")
    for each in (fira, apollo):
        advance(*each, 0, 10, growing)
    assert_close(fira[0].weights, apollo[0].weights, 1e-12)


def test_the_residual_moves_at_the_full_rate_and_the_subspace_at_scale_times_it() -> None:
    ends = {}
    for scale in (1.0, 0.25):
        model, stepper = made("fira", TALL, WIDE, scale=scale, limiter=None)
        ends[scale] = moves(model, stepper, 1)[0], matrices(stepper)
    for whole, small, matrix in zip(ends[1.0][0], ends[0.25][0], ends[1.0][1], strict=True):
        inside = matrix.projector.project(whole), matrix.projector.project(small)
        assert_close([inside[1]], [0.25 * inside[0]])
        outside: list[Tensor] = []
        for move, coordinates in zip((whole, small), inside, strict=True):
            outside.append(move.clone())
            matrix.projector.add_back(outside[-1], coordinates, -1.0)
        assert float(outside[0].norm()) > 0.1
        assert_close(outside[:1], outside[1:])


def test_the_gradient_is_left_as_it_is() -> None:
    model, stepper = made("fira", TALL)
    (weight,) = model.weights
    weight.grad = torch.ones_like(weight)
    stepper.set_lr(LR)
    stepper.step()
    assert weight.grad.equal(torch.ones_like(weight))


# ------------------------------------------------------------------------------------------- the states
@pytest.mark.parametrize("limiter", [1.01, None])
def test_its_states_are_those_of_galore_and_one_norm_for_each_matrix(limiter: float | None) -> None:
    """m r + 2 n r + 1, the published count."""
    context, model = Context(), Targets(*SHAPES, dtype=torch.float32)
    method = build("fira", {"targets": ["q_proj"], "rank": 3, "limiter": limiter})
    method.prepare(model, context)
    stepper: Any = method.stepper(model, OptimConfig())
    advance(model, stepper, 0, 2)
    found = {name: t.numel() for name, t in stepper.state_tensors() if not name.endswith(".step")}
    total = 0
    for index, shape in enumerate(SHAPES):
        wanted = 3 * min(shape) + 2 * 3 * max(shape) + (limiter is not None)
        prefix = f"blocks.{index}.q_proj.weight."
        assert sum(count for name, count in found.items() if name.startswith(prefix)) == wanted
        total += wanted
    assert context.facts["state_elements"] == total


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "code": {"residual_alpha": 0.25, "arithmetic": "official", "signs": "free"},
    "tensor, rotated, staggered": {"scaling": "tensor", "moments": "rotate", "stagger": True},
    "gradient's precision, bfloat16": {"precision": "gradient", "dtype": torch.bfloat16},
    "8 bits, bfloat16": {"bits": 8, "rank": 48, "dtype": torch.bfloat16},
    "16 bits, no limiter": {"bits": 16, "limiter": None},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_updates_inside_backward_are_the_same_bit_for_bit(variant: dict[str, Any]) -> None:
    same_inside_backward("fira", variant)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_a_run_saved_between_refreshes_goes_on_bit_for_bit(variant: dict[str, Any]) -> None:
    goes_on_bit_for_bit("fira", variant)


# ------------------------------------------------------------------------------------------ the options
def test_its_period_is_promised_as_galores_is() -> None:
    for options, period in (({}, 7), ({"stagger": True}, None)):
        caps = build("fira", {"period": 7, **options}).caps
        assert (caps.period, caps.mean_period) == (period, 7 if period is None else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual_alpha": 1.5}, "residual_alpha"),
        ({"limiter": 0.5}, "limiter"),
        ({"scaling": "column"}, "scaling"),
        ({"projection": "full"}, "projection"),
        ({"moments": "reset", "signs": "free"}, "`signs` matters only where moments are kept"),
        ({"alpha": 0.25}, "unknown key 'alpha'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method fira: {message}") as caught:
        build("fira", options)
    assert "\n" not in str(caught.value)

"""APOLLO on gradients that are known: its factors, its limiter, its projections and what it stores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.engine.measure.peak import LiveMeter
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from methods.apollo import ApolloStepper
from methods.parts.projection.method import ProjectedStepper
from methods.parts.projection.projector import Projector
from tests.support.tiny import tiny_llama, train
from tests.unit.methods.test_galore import (
    LR,
    NEVER,
    SHAPES,
    SQUARE,
    TALL,
    WIDE,
    Targets,
    adam_on,
    advance,
    assert_close,
    copies,
    matrices,
    noise,
    noisy,
    saved_and_loaded,
)

MINI: dict[str, Any] = {"rank": 1, "scaling": "tensor", "scale": 128.0}


def made(
    method: str,
    *shapes: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    optim: dict[str, Any] | None = None,
    seed: int = 5,
    **options: Any,
) -> tuple[Targets, Any]:
    """A model and its stepper; `options` are the method's, `optim` those of the train section."""
    model = Targets(*shapes, dtype=dtype)
    built = build(method, {"targets": ["q_proj"], "rank": 3, "period": 4, **options})
    built.prepare(model, Context(seed=seed))
    stepper = built.stepper(model, OptimConfig(lr=LR, **(optim or {})))
    assert isinstance(stepper, ProjectedStepper)
    return model, stepper


def moves(model: Targets, stepper: Any, steps: int, gradient: Any = noisy) -> list[list[Tensor]]:
    """What each update subtracts from each target, over the learning rate."""
    found = []
    for step in range(steps):
        before = copies(model.weights)
        advance(model, stepper, step, step + 1, gradient)
        pairs = zip(before, model.weights, strict=True)
        found.append([(old - new.detach()) / LR for old, new in pairs])
    return found


def growing(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Noise that shrinks for a while and then grows by far more than a limiter allows."""
    return noisy(step, index, shape) * (0.5**step if step < 4 else 3.0 ** (step - 8))


class Limit:
    """The limiter of sections 6 and 7 on plain numbers, which starts at the first norm that is not 0."""

    def __init__(self, most: float | None) -> None:
        self.most, self.last = most, 0.0

    def __call__(self, move: Tensor) -> Tensor:
        size = math.sqrt(sum(float(value) ** 2 for value in move.flatten()))
        if self.most is not None and 0 < self.last * self.most < size:
            move, size = move * (self.last * self.most / size), self.last * self.most
        self.last = size or self.last
        return move


def scaled(direction: Tensor, normed: Tensor, coordinates: Tensor, side: str, scaling: str) -> Tensor:
    """Each row (right) or column (left) of a direction times |N_j| / (|R_j| + 1e-8), one after the other."""
    if scaling == "tensor":
        return direction * (normed.norm() / (coordinates.norm() + 1e-8))
    if side == "left":
        return scaled(direction.T, normed.T, coordinates.T, "right", scaling).T
    rows = [row * (normed[j].norm() / (coordinates[j].norm() + 1e-8)) for j, row in enumerate(direction)]
    return torch.stack(rows)


def by_the_equations(
    weight: Tensor,
    gradients: Sequence[Tensor],
    projectors: Sequence[Projector],
    *,
    scaling: str = "channel",
    limiter: float | None = 1.01,
    scale: float = 1.0,
    official: bool = False,
    eps: float = 1e-8,
    decay: float = 0.0,
    alpha: float | None = None,
    residual_alpha: float = 1.0,
) -> Tensor:
    """Sections 6 and, with `alpha`, 7: a weight after these gradients, with the projector of each update."""
    weight, limit = weight.clone(), Limit(limiter)
    first = second = torch.zeros(())
    for step, (gradient, projector) in enumerate(zip(gradients, projectors, strict=True), start=1):
        ((side, basis),) = projector.tensors().items()
        coordinates = gradient @ basis if side == "right" else basis.T @ gradient
        first = 0.9 * first + 0.1 * coordinates
        second = 0.999 * second + 0.001 * coordinates.square()
        of_first, of_second = 1 - 0.9**step, 1 - 0.999**step
        if official:
            normed, rate = first / (second.sqrt() + eps), LR * math.sqrt(of_second) / of_first
        else:
            normed, rate = (first / of_first) / ((second / of_second).sqrt() + eps), LR
            weight = weight - LR * decay * weight
        if alpha is None:
            move = limit(scaled(gradient, normed, coordinates, side, scaling)) * math.sqrt(scale)
        else:
            inside = coordinates @ basis.T if side == "right" else basis @ coordinates
            step_back = normed @ basis.T if side == "right" else basis @ normed
            residual = scaled(gradient - residual_alpha * inside, normed, coordinates, side, scaling)
            move = alpha * step_back + limit(residual)
        weight = weight - rate * move
        if official:
            weight = weight - LR * decay * weight
    return weight


def trained_beside_the_equations(method: str, steps: int, equations: dict[str, Any], **options: Any) -> None:
    """Train targets of all shapes, and compare with the equations on the projectors that were used."""
    official = equations.get("official", False)
    optim = {"weight_decay": equations["decay"], "eps": equations["eps"]}
    arithmetic = "official" if official else "torch"
    model, stepper = made(method, *SHAPES, optim=optim, arithmetic=arithmetic, **options)
    before, used = copies(model.weights), []
    for step in range(steps):
        advance(model, stepper, step, step + 1, growing)
        used.append([matrix.projector for matrix in matrices(stepper)])
    for index, (old, new) in enumerate(zip(before, model.weights, strict=True)):
        grads = [growing(step, index, tuple(old.shape)) for step in range(steps)]
        projectors = [projectors[index] for projectors in used]
        assert_close([new], [by_the_equations(old, grads, projectors, **equations)])


# ------------------------------------------------------------------------------------------ the update
@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("scaling", ["channel", "tensor"])
@pytest.mark.parametrize("projector", ["stored", "svd"])
def test_it_is_the_update_of_its_equations(official: bool, scaling: str, projector: str) -> None:
    """13 updates with three refreshes, through which moments are kept."""
    equations = {"scaling": scaling, "scale": 9.0, "official": official, "eps": 1e-3, "decay": 0.2}
    trained_beside_the_equations("apollo", 13, equations, scaling=scaling, scale=9.0, projector=projector)


def with_axes_as_projection(stepper: ApolloStepper, dtype: torch.dtype = torch.float64) -> None:
    """Project by the identity, for good."""
    for matrix in matrices(stepper):
        matrix.projector = Projector(**{matrix.side: torch.eye(matrix.rank, dtype=dtype)})
        matrix.next_refresh = NEVER


def test_invariant_with_p_the_identity_each_channel_is_scaled_as_adam_scales_it() -> None:
    """s_j = |Adam_j| / |G_j|, so each channel is as long as Adam's and points as the gradient does."""
    model, stepper = made("apollo", *SHAPES, rank=12, projector="stored", limiter=None)
    with_axes_as_projection(stepper)
    found = moves(model, stepper, 6)
    for index, shape in enumerate(SHAPES):
        dim = 1 if shape[0] >= shape[1] else 0
        for step in range(6):
            grads = [noisy(earlier, index, shape) for earlier in range(step + 1)]
            adam = (adam_on(grads[:step]) if step else torch.zeros(shape)) - adam_on(grads)
            move, gradient = found[step][index], grads[-1]
            torch.testing.assert_close(move.norm(dim=dim), adam.norm(dim=dim) / LR, rtol=1e-7, atol=0)
            cosine = (move * gradient).sum(dim) / (move.norm(dim=dim) * gradient.norm(dim=dim))
            assert_close([cosine], [torch.ones_like(cosine)])


def test_invariant_with_one_factor_the_update_is_parallel_to_the_gradient() -> None:
    model, stepper = made("apollo", *SHAPES, **MINI)
    for step, found in enumerate(moves(model, stepper, 6)):
        for index, move in enumerate(found):
            gradient = noisy(step, index, SHAPES[index])
            assert float((move * gradient).sum()) == pytest.approx(float(move.norm() * gradient.norm()))


def test_the_factor_of_a_low_rank_is_that_of_full_rank_times_the_root_of_their_ratio() -> None:
    """Paper, equation 9 and figure 4, after one update on Gaussian gradients: 1 / 8 and 1 / 4 of the rank are
    0.35 and 0.5 of the factor. At rank 1 the norm is |x| of a normal x, whose median is 0.6745."""
    shape, factors = (512, 512), {}
    gradient = noise(shape, 1)
    full = math.sqrt(512) / gradient.norm(dim=1)
    for rank in (1, 64, 128, 512):
        model, stepper = made("apollo", shape, rank=rank)
        (move,) = moves(model, stepper, 1, lambda step, index, wanted: noise(wanted, 1))[0]
        factors[rank] = float((move.norm(dim=1) / gradient.norm(dim=1) / full).median())
    assert factors.pop(1) == pytest.approx(1 / (0.6745 * math.sqrt(512)), rel=0.1)
    assert factors == pytest.approx({64: 0.354, 128: 0.5, 512: 1.0}, rel=0.03)


# ------------------------------------------------------------------------------------------ the limiter
@pytest.mark.parametrize("official", [False, True])
def test_invariant_the_norm_never_grows_by_more_than_the_limiter_allows(official: bool) -> None:
    arithmetic = "official" if official else "torch"
    ends = {}
    for limiter in (None, 1.01, 1.3):
        model, stepper = made("apollo", *SHAPES, limiter=limiter, arithmetic=arithmetic)
        found = moves(model, stepper, 12, growing)
        for index in range(len(SHAPES)):
            norms = [float(step[index].norm()) for step in found]
            if official:  # the limited norm is that before bias correction
                norms = [n / math.sqrt(1 - 0.999**t) * (1 - 0.9**t) for t, n in enumerate(norms, start=1)]
            ratios = [later / earlier for earlier, later in itertools.pairwise(norms)]
            assert max(ratios) == pytest.approx(limiter) if limiter else max(ratios) > 1.3
        ends[limiter] = copies(model.weights)
    assert all(not one.equal(other) for one, other in zip(ends[None], ends[1.01], strict=True))


def test_invariant_a_limiter_that_nothing_reaches_changes_nothing() -> None:
    free, loose = (made("apollo", *SHAPES, limiter=limiter) for limiter in (None, 1e9))
    advance(*free, 0, 9, growing)
    advance(*loose, 0, 9, growing)
    assert_close(free[0].weights, loose[0].weights, 1e-14)


@pytest.mark.parametrize("method", ["apollo", "fira"])
def test_the_limiter_starts_at_the_first_norm_that_is_not_0_and_passes_over_later_zeros(method: str) -> None:
    """As for the factor A of LoRA, whose first gradient is 0: from a norm of 1e-8 the limiter would allow
    1.01^t times that, for 1,850 updates."""

    def with_zeros(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
        return noisy(step, index, shape) * (step not in (0, 1, 5))

    limited, free = (made(method, *SHAPES, limiter=limiter, period=100) for limiter in (1.01, None))
    found, unlimited = moves(*limited, 8, with_zeros), moves(*free, 8, with_zeros)
    for index in range(len(SHAPES)):
        assert all(float(found[step][index].norm()) == 0 for step in (0, 1))
        torch.testing.assert_close(found[2][index], unlimited[2][index])
        if method == "apollo":
            before, after = (float(found[step][index].norm()) for step in (4, 6))
            assert float(found[5][index].norm()) == 0
            assert 0.3 * before < after <= 1.01 * before * (1 + 1e-9)


def test_a_gradient_of_nan_does_not_break_the_limiter() -> None:
    """Between refreshes it reaches the weights, as in every method, but not the norm of later updates."""
    model, stepper = made("apollo", TALL, period=100)
    (matrix,) = matrices(stepper)
    advance(model, stepper, 0, 2)
    before = matrix.norm.clone()
    advance(model, stepper, 2, 3, lambda step, index, shape: torch.full(shape, math.nan))
    assert matrix.norm.equal(before)


def test_invariant_the_scale_is_a_root_on_what_the_limiter_has_left() -> None:
    """So the paper's `scale_front`, which multiplies before the limiter, is no option: the same comes out."""
    found = {}
    for scale in (1.0, 128.0):
        model, stepper = made("apollo", *SHAPES, scale=scale)
        found[scale] = moves(model, stepper, 9, growing)
    for one, other in zip(found[1.0], found[128.0], strict=True):
        assert_close([math.sqrt(128) * move for move in one], other)
    limits = Limit(1.01), Limit(1.01)
    for move, *_ in found[1.0]:
        front, after = limits[0](7 * move), 7 * limits[1](move)
        torch.testing.assert_close(front, after)


# -------------------------------------------------------------------------------------- the projection
@pytest.mark.parametrize("options", [{}, MINI, {"precision": "gradient"}], ids=["", "mini", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_a_projection_from_its_seed_is_the_one_that_was_stored_bit_for_bit(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Over three refreshes and a resume, which brings the seed along."""
    drawn, stored = (made("apollo", *SHAPES, dtype=dtype, projector=p, **options) for p in ("seed", "stored"))
    advance(*drawn, 0, 6)
    advance(*stored, 0, 6)
    state = saved_and_loaded(drawn[1].state_dict())
    drawn[1].load_state_dict(state)
    advance(*drawn, 6, 11)
    advance(*stored, 6, 11)
    for mine, theirs in zip(drawn[0].parameters(), stored[0].parameters(), strict=True):
        assert mine.equal(theirs)
    assert all(matrix.projector is None for matrix in matrices(drawn[1]))
    assert all(matrix.projector is not None for matrix in matrices(stored[1]))


def test_the_projection_has_gaussian_entries_of_variance_1_over_rank() -> None:
    model, stepper = made("apollo", (600, 500), rank=100, projector="stored", dtype=torch.float32)
    advance(model, stepper, 0, 1)
    basis = matrices(stepper)[0].projector.right
    assert basis.shape == (500, 100)
    assert float(basis.mean()) == pytest.approx(0, abs=3 * 0.1 / math.sqrt(50_000))
    assert float(basis.var()) == pytest.approx(1 / 100, rel=0.03)
    assert float(((basis * 10) ** 4).mean()) == pytest.approx(3, rel=0.06)  # of a normal distribution


@pytest.mark.parametrize("per_layer", [False, True])
def test_invariant_every_matrix_refresh_and_run_draws_another_projection(per_layer: bool) -> None:
    """Their code numbers the seeds of one optimizer, so with an optimizer per layer all are equal."""
    bases: list[Tensor] = []
    for seed in (0, 1):
        model = tiny_llama(layers=2)
        method = build(
            "apollo", {"rank": 4, "period": 2, "projector": "stored", "targets": ["q_proj", "k_proj"]}
        )
        method.prepare(model, Context(seed=seed))
        stepper: Any = method.stepper(model, OptimConfig(per_layer=per_layer))
        for step in range(3):
            train(model, stepper, step, step + 1)
            if step != 1:
                bases += [matrix.projector.right for matrix in matrices(stepper)]
    assert len(bases) == 2 * 2 * 4
    assert len({basis.numpy().tobytes() for basis in bases}) == len(bases)


def test_between_refreshes_the_projection_stays() -> None:
    model, stepper = made("apollo", *SHAPES, projector="stored")
    seen = []
    for step in range(9):
        advance(model, stepper, step, step + 1)
        seen.append([id(matrix.projector) for matrix in matrices(stepper)])
    assert [step for step in range(1, 9) if seen[step] != seen[step - 1]] == [4, 8]


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_at_a_refresh_moments_are_kept_or_begin_anew(moments: str) -> None:
    model, stepper = made("apollo", TALL, projector="stored", moments=moments)
    advance(model, stepper, 0, 5)  # the last update refreshes
    ((name, matrix),) = stepper.matrices.items()
    fresh = 0.1 * noisy(4, 0, TALL) @ matrix.projector.right
    assert torch.allclose(stepper.states[name]["exp_avg"], fresh) == (moments == "reset")


# ------------------------------------------------------------------------------------------- the states
@pytest.mark.parametrize("projector", ["seed", "stored", "svd"])
@pytest.mark.parametrize("projection", ["std", "reverse_std", "left", "right"])
@pytest.mark.parametrize("limiter", [1.01, None])
def test_invariant_states_are_those_of_table_1_and_of_the_facts(
    projector: str, projection: str, limiter: float | None
) -> None:
    """2 r max(m, n) + 2: the two moments, the seed and the norm; the projection itself only where stored."""
    context, options = Context(), {"projector": projector, "projection": projection, "limiter": limiter}
    model = Targets(*SHAPES, dtype=torch.float32)
    method = build("apollo", {"targets": ["q_proj"], "rank": 3, **options})
    method.prepare(model, context)
    stepper: Any = method.stepper(model, OptimConfig())
    advance(model, stepper, 0, 2)
    total = 0
    for index, (out, inputs) in enumerate(SHAPES):
        short, long = min(out, inputs), max(out, inputs)
        kept = {"std": long, "reverse_std": short, "left": inputs, "right": out}[projection]
        extra = 1 if projector == "seed" else 3 * (out + inputs - kept)
        wanted = 2 * 3 * kept + extra + (limiter is not None)
        prefix = f"blocks.{index}.q_proj.weight."
        found = {name: t for name, t in stepper.state_tensors() if name.startswith(prefix)}
        tensors = sum(tensor.numel() for name, tensor in found.items() if not name.endswith(".step"))
        seeds = sum(isinstance(value, int) for value in matrices(stepper)[index].notes.values())
        assert tensors + (seeds if projector == "seed" else 0) == wanted
        assert method.state_elements((out, inputs)) == wanted  # type: ignore[attr-defined]
        total += wanted
    assert context.facts["state_elements"] == total


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mini": MINI,
    "stored, official": {"projector": "stored", "arithmetic": "official"},
    "svd, reset": {"projector": "svd", "moments": "reset"},
    "gradient's precision, bfloat16": {"precision": "gradient", "dtype": torch.bfloat16},
    "8 bits": {"bits": 8, "rank": 48},
    "8 bits, official, bfloat16": {"bits": 8, "rank": 48, "arithmetic": "official", "dtype": torch.bfloat16},
    "16 bits, no limiter": {"bits": 16, "limiter": None},
}


def tiny(
    method: str, per_layer: bool = False, dtype: torch.dtype = torch.float32, bits: Any = None, **options: Any
) -> tuple[nn.Module, Any]:
    """A prepared LLaMA of one block with its stepper."""
    model = tiny_llama(hidden=64, layers=1).to(dtype)
    built = build(method, {"rank": 4, "period": 4, **options})
    built.prepare(model, Context(seed=2))
    optim = OptimConfig(weight_decay=0.1, per_layer=per_layer, state_bits=bits)
    return model, built.stepper(model, optim)


def same_inside_backward(method: str, variant: dict[str, Any]) -> None:
    normal, inside = tiny(method, **variant), tiny(method, per_layer=True, **variant)
    for step in range(6):
        assert train(*normal, step, step + 1) == train(*inside, step, step + 1)
    for (name, mine), theirs in zip(normal[0].named_parameters(), inside[0].parameters(), strict=True):
        assert mine.equal(theirs), name


def goes_on_bit_for_bit(method: str, variant: dict[str, Any]) -> None:
    """Saved after update 6 of periods of 4; updates 8 and 12 refresh in both runs."""
    model, stepper = tiny(method, **variant)
    train(model, stepper, 0, 6)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    resumed, again = tiny(method, **variant)
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["stepper"])
    assert train(resumed, again, 6, 13) == train(model, stepper, 6, 13)
    kept, kept_too = dict(stepper.state_tensors()), dict(again.state_tensors())
    assert kept.keys() == kept_too.keys()
    assert all(kept[name].equal(kept_too[name]) for name in kept)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_updates_inside_backward_are_the_same_bit_for_bit(variant: dict[str, Any]) -> None:
    same_inside_backward("apollo", variant)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_a_run_saved_between_refreshes_goes_on_bit_for_bit(variant: dict[str, Any]) -> None:
    goes_on_bit_for_bit("apollo", variant)


def test_moments_in_8_bits_stay_near_those_in_32() -> None:
    ends = {}
    for bits in (32, 8):
        model, stepper = made("apollo", (96, 128), dtype=torch.float32, rank=64, optim={"state_bits": bits})
        start = model.weights[0].detach().clone()
        advance(model, stepper, 0, 12)
        ends[bits] = model.weights[0].detach() - start
    assert 0 < (ends[8] - ends[32]).norm() < 0.1 * ends[32].norm()


@pytest.mark.parametrize(("projector", "share"), [("seed", 0.2), ("stored", 0.1)])
def test_an_update_needs_no_tensor_of_the_size_of_the_weight(projector: str, share: float) -> None:
    """Beside weight, gradient and states: coordinates, Adam's step and, for its time, the projection."""
    shape = (512, 256)
    model, stepper = made("apollo", shape, dtype=torch.float32, rank=8, projector=projector, period=100)
    advance(model, stepper, 0, 1)
    meter = LiveMeter(torch.device("cpu"))
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = noisy(1, index, tuple(parameter.shape)).float()
    with meter.window() as before:
        torch.empty(0)
    with meter.window() as during:
        stepper.step()
    assert during.peak_allocated_bytes - before.peak_allocated_bytes < share * 4 * math.prod(shape)


# ------------------------------------------------------------------------------------------ the options
def test_all_matrices_refresh_together_once_a_period() -> None:
    assert build("apollo", {"period": 7}).caps.period == 7
    infos = advance(*made("apollo", *SHAPES, period=3), 0, 8)
    assert [info.refreshes for info in infos] == [3, 0, 0, 3, 0, 0, 3, 0]
    assert [info.refresh_next for info in infos] == [False, False, True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "channels"}, "scaling"),
        ({"limiter": 0.9}, "limiter"),
        ({"scale": 0.0}, "scale"),
        ({"projector": "gaussian"}, "projector"),
        ({"projection": "full"}, "projection"),
        ({"moments": "rotate"}, "moments"),
        ({"scale_front": True}, "unknown key 'scale_front'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method apollo: {message}") as caught:
        build("apollo", options)
    assert "\n" not in str(caught.value)


def test_wide_and_square_matrices_are_projected_as_in_galore() -> None:
    _, stepper = made("apollo", TALL, WIDE, SQUARE)
    assert [matrix.side for matrix in matrices(stepper)] == ["right", "left", "right"]

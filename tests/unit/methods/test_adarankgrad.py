"""AdaRankGrad on gradients that are known: its ranks, its refreshes, and what Adam does in between."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context, StepInfo, Stepper
from harness.plugins import build
from methods import adarankgrad
from methods.adarankgrad import AdaRankGrad, AdaRankGradStepper, least_rank
from methods.parts.optim.adamw import Adam, AdamWStepper, State
from methods.parts.projection.method import Matrix
from methods.parts.projection.projector import Finder, Projector, find_projector
from tests.support.tiny import tiny_batch, tiny_llama, train

TALL, WIDE, SQUARE = (30, 20), (20, 30), (24, 24)
SHAPES = (TALL, WIDE, SQUARE)
FINDERS: tuple[Finder, ...] = get_args(Finder)
NEVER = 10**9
LR = 0.02


# ------------------------------------------------------------------------------------------- the stage
class Targets(nn.Module):
    """Linear layers of given shapes, all of them targets, with weights that depend on nothing."""

    def __init__(self, *shapes: tuple[int, int], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        layers = [nn.Linear(columns, rows, bias=False, dtype=dtype) for rows, columns in shapes]
        self.blocks = nn.ModuleList(nn.ModuleDict({"q_proj": layer}) for layer in layers)
        for index, weight in enumerate(self.weights):
            weight.data = noise(*weight.shape, seed=1000 + index).to(dtype)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights of the targets."""
        return [block["q_proj"].weight for block in self.blocks]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(rows, columns, seed=seed)).Q


def spectral(shape: tuple[int, int], values: Sequence[float], seed: int = 0) -> Tensor:
    """A matrix of these singular values."""
    left, right = orthonormal(shape[0], len(values), seed), orthonormal(shape[1], len(values), seed + 1)
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def decaying(step: int, shape: tuple[int, int]) -> Tensor:
    """A gradient with the singular values 1, 1/2, 1/3 … in directions that change from step to step."""
    return spectral(shape, [1 / (i + 1) for i in range(min(shape))], seed=100 * step)


Gradient = Callable[[int, tuple[int, int]], Tensor]


def made(
    *shapes: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    optim: dict[str, Any] | None = None,
    **o: Any,
) -> tuple[Targets, AdaRankGradStepper]:
    """A model and its stepper; `o` are the method's options, `optim` those of the train section."""
    model = Targets(*shapes, dtype=dtype)
    options = {"targets": ["q_proj"], "rank": 8, "period": 4, "scale": 1.0, "convergence": 0.0, **o}
    stepper = build_stepper("adarankgrad", model, options, optim)
    assert isinstance(stepper, AdaRankGradStepper)
    return model, stepper


def build_stepper(
    name: str, model: nn.Module, options: dict[str, Any], optim: dict[str, Any] | None = None
) -> Stepper:
    method = build(name, options)
    method.prepare(model, Context(seed=5))
    stepper = method.stepper(model, OptimConfig(lr=LR, **(optim or {})))
    assert stepper is not None
    return stepper


def advance(
    model: Targets, stepper: Stepper, first: int, last: int, gradient: Gradient = decaying
) -> list[StepInfo]:
    """Do the updates `first` up to and without `last` with gradients of our choice."""
    infos = []
    for step in range(first, last):
        stepper.set_lr(LR)
        for weight in model.weights:
            weight.grad = gradient(step, (weight.shape[0], weight.shape[1])).to(weight.dtype)
        infos.append(stepper.step())
        stepper.zero_grad()
    return infos


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def states(stepper: Stepper) -> dict[str, Tensor]:
    """Copies of all tensors that the stepper keeps."""
    return {name: tensor.clone() for name, tensor in stepper.state_tensors()}


def matrices(stepper: AdaRankGradStepper) -> list[Matrix]:
    return list(stepper.matrices.values())


def bases(stepper: AdaRankGradStepper) -> list[Tensor]:
    """The one basis of each matrix."""
    found = [basis for matrix in matrices(stepper) for basis in projector(matrix).tensors().values()]
    assert len(found) == len(matrices(stepper))
    return found


def projector(matrix: Matrix) -> Projector:
    assert matrix.projector is not None
    return matrix.projector


def ranks(stepper: AdaRankGradStepper) -> list[int]:
    return [matrix.rank for matrix in matrices(stepper)]


def rank_of(gradient: Tensor, **options: Any) -> int:
    """The rank that the first refresh chooses for a gradient."""
    model, stepper = made((gradient.shape[0], gradient.shape[1]), dtype=gradient.dtype, **options)
    advance(model, stepper, 0, 1, lambda step, shape: gradient)
    return ranks(stepper)[0]


def residual(matrix: Matrix, gradient: Tensor, rank: int) -> float:
    """The share of the squared norm of a gradient that the first `rank` directions leave out."""
    basis = {side: basis[:, :rank] for side, basis in projector(matrix).tensors().items()}
    kept = Projector(**basis).project(gradient)
    return 1 - float(kept.square().sum() / gradient.square().sum())


def saved_and_loaded(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint on disk does to it, with the safe loader."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


# ------------------------------------------------------------------------------------------- the ranks
@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("bounds", [(1, 8), (3, 8), (5, 5), (1, 1000), (1000, 1000)])
def test_a1_ranks_stay_within_their_bounds_and_bases_are_orthonormal(
    finder: Finder, bounds: tuple[int, int]
) -> None:
    lower, upper = bounds
    options = {"min_rank": lower, "rank": upper, "refresh": finder, "energy": 0.8, "period": 1}
    model, stepper = made(*SHAPES, dtype=torch.float32, **options)
    for step in range(4):
        advance(model, stepper, step, step + 1)
        for matrix, basis, shape in zip(matrices(stepper), bases(stepper), SHAPES, strict=True):
            assert type(matrix.rank) is int
            assert min(lower, *shape) <= matrix.rank <= min(upper, *shape)
            assert basis.shape == (min(shape), matrix.rank)
            assert (basis.T @ basis - torch.eye(matrix.rank)).abs().max() < 1e-5


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("energy", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_a2_the_subspace_keeps_the_asked_share_of_the_gradient_and_one_direction_less_does_not(
    finder: Finder, energy: float, shape: tuple[int, int]
) -> None:
    model, stepper = made(shape, energy=energy, refresh=finder, rank=20, period=1)
    for step in range(3):
        advance(model, stepper, step, step + 1)
        (matrix,) = matrices(stepper)
        assert 1 < matrix.rank < 20
        assert residual(matrix, decaying(step, shape), matrix.rank) <= 1 - energy + 2e-6
        assert residual(matrix, decaying(step, shape), matrix.rank - 1) > 1 - energy


def test_a2_the_share_is_of_the_whole_gradient_and_not_of_what_the_upper_rank_can_hold() -> None:
    """With 20 equal singular values 8 directions hold 40 percent, so 0.35 takes 7 and 0.5 all 8."""
    flat = spectral(SQUARE, [1.0] * 20)
    assert rank_of(flat, energy=0.35) == 7
    assert rank_of(flat, energy=0.5) == 8


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a3_a_gradient_of_exact_rank_gets_that_rank(finder: Finder, dtype: torch.dtype, rank: int) -> None:
    for shape in SHAPES:
        gradient = spectral(shape, [2.0 + i for i in range(rank)]).to(dtype)
        for energy in (0.9999, 1.0):
            assert rank_of(gradient, energy=energy, refresh=finder) == rank


def test_a3_a_lower_bound_holds_even_for_a_gradient_of_rank_one() -> None:
    assert rank_of(spectral(TALL, [1.0]), min_rank=3) == 3


@pytest.mark.parametrize("finder", FINDERS)
def test_a3_more_energy_never_takes_fewer_directions(finder: Finder) -> None:
    gradient = decaying(0, TALL)
    taken = [rank_of(gradient, energy=e, rank=20, refresh=finder) for e in (0.1, 0.5, 0.7, 0.9, 0.97, 1.0)]
    assert taken == sorted(taken)
    assert taken[0] == 1
    assert taken[-1] == 20


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("factor", [1e-15, 1e-6, 1e6, 1e15])
def test_a3_the_scale_of_a_gradient_does_not_matter(finder: Finder, factor: float) -> None:
    gradient = decaying(0, WIDE).float()
    assert rank_of(gradient * factor, refresh=finder, energy=0.8) == rank_of(
        gradient, refresh=finder, energy=0.8
    )


def test_a3_ranks_follow_a_gradient_down_and_up_again() -> None:
    def breathing(step: int, shape: tuple[int, int]) -> Tensor:
        return spectral(shape, [1.0] * (6, 2, 5)[step], seed=step)

    model, stepper = made(TALL, energy=0.99, period=1)
    infos = advance(model, stepper, 0, 3, breathing)
    assert [dict(info.ranks or {}) for info in infos] == [{"blocks.0.q_proj": rank} for rank in (6, 2, 5)]


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_a2_randomized_ranks_are_the_least_or_hardly_more_while_a_gradient_drifts(
    shape: tuple[int, int],
) -> None:
    """Over ten refreshes, each from the subspace before it; the gradient turns and its spectrum steepens."""

    def drifting(step: int, shape: tuple[int, int]) -> Tensor:
        falls = spectral(shape, [(i + 1) ** -(0.5 + 0.1 * step) for i in range(64)])
        turned = noise(*shape, seed=step)
        return falls + 0.2 * turned * falls.norm() / turned.norm()

    options = {"rank": 48, "energy": 0.8, "period": 1}
    runs = {finder: made(shape, refresh=finder, **options) for finder in ("svd", "randomized")}
    seen = []
    for step in range(10):
        for model, stepper in runs.values():
            advance(model, stepper, step, step + 1, drifting)
        seen.append([ranks(stepper)[0] for _, stepper in runs.values()])
    assert all(least <= found <= least + 1 for least, found in seen)
    assert seen[0][0] > 2 * seen[-1][0]


def test_a_later_refresh_looks_for_few_directions_first_and_for_all_only_if_these_are_not_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []

    def noted(gradient: Tensor, side: Any, width: int, *others: Any) -> Any:
        widths.append(width)
        return find_projector(gradient, side, width, *others)

    monkeypatch.setattr(adarankgrad, "find_projector", noted)
    spectra = {0: 2, 1: 3, 2: 7, 3: 2}
    for finder, expected in (("randomized", [8, 4, 6, 8, 8]), ("svd", [8] * 4), ("gram", [8] * 4)):
        model, stepper = made(TALL, energy=0.99, period=1, refresh=finder)
        for step, rank in spectra.items():
            advance(
                model, stepper, step, step + 1, lambda s, shape, rank=rank: spectral(shape, [1.0] * rank, s)
            )
            assert ranks(stepper) == [rank]
        assert widths == expected
        widths.clear()


def test_the_least_rank_is_counted_over_squares_and_is_at_most_all() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])
    assert [least_rank(values, 14.0, energy) for energy in (0.6, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert least_rank(values, 100.0, 0.9) == 3


# ----------------------------------------------------------------------------- moments at a refresh
def with_bases(stepper: AdaRankGradStepper, choose: Callable[[int], Tensor]) -> None:
    """Let update `t` find the right basis `choose(t)`."""
    stepper.new_projector = lambda *_: Projector(right=choose(stepper.updates))  # type: ignore[method-assign]


@pytest.mark.parametrize("moments", ["square", "ldadam"])
def test_a4_refreshes_that_only_flip_or_permute_directions_change_nothing(moments: str) -> None:
    """The signs and, among equals, the order of singular vectors are chance."""
    fixed = orthonormal(20, 5)
    signs = torch.tensor([1.0, -1, -1, 1, -1], dtype=torch.float64)
    ends = []
    for choose in (lambda t: fixed, lambda t: fixed * signs**t, lambda t: fixed.roll(t, dims=1)):
        model, stepper = made(TALL, period=2, moments=moments)
        with_bases(stepper, choose)
        assert [info.refreshes for info in advance(model, stepper, 0, 7)] == [1, 0, 1, 0, 1, 0, 1]
        ends.append(copies(model.weights)[0])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("moments", ["square", "ldadam", "reset", "keep", "paper"])
def test_a5_weights_and_states_stay_finite_under_every_rule_while_ranks_move(moments: str) -> None:
    def jumping(step: int, shape: tuple[int, int]) -> Tensor:
        return 10.0 ** (step % 3) * spectral(shape, [1.0] * (1 + 3 * step % 7), seed=step)

    model, stepper = made(*SHAPES, dtype=torch.float32, period=1, moments=moments, energy=0.99)
    advance(model, stepper, 0, 12, jumping)
    assert all(weight.isfinite().all() for weight in model.weights)
    for name, tensor in stepper.state_tensors():
        assert tensor.isfinite().all(), name
        assert not name.endswith("exp_avg_sq") or (tensor >= 0).all(), name


# ------------------------------------------------------------------------------- Adam in the subspace
def test_a6_in_the_axes_of_the_full_space_it_is_adamw() -> None:
    optim = {"weight_decay": 0.1}
    model, stepper = made(SQUARE, rank=24, period=NEVER, optim=optim)
    with_bases(stepper, lambda t: torch.eye(24, dtype=torch.float64))
    advance(model, stepper, 0, 10)
    plain = Targets(SQUARE)
    advance(plain, AdamWStepper(plain, OptimConfig(lr=LR, **optim)), 0, 10)
    torch.testing.assert_close(model.weights[0], plain.weights[0], rtol=1e-12, atol=1e-13)


class Momentum(Adam):
    """Gradient descent with momentum in place of Adam: m <- 0.9 m + g; w <- w - lr m."""

    def update(
        self, tensors: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float, **_: Any
    ) -> None:
        for tensor, grad, state in zip(tensors, grads, states, strict=True):
            state["step"] += 1
            state["exp_avg"].mul_(0.9).add_(grad)
            tensor.sub_(lr * state["exp_avg"])


@pytest.mark.parametrize("period", [NEVER, 3])
def test_a6_with_all_directions_momentum_is_that_of_the_full_space_whatever_the_basis(period: int) -> None:
    """Refreshes included, since they map the first moment."""
    model, stepper = made(*SHAPES, rank=30, min_rank=30, energy=1.0, period=period)
    stepper.adam = Momentum(OptimConfig())
    before = copies(model.weights)
    advance(model, stepper, 0, 10)
    for weight, start, shape in zip(model.weights, before, SHAPES, strict=True):
        moment = torch.zeros(shape, dtype=torch.float64)
        for step in range(10):
            moment = 0.9 * moment + decaying(step, shape)
            start -= LR * moment
        torch.testing.assert_close(weight.detach(), start, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_a7_weights_move_within_the_subspace_until_it_changes(shape: tuple[int, int]) -> None:
    model, stepper = made(shape, energy=0.8, period=5)
    for first in (0, 5):
        before = copies(model.weights)[0]
        advance(model, stepper, first, first + 5)
        (matrix,) = matrices(stepper)
        moved = model.weights[0].detach() - before
        inside = torch.zeros_like(moved)
        projector(matrix).add_back(inside, projector(matrix).project(moved), 1.0)
        assert moved.norm() > 0.1
        torch.testing.assert_close(inside, moved, rtol=0, atol=1e-12)
        assert int(torch.linalg.matrix_rank(moved, atol=1e-10)) <= matrix.rank < 8


GALORE = {"rank": 6, "period": 4, "scale": 0.5, "moments": "keep", "targets": ["q_proj"]}


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("projection", ["std", "reverse_std", "left", "right"])
def test_a8_at_a_fixed_rank_and_period_it_is_galore_bit_for_bit(finder: Finder, projection: str) -> None:
    options = {**GALORE, "refresh": finder, "projection": projection}
    optim = {"weight_decay": 0.1}
    model, stepper = made(*SHAPES, dtype=torch.float32, min_rank=6, optim=optim, **options)
    other = Targets(*SHAPES, dtype=torch.float32)
    galore = build_stepper("galore", other, options, optim)
    for step in range(10):
        (mine,) = advance(model, stepper, step, step + 1)
        (theirs,) = advance(other, galore, step, step + 1)
        assert mine == theirs
        assert all(w.equal(v) for w, v in zip(model.weights, other.weights, strict=True))


def test_a8_at_a_fixed_rank_and_period_it_is_the_reference_of_galore_step_for_step() -> None:
    """Written out: SVD of every fourth gradient, Adam on the coordinates, moments left as they are."""
    model, stepper = made(*SHAPES, min_rank=6, refresh="svd", **GALORE)
    references = copies(model.weights)
    kept = [[torch.zeros((), dtype=torch.float64)] * 3 for _ in SHAPES]
    for step in range(10):
        advance(model, stepper, step, step + 1)
        for index, shape in enumerate(SHAPES):
            gradient = decaying(step, shape)
            basis, first, second = kept[index]
            tall = shape[0] >= shape[1]
            if step % 4 == 0:
                left, _, right = torch.linalg.svd(gradient)
                basis = _with_signs_of(right.T[:, :6] if tall else left[:, :6], bases(stepper)[index])
            coordinates = gradient @ basis if tall else basis.T @ gradient
            first = 0.9 * first + 0.1 * coordinates
            second = 0.999 * second + 0.001 * coordinates**2
            corrected = (first / (1 - 0.9 ** (step + 1))), (second / (1 - 0.999 ** (step + 1)))
            normed = corrected[0] / (corrected[1].sqrt() + 1e-8)
            references[index] -= LR * 0.5 * (normed @ basis.T if tall else basis @ normed)
            kept[index] = [basis, first, second]
            torch.testing.assert_close(
                model.weights[index].detach(), references[index], rtol=1e-9, atol=1e-10
            )


def _with_signs_of(basis: Tensor, like: Tensor) -> Tensor:
    """The same singular vectors with the signs that another decomposition gave them: these are chance."""
    return basis * (basis * like).sum(dim=0).sign()


@pytest.mark.parametrize("finder", FINDERS)
def test_a9_a_transposed_gradient_gives_the_transposed_update(finder: Finder) -> None:
    """Up to what chance decides: the randomized finder has the same noise for both."""
    options = {"energy": 0.8, "refresh": finder, "convergence": 0.5}
    tall, wide = made(TALL, **options), made(WIDE, **options)
    wide[0].weights[0].data = tall[0].weights[0].detach().T.clone()
    advance(*tall, 0, 9)
    advance(*wide, 0, 9, lambda step, shape: decaying(step, TALL).T)
    assert ranks(tall[1]) == ranks(wide[1])
    torch.testing.assert_close(wide[0].weights[0].T, tall[0].weights[0], rtol=1e-8, atol=1e-9)


# -------------------------------------------------------------------------------------------- its state
def falling(step: int, shape: tuple[int, int]) -> Tensor:
    """Rank 6 in the first four updates, then 2, in directions that stay within a period."""
    return spectral(shape, [1.0] * (6 if step < 4 else 2), seed=step // 4) * (1 + step % 4)


def state_bytes(stepper: Stepper) -> int:
    """Bytes of all storages that are kept, but the step counts."""
    kept = {t.untyped_storage().data_ptr(): t for n, t in stepper.state_tensors() if not n.endswith("step")}
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("finder", FINDERS)
def test_a9_state_bytes_follow_the_rank_down(finder: Finder, shape: tuple[int, int]) -> None:
    """m r + 2 n r numbers at rank r, the short side m projected; what was larger is freed."""
    short, long = sorted(shape)
    model, stepper = made(shape, dtype=torch.float32, energy=0.99, refresh=finder)
    for last, rank in ((4, 6), (8, 2)):
        advance(model, stepper, last - 4, last, falling)
        assert ranks(stepper) == [rank]
        assert state_bytes(stepper) == 4 * (short * rank + 2 * long * rank)


@pytest.mark.parametrize("bits", [None, 16, 8])
@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_a9_a_run_saved_around_a_change_of_rank_goes_on_bit_for_bit(bits: Any, stop: int) -> None:
    options = {"energy": 0.99, "convergence": 0.5, "rank": 8}
    shapes = [(200, 150), (150, 200)]

    def fresh() -> tuple[Targets, AdaRankGradStepper]:
        return made(*shapes, dtype=torch.float32, optim={"state_bits": bits}, **options)

    model, stepper = fresh()
    advance(model, stepper, 0, stop, falling)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    infos = advance(model, stepper, stop, 10, falling)
    resumed, again = fresh()
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["stepper"])
    assert advance(resumed, again, stop, 10, falling) == infos
    assert stop > 4 or any(info.ranks for info in infos)
    assert ranks(again) == ranks(stepper) == [2, 2]
    assert all(mine.equal(theirs) for mine, theirs in zip(model.weights, resumed.weights, strict=True))
    wanted = states(stepper)
    assert states(again).keys() == wanted.keys()
    assert all(tensor.equal(wanted[name]) for name, tensor in states(again).items())


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.02), (8, 0.1)])
def test_states_of_few_bits_follow_a_change_of_rank_and_train_like_32(bits: int, tolerance: float) -> None:
    """Large enough that 8 bits are 8 bits before the rank falls and, below 4096 numbers, 32 after."""
    shape, options = (1000, 600), {"energy": 0.99}
    ends = {}
    for kept in (32, bits):
        model, stepper = made(shape, dtype=torch.float32, optim={"state_bits": kept}, **options)
        start = copies(model.weights)[0]
        advance(model, stepper, 0, 4, falling)
        before = states(stepper)["blocks.0.q_proj.weight.exp_avg"]
        advance(model, stepper, 4, 8, falling)
        after = states(stepper)["blocks.0.q_proj.weight.exp_avg"]
        assert (before.shape, after.shape) == ((1000, 6), (1000, 2))
        if kept == 8:
            assert (before.dtype, after.dtype) == (torch.uint8, torch.float32)
        ends[kept] = model.weights[0].detach() - start
    assert (ends[bits] - ends[32]).norm() < tolerance * ends[32].norm()


# --------------------------------------------------------------------------------------- its refreshes
def refreshes(infos: Sequence[StepInfo]) -> list[int]:
    return [index for index, info in enumerate(infos) if info.refreshed]


def shrinking(norms: Sequence[float]) -> Gradient:
    """Gradients in one direction with these norms."""
    return lambda step, shape: norms[step] * spectral(shape, [1.0])


@pytest.mark.parametrize(
    ("convergence", "norms", "expected"),
    [
        (0.5, [1.0, 0.9, 0.6, 0.51, 0.49, 0.4, 0.3, 0.21, 0.19, 0.1], [0, 5, 9]),
        (0.5, [1.0, 2.0, 1.5, 0.8, 0.6, 0.7, 0.9, 0.9, 0.9, 0.9], [0]),
        (0.9, [1.0, 0.8, 1.0, 0.8, 1.0, 0.8, 1.0, 0.95, 0.92, 0.91], [0, 2, 4, 6]),
        (0.0, [1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9], [0]),
    ],
)
def test_a10_a_gradient_that_has_shrunk_in_its_subspace_refreshes_it_in_the_next_update(
    convergence: float, norms: list[float], expected: list[int]
) -> None:
    model, stepper = made(TALL, period=NEVER, convergence=convergence)
    infos = advance(model, stepper, 0, len(norms), shrinking(norms))
    assert refreshes(infos) == expected
    announced = [index + 1 for index, info in enumerate(infos[:-1]) if info.refresh_next]
    assert announced == expected[1:]
    assert sum(info.refreshes or 0 for info in infos) == len(expected)


def test_a10_the_norm_is_that_of_the_coordinates_and_not_of_the_gradient() -> None:
    """What leaves the subspace counts as gone, however large the gradient stays."""
    turned = [spectral(TALL, [1.0], seed) for seed in (0, 0, 9, 9)]
    model, stepper = made(TALL, period=NEVER, convergence=0.5)
    assert refreshes(advance(model, stepper, 0, 4, lambda step, shape: turned[step])) == [0, 3]


def test_a10_a_period_bounds_the_life_of_a_subspace_and_starts_anew_with_each() -> None:
    norms = [1.0, 1.0, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    model, stepper = made(TALL, period=4, convergence=0.5)
    assert refreshes(advance(model, stepper, 0, 12, shrinking(norms))) == [0, 3, 7, 11]
    model, stepper = made(TALL, period=4)
    assert refreshes(advance(model, stepper, 0, 12, shrinking(norms))) == [0, 4, 8]


def test_a10_a_resumed_run_still_measures_from_the_first_norm_of_the_subspace() -> None:
    gradient = shrinking([1.0, 0.9, 0.6, 0.55, 0.45, 0.4])
    model, stepper = made(TALL, period=NEVER, convergence=0.5)
    advance(model, stepper, 0, 3, gradient)
    resumed, again = made(TALL, period=NEVER, convergence=0.5)
    resumed.load_state_dict(model.state_dict())
    again.load_state_dict(saved_and_loaded(stepper.state_dict()))
    assert refreshes(advance(resumed, again, 3, 6, gradient)) == [2]


def test_a10_each_matrix_has_its_own_clock_and_all_refreshes_are_counted() -> None:
    def first_shrinks(step: int, shape: tuple[int, int]) -> Tensor:
        return (0.3**step if shape == TALL else 1.0) * spectral(shape, [1.0])

    model, stepper = made(TALL, WIDE, period=5, convergence=0.5)
    assert [info.refreshes for info in advance(model, stepper, 0, 1, first_shrinks)] == [2]
    wide = matrices(stepper)[1].projector
    assert [info.refreshes for info in advance(model, stepper, 1, 5, first_shrinks)] == [0, 1, 0, 1]
    assert matrices(stepper)[1].projector is wide
    tall = matrices(stepper)[0].projector
    assert [info.refreshes for info in advance(model, stepper, 5, 6, first_shrinks)] == [1]
    assert matrices(stepper)[1].projector is not wide
    assert matrices(stepper)[0].projector is tall


# ------------------------------------------------------------------------------- what step has to say
def test_ranks_are_reported_when_they_move_and_only_then() -> None:
    model, stepper = made(TALL, WIDE, energy=0.99)
    infos = advance(model, stepper, 0, 12, falling)
    moved = [dict(info.ranks) if info.ranks else None for info in infos]
    assert moved[0] == {"blocks.0.q_proj": 6, "blocks.1.q_proj": 6}
    assert moved[4] == {"blocks.0.q_proj": 2, "blocks.1.q_proj": 2}
    assert [index for index, ranks in enumerate(moved) if ranks] == [0, 4]
    assert refreshes(infos) == [0, 4, 8]


# -------------------------------------------------------------------------- gradients that say nothing
def zeros_at(*steps: int) -> Gradient:
    return lambda step, shape: decaying(step, shape) * (step not in steps)


@pytest.mark.parametrize("finder", FINDERS)
def test_a_zero_gradient_finds_no_subspace_and_is_tried_again(finder: Finder) -> None:
    model, stepper = made(*SHAPES, refresh=finder)
    before = copies(model.weights)
    infos = advance(model, stepper, 0, 3, zeros_at(0, 1))
    assert refreshes(infos) == [2]
    assert [info.skipped for info in infos] == [0, 0, 0]
    assert infos[0].refresh_next
    model, stepper = made(*SHAPES, refresh=finder)
    advance(model, stepper, 0, 2, zeros_at(0, 1))
    assert not states(stepper)
    assert all(weight.equal(old) for weight, old in zip(model.weights, before, strict=True))


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("moments", ["square", "paper", "reset"])
def test_a_zero_gradient_at_a_refresh_leaves_the_subspace_and_its_moments_where_they_are(
    finder: Finder, moments: str
) -> None:
    """The update itself is Adam's for a zero gradient: moments decay, and weights move on by momentum."""
    model, stepper = made(*SHAPES, refresh=finder, moments=moments)
    advance(model, stepper, 0, 4)
    kept = states(stepper)
    (info,) = advance(model, stepper, 4, 5, zeros_at(4))
    assert not info.refreshed
    assert info.ranks is None
    decay = {"exp_avg": 0.9, "exp_avg_sq": 0.999, "left": 1.0, "right": 1.0}
    for name, tensor in states(stepper).items():
        if not name.endswith("step"):
            torch.testing.assert_close(tensor, decay[name.rpartition(".")[2]] * kept[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("finder", FINDERS)
def test_a_gradient_that_is_not_finite_is_skipped_and_counted_at_a_refresh(
    finder: Finder, bad: float
) -> None:
    def broken(step: int, shape: tuple[int, int]) -> Tensor:
        gradient = decaying(step, shape)
        if step == 4 and shape == TALL:
            gradient[3, 2] = bad
        return gradient

    model, stepper = made(TALL, WIDE, refresh=finder)
    advance(model, stepper, 0, 4, broken)
    weight, kept = copies(model.weights)[0], states(stepper)
    (info,) = advance(model, stepper, 4, 5, broken)
    assert (info.refreshes, info.skipped) == (1, 1)
    assert model.weights[0].equal(weight)
    for name, tensor in states(stepper).items():
        assert tensor.equal(kept[name]) == name.startswith("blocks.0"), name
    assert refreshes(advance(model, stepper, 5, 9, broken)) == [3]
    assert all(tensor.isfinite().all() for tensor in states(stepper).values())


def test_a_first_gradient_that_is_not_finite_is_skipped_and_the_next_one_tried() -> None:
    model, stepper = made(TALL)
    infos = advance(model, stepper, 0, 2, lambda step, shape: decaying(step, shape) / (step > 0))
    assert [(info.refreshes, info.skipped) for info in infos] == [(0, 1), (1, 0)]


# -------------------------------------------------------------------------------------- beside the model
def language_model(
    optim: dict[str, Any] | None = None, seed: int = 0, **options: Any
) -> tuple[nn.Module, Any]:
    model = tiny_llama()
    method = build("adarankgrad", {"rank": 8, "period": 3, **options})
    method.prepare(model, Context(seed=seed))
    return model, method.stepper(model, OptimConfig(**(optim or {})))


def test_its_randomness_is_a_stream_of_its_own_that_follows_from_the_seed_of_the_run() -> None:
    """So a run with the method sees the same data, dropout included, as a run without."""
    ends = []
    for seed, noise_elsewhere in ((0, 1), (0, 2), (1, 1)):
        model, stepper = language_model(seed=seed)
        torch.manual_seed(noise_elsewhere)
        before = torch.get_rng_state()
        train(model, stepper, 0, 5)
        assert torch.get_rng_state().equal(before)
        ends.append(dict(stepper.state_tensors()))
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())
    changed = [
        name for name, tensor in ends[0].items() if "right" in name and not tensor.equal(ends[2][name])
    ]
    assert changed


@pytest.mark.parametrize("bits", [None, 8])
def test_updates_inside_backward_are_the_same_bit_for_bit(bits: Any) -> None:
    runs = []
    for inside in (False, True):
        model, stepper = language_model({"per_layer": inside, "state_bits": bits}, energy=0.9)
        infos = []
        for step in range(7):
            stepper.set_lr(1e-2)
            ids = tiny_batch(step)
            model(input_ids=ids, labels=ids).loss.backward()
            info = stepper.step()
            infos.append((info.refreshed, info.refresh_next, info.ranks, info.refreshes, info.skipped))
            stepper.zero_grad()
        runs.append((infos, copies(list(model.parameters())), states(stepper)))
    (infos, weights, kept), (infos_inside, weights_inside, kept_inside) = runs
    assert infos == infos_inside
    assert any(ranks for _, _, ranks, *_ in infos[1:]), "no rank moved, so the test would show little"
    assert all(mine.equal(theirs) for mine, theirs in zip(weights, weights_inside, strict=True))
    assert all(tensor.equal(kept_inside[name]) for name, tensor in kept.items())


def test_its_caps_say_that_ranks_follow_the_values_and_refreshes_have_no_fixed_period() -> None:
    caps = build("adarankgrad", {"period": 9}).caps
    assert caps.value_dependent
    assert (caps.period, caps.mean_period) == (None, 9)
    assert caps.per_layer
    assert "compress" not in caps.stages


def test_facts_give_the_states_at_the_upper_rank_and_the_ranks_that_training_begins_with() -> None:
    context = Context()
    build("adarankgrad", {"rank": 8, "targets": ["q_proj"]}).prepare(tiny_llama(), context)
    assert context.facts["state_elements"] == 2 * (8 * 32 + 2 * 8 * 32)
    assert set(context.ranks.values()) == {8}


# ---------------------------------------------------------------------------------------------- options
def test_a_lower_bound_above_the_upper_is_refused_in_one_line_with_both_numbers() -> None:
    with pytest.raises(UserError) as caught:
        build("adarankgrad", {"min_rank": 9, "rank": 4})
    assert "min_rank 9 is above rank 4; give one that is not" in str(caught.value)
    assert str(caught.value).startswith("method adarankgrad")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, "energy"),
        ({"energy": 1.01}, "energy"),
        ({"convergence": 1.0}, "convergence"),
        ({"min_rank": 0}, "min_rank"),
        ({"projection": "full"}, "projection"),
        ({"moments": "rotate"}, "moments"),
        ({"refresh": "qr"}, "refresh"),
        ({"min_rnk": 2}, "unknown key 'min_rnk'; did you mean 'min_rank'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method adarankgrad: {message}") as caught:
        build("adarankgrad", options)
    assert "\n" not in str(caught.value)


def test_its_source_is_named() -> None:
    assert "2410.17881" in AdaRankGrad.source

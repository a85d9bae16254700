"""GaLore on gradients that are known: the invariants of projected Adam, its clocks, states and options."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context, StepInfo
from harness.plugins import build
from methods.galore import GaLore, GaLoreStepper
from methods.parts.optim.adamw import Adam, AdamWStepper, State
from methods.parts.projection.method import Matrix, ProjectedStepper, state_elements
from methods.parts.projection.projector import Finder, Projection, Projector
from tests.support.tiny import tiny_batch, tiny_llama, train

TALL, WIDE, SQUARE = (12, 7), (7, 12), (9, 9)
SHAPES = (TALL, WIDE, SQUARE)
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
NEVER = 10**9
LR = 0.02


# ------------------------------------------------------------------------------------------- the stage
class Targets(nn.Module):
    """Linear layers of given shapes that are found as targets, and one that is not."""

    def __init__(self, *shapes: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        layers = [nn.Linear(columns, rows, bias=False, dtype=dtype) for rows, columns in shapes]
        self.blocks = nn.ModuleList(nn.ModuleDict({"q_proj": layer}) for layer in layers)
        self.plain = nn.Linear(5, 6, dtype=dtype)
        for index, parameter in enumerate(self.parameters()):
            parameter.data = noise(tuple(parameter.shape), 1000 + index).to(dtype)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights of the targets."""
        return [block["q_proj"].weight for block in self.blocks]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """A gradient that depends on nothing but the update and the parameter's place."""
    return noise(shape, 31 * step + 7 * index)


Gradient = Callable[[int, int, tuple[int, ...]], Tensor]


def made(
    *shapes: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    optim: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Targets, GaLoreStepper]:
    """A model and its stepper; `options` are the method's, `optim` those of the train section."""
    model = Targets(*shapes, dtype=dtype)
    method = build("galore", {"targets": ["q_proj"], "rank": 3, "period": 4, "scale": 1.0, **options})
    method.prepare(model, Context(seed=5))
    stepper = method.stepper(model, OptimConfig(lr=LR, **(optim or {})))
    assert isinstance(stepper, GaLoreStepper)
    return model, stepper


def advance(
    model: Targets, stepper: Any, first: int, last: int, gradient: Gradient = noisy, lr: float = LR
) -> list[StepInfo]:
    """Do the updates `first` up to and without `last` with gradients of our choice."""
    infos = []
    for step in range(first, last):
        stepper.set_lr(lr)
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = gradient(step, index, tuple(parameter.shape)).to(parameter.dtype)
        infos.append(stepper.step())
        stepper.zero_grad()
    return infos


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def matrices(stepper: ProjectedStepper) -> list[Matrix]:
    return list(stepper.matrices.values())


def onto(basis: Tensor) -> Tensor:
    """The orthogonal projection onto the span of orthonormal columns."""
    return basis @ basis.T


def assert_close(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=tolerance, atol=tolerance)


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((mine - theirs).abs().max()) for mine, theirs in zip(one, other, strict=True))


def saved_and_loaded(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint on disk does to it, with the safe loader."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


class Momentum(Adam):
    """Gradient descent with momentum behind Adam's interface: b <- momentum b + g; w <- w - lr b."""

    def __init__(self, momentum: float) -> None:
        super().__init__(OptimConfig())
        self.momentum = momentum

    def update(
        self, tensors: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float, **_: Any
    ) -> None:
        for tensor, grad, state in zip(tensors, grads, states, strict=True):
            state["exp_avg"].mul_(self.momentum).add_(grad)
            tensor.sub_(lr * state["exp_avg"])


def descended(shapes: Sequence[tuple[int, int]], momentum: float, steps: int) -> list[Tensor]:
    """The targets after plain gradient descent with momentum, without any projection."""
    model = Targets(*shapes, dtype=torch.float64)
    weights = copies(model.weights)
    for index, weight in enumerate(weights):
        buffer = torch.zeros_like(weight)
        for step in range(steps):
            buffer = momentum * buffer + noisy(step, index, tuple(weight.shape))
            weight -= LR * buffer
    return weights


def with_projectors(stepper: GaLoreStepper, *projectors: Projector) -> None:
    """Put in subspaces of our choice that are never replaced."""
    for matrix, projector in zip(matrices(stepper), projectors, strict=True):
        matrix.projector, matrix.next_refresh = projector, NEVER


# ------------------------------------------------------------------------------------------ at full rank
@pytest.mark.parametrize("period", [1, 3, NEVER])
@pytest.mark.parametrize("finder", get_args(Finder))
def test_invariant_01_at_full_rank_gradient_descent_is_not_changed_by_the_subspace(
    period: int, finder: Finder
) -> None:
    model, stepper = made(*SHAPES, rank=12, period=period, refresh=finder)
    stepper.adam = Momentum(0.0)
    advance(model, stepper, 0, 8)
    assert_close(model.weights, descended(SHAPES, 0.0, 8))


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_invariant_01_holds_for_every_projection_of_a_square_matrix(projection: Projection) -> None:
    model, stepper = made(SQUARE, rank=9, period=3, projection=projection)
    stepper.adam = Momentum(0.0)
    advance(model, stepper, 0, 8)
    assert_close(model.weights, descended([SQUARE], 0.0, 8))


def test_invariant_02_at_full_rank_momentum_in_a_fixed_subspace_is_plain_momentum() -> None:
    model, stepper = made(*SHAPES, rank=12, period=NEVER)
    stepper.adam = Momentum(0.9)
    advance(model, stepper, 0, 20)
    assert_close(model.weights, descended(SHAPES, 0.9, 20))


@pytest.mark.parametrize("projection", ["std", "full"])
def test_invariant_02_with_refreshes_momentum_is_plain_only_if_it_is_rotated(projection: Projection) -> None:
    shapes = [SQUARE] if projection == "full" else SHAPES
    plain = descended(shapes, 0.9, 20)
    moved = distance(plain, copies(Targets(*shapes, dtype=torch.float64).weights))
    for moments in ("keep", "rotate", "reset"):
        model, stepper = made(*shapes, rank=12, period=5, moments=moments, projection=projection)
        stepper.adam = Momentum(0.9)
        advance(model, stepper, 0, 20)
        if moments == "rotate":
            assert_close(model.weights, plain)
        else:
            assert distance(copies(model.weights), plain) > 0.05 * moved, moments


def adam_on(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of Adam's steps on these gradients, by its formulas, with the defaults of the run."""
    first, second, total = (torch.zeros_like(gradients[0]) for _ in range(3))
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        total -= LR * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return total


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(noise((size, size), seed)).Q


@pytest.mark.parametrize("rank", [3, 9])
def test_invariant_03_in_a_fixed_subspace_it_is_adam_on_the_rotated_gradients_mapped_back(rank: int) -> None:
    left, right = orthogonal(9, 1)[:, :rank], orthogonal(9, 2)[:, :rank]
    model, stepper = made(SQUARE, SQUARE, SQUARE, rank=rank)
    with_projectors(stepper, Projector(left=left), Projector(right=right), Projector(left, right))
    before = copies(model.weights)
    advance(model, stepper, 0, 20)
    grads = [[noisy(step, index, SQUARE) for step in range(20)] for index in range(3)]
    wanted = [
        left @ adam_on([left.T @ gradient for gradient in grads[0]]),
        adam_on([gradient @ right for gradient in grads[1]]) @ right.T,
        left @ adam_on([left.T @ gradient @ right for gradient in grads[2]]) @ right.T,
    ]
    assert_close([new - old for new, old in zip(model.weights, before, strict=True)], wanted)


def test_invariant_03_it_is_adamw_in_the_axes_and_not_in_rotated_ones() -> None:
    """Adam depends on the axes: the identity, flipped or permuted, changes nothing; a rotation does."""
    optim = {"weight_decay": 0.1}
    plain = Targets(SQUARE, dtype=torch.float64)
    advance(plain, AdamWStepper(plain, OptimConfig(lr=LR, **optim)), 0, 20)
    eye = torch.eye(9, dtype=torch.float64)
    flipped = (eye * torch.tensor([1.0, -1.0, 1.0] * 3))[:, torch.randperm(9, generator=torch.Generator())]
    for basis, same in ((eye, True), (flipped, True), (orthogonal(9, 3), False)):
        for projector in (Projector(left=basis), Projector(right=basis), Projector(basis, basis)):
            model, stepper = made(SQUARE, rank=9, optim=optim)
            with_projectors(stepper, projector)
            advance(model, stepper, 0, 20)
            if same:
                assert_close(model.weights, plain.weights, 1e-12)
            else:
                assert distance(copies(model.weights), copies(plain.weights)) > 0.05


# ------------------------------------------------------------------------------- beside the other group
def test_invariant_04_what_is_no_target_gets_plain_adamw_bit_for_bit() -> None:
    optim = {"weight_decay": 0.1, "eps": 1e-6}
    ours, plain = made(TALL, dtype=torch.float32, optim=optim, scale=0.25), Targets(TALL, dtype=torch.float32)
    advance(*ours, 0, 6)
    advance(plain, AdamWStepper(plain, OptimConfig(lr=LR, **optim)), 0, 6)
    for mine, theirs in zip(ours[0].plain.parameters(), plain.plain.parameters(), strict=True):
        assert mine.equal(theirs)
    assert not ours[0].weights[0].equal(plain.weights[0])


def official(
    weight: Tensor,
    gradients: Sequence[Tensor],
    basis: Tensor | None,
    scale: float,
    beside_corrected: bool = False,
) -> Tensor:
    """Section 1.1, steps 2 to 5, with a right basis or none: eps uncorrected, decay after the update.

    bitsandbytes' kernels, which the code for 8 bits calls, have eps beside the corrected root.
    """
    weight, eps, decay = weight.clone(), 1e-3, 0.2
    first = second = torch.zeros(())
    for step, gradient in enumerate(gradients, start=1):
        coordinates = gradient if basis is None else gradient @ basis
        first = 0.9 * first + 0.1 * coordinates
        second = 0.999 * second + 0.001 * coordinates.square()
        correction = math.sqrt(1 - 0.999**step)
        size = LR * correction / (1 - 0.9**step)
        normed = first / (second.sqrt() + (eps * correction if beside_corrected else eps))
        weight -= size * (normed if basis is None else scale * normed @ basis.T)
        weight *= 1 - LR * decay
    return weight


def test_official_arithmetic_is_that_of_the_papers_code_in_both_groups() -> None:
    optim = {"weight_decay": 0.2, "eps": 1e-3}
    model, stepper = made(SQUARE, optim=optim, scale=0.5, arithmetic="official")
    basis = orthogonal(9, 4)[:, :3]
    with_projectors(stepper, Projector(right=basis))
    before = copies(list(model.parameters()))
    advance(model, stepper, 0, 10)
    after = list(model.parameters())
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        grads = [noisy(step, index, tuple(old.shape)) for step in range(10)]
        assert_close([new], [official(old, grads, basis if index == 0 else None, 0.5)])


@pytest.mark.parametrize("resumed", [False, True])
def test_official_eps_follows_the_count_of_each_tensor_whose_gradients_come_late_or_not_always(
    resumed: bool,
) -> None:
    """The weight misses the first five updates, the plain weight two in the middle, its bias none."""
    optim = {"weight_decay": 0.2, "eps": 1e-3}
    model, stepper = made(SQUARE, optim=optim, scale=0.5, arithmetic="official")
    basis = orthogonal(9, 4)[:, :3]
    with_projectors(stepper, Projector(right=basis))
    names = list(dict(model.named_parameters()))
    before, absent = copies(list(model.parameters())), {0: range(5), 1: (3, 6), 2: ()}
    for step in range(12):
        if resumed and step == 7:
            saved = saved_and_loaded(stepper.state_dict())
            stepper = made(SQUARE, optim=optim, scale=0.5, arithmetic="official")[1]
            stepper.parameters = dict(model.named_parameters())
            stepper.load_state_dict(saved)
        stepper.set_lr(LR)
        for index, parameter in enumerate(model.parameters()):
            late = step in absent[index]
            parameter.grad = None if late else noisy(step, index, tuple(parameter.shape))
        stepper.step()
        stepper.zero_grad()
    assert len(names) == 3
    for index, (old, new) in enumerate(zip(before, model.parameters(), strict=True)):
        grads = [noisy(step, index, tuple(old.shape)) for step in range(12) if step not in absent[index]]
        assert_close([new], [official(old, grads, basis if index == 0 else None, 0.5)])


def test_with_8_bit_states_official_changes_the_place_of_decay_alone() -> None:
    """Matrices of 4096 elements and more are in 8 bits, whose first update is exact; smaller ones are not."""
    large = (128, 80)
    optim = {"weight_decay": 0.2, "eps": 1e-3, "state_bits": 8}
    model, stepper = made(
        large, TALL, dtype=torch.float32, optim=optim, rank=64, scale=0.5, arithmetic="official"
    )
    wide, small = (orthogonal(size, 4)[:, :rank].float() for size, rank in ((80, 64), (7, 7)))
    with_projectors(stepper, Projector(right=wide), Projector(right=small))
    before = copies(list(model.parameters()))
    for step in range(4):
        advance(model, stepper, step, step + 1)
        for index, (old, new) in enumerate(zip(before, model.parameters(), strict=True)):
            if index == 0 and step > 0:  # rounded to 8 bits from now on
                continue
            grads = [noisy(each, index, tuple(old.shape)).float() for each in range(step + 1)]
            basis = {0: wide, 1: small}.get(index)
            assert_close([new], [official(old, grads, basis, 0.5, beside_corrected=True)], 1e-5)
    assert {state["exp_avg"].dtype for state in stepper.states.values()} == {torch.uint8, torch.float32}


def test_the_two_arithmetics_differ_in_where_eps_and_decay_act() -> None:
    """With neither there is no difference."""
    ends = {}
    for arithmetic in ("torch", "official"):
        for name, optim in (("with", {"weight_decay": 0.2, "eps": 1e-3}), ("without", {"eps": 1e-30})):
            model, stepper = made(*SHAPES, optim=optim, arithmetic=arithmetic)
            advance(model, stepper, 0, 6)
            ends[arithmetic, name] = copies(list(model.parameters()))
    assert distance(ends["torch", "with"], ends["official", "with"]) > 1e-4
    assert_close(ends["torch", "without"], ends["official", "without"], 1e-12)


# ---------------------------------------------------------------------------------------- the subspace
def low_rank(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of rank 2 within one subspace per parameter."""
    if len(shape) == 1:
        return noisy(step, index, shape)
    left, right = noise((shape[0], 2), 500 + index), noise((2, shape[1]), 600 + index)
    return left @ noise((2, 2), 9 * step + index) @ right


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_invariant_05_gradients_of_low_rank_are_projected_without_loss(projection: Projection) -> None:
    model, stepper = made(*SHAPES, dtype=torch.float32, rank=3, period=NEVER, projection=projection)
    stepper.adam = Momentum(0.0)
    before = copies(model.weights)
    advance(model, stepper, 0, 5, low_rank)
    for index, (old, new) in enumerate(zip(before, model.weights, strict=True)):
        moved = -LR * sum(low_rank(step, index, tuple(old.shape)) for step in range(5))
        assert isinstance(moved, Tensor)
        assert (new.detach() - old - moved).norm() < 1e-5 * moved.norm()


@pytest.mark.parametrize("finder", get_args(Finder))
def test_invariant_06_bases_are_orthonormal_and_lead_the_gradient_of_the_refresh(finder: Finder) -> None:
    model, stepper = made(*SHAPES, dtype=torch.float32, refresh=finder)
    advance(model, stepper, 0, 6)
    for index, (matrix, weight) in enumerate(zip(matrices(stepper), model.weights, strict=True)):
        assert matrix.projector is not None
        gradient = noisy(4, index, tuple(weight.shape))
        left, _, right = torch.linalg.svd(gradient)
        (side, basis), *more = matrix.projector.tensors().items()
        assert not more
        assert side == ("left" if tuple(weight.shape) == WIDE else "right")
        assert (basis.T @ basis - torch.eye(3)).abs().max() < 1e-5
        wanted = left[:, :3] if side == "left" else right[:3].T
        torch.testing.assert_close(onto(basis.double()), onto(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_invariant_07_between_refreshes_weights_move_within_the_subspace(projection: Projection) -> None:
    model, stepper = made(*SHAPES, dtype=torch.float32, projection=projection)
    advance(model, stepper, 0, 4)
    start = copies(model.weights)
    advance(model, stepper, 4, 8)
    for matrix, old, new in zip(matrices(stepper), start, model.weights, strict=True):
        moved = (new.detach() - old).double()
        assert matrix.projector is not None
        bases = {side: basis.double() for side, basis in matrix.projector.tensors().items()}
        inside = onto(bases["left"]) @ moved if "left" in bases else moved
        inside = inside @ onto(bases["right"]) if "right" in bases else inside
        assert 0 < (moved - inside).norm() < 1e-5 * moved.norm()


def test_invariant_08_the_update_is_linear_in_scale() -> None:
    moved = {}
    for scale in (1.0, 0.25):
        model, stepper = made(*SHAPES, scale=scale)
        before = copies(model.weights)
        advance(model, stepper, 0, 6)
        moved[scale] = [new - old for new, old in zip(copies(model.weights), before, strict=True)]
    assert_close(moved[0.25], [0.25 * move for move in moved[1.0]])


def test_invariant_08_scale_and_learning_rate_are_the_same_for_targets_and_not_for_the_rest() -> None:
    scaled, slowed = made(*SHAPES, scale=0.25), made(*SHAPES, scale=1.0)
    advance(*scaled, 0, 6, lr=LR)
    advance(*slowed, 0, 6, lr=LR * 0.25)
    assert_close(scaled[0].weights, slowed[0].weights)
    assert distance(copies([scaled[0].plain.weight]), copies([slowed[0].plain.weight])) > 0.01


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("projection", ["std", "reverse_std", "full"])
@pytest.mark.parametrize("moments", ["rotate", "reset"])
def test_invariant_09_training_the_transpose_is_the_transpose_of_training(
    shape: tuple[int, int], projection: Projection, moments: str
) -> None:
    def transposed(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
        return noisy(step, index, shape[::-1]).T if len(shape) == 2 else noisy(step, index, shape)

    options: dict[str, Any] = {"projection": projection, "moments": moments, "optim": {"weight_decay": 0.1}}
    straight, turned = made(shape, **options), made(shape[::-1], **options)
    turned[0].weights[0].data = straight[0].weights[0].detach().T.clone()
    advance(*straight, 0, 10)
    advance(*turned, 0, 10, transposed)
    # On both sides the gradient of a refresh has coordinates of rounding error, which Adam enlarges.
    assert_close([turned[0].weights[0].T], straight[0].weights, 1e-7 if projection == "full" else 1e-10)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("rank", [3, 100])
def test_invariant_10_the_number_of_state_elements_is_that_of_table_1_and_of_the_facts(
    projection: Projection, rank: int
) -> None:
    context = Context()
    model = Targets(*SHAPES, dtype=torch.float32)
    method = build("galore", {"targets": ["q_proj"], "rank": rank, "projection": projection})
    method.prepare(model, context)
    stepper = method.stepper(model, OptimConfig())
    advance(model, stepper, 0, 2)
    assert stepper is not None
    kept = dict(stepper.state_tensors())
    total = 0
    for index, (out, inputs) in enumerate(SHAPES):
        r, short, long = min(rank, out, inputs), min(out, inputs), max(out, inputs)
        wanted = {
            "std": r * short + 2 * r * long,
            "reverse_std": r * long + 2 * r * short,
            "left": r * out + 2 * r * inputs,
            "right": r * inputs + 2 * r * out,
            "full": r * (out + inputs) + 2 * r * r,
        }[projection]
        prefix = f"blocks.{index}.q_proj.weight."
        names = [name for name in kept if name.startswith(prefix) and not name.endswith(".step")]
        assert sum(kept[name].numel() for name in names) == wanted
        assert state_elements((out, inputs), rank, projection) == wanted
        total += wanted
    assert context.facts == {
        "trainable": "all parameters",
        "projected_matrices": 3,
        "state_elements": total,
        "adam_state_elements": 2 * (2 * 12 * 7 + 9 * 9),
    }


# ------------------------------------------------------------------------------------------- the clock
@pytest.mark.parametrize(("period", "steps"), [(4, 11), (5, 10), (1, 3), (100, 7)])
def test_invariant_11_refreshes_are_at_multiples_of_the_period_with_one_svd_per_matrix(
    period: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.linalg.svd, []

    def counted(matrix: Tensor, **options: Any) -> Any:
        calls.append(tuple(matrix.shape))
        return real(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    infos = advance(*made(*SHAPES, period=period), 0, steps)
    assert [step for step, info in enumerate(infos) if info.refreshed] == list(range(0, steps, period))
    assert len(calls) == 3 * math.ceil(steps / period)
    assert sum(info.refreshes or 0 for info in infos) == len(calls)
    assert sum(info.skipped or 0 for info in infos) == 0


def assert_announced(infos: Sequence[StepInfo]) -> None:
    """Each step says truly whether the next one will hold a refresh."""
    announced = [info.refresh_next for info in infos[:-1]]
    assert announced == [info.refreshed for info in infos[1:]]


@pytest.mark.parametrize("options", [{}, {"stagger": True}, {"lazy": 0.9}, {"stagger": True, "lazy": 0.1}])
def test_every_refresh_is_announced_one_step_ahead(options: dict[str, Any]) -> None:
    infos = advance(*made(*SHAPES, period=5, **options), 0, 40)
    assert any(info.refreshed for info in infos[1:])
    assert not all(info.refreshed for info in infos)
    assert_announced(infos)


def test_the_period_is_promised_unless_refreshes_have_times_of_their_own() -> None:
    for options, period in (({}, 7), ({"stagger": True}, None), ({"lazy": 0.5}, None)):
        method = build("galore", {"period": 7, **options})
        assert method.caps.period == period
        assert method.caps.mean_period == (7 if period is None else None)
        assert method.caps.per_layer
        assert method.caps.state_bits == {8, 16, 32}
        assert method.caps.stages == {"pretrain", "finetune"}
        assert not method.caps.value_dependent


def refresh_times(stepper: GaLoreStepper, model: Targets, steps: int, gradient: Gradient) -> list[list[int]]:
    """For each matrix the updates in which it got a new subspace."""
    times: list[list[int]] = [[] for _ in stepper.matrices]
    for step in range(steps):
        before = [matrix.projector for matrix in matrices(stepper)]
        advance(model, stepper, step, step + 1, gradient)
        for index, matrix in enumerate(matrices(stepper)):
            if matrix.projector is not before[index]:
                times[index].append(step)
    return times


@pytest.mark.parametrize(("count", "period"), [(4, 4), (3, 6), (4, 9)])
def test_staggered_matrices_take_turns_and_each_keeps_the_period(count: int, period: int) -> None:
    """All at the first update, since they need a subspace; then one by one, all within each period."""
    model, stepper = made(*[TALL] * count, period=period, stagger=True)
    steps = 1 + 3 * period
    times = refresh_times(stepper, model, steps, noisy)
    assert all(turns[0] == 0 for turns in times)
    later = [turn for turns in times for turn in turns[1:]]
    assert len(later) == len(set(later)) == 3 * count
    for turns in times:
        assert turns[1] <= period
        assert all(turn == turns[1] + index * period for index, turn in enumerate(turns[1:]))


def test_more_staggered_matrices_than_updates_in_a_period_are_spread_evenly() -> None:
    model, stepper = made(*[TALL] * 6, period=3, stagger=True)
    infos = advance(model, stepper, 0, 10)
    assert [info.refreshes for info in infos] == [6] + [2] * 9


def test_a_lazy_period_doubles_for_a_fixed_subspace_and_never_for_one_that_jumps() -> None:
    """Five overlaps are there after the sixth refresh; from then on each one doubles the period."""

    def half_fixed(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
        if index == 0:
            return low_rank(step, index, shape)
        rank = min(2, *shape)
        left, right = noise((shape[0], rank), 77 * step), noise((rank, shape[-1]), 78 * step)
        return left @ right if len(shape) == 2 else noisy(step, index, shape)

    model, stepper = made((40, 30), (40, 30), rank=2, period=2, lazy=0.8)
    fixed, jumping = refresh_times(stepper, model, 32, half_fixed)
    assert fixed == [0, 2, 4, 6, 8, 10, 14, 22]
    assert jumping == list(range(0, 32, 2))
    assert [matrix.period for matrix in matrices(stepper)] == [16, 2]


def test_a_lazy_period_sees_subspaces_and_not_signs() -> None:
    """A gradient that flips its sign at every refresh has the same subspace; one signed cosine is -1."""
    model, stepper = made((40, 30), rank=2, period=1, lazy=1 - 1e-6)
    times = refresh_times(stepper, model, 9, lambda t, i, shape: (-1) ** t * low_rank(0, i, shape))
    assert times == [[0, 1, 2, 3, 4, 5, 7]]


# ------------------------------------------------------------------------- the modes of the train loop
def accumulated(parts: int) -> tuple[list[Tensor], list[bool]]:
    """The weights after 7 updates on 4 sequences each, in so many micro-batches; and which refreshed."""
    model = tiny_llama().double()
    method = build("galore", {"rank": 4, "period": 3})
    method.prepare(model, Context())
    stepper = method.stepper(model, OptimConfig(eps=1e-6))
    assert stepper is not None
    refreshed = []
    for step in range(7):
        stepper.set_lr(1e-2)
        for ids in tiny_batch(step, batch=4).chunk(parts):
            (model(input_ids=ids, labels=ids).loss / parts).backward()
        refreshed.append(stepper.step().refreshed)
        stepper.zero_grad()
    return copies(list(model.parameters())), refreshed


def test_invariant_12_micro_batches_are_one_update_and_one_tick_of_the_clock() -> None:
    (whole, refreshed), (split, refreshed_too) = accumulated(1), accumulated(4)
    assert refreshed == refreshed_too == [True, False, False, True, False, False, True]
    assert_close(whole, split, 1e-7)


BFLOAT16 = {"dtype": torch.bfloat16}
#: 48 of 64 dimensions make coordinates of the feed-forward part large enough for 8 bits.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, bfloat16": BFLOAT16,
    "randomized": {"refresh": "randomized"},
    "gram, both sides": {"refresh": "gram", "projection": "full"},
    "rotated, official": {"moments": "rotate", "arithmetic": "official"},
    "staggered": {"stagger": True},
    "lazy": {"lazy": 0.01, "period": 1},
    "gradient's precision, bfloat16": {"precision": "gradient", "refresh": "randomized", **BFLOAT16},
    "8 bits, rotated": {"bits": 8, "moments": "rotate", "rank": 48},
    "8 bits, bfloat16": {"bits": 8, "rank": 48, **BFLOAT16},
    "16 bits, reset": {"bits": 16, "moments": "reset"},
}


def tiny(
    per_layer: bool = False, dtype: torch.dtype = torch.float32, bits: Any = None, **options: Any
) -> tuple[nn.Module, GaLoreStepper]:
    """A prepared LLaMA of one block with its stepper."""
    model = tiny_llama(hidden=64, layers=1).to(dtype)
    method = build("galore", {"rank": 4, "period": 4, **options})
    method.prepare(model, Context(seed=2))
    optim = OptimConfig(weight_decay=0.1, per_layer=per_layer, state_bits=bits)
    stepper = method.stepper(model, optim)
    assert isinstance(stepper, GaLoreStepper)
    return model, stepper


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_13_updates_inside_backward_are_the_same_bit_for_bit(variant: dict[str, Any]) -> None:
    normal, inside = tiny(**variant), tiny(per_layer=True, **variant)
    for step in range(7):
        assert train(*normal, step, step + 1) == train(*inside, step, step + 1)
        for (name, mine), theirs in zip(normal[0].named_parameters(), inside[0].parameters(), strict=True):
            assert mine.equal(theirs), (step, name)


def test_invariant_13_the_clock_and_its_labels_are_the_same_inside_backward() -> None:
    labels = []
    for per_layer in (False, True):
        model, stepper = tiny(per_layer, stagger=True)
        infos = []
        for step in range(6):
            ids = tiny_batch(step)
            model(input_ids=ids, labels=ids).loss.backward()
            infos.append(stepper.step())
            stepper.zero_grad()
        labels.append([(i.refreshed, i.refresh_next, i.refreshes, i.skipped, i.ranks) for i in infos])
    assert labels[0] == labels[1]
    assert labels[0][0][2] == 7


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_invariant_14_a_run_saved_between_refreshes_goes_on_bit_for_bit(variant: dict[str, Any]) -> None:
    """Saved after update 6 of periods of 4; updates 8 and 12 refresh in both runs."""
    model, stepper = tiny(**variant)
    train(model, stepper, 0, 6)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    resumed, again = tiny(**variant)
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["stepper"])
    assert train(resumed, again, 6, 14) == train(model, stepper, 6, 14)
    for (name, mine), theirs in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert mine.equal(theirs), name
    kept, kept_too = dict(stepper.state_tensors()), dict(again.state_tensors())
    assert kept.keys() == kept_too.keys()
    assert all(kept[name].equal(kept_too[name]) for name in kept)


def test_invariant_14_the_counts_of_a_resumed_run_are_those_of_its_own_steps() -> None:
    first = made(*SHAPES)
    advance(*first, 0, 3)
    model, stepper = made(*SHAPES)
    stepper.load_state_dict(first[1].state_dict())
    infos = advance(model, stepper, 3, 6)
    assert [info.refreshes for info in infos] == [0, 3, 0]
    assert [info.refreshed for info in infos] == [False, True, False]


def test_a_state_of_other_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"other matrices were projected.*blocks\.1\.q_proj\.weight"):
        made(TALL)[1].load_state_dict(made(TALL, WIDE)[1].state_dict())


# --------------------------------------------------------------------------------- ranks and awkward input
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_invariant_15_a_rank_beyond_the_short_side_acts_as_the_short_side(projection: Projection) -> None:
    for shape in SHAPES:
        beyond, equal = (made(shape, rank=rank, projection=projection) for rank in (100, min(shape)))
        advance(*beyond, 0, 6)
        advance(*equal, 0, 6)
        assert beyond[0].weights[0].equal(equal[0].weights[0])


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("finder", get_args(Finder))
@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
def test_invariant_15_every_projection_trains_tall_wide_and_square_matrices(
    projection: Projection, finder: Finder, moments: str
) -> None:
    """Minimise |W - target|^2 / 2: after 60 updates and 6 refreshes the distance is far smaller.

    With both sides projected a subspace holds 25 of 81 or 84 directions, so the way is longer.
    """
    model, stepper = made(
        *SHAPES,
        dtype=torch.float32,
        rank=5,
        period=10,
        projection=projection,
        refresh=finder,
        moments=moments,
    )
    targets = [noise(tuple(weight.shape), 800 + index).float() for index, weight in enumerate(model.weights)]
    way = [weight.detach() - target for weight, target in zip(model.weights, targets, strict=True)]
    for _ in range(60):
        stepper.set_lr(0.1)
        for weight, target in zip(model.weights, targets, strict=True):
            weight.grad = weight.detach() - target
        stepper.step()
        stepper.zero_grad()
    share = 0.75 if projection == "full" else 0.5
    for weight, target, before in zip(model.weights, targets, way, strict=True):
        assert (weight.detach() - target).norm() < share * before.norm()


def test_a_clamped_rank_is_warned_of_once_with_its_number() -> None:
    context = Context()
    build("galore", {"rank": 100}).prepare(tiny_llama(hidden=32, kv_heads=1), context)
    assert context.warnings[0] == (
        "galore: rank 100 is more than the short side of 14 matrices; these got their short side as rank, "
        "the smallest 8"
    )
    assert context.ranks["model.layers.0.self_attn.q_proj"] == 32
    assert context.ranks["model.layers.0.self_attn.k_proj"] == 8


def test_states_that_are_larger_than_adams_are_warned_of() -> None:
    """At full rank a square matrix keeps three times its size, Adam keeps twice."""
    for rank, larger in ((64, True), (8, False)):
        context = Context()
        build("galore", {"rank": rank}).prepare(tiny_llama(hidden=32), context)
        assert any("larger than Adam's moments" in text for text in context.warnings) == larger
        assert (context.facts["state_elements"] > context.facts["adam_state_elements"]) == larger


def broken_at(*steps: int) -> Gradient:
    """Noise, but the first target's gradient holds a NaN in these updates."""

    def gradient(step: int, index: int, shape: tuple[int, ...]) -> Tensor:
        found = noisy(step, index, shape)
        if index == 0 and step in steps:
            found[0, 0] = math.nan
        return found

    return gradient


def test_invariant_16_a_nan_at_a_refresh_keeps_the_old_basis_and_is_counted() -> None:
    model, stepper = made(TALL, WIDE, optim={"weight_decay": 0.1})
    advance(model, stepper, 0, 4)
    first, _ = matrices(stepper)
    old, weight = first.projector, model.weights[0].detach().clone()
    moments = {k: v.clone() for k, v in stepper.states["blocks.0.q_proj.weight"].items()}
    (info,) = advance(model, stepper, 4, 5, broken_at(4))
    assert (info.skipped, info.refreshes, info.refreshed) == (1, 1, True)
    assert first.projector is old
    assert model.weights[0].equal(weight)
    assert all(v.equal(moments[k]) for k, v in stepper.states["blocks.0.q_proj.weight"].items())
    infos = advance(model, stepper, 5, 10)
    assert [i.refreshes for i in infos] == [0, 0, 0, 2, 0]
    assert all(i.skipped == 0 for i in infos)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not model.weights[0].equal(weight)
    assert_announced(infos)


@pytest.mark.parametrize("finder", get_args(Finder))
def test_invariant_16_after_a_nan_at_the_start_the_next_finite_gradient_gives_the_basis(
    finder: Finder,
) -> None:
    model, stepper = made(TALL, WIDE, refresh=finder)
    weight = model.weights[0].detach().clone()
    infos = advance(model, stepper, 0, 2, broken_at(0, 1))
    assert [(i.skipped, i.refreshes) for i in infos] == [(1, 1), (1, 0)]
    assert model.weights[0].equal(weight)
    assert matrices(stepper)[0].projector is None
    (info,) = advance(model, stepper, 2, 3)
    assert (info.skipped, info.refreshes) == (0, 1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not model.weights[0].equal(weight)


def test_invariant_16_a_decomposition_that_fails_keeps_the_old_basis_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise torch.linalg.LinAlgError("did not converge")

    model, stepper = made(TALL)
    advance(model, stepper, 0, 4)
    old, weight = matrices(stepper)[0].projector, model.weights[0].detach().clone()
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", fails)
        (info,) = advance(model, stepper, 4, 5)
    assert (info.refreshes, info.skipped) == (0, 0)
    assert matrices(stepper)[0].projector is old
    assert not model.weights[0].equal(weight)


@pytest.mark.parametrize("finder", get_args(Finder))
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_invariant_16_gradients_of_zero_change_nothing_and_break_nothing(
    finder: Finder, projection: Projection
) -> None:
    model, stepper = made(*SHAPES, dtype=torch.float32, refresh=finder, projection=projection)
    before = copies(list(model.parameters()))
    infos = advance(model, stepper, 0, 5, lambda step, index, shape: torch.zeros(shape))
    assert sum(info.skipped or 0 for info in infos) == 0
    assert all(new.equal(old) for new, old in zip(model.parameters(), before, strict=True))
    advance(model, stepper, 5, 9)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------- precision
def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if "proj" in name}


@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
def test_invariant_17_8_bit_states_stay_near_those_of_32_and_take_fewer_bytes(moments: str) -> None:
    """Over 12 updates and 2 refreshes the matrices end within 10 % of the way they went."""
    shape, ends, sizes = (96, 128), {}, {}
    for bits in (32, 8):
        model, stepper = made(
            shape, dtype=torch.float32, rank=64, period=5, moments=moments, optim={"state_bits": bits}
        )
        start = model.weights[0].detach().clone()
        advance(model, stepper, 0, 12)
        ends[bits] = model.weights[0].detach() - start
        state = stepper.states["blocks.0.q_proj.weight"]
        sizes[bits] = sum(value.nbytes for key, value in state.items() if key != "step")
    assert 0 < (ends[8] - ends[32]).norm() < 0.1 * ends[32].norm()
    assert sizes == {32: 2 * 4 * 64 * 128, 8: 2 * (64 * 128 + 4 * 64 * 128 // 256)}


def dtypes(stepper: GaLoreStepper, *endings: str) -> set[torch.dtype]:
    found = [(name, tensor) for name, tensor in stepper.state_tensors() if "_proj" in name]
    return {tensor.dtype for name, tensor in found if name.endswith(endings)}


@pytest.mark.parametrize(
    ("precision", "bits", "bases", "moments"),
    [
        ("float32", None, torch.float32, torch.float32),
        ("gradient", None, torch.bfloat16, torch.bfloat16),
        ("gradient", 32, torch.bfloat16, torch.float32),
        ("float32", 16, torch.float32, torch.bfloat16),
    ],
)
def test_invariant_19_a_bfloat16_model_has_float32_states_unless_it_asks_for_the_gradients_own(
    precision: str, bits: Any, bases: torch.dtype, moments: torch.dtype
) -> None:
    model, stepper = tiny(dtype=torch.bfloat16, precision=precision, bits=bits)
    before = copies(list(weights_of(model).values()))
    train(model, stepper, 0, 6)
    assert dtypes(stepper, ".left", ".right") == {bases}
    assert dtypes(stepper, ".exp_avg", ".exp_avg_sq") == {moments}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(new.equal(old) for new, old in zip(weights_of(model).values(), before, strict=True))


def test_invariant_19_no_normal_bfloat16_second_moment_decays() -> None:
    """0.999 v rounds back to v for each of them, so v is a running maximum (G8)."""
    bits = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    normal = values[values.isfinite() & (values >= torch.finfo(torch.bfloat16).tiny)]
    assert len(normal) == 254 * 128
    assert (normal * 0.999).equal(normal)


@pytest.mark.parametrize("precision", ["float32", "gradient"])
def test_invariant_19_when_gradients_shrink_only_float32_moments_follow(precision: str) -> None:
    """After one large gradient and 500 that are a hundred times smaller: 0.999^500 is 0.61."""
    model, stepper = made(SQUARE, dtype=torch.bfloat16, rank=9, precision=precision, period=NEVER)
    second: list[Tensor] = []
    for size, steps in ((1.0, 1), (0.01, 500)):
        advance(model, stepper, 0, steps, lambda _, index, shape, by=size: by * noisy(0, index, shape))
        second.append(stepper.states["blocks.0.q_proj.weight"]["exp_avg_sq"].clone())
    if precision == "gradient":
        assert second[1].equal(second[0])
    else:
        assert float(second[1].sum() / second[0].sum()) == pytest.approx(0.65, abs=0.05)


# ------------------------------------------------------------------------------------------- moments
def moments_of(stepper: GaLoreStepper) -> tuple[Tensor, Tensor]:
    state = stepper.states["blocks.0.q_proj.weight"]
    return state["exp_avg"].clone(), state["exp_avg_sq"].clone()


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
def test_at_a_refresh_moments_are_kept_rotated_or_reset_before_the_gradient_enters(
    shape: tuple[int, int], moments: str
) -> None:
    model, stepper = made(shape, moments=moments)
    advance(model, stepper, 0, 4)
    first, second = moments_of(stepper)
    old = matrices(stepper)[0].projector
    advance(model, stepper, 4, 5)
    new = matrices(stepper)[0].projector
    assert old is not None
    assert new is not None
    if moments == "reset":
        first, second = torch.zeros_like(first), torch.zeros_like(second)
    elif moments == "rotate" and old.left is not None and new.left is not None:
        change = new.left.T @ old.left
        first, second = change @ first, change.square() @ second
    elif moments == "rotate" and old.right is not None and new.right is not None:
        change = old.right.T @ new.right
        first, second = first @ change, second @ change.square()
    coordinates = new.project(noisy(4, 0, shape))
    wanted = 0.9 * first + 0.1 * coordinates, 0.999 * second + 0.001 * coordinates.square()
    assert_close(moments_of(stepper), wanted)
    assert float(stepper.states["blocks.0.q_proj.weight"]["step"]) == 5


def test_rotated_second_moments_are_never_negative_and_exact_for_flips_and_permutations() -> None:
    model, stepper = made(SQUARE, rank=9, moments="rotate")
    flipped = torch.eye(9, dtype=torch.float64)[:, [3, 1, 2, 0, 8, 5, 6, 7, 4]] * -1
    turned = orthogonal(9, 6)
    for basis, exact in ((flipped, True), (turned, False)):
        with_projectors(stepper, Projector(right=torch.eye(9, dtype=torch.float64)))
        advance(model, stepper, 0, 4)
        second = moments_of(stepper)[1]
        matrices(stepper)[0].next_refresh = 0
        stepper.new_projector = lambda *_, basis=basis: Projector(right=basis)  # type: ignore[method-assign]
        advance(model, stepper, 4, 5, lambda step, index, shape: torch.zeros(shape))
        found = moments_of(stepper)[1]
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(dim=1), 0.999 * second.sum(dim=1))
        assert torch.allclose(found, 0.999 * second @ basis.abs()) == exact


# ------------------------------------------------------------------------------------- seeds and options
def test_randomized_subspaces_depend_on_the_seed_of_the_run_and_touch_no_other_stream() -> None:
    def bases(seed: int) -> dict[str, Tensor]:
        model = tiny_llama()
        method = build("galore", {"rank": 4, "refresh": "randomized"})
        method.prepare(model, Context(seed=seed))
        stepper = method.stepper(model, OptimConfig())
        assert stepper is not None
        torch.manual_seed(3)
        before = torch.get_rng_state()
        train(model, stepper, 0, 1)
        assert torch.get_rng_state().equal(before)
        return {name: t for name, t in stepper.state_tensors() if name.endswith((".left", ".right"))}

    first, again, other = bases(1), bases(1), bases(2)
    assert all(first[name].equal(again[name]) for name in first)
    assert not any(first[name].equal(other[name]) for name in first)


def test_a_tied_head_is_no_target_and_is_trained_as_one_parameter() -> None:
    model = tiny_llama(tie=True)
    method = build("galore", {"rank": 4})
    method.prepare(model, Context())
    stepper = method.stepper(model, OptimConfig())
    assert stepper is not None
    train(model, stepper, 0, 2)
    names = [name for name, _ in stepper.state_tensors()]
    assert len(names) == len(set(names))
    assert {name.split(".")[-1] for name in names if "embed" in name} == {"exp_avg", "exp_avg_sq", "step"}
    assert not [name for name in names if "lm_head" in name]


def test_frozen_layers_are_trained_all_the_same() -> None:
    model = tiny_llama().requires_grad_(False)
    build("galore", {}).prepare(model, Context())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"period": 0}, "period"),
        ({"scale": 0.0}, "scale"),
        ({"lazy": 1.5}, "lazy"),
        ({"projection": "both"}, "projection"),
        ({"moments": "rotated"}, "moments"),
        ({"targets": []}, "targets"),
        ({"update_proj_gap": 200}, "unknown key 'update_proj_gap'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method galore: {message}") as caught:
        build("galore", options)
    assert "\n" not in str(caught.value)


def test_its_source_is_named() -> None:
    assert "2403.03507" in GaLore.source

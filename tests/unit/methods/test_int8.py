"""int8 weights: their grids and rounding beside plain loops, what they store, and methods that train them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config import OptimConfig
from harness.engine.measure.components import components
from harness.engine.measure.peak import LiveMeter
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from methods.parts.quantisation.grid import codes_of, grid_of, values_of
from methods.parts.quantisation.gridded import Gridded, Rounding, gridded
from methods.parts.quantisation.packing import packed, unpacked
from methods.parts.quantisation.tensor import Quantised, writable
from tests.support.tiny import tiny_llama, train
from tests.unit.methods.test_galore import Targets, advance, copies, noise, noisy, saved_and_loaded

SHAPES = (16, 24), (24, 16)
GROUP = 64
SIGMA = 0.02


def groups(count: int, size: int = 256, seed: int = 0) -> Tensor:
    """Numbers as weights have them, N(0, 0.02)."""
    return SIGMA * noise((count, size), seed).float()


def random(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(
    *stack: tuple[str, dict[str, Any]],
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    dtype: torch.dtype = torch.float32,
    seed: int = 5,
    optim: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Targets, Any]:
    """A model with int8 weights and the stepper of the method of the stack that trains it."""
    model: Any = Targets(*shapes, dtype=dtype)
    stepper = None
    for name, own in (("int8", {"group": GROUP, **options}), *stack):
        targets = {} if name == "full" else {"targets": ["q_proj"]}
        method = build(name, {**targets, **own})
        model = method.prepare(model, Context(seed=seed))
        stepper = method.stepper(model, OptimConfig(**(optim or {}))) or stepper
    return model, stepper


def floats(model: Targets) -> list[Tensor]:
    """The values of the targets."""
    return [weight.floats(torch.float32) for weight in model.weights]  # type: ignore[attr-defined]


FULL: tuple[str, dict[str, Any]] = ("full", {})
GALORE: tuple[str, dict[str, Any]] = ("galore", {"rank": 4, "period": 4, "scale": 1.0})
APOLLO: tuple[str, dict[str, Any]] = ("apollo", {"rank": 4, "period": 4})
FIRA: tuple[str, dict[str, Any]] = ("fira", {"rank": 4, "period": 4})
VELORA: tuple[str, dict[str, Any]] = ("velora", {"num_groups": 4})


# ------------------------------------------------------------------------------------------- the grids
@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_invariant_2_a_number_moves_by_half_a_step_at_most_and_a_step_with_stochastic_rounding(
    official: bool, bits: int
) -> None:
    """In the official arithmetic for groups that hold zero alone."""
    numbers = groups(20)
    if not official:
        numbers = torch.cat([numbers, groups(20) + 1.0, -groups(20).abs()])
    step, low = grid_of(numbers, bits, official)
    assert step.allclose((numbers.amax(1) - numbers.amin(1))[:, None] / (2**bits - 1))
    for generator, most in ((None, 0.5), (random(), 1.0)):
        found = values_of(codes_of(numbers, step, low, bits, official, generator), step, low, torch.float32)
        assert float(((found - numbers).abs() / step).max()) <= most + 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_a_number_goes_to_the_nearest_of_all_points(bits: int) -> None:
    numbers = torch.cat([groups(3, 32), groups(3, 32) + 0.3])
    step, low = grid_of(numbers, bits, official=False)
    found = values_of(codes_of(numbers, step, low, bits, False), step, low, torch.float32)
    for row, values in zip(numbers.double(), found.double(), strict=True):
        first, last = float(row.min()), float(row.max())
        points = torch.linspace(first, last, 2**bits, dtype=torch.float64)
        wanted = points[(row[:, None] - points).abs().argmin(1)]
        assert values.allclose(wanted, atol=1e-6 * (last - first) + 1e-7)


def test_the_official_grid_is_that_of_the_papers_code() -> None:
    """The formulas of its quantiser on plain numbers."""
    numbers = groups(2, 16)
    step, low = grid_of(numbers, 8, official=True)
    found = values_of(codes_of(numbers, step, low, 8, True), step, low, torch.float32)
    for row, values in zip(numbers.tolist(), found.tolist(), strict=True):
        scale = max(max(row) - min(row), 1e-5) / 255
        zero = min(max(-round(min(row) / scale), 0), 255)
        codes = [min(max(round(number / scale) + zero, 0), 255) for number in row]
        assert values == pytest.approx([(code - zero) * scale for code in codes], abs=1e-7)


@pytest.mark.parametrize("official", [False, True])
def test_invariant_2_rounding_again_on_the_same_grid_returns_the_codes(official: bool) -> None:
    step, low = grid_of(groups(50), 8, official)
    codes = codes_of(groups(50), step, low, 8, official)
    assert codes_of(values_of(codes, step, low, torch.float32), step, low, 8, official).equal(codes)


def test_two_codes_of_four_bits_share_a_byte() -> None:
    codes = torch.randint(16, (5, 32), generator=random(), dtype=torch.uint8)
    assert packed(codes, 4).shape == (5, 16)
    assert unpacked(packed(codes, 4), 4).equal(codes)


def test_groups_of_one_value_zeros_included_are_exact() -> None:
    numbers = torch.tensor([[0.0] * 8, [0.3] * 8, [-1e-12] * 8])
    assert gridded(numbers, 8, 8).floats(torch.float32).equal(numbers)


def test_values_that_are_not_finite_stay_so() -> None:
    tensor = gridded(groups(2), 256, 8)
    with torch.no_grad(), writable(tensor) as values:
        values[0, 0] = math.nan
    assert tensor.isnan().any()
    assert tensor.floats(torch.float32)[1].isfinite().all()


# ----------------------------------------------------------------------------------------- the rounding
def drawn_mean(official: bool, dtype: torch.dtype, draws: int = 10_000) -> tuple[Tensor, Tensor, Tensor]:
    """One group, the mean of its values over draws, and the standard error of each mean."""
    group = groups(1).to(dtype)
    step, low = grid_of(group, 8, official)
    many = group.expand(draws, -1)
    codes = codes_of(many, step.expand(draws, 1), low.expand(draws, 1), 8, official, random())
    mean = values_of(codes, step, low, torch.float64).mean(0)
    share = ((group.double() - low) / step).squeeze(0) % 1
    return group.double().squeeze(0), mean, step.double() * (share * (1 - share) / draws).sqrt()


def test_invariant_3_the_mean_of_stochastic_rounding_is_the_number_and_official_in_bfloat16_it_is_not() -> (
    None
):
    group, mean, error = drawn_mean(False, torch.float32)
    assert ((mean - group).abs() <= 4 * error + 1e-8).all()
    group, mean, error = drawn_mean(True, torch.bfloat16)
    assert ((mean - group).abs() > 4 * error + 1e-8).double().mean() > 0.3


#: Movement of equal updates that survives, by their size over sigma: section 1.3 of the dossier.
SURVIVES = {0.005: (0.998, 0.85), 0.0015: (0.999, 0.26), 0.00015: (1.005, 0.05)}


@pytest.mark.parametrize("size", SURVIVES)
def test_small_updates_survive_in_float32_and_are_lost_in_bfloat16(size: float) -> None:
    """Of every other number, so that no grid moves along with its whole group."""
    moving = torch.arange(256) % 2 == 1
    for official, dtype, wanted in zip(
        (False, True), (torch.float32, torch.bfloat16), SURVIVES[size], strict=True
    ):
        tensor = gridded(groups(64).to(dtype), 256, 8, Rounding(True, official, 1, "w"))
        before = tensor.floats(torch.float32)
        for _ in range(100):
            with writable(tensor) as values:
                values.add_(size * SIGMA * moving.to(dtype))
        moved = (tensor.floats(torch.float32) - before).mean(0) / (100 * size * SIGMA)
        assert float(moved[moving].mean()) == pytest.approx(wanted, abs=0.02 + 1e-5 / size)
        assert float(moved[~moving].mean()) == pytest.approx(0.0, abs=0.02 + 1e-5 / size)


def test_the_extremes_of_a_group_stay_where_they_are_and_official_they_shrink() -> None:
    """After 300 small updates without a direction; both in float32."""
    ends = []
    for official in (False, True):
        tensor = gridded(groups(64), 256, 8, Rounding(True, official, 1, "w"))
        wanted, generator = tensor.floats(torch.float32), random()
        for _ in range(300):
            change = 3e-5 * torch.randn(wanted.shape, generator=generator)
            wanted += change
            with writable(tensor) as values:
                values.add_(change)
        ranges = [each.amax(1) - each.amin(1) for each in (tensor.floats(torch.float32), wanted)]
        ends.append(float((ranges[0] / ranges[1]).mean()))
    assert ends[0] == pytest.approx(1.0, abs=0.01)
    assert ends[1] < 0.97


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("write_back", ["float32", "official"])
@pytest.mark.parametrize("stack", [FULL, GALORE], ids=lambda stack: stack[0])
def test_invariant_4_zero_gradients_leave_every_bit_for_100_updates(
    rounding: str, write_back: str, stack: Any
) -> None:
    model, stepper = made(stack, rounding=rounding, write_back=write_back)
    before = copy.deepcopy(model.weights)
    advance(model, stepper, 0, 100, lambda _step, _index, shape: torch.zeros(shape))
    for old, new in zip(before, model.weights, strict=True):
        assert all(getattr(old, part).equal(getattr(new, part)) for part in ("codes", "step", "low"))


def test_random_numbers_follow_from_the_seed_and_the_name_alone() -> None:
    ends = []
    for seed in (5, 5, 6):
        model, stepper = made(FULL, seed=seed)
        before = torch.get_rng_state()
        advance(model, stepper, 0, 3)
        assert torch.get_rng_state().equal(before)
        ends.append(copies(floats(model)))
    assert all(one.equal(other) for one, other in zip(ends[0], ends[1], strict=True))
    assert not any(one.equal(other) for one, other in zip(ends[0], ends[2], strict=True))
    same = [gridded(groups(4), 256, 8, Rounding(True, seed=1, name=name)) for name in "ab"]
    for tensor in same:
        with writable(tensor) as values:
            values.add_(values.square())
    assert not same[0].equal(same[1])


def nearest(weight: Tensor) -> Tensor:
    """Groups of 64 in the rows of a matrix, each number at the nearest of 256 points from end to end."""
    rows = []
    for row in weight.reshape(-1, GROUP):
        step = (row.max() - row.min()) / 255
        rows.append(row.min() + torch.round((row - row.min()) / step) * step)
    return torch.stack(rows).view(weight.shape)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_update_is_adamw_on_the_stored_values_and_rounding_once(decay: float) -> None:
    """Beside torch's own optimizer and a plain loop; a tie that falls the other way moves by a step."""
    model, stepper = made(FULL, rounding="nearest", optim={"weight_decay": decay})
    plain = Targets(*SHAPES, dtype=torch.float32)
    for weight in plain.weights:
        weight.data = nearest(weight.data)
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=decay)
    for update in range(5):
        advance(model, stepper, update, update + 1, lr=1e-2)
        for index, parameter in enumerate(plain.parameters()):
            parameter.grad = noisy(update, index, tuple(parameter.shape)).float()
        theirs.step()
        for weight in plain.weights:
            weight.data = nearest(weight.data)
    for mine, other in zip(floats(model), plain.weights, strict=True):
        different = (mine - other.detach()).abs() > 1e-5
        assert float(different.double().mean()) < 0.02
        assert float((mine - other.detach()).abs().max()) < 0.05


# ------------------------------------------------------------------------------- gradients and training
def test_invariant_6_gradients_are_those_of_the_values_and_backward_passes_add_up() -> None:
    for dtype, bias, close in ((torch.float32, True, 1e-6), (torch.bfloat16, False, 2e-2)):
        layer = nn.Linear(32, 8, bias=bias, dtype=dtype)
        layer.weight = nn.Parameter(gridded(noise((8, 32), 2).to(dtype), GROUP, 8))
        x = noise((2, 3, 32), 1).to(dtype).requires_grad_()
        again = x.detach().clone().requires_grad_()
        plain = gridded(layer.weight, GROUP, 8).floats(dtype).requires_grad_()
        for _ in range(2):
            layer(x).square().sum().backward()
            F.linear(again, plain, layer.bias.detach() if bias else None).square().sum().backward()
        assert isinstance(layer.weight, nn.Parameter)
        assert type(layer.weight.grad) is Tensor
        torch.testing.assert_close(layer.weight.grad, plain.grad, rtol=close, atol=close)
        torch.testing.assert_close(x.grad, again.grad, rtol=close, atol=close)


@pytest.mark.parametrize(
    "stack", [(("int8", {"group": GROUP}), FULL), (("qgalore", {"rank": 8, "group": GROUP}),)]
)
def test_invariant_6_with_checkpointing_it_is_the_same(stack: Any) -> None:
    runs = []
    for checkpointing in (False, True):
        model: Any = tiny_llama(hidden=64, layers=2)
        for name, options in stack:
            method = build(name, options)
            model = method.prepare(model, Context(seed=2))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        stepper = method.stepper(model, OptimConfig(clip=1.0))
        assert stepper is not None
        model.train()
        runs.append((train(model, stepper, 0, 5), dict(model.named_parameters())))
    assert runs[0][0] == runs[1][0]
    assert any(isinstance(parameter.data, Quantised) for parameter in runs[0][1].values())
    for name, parameter in runs[0][1].items():
        assert parameter.equal(runs[1][1][name]), name


def test_the_backward_pass_saves_codes_and_no_float_weight() -> None:
    layer = nn.Linear(32, 8)
    layer.weight = nn.Parameter(gridded(layer.weight, GROUP, 8))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        layer(torch.ones(2, 32, requires_grad=True))
    assert [type(tensor) for tensor in saved if tensor.numel() == 256] == [Gridded]


@pytest.mark.parametrize(
    "stack", [(FULL,), (GALORE,), (APOLLO,), (FIRA,), (VELORA, FULL)], ids=lambda each: each[-1][0]
)
@pytest.mark.parametrize("bits", [None, 8])
def test_updates_inside_backward_are_the_same_bit_for_bit(stack: Any, bits: int | None) -> None:
    runs = []
    for per_layer in (False, True):
        model: Any = tiny_llama(hidden=64, layers=1).to(torch.bfloat16)
        for name, options in (("int8", {"group": GROUP}), *stack):
            method = build(name, options)
            model = method.prepare(model, Context(seed=2))
        optim = OptimConfig(weight_decay=0.1, per_layer=per_layer, state_bits=bits)
        stepper = method.stepper(model, optim)
        assert stepper is not None
        model.train()
        runs.append((train(model, stepper, 0, 5), model))
    assert runs[0][0] == runs[1][0]
    for mine, theirs in zip(runs[0][1].parameters(), runs[1][1].parameters(), strict=True):
        assert mine.equal(theirs)


@pytest.mark.parametrize("stack", [FULL, GALORE, FIRA], ids=lambda stack: stack[0])
def test_invariant_9_a_run_saved_between_refreshes_goes_on_bit_for_bit(stack: Any) -> None:
    model, stepper = made(stack)
    advance(model, stepper, 0, 6)
    saved = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    resumed, again = made(stack)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["stepper"])
    for run in ((model, stepper), (resumed, again)):
        advance(*run, 6, 11)
    for one, other in zip(model.weights, resumed.weights, strict=True):
        assert one.equal(other)
        assert one.form == other.form  # type: ignore[attr-defined]


def test_a_clipped_update_is_that_of_smaller_gradients() -> None:
    norm = math.sqrt(sum(float(noisy(0, i, s).square().sum()) for i, s in enumerate((*SHAPES, (6, 5), (6,)))))
    ends = []
    for clip, factor in ((norm / 4, 1.0), (None, 0.25)):
        model, stepper = made(FULL, optim={"clip": clip, "eps": 1.0})
        advance(model, stepper, 0, 1, lambda *key, f=factor: f * noisy(*key))
        ends.append(floats(model))
    for one, other in zip(*ends, strict=True):
        assert float((one != other).double().mean()) < 0.01


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("foreach", [False, True])
def test_an_optimizer_that_knows_nothing_of_it_trains_it(make: Any, foreach: bool) -> None:
    """Each weight is within the step or two of its rounding of a weight in float."""
    model, _ = made(rounding="nearest")
    plain = Targets(*SHAPES, dtype=torch.float32)
    for mine, weight in zip(floats(model), plain.weights, strict=True):
        weight.data = mine
    for each in (model, plain):
        optimizer = make(each.parameters(), lr=0.5, foreach=foreach)
        for index, parameter in enumerate(each.parameters()):
            parameter.grad = noisy(0, index, tuple(parameter.shape)).float()
        optimizer.step()
    for mine, weight in zip(model.weights, plain.weights, strict=True):
        assert isinstance(mine, Quantised)
        assert isinstance(mine, nn.Parameter)
        apart = (mine.floats(torch.float32) - weight.detach()).abs()
        assert 0 < float(apart.max()) < 1.1 * float(mine.step.max())


def test_code_that_reads_a_weight_sees_its_values() -> None:
    weight = nn.Parameter(gridded(groups(4, 64), GROUP, 8))
    values = gridded(groups(4, 64), GROUP, 8).floats(torch.float32)
    for found, wanted in (
        (weight @ torch.ones(64), values @ torch.ones(64)),
        (weight[1:, ::2].T, values[1:, ::2].T),
        (weight.to(torch.float64), values.double()),
        (copy.deepcopy(weight), values),
        (torch.linalg.svdvals(weight), torch.linalg.svdvals(values)),
    ):
        torch.testing.assert_close(found.detach() + 0.0, wanted)
    assert torch.zeros_like(weight, dtype=torch.uint8).stride() == (64, 1)
    assert type(torch.zeros_like(weight)) is Tensor
    (weight.square().sum() / 2).backward()
    torch.testing.assert_close(weight.grad, values)


# -------------------------------------------------------------------------------------------- the bytes
def test_invariant_8_a_weight_is_a_byte_and_a_group_two_numbers() -> None:
    model, stepper = made(FULL, dtype=torch.bfloat16)
    advance(model, stepper, 0, 1)
    elements = sum(rows * columns for rows, columns in SHAPES)
    others = 2 * (5 * 6 + 6)
    found = components(model, stepper.state_tensors())
    assert found.weights_trainable_bytes == elements * (1 + 2 * 4 / GROUP) + others
    assert sum(parameter.numel() for parameter in model.parameters()) == elements + 36
    assert found.weights_frozen_bytes == found.buffers_bytes == 0
    context = Context()
    build("int8", {"group": GROUP, "targets": ["q_proj"]}).prepare(
        Targets(*SHAPES, dtype=torch.bfloat16), context
    )
    assert context.facts == {
        "int8_matrices": 2,
        "int8_bytes": elements * (1 + 2 * 4 / GROUP),
        "float_bytes": 2 * elements,
    }


@pytest.mark.parametrize("stack", [("full", {}), ("galore", {"rank": 8, "period": 100})], ids=lambda s: s[0])
@pytest.mark.parametrize("count", [1, 3])
def test_an_update_makes_a_float_copy_of_one_matrix_alone(stack: Any, count: int) -> None:
    """Beside it: rounding, an eighth at a time, and what the method needs without int8."""
    shape = (512, 1024)
    peaks = []
    for int8 in (True, False):
        model: Any = Targets(*[shape] * count, dtype=torch.float32)
        if int8:
            model = build("int8", {"targets": ["q_proj"]}).prepare(model, Context())
        method = build(stack[0], stack[1] | ({} if stack[0] == "full" else {"targets": ["q_proj"]}))
        stepper: Any = method.stepper(method.prepare(model, Context()), OptimConfig())
        advance(model, stepper, 0, 1)
        for parameter in model.parameters():
            parameter.grad = torch.ones(parameter.shape)
        meter = LiveMeter(torch.device("cpu"))
        with meter.window() as before:
            torch.empty(0)
        with meter.window() as during:
            stepper.step()
        peaks.append(during.peak_allocated_bytes - before.peak_allocated_bytes)
    assert 1.0 < (peaks[0] - peaks[1]) / (4 * math.prod(shape)) < 1.6


# ------------------------------------------------------------------------------------------ the options
def test_alone_it_trains_nothing_and_rounds_for_evaluation() -> None:
    method = build("int8", {})
    assert method.stepper(tiny_llama(), OptimConfig()) is None
    assert "compress" in method.caps.stages
    model: Any = method.prepare(tiny_llama(), Context())
    weights = dict(model.named_parameters())
    assert {name.split(".")[-2] for name, each in weights.items() if isinstance(each, Quantised)} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert not any(isinstance(each, Quantised) for each in method.export(model).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 1}, "group"),
        ({"rounding": "random"}, "rounding"),
        ({"write_back": "bfloat16"}, "write_back"),
        ({"targets": []}, "targets"),
        ({"weight_bits": 8}, "unknown key 'weight_bits'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"method int8: {message}") as caught:
        build("int8", options)
    assert "\n" not in str(caught.value)


def test_groups_that_do_not_divide_a_matrix_are_refused_with_those_that_do() -> None:
    with pytest.raises(UserError) as caught:
        made(group=100)
    assert str(caught.value) == (
        "int8: group 100 does not divide the 384 elements of blocks.0.q_proj (16, 24); use a divisor of 384, "
        "such as 128"
    )


def test_a_second_time_in_a_stack_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"blocks\.0\.q_proj is quantised already; use one"):
        made(("int8", {"group": GROUP}))

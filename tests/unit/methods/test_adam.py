"""Adam's arithmetic in every precision of its states, beside torch's own and beside its formulas."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.config import OptimConfig
from harness.errors import UserError
from methods.parts.optim import eightbit
from methods.parts.optim.adamw import MIN_8BIT_SIZE, MOMENTS, Adam, AdamWStepper, State
from tests.support.tiny import tiny_batch, tiny_llama, train

STEPS = 6
BITS = (None, 32, 16, 8)


def gradients(shape: tuple[int, ...], dtype: torch.dtype, steps: int = STEPS) -> Iterator[Tensor]:
    """The same sequence each time; shrinks, so that a second moment that cannot decay would show."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        yield (torch.randn(shape, generator=generator) / (1 + step)).to(dtype)


def course(tensor: Tensor, adam: Adam, steps: int = STEPS, lr: float = 1e-2) -> tuple[Tensor, State]:
    """The tensor after some updates, and its state."""
    tensor = tensor.clone()
    state = adam.new_state(tensor)
    for gradient in gradients(tuple(tensor.shape), tensor.dtype, steps):
        adam.update([tensor], [gradient], [state], lr)
    return tensor, state


def start(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(99)).to(dtype)


def state_bytes(state: State) -> int:
    return sum(value.nbytes for key, value in state.items() if key != "step")


def saved_and_loaded(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint on disk does to it, with the safe loader."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


# -------------------------------------------------------------------------------- beside torch's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_with_states_of_the_parameters_dtype_it_is_torchs_adamw_bit_for_bit(dtype: torch.dtype) -> None:
    optim = OptimConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.1)
    ours, theirs = tiny_llama().to(dtype), tiny_llama().to(dtype)
    peer = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.1, fused=True
    )
    stepper = AdamWStepper(ours, optim)
    for step in range(STEPS):
        lr = 1e-2 / (1 + step)
        stepper.set_lr(lr)
        peer.param_groups[0]["lr"] = lr
        ids = tiny_batch(step)
        for model in (ours, theirs):
            model(input_ids=ids, labels=ids).loss.backward()
        stepper.step()
        peer.step()
        stepper.zero_grad()
        peer.zero_grad()
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert mine.equal(other), (step, name)
    assert {value.dtype for name, value in stepper.state_tensors() if not name.endswith(".step")} == {dtype}


def test_32_bits_are_the_default_of_a_float32_model_bit_for_bit() -> None:
    default, explicit = tiny_llama(), tiny_llama()
    train(default, AdamWStepper(default, OptimConfig(weight_decay=0.1)), 0, 4)
    train(explicit, AdamWStepper(explicit, OptimConfig(weight_decay=0.1, state_bits=32)), 0, 4)
    for mine, other in zip(default.parameters(), explicit.parameters(), strict=True):
        assert mine.equal(other)


def test_a_bfloat16_tensor_with_32_bits_is_updated_in_float32_and_rounded_at_the_end() -> None:
    """Each update equals torch's in float32 from the rounded weights of the last; moments never round."""
    optim = OptimConfig(state_bits=32, weight_decay=0.1)
    tensor, adam = start(33, 7, dtype=torch.bfloat16), Adam(optim)
    state = adam.new_state(tensor)
    wide = nn.Parameter(tensor.float())
    peer = torch.optim.AdamW([wide], lr=1e-2, weight_decay=0.1, fused=True)
    for gradient in gradients((33, 7), torch.bfloat16):
        adam.update([tensor], [gradient], [state], 1e-2)
        wide.grad = gradient.float()
        peer.step()
        wide.data.copy_(wide.data.bfloat16())
        assert tensor.equal(wide.data.bfloat16())
    for key in MOMENTS:
        assert state[key].dtype == torch.float32
        assert state[key].equal(peer.state[wide][key])


def test_a_float32_tensor_with_16_bits_rounds_its_moments_alone() -> None:
    """Each update equals torch's in float32 from the rounded moments of the last."""
    tensor, adam = start(33, 7), Adam(OptimConfig(state_bits=16, weight_decay=0.1))
    state = adam.new_state(tensor)
    wide = nn.Parameter(tensor.clone())
    peer = torch.optim.AdamW([wide], lr=1e-2, weight_decay=0.1, fused=True)
    for gradient in gradients((33, 7), torch.float32):
        adam.update([tensor], [gradient], [state], 1e-2)
        wide.grad = gradient.clone()
        peer.step()
        for key in MOMENTS:
            peer.state[wide][key].copy_(peer.state[wide][key].bfloat16())
        assert tensor.dtype == torch.float32
        assert tensor.equal(wide.data)
    for key in MOMENTS:
        assert state[key].dtype == torch.bfloat16
        assert state[key].float().equal(peer.state[wide][key])


def test_moments_have_the_precision_of_the_run_or_else_of_their_tensor() -> None:
    narrow = start(4, 4, dtype=torch.bfloat16)
    for bits, dtype in ((None, torch.bfloat16), (32, torch.float32), (16, torch.bfloat16)):
        optim = OptimConfig.model_validate({"state_bits": bits})
        assert Adam(optim).new_state(narrow)["exp_avg"].dtype == dtype


@pytest.mark.parametrize("bits", BITS)
def test_tensors_of_several_shapes_in_one_call_are_updated_as_each_alone(bits: Any) -> None:
    adam = Adam(OptimConfig(state_bits=bits, weight_decay=0.1))
    shapes = [(5,), (80, 60), (2, 3)]
    single = [course(start(*shape), adam, steps=3)[0] for shape in shapes]
    together = [start(*shape) for shape in shapes]
    states = [adam.new_state(tensor) for tensor in together]
    for grads in zip(*(gradients(shape, torch.float32, 3) for shape in shapes), strict=True):
        adam.update(together, grads, states, 1e-2)
    assert all(one.equal(other) for one, other in zip(single, together, strict=True))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_contiguous_means_the_same(bits: Any, dtype: torch.dtype) -> None:
    adam = Adam(OptimConfig(state_bits=bits))
    wanted = course(start(80, 60, dtype=dtype), adam, steps=3)[0]
    tensor = start(80, 60, dtype=dtype)
    state = adam.new_state(tensor)
    for gradient in gradients((80, 60), dtype, 3):
        turned = gradient.T.contiguous().T
        assert not turned.is_contiguous()
        adam.update([tensor], [turned], [state], 1e-2)
    assert tensor.equal(wanted)


@pytest.mark.parametrize("bits", BITS)
def test_rules_of_a_call_overrule_eps_and_weight_decay_of_the_run(bits: Any) -> None:
    stated = Adam(OptimConfig(state_bits=bits, eps=1e-2, weight_decay=0.5))
    overruled = Adam(OptimConfig(state_bits=bits, eps=1e-8, weight_decay=0.0))
    one, other = start(80, 60), start(80, 60)
    gradient = next(gradients((80, 60), torch.float32))
    stated.update([one], [gradient], [stated.new_state(one)], 0.1)
    overruled.update([other], [gradient], [overruled.new_state(other)], 0.1, eps=1e-2, weight_decay=0.5)
    assert one.equal(other)
    assert not one.equal(course(start(80, 60), overruled, steps=1, lr=0.1)[0])


# -------------------------------------------------------------------------------------------- 8 bits
def test_8_bits_stay_close_to_float32_over_twenty_steps_of_a_quadratic() -> None:
    """Minimise |w - target|^2 / 2 per element; the 8-bit course ends within 5 % of the float32 one."""
    target, runs = start(64, 128), {}
    for bits in (32, 8):
        adam = Adam(OptimConfig(state_bits=bits))
        weight = torch.zeros(64, 128)
        state = adam.new_state(weight)
        for _ in range(20):
            adam.update([weight], [weight - target], [state], 0.05)
        runs[bits] = weight
    error = (runs[8] - runs[32]).norm() / runs[32].norm()
    assert 0 < error < 0.05


def test_8_bits_train_a_model_to_nearly_the_loss_of_32() -> None:
    losses = {}
    for bits in (32, 8):
        model = tiny_llama(hidden=64)
        stepper = AdamWStepper(model, OptimConfig(state_bits=bits))
        losses[bits] = [train(model, stepper, 0, 1, lr=3e-3)[0] for _ in range(12)]
        assert any(tensor.dtype == torch.uint8 for _, tensor in stepper.state_tensors()) == (bits == 8)
    assert losses[8][-1] < losses[8][0] - 0.3
    assert losses[8][-1] == pytest.approx(losses[32][-1], rel=0.05)


@pytest.mark.parametrize("shape", [(64, 128), (4097,), (70, 61)])
def test_8_bits_take_a_byte_per_element_and_moment_and_a_scale_per_block(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape)
    blocks = math.ceil(tensor.numel() / 256)
    assert state_bytes(Adam(OptimConfig(state_bits=8)).new_state(tensor)) == 2 * (tensor.numel() + 4 * blocks)


def test_tensors_of_fewer_than_4096_elements_keep_float32_at_8_bits() -> None:
    adam = Adam(OptimConfig(state_bits=8))
    assert MIN_8BIT_SIZE == 4096
    for size, narrow in ((4095, False), (4096, True)):
        state = adam.new_state(torch.zeros(size, dtype=torch.bfloat16))
        assert eightbit.holds(state) == narrow
        assert state["exp_avg"].dtype == (torch.uint8 if narrow else torch.float32)


def test_the_codes_are_those_of_the_kernels_library() -> None:
    create = eightbit.library().functional.create_dynamic_map
    for signed in (True, False):
        code = torch.tensor(eightbit.code(signed))
        assert code.shape == (256,)
        torch.testing.assert_close(code, create(signed=signed), rtol=1e-6, atol=0)


def test_an_8_bit_second_moment_is_never_negative_and_the_first_keeps_its_signs() -> None:
    _, state = course(start(64, 128), Adam(OptimConfig(state_bits=8)))
    _, exact = course(start(64, 128), Adam(OptimConfig()))
    first, second = Adam(OptimConfig(state_bits=8)).moments(state)
    assert (second >= 0).all()
    large = exact["exp_avg"].abs() > 0.1 * exact["exp_avg"].abs().max()
    assert (first.sign() == exact["exp_avg"].sign())[large].all()


def test_without_the_kernels_library_8_bits_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it fails
    with pytest.raises(UserError, match="pip install bitsandbytes") as caught:
        AdamWStepper(tiny_llama(), OptimConfig(state_bits=8))
    assert "\n" not in str(caught.value)
    for bits in (None, 32, 16):
        AdamWStepper(tiny_llama(), OptimConfig(state_bits=bits))


@pytest.mark.parametrize("bits", BITS)
def test_updates_run_on_fake_tensors_and_leave_real_ones_alone(bits: Any) -> None:
    """Before real updates, between them and after: codes made for one kind must not reach the other."""
    adam = Adam(OptimConfig(state_bits=bits))
    wanted = course(start(80, 60), adam)[0]
    for _ in range(2):
        with FakeTensorMode():
            tensor = torch.randn(80, 60)
            state = adam.new_state(tensor)
            adam.update([tensor], [torch.randn(80, 60)], [state], 1e-2)
            first, second = adam.moments(state)
            again = adam.with_moments(state, first[:, :55], second[:, :55], torch.empty(80, 55))
            assert state_bytes(again) < state_bytes(state)
        eightbit._made_codebooks.cache_clear()
        assert course(start(80, 60), adam)[0].equal(wanted)


# ------------------------------------------------------------------------------------ states as data
@pytest.mark.parametrize("bits", BITS)
def test_moments_that_are_read_and_put_back_are_the_same_state(bits: Any) -> None:
    """Readings are float32. The signed 8-bit code has 1 but not -1, so a block may shrink by 0.7 %."""
    adam = Adam(OptimConfig(state_bits=bits))
    tensor, state = course(start(80, 60), adam)
    read = adam.moments(state)
    assert {(moment.dtype, moment.shape) for moment in read} == {(torch.float32, (80, 60))}
    again = adam.with_moments(state, *read, tensor)
    assert again.keys() == state.keys()
    assert type(again["step"]) is type(state["step"])
    assert int(again["step"]) == STEPS
    for old, new in zip(read, adam.moments(again), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0.008 * float(old.abs().max()) * (bits == 8))
    for key in MOMENTS:
        assert again[key].data_ptr() != state[key].data_ptr()


def test_moments_of_float64_stay_float64() -> None:
    adam = Adam(OptimConfig())
    _, state = course(start(8, 6, dtype=torch.float64), adam)
    assert {moment.dtype for moment in adam.moments(state)} == {torch.float64}


def test_a_replaced_state_may_cross_the_size_below_which_8_bits_become_32() -> None:
    """The rank of a subspace moves; the step count goes on in either form."""
    adam = Adam(OptimConfig(state_bits=8))
    tensor, state = course(start(80, 60), adam)
    first, second = adam.moments(state)
    small = adam.with_moments(state, first[:, :10], second[:, :10], tensor[:, :10])
    assert small["exp_avg"].equal(first[:, :10])
    assert float(small["step"]) == STEPS
    assert isinstance(small["step"], Tensor)
    back = adam.with_moments(small, first, second, tensor)
    assert back["step"] == STEPS
    assert back["exp_avg"].dtype == torch.uint8
    adam.update([tensor[:, :10].clone()], [first[:, :10].clone()], [small], 1e-2)
    assert float(small["step"]) == STEPS + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_a_run_saved_in_the_middle_goes_on_bit_for_bit(bits: Any, dtype: torch.dtype) -> None:
    def made() -> tuple[nn.Module, AdamWStepper]:
        model = tiny_llama(hidden=64, layers=1).to(dtype)
        return model, AdamWStepper(model, OptimConfig(state_bits=bits, weight_decay=0.1))

    model, stepper = made()
    train(model, stepper, 0, 3)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    losses = train(model, stepper, 3, 6)
    resumed, again = made()
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["stepper"])
    assert train(resumed, again, 3, 6) == losses
    for mine, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert mine.equal(other)


@pytest.mark.parametrize("bits", BITS)
def test_the_bytes_of_a_models_states_follow_from_its_shapes(bits: Any) -> None:
    model = tiny_llama(hidden=64)
    stepper = AdamWStepper(model, OptimConfig(state_bits=bits))
    train(model, stepper, 0, 1)
    wanted = 0
    for parameter in model.parameters():
        size = parameter.numel()
        if bits == 8 and size >= MIN_8BIT_SIZE:
            wanted += 2 * (size + 4 * math.ceil(size / 256))
        else:
            wanted += 2 * size * (2 if bits == 16 else 4)
    found = sum(tensor.nbytes for name, tensor in stepper.state_tensors() if not name.endswith(".step"))
    assert found == wanted

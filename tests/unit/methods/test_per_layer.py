"""Updates inside the backward pass: the same training with one gradient alive at a time."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig, Run
from harness.engine.measure.peak import meter_for
from harness.engine.run import checks
from harness.errors import UnsupportedError
from harness.method import Caps, Method, MethodConfig
from harness.validation import validate
from methods.parts.optim.adamw import TRAIN_OPTIONS, AdamWStepper
from tests.support.tiny import tiny_batch, tiny_llama, train

NO_CLIPPING = 1e9  # a bound that no norm reaches: the norm is computed, and gradients stay as they are


def backward(model: nn.Module, step: int = 0) -> None:
    ids = tiny_batch(step)
    model(input_ids=ids, labels=ids).loss.backward()


def pair(bits: Any = None, dtype: torch.dtype = torch.float32, **shape: Any) -> list[tuple[nn.Module, Any]]:
    """The same model with updates after the backward pass, and with updates inside it."""
    models = [tiny_llama(**shape).to(dtype) for _ in range(2)]
    return [
        (model, AdamWStepper(model, OptimConfig(weight_decay=0.1, state_bits=bits, per_layer=inside)))
        for model, inside in zip(models, (False, True), strict=True)
    ]


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert mine.equal(theirs), name


def alive(model: nn.Module) -> int:
    return sum(parameter.grad is not None for parameter in model.parameters())


# ------------------------------------------------------------------------------------- the same result
@pytest.mark.parametrize("bits", [None, 32, 16, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_13_updates_inside_backward_are_the_same_bit_for_bit(bits: Any, dtype: torch.dtype) -> None:
    normal, inside = pair(bits, dtype, hidden=64)
    for step in range(4):
        assert train(*normal, step, step + 1) == train(*inside, step, step + 1)
        assert_equal(normal[0], inside[0])
    states = [dict(stepper.state_tensors()) for _, stepper in (normal, inside)]
    assert states[0].keys() == states[1].keys()
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


@pytest.mark.parametrize("tie", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_activation_checkpointing_and_a_tied_head_it_is_still_the_same(
    tie: bool, reentrant: bool
) -> None:
    """The recomputation runs inside backward too, and a tied gradient is complete only at the end."""
    normal, inside = pair(tie=tie)
    for model, _ in (normal, inside):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
    assert train(*normal, 0, 4) == train(*inside, 0, 4)
    assert_equal(normal[0], inside[0])


def test_a_tied_parameter_is_updated_once_with_its_whole_gradient() -> None:
    model = tiny_llama(tie=True)
    stepper = AdamWStepper(model, OptimConfig(per_layer=True))
    backward(model)
    stepper.step()
    assert {float(value) for name, value in stepper.state_tensors() if name.endswith("step")} == {1.0}


def test_each_update_has_the_learning_rate_that_was_set_before_it() -> None:
    normal, inside = pair()
    for step, lr in enumerate((1e-2, 0.0, 3e-3, 1e-4)):
        before = [parameter.detach().clone() for parameter in inside[0].parameters()]
        train(*normal, step, step + 1, lr=lr)
        train(*inside, step, step + 1, lr=lr)
        assert_equal(normal[0], inside[0])
        held = [p.equal(old) for p, old in zip(inside[0].parameters(), before, strict=True)]
        assert not any(held) if lr else all(held)


def test_the_weights_have_moved_before_step_is_called() -> None:
    model = tiny_llama()
    stepper = AdamWStepper(model, OptimConfig(per_layer=True))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    backward(model)
    moved = [parameter.detach().clone() for parameter in model.parameters()]
    assert not any(new.equal(old) for new, old in zip(moved, before, strict=True))
    stepper.step()
    assert all(p.equal(new) for p, new in zip(model.parameters(), moved, strict=True))


def test_frozen_parameters_get_no_hook_and_stay() -> None:
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    frozen = model.model.embed_tokens.weight.detach().clone()
    stepper = AdamWStepper(model, OptimConfig(per_layer=True))
    train(model, stepper, 0, 2)
    assert model.model.embed_tokens.weight.equal(frozen)
    assert not [name for name, _ in stepper.state_tensors() if "embed_tokens" in name]


def test_a_run_saved_in_the_middle_goes_on_bit_for_bit_in_either_mode() -> None:
    """States say nothing about the mode, so a checkpoint may change it."""
    normal, inside = pair()
    train(*inside, 0, 3)
    normal[0].load_state_dict(inside[0].state_dict())
    normal[1].load_state_dict(inside[1].state_dict())
    assert train(*normal, 3, 6) == train(*inside, 3, 6)
    assert_equal(normal[0], inside[0])


# -------------------------------------------------------------------------------------- the gradient norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_norm_is_that_of_the_normal_mode(dtype: torch.dtype) -> None:
    models = [tiny_llama().to(dtype) for _ in range(2)]
    normal = AdamWStepper(models[0], OptimConfig(clip=NO_CLIPPING))
    inside = AdamWStepper(models[1], OptimConfig(per_layer=True))
    for step in range(3):
        norms: list[Tensor] = []
        for model, stepper in zip(models, (normal, inside), strict=True):
            backward(model, step)
            info = stepper.step()
            assert info.grad_norm is not None
            norms.append(info.grad_norm.float())
            stepper.zero_grad()
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


def test_a_step_without_a_backward_pass_has_no_norm() -> None:
    model = tiny_llama()
    stepper = AdamWStepper(model, OptimConfig(per_layer=True))
    assert stepper.step().grad_norm is None
    backward(model)
    assert stepper.step().grad_norm is not None
    assert stepper.step().grad_norm is None


# ------------------------------------------------------------------------------------------- the memory
def test_no_two_gradients_are_ever_alive_together() -> None:
    model = tiny_llama()
    counts: list[int] = []
    for parameter in model.parameters():  # before the stepper's own hooks, so the gradient is still there
        parameter.register_post_accumulate_grad_hook(lambda _: counts.append(alive(model)))
    stepper = AdamWStepper(model, OptimConfig(per_layer=True))
    backward(model)
    assert counts == [1] * len(list(model.parameters()))
    assert alive(model) == 0
    stepper.step()


def test_the_peak_is_lower_by_most_of_the_gradients() -> None:
    """Measured to the byte, states present; two tokens, so that activations are small beside weights."""

    def peak(inside: bool) -> int:
        model = tiny_llama(hidden=64, layers=4)
        stepper = AdamWStepper(model, OptimConfig(per_layer=inside))
        ids = torch.tensor([[3, 4]])

        def update() -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            stepper.step()
            stepper.zero_grad()

        update()
        with meter_for(torch.device("cpu")).window() as window:
            update()
        return window.peak_allocated_bytes

    gradients = sum(parameter.nbytes for parameter in tiny_llama(hidden=64, layers=4).parameters())
    saved = peak(inside=False) - peak(inside=True)
    assert 0.8 * gradients < saved < gradients


def test_dropping_the_stepper_frees_its_states_and_its_hooks() -> None:
    model = tiny_llama()
    stepper = AdamWStepper(model, OptimConfig(per_layer=True))
    train(model, stepper, 0, 1)
    kept = [weakref.ref(stepper), *(weakref.ref(tensor) for _, tensor in stepper.state_tensors())]
    del stepper
    gc.collect()
    assert not [ref for ref in kept if ref() is not None]
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    backward(model)
    assert alive(model) == len(before)
    assert all(p.equal(old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_second_stepper_on_the_same_model_takes_over_alone() -> None:
    normal, inside = pair()
    dropped = AdamWStepper(inside[0], OptimConfig(per_layer=True))
    del dropped
    assert train(*normal, 0, 2) == train(*inside, 0, 2)
    assert_equal(normal[0], inside[0])


# -------------------------------------------------------------------------------- what a run may ask for
class Config(MethodConfig):
    """Whether the method's stepper knows the options of the train section."""

    knows: bool = True


class Trains(Method):
    """Promises as much as `knows` says."""

    Config = Config
    config: Config

    @property
    def caps(self) -> Caps:
        return Caps(**TRAIN_OPTIONS) if self.config.knows else Caps()


def supported(*knows: bool, **train: Any) -> Caps:
    method = [{"name": f"{__name__}:Trains", "options": {"knows": flag}} for flag in knows]
    asked = validate(Run, {"method": method, "train": train}, "test")
    return checks.supported(asked, checks.stack(asked))


def test_a_method_that_knows_the_options_may_be_asked_for_them_together() -> None:
    for bits in (32, 16, 8):
        caps = supported(True, True, per_layer=True, state_bits=bits)
        assert caps.per_layer
        assert caps.state_bits == {8, 16, 32}


def test_per_layer_refuses_gradient_accumulation() -> None:
    """Each micro-batch would be an update of its own: 32 times the updates, 32 times the schedule."""
    with pytest.raises(UnsupportedError, match=r"grad_accum 4 would update once per micro-batch; use 1"):
        supported(True, per_layer=True, grad_accum=4)
    supported(True, grad_accum=4)


def test_per_layer_refuses_clipping_because_the_norm_comes_too_late() -> None:
    with pytest.raises(UnsupportedError, match=r"norm is known only after the updates; leave out clip"):
        supported(True, per_layer=True, clip=1.0)
    supported(True, clip=1.0)


def test_per_layer_is_refused_where_one_method_of_a_stack_does_not_know_it() -> None:
    for stack in ((False,), (True, False), (False, True)):
        with pytest.raises(UnsupportedError, match=r"does not update inside the backward pass"):
            supported(*stack, per_layer=True)
        supported(*stack)


def test_state_bits_are_refused_where_one_method_of_a_stack_does_not_know_them() -> None:
    for stack in ((False,), (True, False), (False, True)):
        with pytest.raises(UnsupportedError, match=r"states in 8 bits \(it does: only its own\)"):
            supported(*stack, state_bits=8)


def test_options_that_are_off_are_no_part_of_a_runs_identity() -> None:
    """Runs from before the options were there keep their ids."""
    plain, said, on = (
        validate(Run, {"method": "full", "train": train}, "test")
        for train in ({}, {"per_layer": False, "state_bits": None}, {"per_layer": True})
    )
    assert plain.config_id == said.config_id != on.config_id
    assert not {"per_layer", "state_bits"} & plain.model_dump(mode="json")["train"].keys()

"""Full training and the AdamW stepper that all methods share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context, StepInfo
from harness.plugins import build
from methods.parts.optim.adamw import AdamWStepper
from tests.support.tiny import tiny_batch, tiny_llama, train


def backward(model: nn.Module, step: int = 0) -> None:
    ids = tiny_batch(step)
    model(input_ids=ids, labels=ids).loss.backward()


def test_full_trains_every_parameter_even_where_some_were_frozen() -> None:
    model = tiny_llama().requires_grad_(False)
    context = Context()
    build("full", {}).prepare(model, context)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert context.facts == {"trainable": "all parameters"}


def test_full_has_no_options() -> None:
    with pytest.raises(UserError, match="unknown key 'rank'"):
        build("full", {"rank": 8})


def test_updates_equal_the_formulas_of_adamw() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64 beside the fused kernel in float64."""
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    optim = OptimConfig(lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2)
    stepper = AdamWStepper(layer, optim)
    weight, first, second = layer.weight.detach().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    for step in range(1, 6):
        lr = 0.1 / step
        gradient = torch.sin(weight * step)
        layer.weight.grad = gradient.clone()
        stepper.set_lr(lr)
        stepper.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        unbiased = first / (1 - 0.8**step), second / (1 - 0.95**step)
        weight = weight * (1 - lr * 0.2) - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-3)
    torch.testing.assert_close(layer.weight.detach(), weight, atol=1e-12, rtol=1e-12)


def test_states_are_named_by_parameter_and_a_tied_parameter_has_one() -> None:
    model = tiny_llama(tie=True)
    stepper = AdamWStepper(model, OptimConfig())
    assert not list(stepper.state_tensors())
    train(model, stepper, 0, 1)
    names = [name for name, _ in stepper.state_tensors()]
    assert len(names) == 3 * len(list(model.parameters()))
    assert {n for n in names if "embed" in n} == {
        f"model.embed_tokens.weight.{key}" for key in ("exp_avg", "exp_avg_sq", "step")
    }
    assert not [name for name in names if "lm_head" in name]


def test_gradients_are_clipped_to_the_global_norm_and_the_norm_before_is_told() -> None:
    model = tiny_llama()
    stepper = AdamWStepper(model, OptimConfig(clip=1e-3))
    backward(model)
    before = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    info = stepper.step()
    after = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert info.grad_norm is not None
    torch.testing.assert_close(info.grad_norm, before)
    torch.testing.assert_close(after, torch.tensor(1e-3), rtol=1e-4, atol=0)


def test_without_clipping_no_norm_is_computed() -> None:
    model = tiny_llama()
    stepper = AdamWStepper(model, OptimConfig())
    backward(model)
    assert stepper.step() == StepInfo(refreshed=False, grad_norm=None, ranks=None)


def test_zero_grad_frees_the_gradients() -> None:
    model = tiny_llama()
    stepper = AdamWStepper(model, OptimConfig())
    backward(model)
    stepper.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    model = tiny_llama()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, AdamWStepper(model, OptimConfig(lr=1.0)), 0, 2, lr=0.0)
    assert all(p.equal(old) for p, old in zip(model.parameters(), before, strict=True))


def test_state_of_another_model_is_refused() -> None:
    model, other = tiny_llama(), tiny_llama(layers=3)
    stepper = AdamWStepper(other, OptimConfig())
    train(other, stepper, 0, 1)
    with pytest.raises(ValueError, match=r"not trained: model\.layers\.2"):
        AdamWStepper(model, OptimConfig()).load_state_dict(stepper.state_dict())


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        AdamWStepper(tiny_llama().requires_grad_(False), OptimConfig())

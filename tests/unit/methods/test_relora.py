"""ReLoRA: merges leave the function as it is, and between them it is LoRA; beside a loop of its own."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.method import Context
from harness.plugins import build
from methods.parts.optim.pruning import largest
from tests.support.tiny import logits, tiny_batch, tiny_llama, train

LR = 1e-2


def made(name: str = "relora", optim: OptimConfig | None = None, **options: Any) -> tuple[Any, Any]:
    model: Any = build(name, {"rank": 4, **options}).prepare(tiny_llama(), Context(seed=1))
    stepper = build(name, {"rank": 4, **options}).stepper(model, optim or OptimConfig(lr=LR))
    model.train()
    return model, stepper


def test_before_the_first_merge_it_is_lora_bit_for_bit() -> None:
    ours, stepper = made(period=10, alpha=8, others="frozen")
    theirs, other = made("lora", alpha=8)
    for step in range(4):
        train(ours, stepper, step, step + 1)
        train(theirs, other, step, step + 1)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a.equal(b), name


def test_a_merge_leaves_what_the_model_says_as_it_is_and_adapters_begin_anew() -> None:
    model, stepper = made(period=10)
    train(model, stepper, 0, 4)
    before, adapters = logits(model), {n: p.clone() for n, p in model.named_parameters() if "lora_A" in n}
    stepper.merge()
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert not parameter.any()
        if "lora_A" in name:
            assert not parameter.equal(adapters[name])
            assert parameter.abs().max() <= parameter.shape[1] ** -0.5
            assert parameter.detach().std() == pytest.approx((3 * parameter.shape[1]) ** -0.5, rel=0.3)


def test_sums_of_merges_have_a_higher_rank_than_an_adapter() -> None:
    model, stepper = made(period=2, warmup=0)
    before = model.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    train(model, stepper, 0, 6)
    moved = model.model.layers[0].self_attn.q_proj.base_layer.weight - before
    assert int(torch.linalg.matrix_rank(moved.double(), rtol=1e-5)) == 12


@pytest.mark.parametrize("kept", [0.0, 0.25])
def test_it_trains_as_a_loop_of_its_own(kept: float) -> None:
    """One layer, its update, merge, pruning and rising rate written out."""
    model, stepper = made(period=3, warmup=2, alpha=8, kept=kept, others="frozen")
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_submodule(name)
    plain = copy.deepcopy(layer.base_layer.weight.detach().double())
    a, b = (part["default"].weight.detach().double().clone() for part in (layer.lora_A, layer.lora_B))
    moments = {key: (torch.zeros_like(value), torch.zeros_like(value)) for key, value in (("a", a), ("b", b))}
    counts, merges = 0, 0
    for step in range(8):
        into = step % 3
        rate = LR * (into + 1) / 3 if merges and into < 2 else LR
        stepper.set_lr(LR)
        ids = tiny_batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        grads = {"a": layer.lora_A["default"].weight.grad, "b": layer.lora_B["default"].weight.grad}
        if kept == 0 and merges and into == 0:
            counts = 0
        counts += 1
        for key, value in (("a", a), ("b", b)):
            grad = grads[key].double()
            first, second = moments[key]
            first.mul_(0.9).add_(0.1 * grad)
            second.mul_(0.999).add_(0.001 * grad**2)
            root = (second / (1 - 0.999**counts)).sqrt() + 1e-8
            value.sub_(rate * first / (1 - 0.9**counts) / root)
        stepper.step()
        stepper.zero_grad()
        if into == 2:
            plain, merges = plain + 2.0 * b @ a, merges + 1
            a, b = layer.lora_A["default"].weight.detach().double().clone(), torch.zeros_like(b)
            moments = {key: (pruned(x, kept), pruned(y, kept)) for key, (x, y) in moments.items()}
        torch.testing.assert_close(layer.lora_A["default"].weight.double(), a, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(layer.lora_B["default"].weight.double(), b, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(layer.base_layer.weight.double(), plain, atol=1e-6, rtol=1e-4)
    assert merges == stepper.merges == 2


def pruned(moment: Tensor, kept: float) -> Tensor:
    """A moment with all but its largest entries set to 0, one after the other."""
    count = round(kept * moment.numel())
    order = sorted(range(moment.numel()), key=lambda index: -abs(moment.flatten()[index].item()))
    result = torch.zeros(moment.numel(), dtype=moment.dtype)
    for index in order[:count]:
        result[index] = moment.flatten()[index]
    return result.view_as(moment)


def test_the_largest_entries_stay_and_at_least_one() -> None:
    values = torch.tensor([[3.0, -5.0], [1.0, 4.0]])
    assert largest(values, 0.5).tolist() == [[0.0, -5.0], [0.0, 4.0]]
    assert largest(values, 0.01).tolist() == [[0.0, -5.0], [0.0, 0.0]]
    assert largest(values, 1.0).equal(values)


def test_moments_of_what_has_no_adapter_stay() -> None:
    model, stepper = made(period=3)
    train(model, stepper, 0, 2)
    kept = {name for name, _ in stepper.state_tensors()}
    train(model, stepper, 2, 3)
    assert {name for name, _ in stepper.state_tensors()} == kept
    states = dict(stepper.state_tensors())
    assert states["model.embed_tokens.weight.exp_avg"].count_nonzero() > 100
    down = "model.layers.0.mlp.up_proj.lora_A.default.weight.exp_avg"
    assert states[down].count_nonzero() == max(1, round(0.01 * states[down].numel()))


def test_a_run_without_a_merge_says_so() -> None:
    context = Context(seed=1, updates=50)
    build("relora", {"rank": 4, "period": 100}).prepare(tiny_llama(), context)
    assert context.facts["merges"] == 0
    assert any("ends before the first merge" in warning for warning in context.warnings)
    context = Context(seed=1, updates=50)
    build("relora", {"rank": 4, "period": 20}).prepare(tiny_llama(), context)
    assert context.facts["merges"] == 2
    assert not context.warnings


@pytest.mark.parametrize(("updates", "period"), [(20, 60), (20, 20), (2, 1000), (1, 1)])
def test_what_is_advised_against_a_run_without_a_merge_makes_one(updates: int, period: int) -> None:
    def warned(updates: int, period: int) -> list[str]:
        context = Context(seed=1, updates=updates)
        build("relora", {"rank": 4, "period": period}).prepare(tiny_llama(), context)
        assert (context.facts["merges"] > 0) or context.warnings
        return context.warnings

    [said] = warned(updates, period)
    advice = said.partition("; set ")[2]
    shorter, longer = re.search(r"period of at most (\d+)", advice), re.search(r"more than (\d+) upd", advice)
    assert bool(shorter) == (updates > 1)
    if shorter:
        assert not warned(updates, int(shorter[1]))
    assert longer
    assert not warned(int(longer[1]) + 1, period)


def test_random_numbers_follow_from_the_seed_and_the_layer() -> None:
    drawn = []
    for seed in (1, 1, 2):
        method = build("relora", {"rank": 4, "period": 1})
        model: Any = method.prepare(tiny_llama(), Context(seed=seed))
        stepper = method.stepper(model, OptimConfig(lr=LR))
        assert stepper is not None
        train(model, stepper, 0, 1)
        drawn.append([p.clone() for name, p in model.named_parameters() if "lora_A" in name])
    assert all(a.equal(b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(a.equal(b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert not drawn[0][0].equal(drawn[0][1])


def test_a_merge_into_bfloat16_is_rounded_once() -> None:
    model: nn.Module = tiny_llama().to(torch.bfloat16)
    method = build("relora", {"rank": 4, "period": 1})
    model = method.prepare(model, Context(seed=1))
    stepper: Any = method.stepper(model, OptimConfig(lr=LR))
    layer: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.lora_B["default"].weight.data.normal_()
    down, up = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    wanted = (layer.base_layer.weight.float() + up @ down * layer.scaling["default"]).bfloat16()
    stepper.merge()
    assert layer.base_layer.weight.equal(wanted)

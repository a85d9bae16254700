"""LoTR: which factors are shared, how many numbers train, and what comes out when updates are merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import factored
from harness.config import OptimConfig
from harness.errors import UserError
from harness.method import Context, Method
from harness.plugins import build
from methods.parts.layers.shared_tucker import SharedTuckerLinear
from tests.support.tiny import logits, tiny_llama, train

BOTH = ("q_proj", "v_proj")


def lotr(model: nn.Module, context: Context | None = None, **options: object) -> tuple[Method, nn.Module]:
    method = build("lotr", options)
    return method, method.prepare(model, context or Context())


def layers(model: nn.Module) -> dict[str, SharedTuckerLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SharedTuckerLinear)}


def trained(model: nn.Module, method: Method, steps: int = 3) -> nn.Module:
    stepper = method.stepper(model, OptimConfig(lr=1e-2))
    assert stepper is not None
    train(model, stepper, 0, steps)
    return model


def gradients(model: nn.Module) -> None:
    ids = torch.arange(16).reshape(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()


def test_training_starts_from_the_model_as_it_is_and_first_moves_the_cores_alone() -> None:
    wanted = logits(tiny_llama())
    _, model = lotr(tiny_llama(), rank=4)
    assert logits(model).equal(wanted)
    gradients(model)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    for layer in layers(model).values():
        assert layer.core.grad is not None
        assert layer.core.grad.any()
        for factor in (layer.left, layer.right):
            assert factor.grad is not None
            assert not factor.grad.any()


@pytest.mark.parametrize(("share", "groups"), [("kind", 2), ("shape", 1)])
def test_factors_are_shared_by_kind_or_by_shape_and_counted_once(share: str, groups: int) -> None:
    """Groups of k layers: rank (out + in) + k rank^2 numbers each."""
    context = Context()
    method, model = lotr(tiny_llama(hidden=32, layers=3), context, rank=4, share=share, targets=BOTH)
    found = layers(model)
    assert len(found) == 6
    assert len({id(layer.left) for layer in found.values()}) == groups
    assert len({id(layer.right) for layer in found.values()}) == groups
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trainable) == groups * 4 * (32 + 32) + 6 * 4 * 4
    assert context.facts["groups"] == groups
    trained(model, method)
    stepper = method.stepper(model, OptimConfig())
    assert stepper is not None
    train(model, stepper, 0, 1)
    states = [tensor for _, tensor in stepper.state_tensors() if tensor.numel() > 1]
    assert sum(tensor.numel() for tensor in states) == 2 * sum(p.numel() for p in trainable)


def test_the_gradient_of_a_shared_factor_is_the_sum_over_its_layers() -> None:
    method, model = lotr(tiny_llama(layers=3), rank=4, targets=["q_proj"], init="scaled")
    trained(model, method)
    model.zero_grad()
    alone = copy.deepcopy(model)
    for layer in layers(alone).values():
        layer.left, layer.right = (nn.Parameter(f.detach().clone()) for f in (layer.left, layer.right))
    for each in (model, alone):
        gradients(each)
    shared = next(iter(layers(model).values()))
    for name in ("left", "right"):
        parts = [getattr(layer, name).grad for layer in layers(alone).values()]
        assert len(parts) == 3
        torch.testing.assert_close(getattr(shared, name).grad, sum(parts), atol=1e-7, rtol=1e-5)


def test_merged_weights_say_what_the_updates_say() -> None:
    """W + alpha / rank L C R, by products of the test's own, on every layer."""
    method, model = lotr(tiny_llama(), rank=4, alpha=6, init="scaled")
    trained(model, method)
    wanted, before = logits(model), copy.deepcopy(model)
    exported = method.export(model)
    assert not layers(exported)
    assert not [name for name, _ in exported.named_parameters() if "core" in name or "base" in name]
    torch.testing.assert_close(logits(exported), wanted, atol=1e-5, rtol=1e-4)
    for name, layer in layers(before).items():
        update = torch.einsum("or,rs,si->oi", layer.left, layer.core, layer.right)
        assert update.any()
        weight = exported.get_submodule(name).weight
        torch.testing.assert_close(weight, layer.base.weight + 6 / 4 * update, atol=1e-6, rtol=1e-5)


def test_stacked_updates_have_the_tucker_rank_of_the_factors() -> None:
    method, model = lotr(tiny_llama(layers=4), rank=3, targets=BOTH, share="shape")
    trained(model, method, steps=5)
    updates = torch.stack([layer.left @ layer.core @ layer.right for layer in layers(model).values()])
    assert torch.linalg.matrix_rank(updates.flatten(1)) > 1
    for unfolded in (updates.permute(1, 0, 2), updates.permute(2, 0, 1)):
        values = torch.linalg.svdvals(unfolded.flatten(1).double())
        assert (values > 1e-6 * values[0]).sum() <= 3


def test_one_layer_with_the_identity_as_core_is_lora() -> None:
    """B = L, A = R: output and gradients, by LoRA's equation."""
    torch.manual_seed(0)
    base = nn.Linear(7, 5)
    left, right = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3, 7))
    layer = SharedTuckerLinear(base, left, right, 2.0)
    with torch.no_grad():
        layer.core.copy_(torch.eye(3))
    b, a = (factor.detach().clone().requires_grad_() for factor in (left, right))
    x, weights = torch.randn(4, 7), torch.randn(4, 5)
    wanted = x @ base.weight.T + base.bias + 2.0 * x @ a.T @ b.T
    found = layer(x)
    torch.testing.assert_close(found, wanted)
    for output in (found, wanted):
        (output * weights).sum().backward()
    torch.testing.assert_close(left.grad, b.grad)
    torch.testing.assert_close(right.grad, a.grad)


@pytest.mark.parametrize("per_layer", [False, True])
def test_in_groups_of_one_with_identities_that_stay_it_trains_as_the_method_lora(per_layer: bool) -> None:
    """Section 8 of the dossier: |G| = 1, C = I; L and R begin as LoRA's B and A, here not zero."""
    optim = OptimConfig(lr=1e-2, weight_decay=0.1, clip=None if per_layer else 1.0, per_layer=per_layer)
    lora = build("lora", {"rank": 4, "alpha": 6})
    plain: Any = lora.prepare(tiny_llama(layers=1), Context(seed=3))
    method, model = lotr(tiny_llama(layers=1), Context(seed=3), rank=4, alpha=6)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, layer in layers(model).items():
            beside = plain.get_submodule(name)
            beside.lora_B["default"].weight.normal_()
            layer.left.copy_(beside.lora_B["default"].weight)
            layer.right.copy_(beside.lora_A["default"].weight)
            layer.core.copy_(torch.eye(4))
            layer.core.requires_grad_(False)
    assert len(layers(model)) == 7
    runs = [(plain, lora.stepper(plain, optim)), (model, method.stepper(model, optim))]
    losses = [train(each, stepper, 0, 5) for each, stepper in runs if stepper is not None]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert losses[0][0] != losses[0][-1]
    for name, layer in layers(model).items():
        beside = plain.get_submodule(name)
        torch.testing.assert_close(layer.left, beside.lora_B["default"].weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(layer.right, beside.lora_A["default"].weight, rtol=1e-3, atol=1e-4)


def test_factors_depend_on_the_seed_and_their_group_alone() -> None:
    def drawn(seed: int, count: int) -> dict[str, Tensor]:
        torch.manual_seed(count)
        _, model = lotr(tiny_llama(layers=count), Context(seed=seed), rank=4)
        return {name: layer.left.detach() for name, layer in layers(model).items() if ".0." in name}

    first, deeper, other = drawn(3, 1), drawn(3, 2), drawn(4, 1)
    assert all(first[name].equal(deeper[name]) for name in first)
    assert not any(first[name].equal(other[name]) for name in first)
    assert not first["model.layers.0.self_attn.q_proj"].equal(first["model.layers.0.self_attn.v_proj"])


@pytest.mark.parametrize(("init", "deviations"), [("normal", (1.0, 1.0)), ("scaled", (80**-0.5, 32**-0.5))])
def test_factors_begin_with_the_deviation_of_their_init(init: str, deviations: tuple[float, float]) -> None:
    _, model = lotr(tiny_llama(hidden=32, layers=1), rank=32, init=init, targets=["up_proj"])
    (layer,) = layers(model).values()
    for factor, deviation in zip((layer.left, layer.right), deviations, strict=True):
        assert factor.std().item() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    _, model = lotr(tiny_llama().to(dtype))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}


def test_factored_layers_share_by_shape_and_are_refused_by_kind_where_their_ranks_differ() -> None:
    def compressed() -> nn.Module:
        names = [f"model.layers.{index}.self_attn.q_proj" for index in range(2)]
        return factored.restructure(tiny_llama(layers=2), {names[0]: 6, names[1]: 5})

    with pytest.raises(UserError) as caught:
        lotr(compressed(), rank=4, targets=["q_proj"])
    assert "layers model.layers.*.self_attn.q_proj.down have 2 shapes" in str(caught.value)
    assert "set share: shape" in str(caught.value)
    _, model = lotr(compressed(), rank=4, targets=["q_proj"], share="shape")
    assert len(layers(model)) == 4


def test_a_rank_beyond_the_short_side_is_clamped_with_one_warning_and_equal_scaling() -> None:
    context = Context()
    _, model = lotr(tiny_llama(hidden=32, kv_heads=1), context, rank=16, alpha=32)
    ranks = {name.split(".")[-2]: rank for name, rank in context.ranks.items()}
    assert (ranks["q_proj"], ranks["k_proj"], ranks["v_proj"]) == (16, 8, 8)
    assert len(context.warnings) == 1
    assert {layer.scaling for layer in layers(model).values()} == {2}

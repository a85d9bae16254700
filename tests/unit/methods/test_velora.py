"""VeLoRA: its algebra against the dense projector, what it keeps, and how it behaves beside other methods."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from harness import factored
from harness.config import OptimConfig
from harness.engine.measure.peak import LiveMeter
from harness.errors import UnsupportedError, UserError
from harness.method import Context, Method, Stepper, stack_caps
from harness.plugins import build
from methods.parts.layers.subtoken import CoefficientLinear, VeLoRALinear
from tests.support import forked
from tests.support.tiny import logits, tiny_batch, tiny_llama, train

OUT, WIDTH, GROUPS = 6, 20, 5
ROOT = Path(__file__).resolve().parents[3]


# ------------------------------------------------------------------------------------------- helpers
def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(out: int = OUT, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> nn.Linear:
    layer = nn.Linear(width, out, dtype=dtype)
    layer.load_state_dict({"weight": numbers(out, width, seed=1), "bias": numbers(out, seed=2)})
    return layer


def compressed(
    kind: type[VeLoRALinear] = VeLoRALinear,
    groups: int = GROUPS,
    scale: float = 1.0,
    v: Tensor | None = None,
    **of: Any,
) -> VeLoRALinear:
    layer = kind(linear(**of), groups, scale)
    if v is not None:
        layer.set_direction(v)
    return layer


def gradients(layer: nn.Module, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    """The gradients of the input (`x`) and of every parameter, of this one backward pass."""
    x = x.clone().requires_grad_()
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(layer(x), [x, *trained.values()], grad_output)
    return dict(zip(["x", *trained], found, strict=True))


def projector(layer: VeLoRALinear) -> Tensor:
    """The dense projector (width, width): kron(I_G, v v^T)."""
    return torch.kron(torch.eye(layer.groups, dtype=layer.v.dtype), torch.outer(layer.v, layer.v))


def batch(seed: int = 3, tokens: int = 7) -> tuple[Tensor, Tensor]:
    """An input (2, tokens, width) and a gradient of the output (2, tokens, out)."""
    return numbers(2, tokens, WIDTH, seed=seed), numbers(2, tokens, OUT, seed=seed + 100)


@contextmanager
def watching_saved_tensors() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made; views count too."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def stacked(
    model: nn.Module, *choices: str | tuple[str, dict[str, Any]], context: Context | None = None, **optim: Any
) -> tuple[nn.Module, Stepper, Callable[[], nn.Module]]:
    """A model prepared by a stack, its stepper, and the function that exports it."""
    methods = [build(*(choice if isinstance(choice, tuple) else (choice, {}))) for choice in choices]
    for method in methods:
        model = method.prepare(model, context or Context(seed=1))
    found = [method.stepper(model, OptimConfig(**optim)) for method in methods]
    model.train()

    def export() -> nn.Module:
        exported = model
        for method in reversed(methods):
            exported = method.export(exported)
        return exported

    return model, next(stepper for stepper in reversed(found) if stepper is not None), export


def layers(model: nn.Module) -> dict[str, VeLoRALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, VeLoRALinear)}


def loss(model: nn.Module, step: int = 0) -> Tensor:
    ids = tiny_batch(step)
    return model(input_ids=ids, labels=ids).loss


# ---------------------------------------------------------------------------------- V1-V5, V7: algebra
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [VeLoRALinear, CoefficientLinear])
def test_v1_the_output_is_that_of_a_plain_layer_to_the_bit(
    kind: type[VeLoRALinear], dtype: torch.dtype
) -> None:
    layer, plain = compressed(kind, dtype=dtype), linear(dtype=dtype)
    for shape in [(2, 7, WIDTH), (9, WIDTH), (WIDTH,)]:
        x = numbers(*shape).to(dtype)
        for mode in (True, False):
            assert layer.train(mode)(x).equal(plain(x))


def test_v1_evaluation_keeps_nothing_and_sets_nothing() -> None:
    layer = compressed()
    with watching_saved_tensors() as saved, torch.no_grad():
        layer.eval()(batch()[0])
        layer.train()(batch()[0])
    assert not saved
    assert not layer.ready
    assert not layer.v.any()


@pytest.mark.parametrize("seed", range(3))
def test_v2_gradients_of_input_and_bias_are_exact_for_any_direction(seed: int) -> None:
    found = gradients(compressed(v=numbers(4, seed=seed), scale=3.0), *batch())
    exact = gradients(linear(), *batch())
    for name in ("x", "bias"):
        torch.testing.assert_close(found[name], exact[name], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4, 5, 10, 20])
def test_v3_the_weight_gradient_is_the_exact_one_times_the_projector(groups: int) -> None:
    layer = compressed(groups=groups, scale=0.7, v=numbers(WIDTH // groups))
    found, exact = gradients(layer, *batch())["weight"], gradients(linear(), *batch())["weight"]
    torch.testing.assert_close(found, 0.7 * exact @ projector(layer), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found @ projector(layer), found, atol=1e-10, rtol=1e-10)


def test_v4_what_lies_along_v_is_exact_and_what_is_orthogonal_vanishes() -> None:
    v, across = numbers(4, seed=5), numbers(4, seed=6)
    across -= across @ v / (v @ v) * v
    coordinates, grad_output = numbers(2, 7, GROUPS, 1), batch()[1]
    layer = compressed(v=v, scale=2.0)
    along = (coordinates * v).flatten(2)
    exact = gradients(linear(), along, grad_output)["weight"]
    torch.testing.assert_close(gradients(layer, along, grad_output)["weight"], 2 * exact, atol=1e-10, rtol=0)
    vanished = gradients(layer, (coordinates * across).flatten(2), grad_output)["weight"]
    torch.testing.assert_close(vanished, torch.zeros_like(vanished), atol=1e-10, rtol=0)


def test_v4_sub_tokens_of_one_feature_are_exact() -> None:
    layer = compressed(groups=WIDTH)
    found, exact = (gradients(each, *batch())["weight"] for each in (layer, linear()))
    assert layer.v.abs().equal(torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-12)


def test_v5_each_column_block_is_an_outer_product_with_v_and_linear_in_the_scale() -> None:
    x, grad_output = batch()
    layer = compressed(v=numbers(4))
    found = gradients(layer, x, grad_output)["weight"]
    coordinates = x.reshape(-1, GROUPS, 4) @ layer.v
    by_group = grad_output.flatten(0, 1).T @ coordinates
    for group, block in enumerate(found.split(4, dim=1)):
        torch.testing.assert_close(block, torch.outer(by_group[:, group], layer.v), atol=1e-12, rtol=1e-12)
        assert torch.linalg.matrix_rank(block) == 1
    scaled = gradients(compressed(v=numbers(4), scale=2.5), x, grad_output)["weight"]
    torch.testing.assert_close(scaled, 2.5 * found)


@pytest.mark.parametrize("seed", range(5))
def test_v7_the_gradient_never_points_against_the_exact_one(seed: int) -> None:
    layer = compressed(v=numbers(4, seed=seed), scale=0.3)
    found, exact = (gradients(each, *batch(seed))["weight"] for each in (layer, linear()))
    expected = 0.3 * (exact @ projector(layer)).square().sum()
    torch.testing.assert_close((found * exact).sum(), expected)
    assert expected > 0


# ------------------------------------------------------------------------------------ V6: what steps do
def steps(layer: nn.Module, optimizer: torch.optim.Optimizer, count: int = 4) -> None:
    for step in range(count):
        optimizer.zero_grad()
        x, target = batch(step)
        (layer(x) * target).sum().add(0.1 * layer(x).square().sum()).backward()
        optimizer.step()


def test_v6_sgd_moves_each_block_of_the_weight_along_v_only() -> None:
    layer = compressed(scale=1.7)
    before = layer.weight.detach().clone()
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9))
    moved = layer.weight.detach() - before
    assert moved.abs().max() > 0.01
    torch.testing.assert_close(moved, moved @ projector(layer), atol=1e-12, rtol=1e-10)


def test_v6_adam_sees_only_the_signs_of_v_and_not_the_scale() -> None:
    x, grad_output = batch()
    moves = []
    for scale in (1.0, 0.01):
        layer = compressed(v=numbers(4), scale=scale)
        before = layer.weight.detach().clone()
        adam = torch.optim.Adam(layer.parameters(), lr=0.01, eps=1e-30)
        for factor in (1.0, -0.3, 2.0):
            adam.zero_grad()
            layer(x).backward(factor * grad_output)
            adam.step()
        moves.append((layer.weight.detach() - before).unflatten(1, (GROUPS, 4)))
    torch.testing.assert_close(moves[0], moves[1], atol=1e-14, rtol=1e-10)
    sizes = moves[0].abs()
    torch.testing.assert_close(sizes, sizes[:, :, :1].expand_as(sizes))
    relative = moves[0].sign() * layer.v.sign()
    assert relative.equal(relative[:, :, :1].expand_as(relative))


# ------------------------------------------------------------------------------- V8: the direction
def test_v8_the_first_training_batch_sets_the_mean_direction_and_later_ones_leave_it() -> None:
    layer = compressed()
    layer.eval()(batch(4)[0])
    assert not layer.ready
    x, _ = batch(5)
    layer.train()(x)
    mean = x.reshape(-1, 4).mean(0)
    torch.testing.assert_close(layer.v, mean / mean.norm())
    torch.testing.assert_close(layer.v.norm(), torch.ones((), dtype=torch.float64))
    first = layer.v.clone()
    layer(batch(6)[0])
    assert layer.v.equal(first)


def test_v8_a_mean_of_zero_gives_equal_entries_and_no_nan() -> None:
    layer = compressed()
    x, grad_output = batch()
    found = gradients(layer, torch.cat([x, -x], dim=1), torch.cat([grad_output, grad_output], dim=1))
    x = torch.zeros_like(x)
    zero = compressed()
    zero(x)
    assert zero.v.equal(torch.full((4,), 0.5, dtype=torch.float64))
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_v8_the_direction_survives_saving_and_loading() -> None:
    layer, other = compressed(), compressed()
    layer(batch(1)[0])
    other.load_state_dict(layer.state_dict())
    other(batch(2)[0])
    assert other.v.equal(layer.v)


def test_v8_a_checkpoint_from_before_training_leaves_the_direction_open() -> None:
    fresh, trained = compressed().state_dict(), compressed()
    trained(batch(1)[0])
    trained.load_state_dict(fresh)
    trained(batch(2)[0])
    expected = compressed()
    expected(batch(2)[0])
    assert trained.v.equal(expected.v)


def test_v8_v_is_wider_than_a_narrow_weight() -> None:
    layer = compressed(dtype=torch.bfloat16)
    layer(batch()[0].bfloat16())
    assert layer.v.dtype == torch.float32
    assert abs(layer.v.norm().item() - 1) < 1e-6


@pytest.mark.parametrize("kind", [VeLoRALinear, CoefficientLinear])
def test_a_step_reads_no_value_which_would_stall_a_gpu(kind: type[VeLoRALinear]) -> None:
    """Tensors without values refuse to be read."""
    with FakeTensorMode():
        layer = kind(nn.Linear(WIDTH, OUT), GROUPS, 1.0)
        for _ in range(2):
            layer(torch.randn(2, 7, WIDTH)).sum().backward()
        assert layer.ready
        with pytest.raises(DataDependentOutputException):
            bool(layer.v.any())


RANK = """
import sys, torch
from torch import distributed, nn
from methods.parts.layers.subtoken import VeLoRALinear
rank, folder = int(sys.argv[1]), sys.argv[2]
store = distributed.FileStore(f"{folder}/store", 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
layer = VeLoRALinear(nn.Linear(20, 6), 5, 1.0)
layer(torch.load(f"{folder}/{rank}.input"))
torch.save(layer.v, f"{folder}/{rank}.v")
distributed.destroy_process_group()
"""


def test_v8_all_processes_have_the_direction_of_their_whole_batch(tmp_path: Path) -> None:
    inputs = [batch(seed)[0].float() + seed for seed in (1, 2)]
    for rank, x in enumerate(inputs):
        torch.save(x, tmp_path / f"{rank}.input")
    processes = [subprocess.Popen(forked.script(RANK, rank, tmp_path), cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.v") for rank in (0, 1))
    assert first.equal(second)
    alone = compressed(dtype=torch.float32)
    alone(torch.cat(inputs))
    torch.testing.assert_close(first, alone.v)


# -------------------------------------------------------------------------------- V9: what is kept
@pytest.mark.parametrize("kind", [VeLoRALinear, CoefficientLinear])
def test_v9_the_graph_keeps_coordinates_and_no_input(kind: type[VeLoRALinear]) -> None:
    layer = compressed(kind, out=3)
    x = batch()[0].requires_grad_()
    with watching_saved_tensors() as saved:
        layer(x)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // 8 for tensor in saved
    }
    for held in (*layer.parameters(), *layer.buffers()):
        storages.pop(held.untyped_storage().data_ptr(), None)
    assert sorted(storages.values()) == [2 * 7 * GROUPS]
    assert all(tensor.numel() != x.numel() for tensor in saved)


def test_v9_no_input_and_no_gradient_per_sequence_is_built_on_the_way_back() -> None:
    sequences, tokens, out, width = 4, 64, 8, 160
    layer = compressed(groups=8, out=out, width=width)
    y = layer(numbers(sequences, tokens, width))
    with Largest() as seen:
        y.backward(torch.ones_like(y))
    assert layer.weight.grad is not None
    assert seen.elements == max(out * width, sequences * tokens * out)
    assert seen.elements < min(sequences * tokens * width, sequences * out * width)


def test_v9_the_backward_pass_needs_the_weight_gradient_and_little_else() -> None:
    sequences, tokens, out, width = 4, 16, 64, 256
    layer = compressed(groups=8, out=out, width=width)
    y = layer(numbers(sequences, tokens, width))
    grad_output = torch.ones_like(y)
    meter = LiveMeter(torch.device("cpu"))
    with meter.window() as before:
        torch.zeros(())
    with meter.window() as during:
        y.backward(grad_output)
    weight, coefficients = 8 * out * width, 8 * out * 8
    assert (
        during.peak_allocated_bytes - before.peak_allocated_bytes
        <= weight + coefficients + 8 * 2 * out + 1024
    )


# --------------------------------------------------------------------------------------- V10: adapters
def adapted(velora: bool, **options: Any) -> tuple[nn.Module, Stepper, Callable[[], nn.Module]]:
    """A model with adapters whose B is not zero, so that A gets a gradient."""
    choices: list[Any] = [("lora", {"rank": 4})]
    if velora:
        choices.append(("velora", {"num_groups": 4, **options}))
    model, stepper, export = stacked(tiny_llama().double(), *choices)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = numbers(*parameter.shape, seed=len(name)) / 10
    return model, stepper, export


def test_v10_of_an_adapter_b_is_exact_a_is_projected_and_the_rest_is_frozen() -> None:
    (model, _, _), (plain, _, _) = adapted(True), adapted(False)
    for each in (model, plain):
        loss(each).backward()
    exact = {name: parameter.grad for name, parameter in plain.named_parameters()}
    chosen = layers(model)
    assert sorted(chosen) == [
        f"model.layers.{index}.{kind}.lora_A.default"
        for index in range(2)
        for kind in ("mlp.down_proj", "self_attn.v_proj")
    ]
    for name, parameter in model.named_parameters():
        wanted = exact[name]
        layer = chosen.get(name.removesuffix(".weight"))
        if wanted is None:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None
        expected = wanted if layer is None else wanted @ projector(layer)
        torch.testing.assert_close(parameter.grad, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("state", ["weight", "groups"])
def test_v10_adapters_merge_into_the_model_that_was_trained(state: str) -> None:
    model, stepper, export = adapted(True, state=state)
    losses = train(model, stepper, 0, 3)
    assert losses[0] != losses[-1]
    wanted = logits(model)
    exported = export()
    assert not layers(exported)
    assert set(exported.state_dict()) == set(tiny_llama().state_dict())
    torch.testing.assert_close(logits(exported), wanted, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------- V11: dividing
@pytest.mark.parametrize(
    ("options", "given"), [({"num_groups": 7}, "num_groups 7"), ({"subtoken_size": 64}, "subtoken_size 64")]
)
def test_v11_a_number_that_does_not_divide_the_width_is_an_error_with_those_that_do(
    options: dict[str, int], given: str
) -> None:
    with pytest.raises(UserError) as error:
        build("velora", options).prepare(tiny_llama(), Context())
    name = "model.layers.0.self_attn.v_proj"
    assert str(error.value) == (
        f"velora: {given} does not divide 32, the inputs of {name}; use 1, 2, 4, 8, 16, 32"
    )


def test_v11_a_size_gives_each_kind_its_number_of_groups() -> None:
    context = Context()
    build("velora", {"subtoken_size": 16}).prepare(tiny_llama(), context)
    assert context.facts["num_groups"] == {"v_proj": 2, "down_proj": 5}
    assert context.facts["subtoken_size"] == {"v_proj": 16, "down_proj": 16}


@pytest.mark.parametrize(
    ("width", "groups"),
    [(7, 1), (13, 1), (32, 4), (512, 32), (1376, 32), (2048, 32), (5461, 43), (11008, 32)],
)
def test_v11_without_a_number_there_is_a_divisor_near_32_that_leaves_sub_tokens_of_8(
    width: int, groups: int
) -> None:
    model = nn.ModuleDict({"down_proj": nn.Linear(width, 2)})
    context = Context()
    build("velora", {"targets": ["down_proj"]}).prepare(model, context)
    assert context.facts["num_groups"] == {"down_proj": groups}


# ------------------------------------------------------------------------------ V12: many batches
def test_v12_gradients_of_parts_add_up_to_that_of_the_whole_batch() -> None:
    x, grad_output = numbers(6, 7, WIDTH, seed=8), numbers(6, 7, OUT, seed=9)
    layer = compressed(v=numbers(4))
    whole = gradients(layer, x, grad_output)["weight"]
    for part, grad in zip(x.split(2), grad_output.split(2), strict=True):
        layer(part).backward(grad)
    torch.testing.assert_close(layer.weight.grad, whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_neither_direction_nor_gradients(reentrant: bool) -> None:
    plain, recomputed = compressed(), compressed()
    x, grad_output = batch()
    wanted = gradients(plain, x, grad_output)
    x.requires_grad_()
    y = checkpoint(lambda x: recomputed(x), x, use_reentrant=reentrant)
    y.backward(grad_output)
    assert recomputed.v.equal(plain.v)
    found = {"x": x.grad, "weight": recomputed.weight.grad, "bias": recomputed.bias.grad}
    assert all(tensor is not None and tensor.equal(wanted[name]) for name, tensor in found.items())


# ------------------------------------------------------------------------------------ state: groups
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_v6_coefficients_follow_the_weight_exactly_under_sgd(scale: float) -> None:
    dense, small = compressed(scale=scale), compressed(CoefficientLinear, scale=scale)
    for layer in (dense, small):
        steps(layer, torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9))
    torch.testing.assert_close(small.plain().weight, dense.weight, atol=1e-12, rtol=1e-10)
    assert not small.plain().weight.equal(linear().weight)


def test_under_adam_coefficients_move_an_entry_by_its_share_of_v() -> None:
    """Entry j moves by sqrt(scale) v_j times Adam's step; with scale = M the norm is that of `weight`."""
    dense, small = (compressed(kind, scale=4.0, v=numbers(4)) for kind in (VeLoRALinear, CoefficientLinear))
    for layer in (dense, small):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, eps=1e-30)
        layer(batch()[0]).backward(batch()[1])
        optimizer.step()
    moves = [
        (layer.plain().weight - linear().weight).detach().unflatten(1, (GROUPS, 4))
        for layer in (dense, small)
    ]
    torch.testing.assert_close(moves[1], moves[0] * small.v.abs() * 2)
    torch.testing.assert_close(moves[1].norm(), moves[0].norm())


def test_coefficients_have_exact_gradients_of_their_function() -> None:
    layer = compressed(CoefficientLinear, scale=2.0, v=numbers(4))
    layer.coefficients.data = numbers(OUT, GROUPS, seed=12)
    found, exact = gradients(layer, *batch()), gradients(layer.plain(), *batch())
    torch.testing.assert_close(layer(batch()[0]), layer.plain()(batch()[0]))
    torch.testing.assert_close(found["x"], exact["x"])
    chained = (exact["weight"].unflatten(1, (GROUPS, 4)) @ layer.v) * 2**0.5
    torch.testing.assert_close(found["coefficients"], chained)


def test_a_method_that_trains_all_parameters_leaves_the_resting_weight_alone() -> None:
    model, stepper, export = stacked(tiny_llama(), ("velora", {"state": "groups"}), "full")
    before = {name: layer.weight.clone() for name, layer in layers(model).items()}
    train(model, stepper, 0, 3)
    for name, layer in layers(model).items():
        assert layer.weight.equal(before[name])
        states = {key: tensor.shape for key, tensor in stepper.state_tensors() if key.startswith(name)}
        assert states[f"{name}.coefficients.exp_avg"] == (layer.out_features, layer.groups)
    wanted = logits(model)
    torch.testing.assert_close(logits(export()), wanted, atol=1e-5, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------------- stacks
STACKS: dict[str, tuple[Any, ...]] = {
    "velora, full": ("velora", "full"),
    "velora (groups), full": (("velora", {"state": "groups"}), "full"),
    "velora (random), full": (("velora", {"init": "random"}), "full"),
    "lora with dropout, velora": (("lora", {"rank": 4, "dropout": 0.1}), "velora"),
    "lora, velora (groups)": (("lora", {"rank": 4}), ("velora", {"state": "groups"})),
    "velora, galore": ("velora", ("galore", {"rank": 4, "period": 2})),
    "velora (groups), galore": (("velora", {"state": "groups"}), ("galore", {"rank": 4, "period": 2})),
    "velora, adarankgrad": ("velora", "adarankgrad"),
    "uniform, velora": (("uniform", {"err": 0.5}), "velora"),
    "two veloras, full": (
        ("velora", {"targets": ["v_proj"], "num_groups": 8}),
        ("velora", {"targets": ["down_proj"], "num_groups": 10}),
        "full",
    ),
}


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    return STACKS[request.param]


def test_a_stack_lowers_the_loss_and_exports_what_it_trained(stack: tuple[Any, ...]) -> None:
    model, stepper, export = stacked(tiny_llama(tie=True, kv_heads=2), *stack)
    losses = [train(model, stepper, 0, 1)[0] for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1
    wanted = logits(model)
    exported = factored.merge(export())
    assert {type(m).__module__.split(".")[0] for m in exported.modules()} <= {"torch", "transformers"}
    assert set(exported.state_dict()) == set(tiny_llama(tie=True, kv_heads=2).state_dict())
    torch.testing.assert_close(logits(exported), wanted, atol=1e-4, rtol=1e-4)


def test_a_bfloat16_stack_trains_in_bfloat16(stack: tuple[Any, ...]) -> None:
    model, stepper, _ = stacked(tiny_llama().bfloat16(), *stack)
    losses = [train(model, stepper, 0, 1)[0] for _ in range(10)]
    assert losses[-1] < losses[0] - 0.05
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_run_saved_before_or_amid_training_goes_on_bit_for_bit() -> None:
    for saved_at in (0, 2):
        model, stepper, _ = stacked(tiny_llama(), "velora", "full")
        train(model, stepper, 0, saved_at)
        saved = copy.deepcopy((model.state_dict(), stepper.state_dict()))
        losses = train(model, stepper, saved_at, 5)
        resumed, again, _ = stacked(tiny_llama(seed=9), "velora", "full")
        resumed.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        assert train(resumed, again, saved_at, 5) == losses


def test_updates_inside_the_backward_pass_are_the_same_to_the_bit() -> None:
    losses = []
    for per_layer in (False, True):
        model, stepper, _ = stacked(tiny_llama(), "velora", "full", per_layer=per_layer)
        losses.append(train(model, stepper, 0, 4))
    assert losses[0] == losses[1]


def test_the_caps_of_a_stack_are_those_of_the_method_that_trains() -> None:
    for name in ("lora", "galore"):
        other = build(name, {})
        assert stack_caps([build("velora", {}), other]) == other.caps


def test_velora_brings_no_stepper() -> None:
    method = build("velora", {})
    assert method.stepper(method.prepare(tiny_llama(), Context()), OptimConfig()) is None


def test_a_layer_frozen_after_it_was_chosen_is_unsupported_with_the_order_that_works() -> None:
    for state in ("weight", "groups"):
        model, _, _ = stacked(tiny_llama(), ("velora", {"state": state}), "lora")
        with pytest.raises(
            UnsupportedError, match=r"one of its layers is frozen; put it after .*\[lora, velora\]"
        ):
            loss(model)
        model.eval()
        loss(model)


# -------------------------------------------------------------------------------- which layers are chosen
def prepared(model: nn.Module, context: Context | None = None, **options: Any) -> tuple[Method, nn.Module]:
    method = build("velora", options)
    return method, method.prepare(model, context or Context())


def test_parameters_stay_the_same_objects_under_the_same_names() -> None:
    model = tiny_llama(tie=True)
    before = dict(model.named_parameters())
    method, model = prepared(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    method.export(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: id(p) for name, p in before.items()
    }


def test_targets_choose_kinds_and_an_unknown_one_is_an_error_that_names_those_there_are() -> None:
    _, model = prepared(tiny_llama(), targets=["q_proj", "up_proj"])
    assert {name.rpartition(".")[2] for name in layers(model)} == {"q_proj", "up_proj"}
    for wrong in ("v_prj", "lm_head"):
        with pytest.raises(UserError, match=f"no linear layer '{wrong}'"):
            prepared(tiny_llama(tie=True), targets=[wrong])


def test_of_a_factored_layer_the_first_factor_is_compressed_with_or_without_adapters() -> None:
    ranks = {
        "model.layers.0.self_attn.v_proj": 32
    }  # as wide as the input: only its place tells the factors apart
    _, model = prepared(factored.restructure(tiny_llama(), ranks), targets=["v_proj"])
    assert sorted(layers(model)) == [
        "model.layers.0.self_attn.v_proj.down",
        "model.layers.1.self_attn.v_proj",
    ]
    model, _, _ = stacked(
        factored.restructure(tiny_llama(), ranks), "lora", ("velora", {"targets": ["v_proj"]})
    )
    assert sorted(layers(model)) == [
        "model.layers.0.self_attn.v_proj.down.lora_A.default",
        "model.layers.1.self_attn.v_proj.lora_A.default",
    ]


def test_layers_that_are_frozen_are_left_alone_and_none_at_all_is_an_error() -> None:
    model = tiny_llama()
    model.get_submodule("model.layers.0").requires_grad_(False)
    _, model = prepared(model)
    assert {name.split(".")[2] for name in layers(model)} == {"1"}
    with pytest.raises(UserError, match="none of v_proj, down_proj trains; choose targets that do"):
        prepared(tiny_llama().requires_grad_(False))


def test_two_veloras_with_a_common_target_are_an_error() -> None:
    _, model = prepared(tiny_llama(), targets=["v_proj"])
    with pytest.raises(UserError, match="have a target in common"):
        prepared(model)


def test_a_weight_that_two_layers_share_gets_both_gradients() -> None:
    def model() -> nn.ModuleDict:
        return nn.ModuleDict({"down_proj": linear(WIDTH), "other": linear(WIDTH)})

    tied, exact = model(), model()
    for each in (tied, exact):
        each["other"].weight = each["down_proj"].weight
    prepared(tied, num_groups=GROUPS, targets=["down_proj"])
    x, grad_output = batch()[0], numbers(2, 7, WIDTH, seed=3)
    grad = torch.autograd.grad(tied["other"](tied["down_proj"](x)), tied["other"].weight, grad_output)[0]
    inner, outer = (
        torch.autograd.grad(part, exact["other"].weight, grad_output @ back)[0]
        for part, back in (
            (exact["down_proj"](x), exact["other"].weight.detach()),
            (exact["other"](exact["down_proj"](x).detach()), torch.eye(WIDTH, dtype=torch.float64)),
        )
    )
    torch.testing.assert_close(grad, inner @ projector(tied["down_proj"]) + outer)


def test_a_model_keeps_its_mode_of_training_or_evaluation() -> None:
    method, model = prepared(tiny_llama().eval())
    assert not any(module.training for module in model.modules())
    assert not any(module.training for module in method.export(model).modules())


def test_random_directions_depend_on_the_seed_and_the_layer_alone() -> None:
    def directions(seed: int) -> list[Tensor]:
        return [
            layer.v for layer in layers(prepared(tiny_llama(), Context(seed=seed), init="random")[1]).values()
        ]

    torch.manual_seed(1)
    first = directions(3)
    torch.manual_seed(2)
    assert all(mine.equal(again) for mine, again in zip(first, directions(3), strict=True))
    assert not any(mine.equal(other) for mine, other in zip(first, directions(4), strict=True))
    assert not first[0].equal(first[2])
    assert all(abs(v.norm().item() - 1) < 1e-6 for v in first)


def test_preparing_leaves_the_random_state_alone() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    prepared(tiny_llama(), init="random")
    assert torch.get_rng_state().equal(before)


def test_a_model_without_values_can_be_prepared_for_simulation() -> None:
    for options in ({}, {"state": "groups"}, {"init": "random"}):
        with torch.device("meta"):
            _, model = prepared(tiny_llama(), **options)
        assert all(tensor.is_meta for tensor in model.state_dict().values())


# ------------------------------------------------------------------------------------ facts and options
def test_facts_say_what_is_kept_and_a_value_projection_alone_is_warned_about() -> None:
    """Per block v keeps 4 numbers beside the 32 that q and k keep, and down 10 instead of 80."""
    context = Context()
    prepared(tiny_llama(layers=3), context)
    assert context.facts == {
        "compressed_layers": 6,
        "num_groups": {"v_proj": 4, "down_proj": 10},
        "subtoken_size": {"v_proj": 8, "down_proj": 8},
        "saved_bytes_per_token_before": 3 * 4 * (32 + 80),
        "saved_bytes_per_token_after": 3 * 4 * (32 + 4 + 10),
    }
    assert context.warnings == [
        "velora: compressing v_proj alone saves nothing, its input stays alive for q_proj and k_proj"
    ]


def test_all_layers_of_one_input_together_save_it_without_a_warning() -> None:
    context = Context()
    prepared(tiny_llama(layers=1), context, targets=["q_proj", "k_proj", "v_proj"], num_groups=4)
    assert context.facts["saved_bytes_per_token_before"] == 4 * 32
    assert context.facts["saved_bytes_per_token_after"] == 4 * 3 * 4
    assert not context.warnings


@pytest.mark.parametrize(("dropout", "warnings"), [(0.0, 1), (0.1, 0)])
def test_an_adapter_with_dropout_reads_a_copy_of_its_own(dropout: float, warnings: int) -> None:
    context = Context()
    model = build("lora", {"dropout": dropout}).prepare(tiny_llama(), Context())
    prepared(model, context)
    assert len(context.warnings) == warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_groups": 4, "subtoken_size": 8},
            "num_groups and subtoken_size set the same size; give one of them",
        ),
        ({"num_groups": 0}, "num_groups: give a number above 0"),
        ({"scale": 0}, "scale: give a number above 0"),
        ({"init": "svd"}, "init: give 'first_batch' or 'random'"),
        ({"targets": []}, "targets"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"method velora: {message}"):
        build("velora", options)

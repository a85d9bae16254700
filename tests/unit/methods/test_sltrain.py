"""SLTrain: invariants I1 to I11 of the layer, its two executions, and what the method makes of a model."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig, Run
from harness.engine.models.load import shape_config
from harness.engine.quality.perplexity import score
from harness.engine.run import checks
from harness.errors import UnsupportedError, UserError
from harness.method import Context, Method
from harness.plugins import build
from methods.parts.layers import sparse_plus_lowrank, sparse_products
from methods.parts.layers.sparse_plus_lowrank import Execution, SLTrainLinear, dense_is_cheaper
from methods.sltrain import support, support_dtype, support_size
from tests.support.tiny import logits, tiny_llama, train

ROOT = Path(__file__).resolve().parents[3]
OUT, IN, RANK, DELTA, SCALE = 12, 20, 3, 0.15, 0.25
EXECUTIONS: tuple[Execution, ...] = ("dense", "factored", "auto")
every_execution = pytest.mark.parametrize("execution", EXECUTIONS)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows and several chunks of tokens, the last ones shorter."""
    monkeypatch.setattr(sparse_products, "BLOCK_ELEMENTS", 5 * IN)
    monkeypatch.setattr(sparse_products, "CHUNK_TOKENS", 4)


def layer(
    execution: Execution = "auto",
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    delta: float = DELTA,
    trained: bool = True,
) -> SLTrainLinear:
    """A layer (12, 20) as it begins, or with a B that is not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        replaced = nn.Linear(IN, OUT, bias=bias, dtype=dtype)
    made = SLTrainLinear(replaced, support((OUT, IN), delta, 0, 0), RANK, SCALE, execution, generator)
    if trained:
        nn.init.normal_(made.factor_b, generator=generator)
    return made


def tokens(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(made: SLTrainLinear, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output and gradients by the formulas, from the whole W and the whole gradient of W."""
    b, a, places = made.factor_b.detach(), made.factor_a.detach(), made.support.long()
    weight = SCALE * b @ a
    weight.view(-1)[places] += made.values.detach()
    gradient = dy.flatten(0, -2).T @ x.flatten(0, -2)
    return {
        "y": x @ weight.T,
        "x": dy @ weight,
        "factor_b": SCALE * gradient @ a.T,
        "factor_a": SCALE * b.T @ gradient,
        "values": gradient.flatten()[places],
    }


def results(made: SLTrainLinear, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = made(x)
    wanted = {"x": x, "factor_b": made.factor_b, "factor_a": made.factor_a, "values": made.values}
    gradients = torch.autograd.grad(y, list(wanted.values()), dy)
    return {"y": y.detach(), **dict(zip(wanted, gradients, strict=True))}


# ------------------------------------------------------------------------------------------- the layer
@every_execution
@pytest.mark.parametrize("shape", [(IN,), (7, IN), (2, 5, IN)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_i1_the_layer_is_linear_with_its_dense_weight(
    execution: Execution, shape: tuple[int, ...], bias: bool, small_pieces: None
) -> None:
    made, x = layer(execution, bias=bias), tokens(*shape)
    expected = F.linear(x, made.dense(), made.bias)
    torch.testing.assert_close(made(x), expected, atol=1e-12, rtol=0)


@every_execution
def test_i1_in_bfloat16_to_a_hundredth(execution: Execution) -> None:
    made, x = layer(execution, torch.bfloat16), tokens(9, IN, dtype=torch.bfloat16)
    expected = F.linear(x.double(), made.dense().double())
    assert made(x).dtype == torch.bfloat16
    assert (made(x) - expected).norm() < 1e-2 * expected.norm()


@every_execution
def test_i2_gradcheck(execution: Execution, small_pieces: None) -> None:
    made = layer(execution, bias=True)
    inputs = [tokens(2, 3, IN).requires_grad_(), *made.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: made(x), inputs)


@every_execution
def test_i2_gradients_are_those_of_the_dense_weight_seen_through_its_parts(
    execution: Execution, small_pieces: None
) -> None:
    made, x, dy = layer(execution), tokens(2, 5, IN), tokens(2, 5, OUT, seed=2)
    torch.testing.assert_close(results(made, x, dy), reference(made, x, dy), atol=1e-11, rtol=0)


@every_execution
def test_i2_what_lies_outside_the_support_never_moves_the_values(execution: Execution) -> None:
    """With a support in the first column alone, the other columns of x can be anything."""
    made, x, dy = layer(execution), tokens(6, IN), tokens(6, OUT, seed=2)
    made.support = torch.arange(0, OUT * IN, IN, dtype=torch.int32)[: len(made.values)]
    made.values = nn.Parameter(made.values[: len(made.support)].detach())
    other = torch.cat([x[:, :1], tokens(6, IN - 1, seed=3)], dim=1)
    ours, theirs = (results(made, inputs, dy) for inputs in (x, other))
    torch.testing.assert_close(ours["values"], theirs["values"], atol=1e-13, rtol=0)
    assert not ours["factor_b"].allclose(theirs["factor_b"])


@every_execution
def test_i3_at_first_only_the_sparse_part_speaks_and_the_gradient_of_a_is_exactly_zero(
    execution: Execution,
) -> None:
    made = layer(execution, trained=False)
    scattered = torch.zeros(OUT * IN, dtype=torch.float64)
    scattered[made.support.long()] = made.values.detach()
    assert made.dense().flatten().equal(scattered)
    found = results(made, tokens(6, IN), tokens(6, OUT, seed=2))
    assert found["factor_a"].eq(0).all()
    assert found["factor_b"].ne(0).all()
    assert found["values"].ne(0).all()
    before = made.factor_a.detach().clone()
    made(tokens(6, IN)).square().sum().backward()
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    assert made.factor_a.equal(before)
    assert made.factor_b.ne(0).all()


def test_i3_a_and_the_values_begin_within_one_over_the_root_of_the_input_width() -> None:
    made, bound = layer(trained=False, delta=1.0), IN**-0.5
    for drawn in (made.factor_a, made.values):
        assert 0.8 * bound < drawn.abs().max() <= bound
        assert abs(drawn.mean()) < 0.3 * bound


@pytest.mark.parametrize("delta", [0.01, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(12, 20), (31, 7), (64, 64)], ids=str)
def test_i4_a_support_has_so_many_distinct_sorted_positions_within_the_matrix(
    shape: tuple[int, int], delta: float
) -> None:
    positions, total = support(shape, delta, seed=3, index=5), math.prod(shape)
    assert len(positions) == support_size(shape, delta) == math.floor(delta * total)
    assert positions.dtype == torch.int32
    assert (positions[1:] > positions[:-1]).all()
    assert positions[0] >= 0
    assert positions[-1] < total


def test_i4_the_support_follows_from_seed_and_layer_alone() -> None:
    first = support((12, 20), 0.3, seed=3, index=5)
    torch.manual_seed(99)
    assert support((12, 20), 0.3, seed=3, index=5).equal(first)
    assert not support((12, 20), 0.3, seed=4, index=5).equal(first)
    assert not support((12, 20), 0.3, seed=3, index=6).equal(first)


@pytest.mark.parametrize("delta", [0.25, 0.75])
def test_i4_every_position_is_as_likely_as_any_other(delta: float) -> None:
    """Each of 20 positions: binomial over 600 draws, within five standard deviations."""
    draws = 600
    counts = Counter(int(p) for seed in range(draws) for p in support((4, 5), delta, seed, 0))
    spread = (draws * delta * (1 - delta)) ** 0.5
    assert all(abs(counts[position] - draws * delta) < 5 * spread for position in range(20))


def test_i4_positions_beyond_int32_are_int64() -> None:
    assert support_dtype((1 << 16, (1 << 15) - 1)) == torch.int32
    assert support_dtype((1 << 16, 1 << 15)) == torch.int64


@every_execution
def test_i4_wide_positions_give_the_same_result(execution: Execution) -> None:
    made, x, dy = layer(execution), tokens(6, IN), tokens(6, OUT, seed=2)
    expected = results(made, x, dy)
    made.support = made.support.long()
    torch.testing.assert_close(results(made, x, dy), expected)


def test_i4_the_support_survives_casts_saving_and_training() -> None:
    made, other = layer(), layer()
    first = made.support.clone()
    made.to(torch.bfloat16).half().double()
    optimizer = torch.optim.AdamW(made.parameters())
    for step in range(3):
        made(tokens(6, IN, seed=step)).square().sum().backward()
        optimizer.step()
    assert made.support.equal(first)
    assert made.support.dtype == torch.int32
    other.support = support((OUT, IN), DELTA, 0, 1)
    assert not other.support.equal(first)
    other.load_state_dict(made.state_dict())
    assert other.support.equal(first)
    assert other(tokens(6, IN)).equal(made(tokens(6, IN)))


REPLICA = """
import sys, torch
from torch import distributed, nn
from methods.parts.layers.sparse_plus_lowrank import SLTrainLinear
from methods.sltrain import support
rank, folder = int(sys.argv[1]), sys.argv[2]
store = distributed.FileStore(f"{folder}/store", 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
generator = torch.Generator().manual_seed(rank)
layer = SLTrainLinear(nn.Linear(20, 12), support((12, 20), 0.15, rank, 0), 3, 0.25, "auto", generator)
replica = nn.parallel.DistributedDataParallel(layer)
replica(torch.randn(6, 20, generator=generator)).square().sum().backward()
torch.save([layer.support, layer.values, layer.values.grad], f"{folder}/{rank}.saved")
distributed.barrier()
distributed.destroy_process_group()
"""


def test_i4_replicas_have_the_support_of_the_first_and_equal_gradients(tmp_path: Path) -> None:
    # No forks: the library has threads, and once in many runs a fork with it never ended.
    command = [sys.executable, "-c", REPLICA]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.saved") for rank in (0, 1))
    assert first[0].equal(support((12, 20), 0.15, 0, 0))
    assert all(mine.equal(theirs) for mine, theirs in zip(first, second, strict=True))


def test_i5_the_dense_weight_is_of_low_rank_but_for_the_support() -> None:
    made = layer()
    low_rank = SCALE * made.factor_b @ made.factor_a
    sparse = torch.zeros(OUT * IN, dtype=torch.float64)
    sparse[made.support.long()] = made.values.detach()
    assert torch.linalg.matrix_rank(made.dense() - sparse.view(OUT, IN)) == RANK
    assert (made.dense() - low_rank).abs().gt(1e-12).sum() == len(made.support)


@every_execution
def test_i6_no_matrix_is_saved_only_input_parts_and_support(execution: Execution) -> None:
    made, x = layer(execution), tokens(2, 5, IN).requires_grad_()
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        made(x)
    assert not [tensor for tensor in saved if tensor.numel() == OUT * IN]
    kept = [x, made.factor_b, made.factor_a, made.values, made.support]
    assert sum(tensor.nbytes for tensor in saved) <= sum(tensor.nbytes for tensor in kept)
    storages = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert {tensor.untyped_storage().data_ptr() for tensor in saved} <= storages


@pytest.mark.parametrize("delta", [0.001, DELTA, 0.6, 1.0])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_i7_both_executions_agree_in_value_and_gradient(delta: float, count: int, small_pieces: None) -> None:
    x, dy = tokens(count, IN), tokens(count, OUT, seed=2)
    dense, other = (results(layer(execution, delta=delta), x, dy) for execution in ("dense", "factored"))
    torch.testing.assert_close(dense, other, atol=1e-11, rtol=0)
    torch.testing.assert_close(dense, reference(layer(delta=delta), x, dy), atol=1e-11, rtol=0)


@every_execution
def test_i7_bfloat16_gradients_are_right_to_a_hundredth(execution: Execution, small_pieces: None) -> None:
    made = layer(execution, torch.bfloat16)
    x, dy = (tokens(11, width, dtype=torch.bfloat16, seed=width) for width in (IN, OUT))
    found, expected = results(made, x, dy), reference(made.double(), x.double(), dy.double())
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        assert (value - expected[name]).norm() < 1e-2 * expected[name].norm(), name


def test_i7_auto_is_factored_where_sparse_and_dense_where_not() -> None:
    def chosen(out: int, width: int, rank: int, delta: float, count: int) -> str:
        size = support_size((out, width), delta)
        b, a, values = torch.empty(out, rank), torch.empty(rank, width), torch.empty(size)
        weight = sparse_products.Weight(b, a, values, torch.empty(size, dtype=torch.int32), 1.0)
        return "dense" if dense_is_cheaper(weight, count) else "factored"

    assert chosen(5461, 2048, 512, 0.03, 1024) == "factored"
    assert chosen(2048, 2048, 512, 0.03, 1) == "factored"
    assert chosen(2048, 2048, 512, 0.5, 1024) == "dense"
    assert chosen(2048, 2048, 2048, 0.03, 65536) == "dense"


@pytest.mark.parametrize("make", [FakeTensorMode, lambda: torch.device("meta")], ids=["fake", "meta"])
def test_auto_reads_no_value_where_there_is_none_whatever_would_be_cheaper(
    make: Callable[[], Any], small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_plus_lowrank, "TURNING_COST", 0)
    with make():
        x = torch.empty(6, IN, requires_grad=True)
        places = torch.empty(7, dtype=torch.int32)
        made = SLTrainLinear(nn.Linear(IN, OUT), places, RANK, SCALE, "auto", torch.Generator("cpu"))
        made(x).sum().backward()
    assert x.grad is not None
    gradients = {name: parameter.grad for name, parameter in made.named_parameters()}
    assert {name: g.shape for name, g in gradients.items() if g is not None} == {
        name: parameter.shape for name, parameter in made.named_parameters()
    }


def test_without_a_gradient_of_the_input_nothing_is_rebuilt_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer("dense")
    loss = made(tokens(6, IN)).sum()
    monkeypatch.delattr(sparse_products.Weight, "dense")
    loss.backward()
    assert made.values.grad is not None


@every_execution
def test_the_layer_can_be_used_twice_frozen_in_part_and_without_a_gradient_of_its_input(
    execution: Execution,
) -> None:
    made, x = layer(execution), tokens(6, IN)
    (made(x) + made(2 * x)).sum().backward()
    expected = reference(made, 3 * x, torch.ones(6, OUT, dtype=torch.float64))
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-11, rtol=0)
    made.zero_grad()
    made.factor_a.requires_grad_(False)
    made(x).sum().backward()
    assert made.factor_a.grad is None
    assert made.values.grad is not None
    assert made.factor_b.grad is not None


@every_execution
def test_activation_checkpointing_changes_nothing(execution: Execution) -> None:
    made, x = layer(execution), tokens(6, IN).requires_grad_()
    gradients = []
    for run in (made, lambda inputs: checkpoint(made, inputs, use_reentrant=False)):
        gradients.append(torch.autograd.grad(run(x).square().sum(), [x, *made.parameters()]))
    assert all(plain.equal(again) for plain, again in zip(*gradients, strict=True))


def test_i10_a_merged_layer_says_the_same_and_keeps_the_bias() -> None:
    made, x = layer(bias=True), tokens(6, IN)
    merged = made.merged()
    assert type(merged) is nn.Linear
    assert merged.bias is made.bias
    torch.testing.assert_close(merged(x), made(x), atol=1e-12, rtol=0)


def test_i10_a_bfloat16_layer_is_merged_in_float32_and_rounded_once() -> None:
    made = layer(dtype=torch.bfloat16)
    exact = SCALE * made.factor_b.float() @ made.factor_a.float()
    exact.view(-1)[made.support.long()] += made.values.float()
    assert made.merged().weight.equal(exact.bfloat16())


# ------------------------------------------------------------------------------------------- the method
def sltrain(model: nn.Module, context: Context | None = None, **options: Any) -> tuple[Method, nn.Module]:
    method = build("sltrain", options)
    return method, method.prepare(model, context or Context())


def layers_of(model: nn.Module) -> dict[str, SLTrainLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SLTrainLinear)}


#: Options of the official scripts and the millions of parameters that follow: dense, and with SLTrain.
TABLE = {
    "60m": (128, 0.03, 58.07, 43.53),
    "130m": (256, 0.03, 134.11, 96.55),
    "350m": (256, 0.03, 367.97, 194.29),
    "1b": (512, 0.03, 1339.08, 645.55),
    "7b": (1024, 0.05, 6738.42, 3144.74),
}


@pytest.mark.parametrize("size", TABLE)
def test_i8_the_number_of_parameters_follows_from_the_shapes(size: str) -> None:
    rank, delta, dense_millions, millions = TABLE[size]
    with torch.device("meta"):
        model = LlamaForCausalLM(shape_config(size))
    shapes = [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("_proj.weight")]
    dense = sum(parameter.numel() for parameter in model.parameters())
    context = Context()
    sltrain(model, context, rank=rank, delta=delta)
    expected = dense + sum(rank * (m + n) + math.floor(delta * m * n) - m * n for m, n in shapes)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert context.facts["parameters"] == expected
    assert context.facts["parameter_ratio"] == expected / dense
    assert (round(dense / 1e6, 2), round(expected / 1e6, 2)) == (dense_millions, millions)


def test_i9_updates_inside_the_backward_pass_give_the_same_model_to_the_bit() -> None:
    states = []
    for per_layer in (False, True):
        method, model = sltrain(tiny_llama(), rank=4, delta=0.2)
        stepper = method.stepper(model, OptimConfig(lr=1e-2, weight_decay=0.01, per_layer=per_layer))
        assert stepper is not None
        train(model, stepper, 0, 4)
        states.append(model.state_dict())
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def run(**train: Any) -> Run:
    return Run.model_validate({"method": "sltrain", "train": {"stage": "pretrain", **train}})


@pytest.mark.parametrize("asked", [{"grad_accum": 2}, {"clip": 1.0}], ids=str)
def test_i9_updates_inside_the_backward_pass_refuse_what_they_would_break(asked: dict[str, Any]) -> None:
    checks.supported(run(per_layer=True), [build("sltrain", {})])
    with pytest.raises(UnsupportedError, match="per_layer"):
        checks.supported(run(per_layer=True, **asked), [build("sltrain", {})])


@pytest.mark.parametrize("stage", ["finetune", "compress"])
def test_trained_weights_are_refused_because_none_would_be_left(stage: str) -> None:
    with pytest.raises(UnsupportedError, match=f"sltrain does not do stage '{stage}'"):
        checks.supported(run(stage=stage), [build("sltrain", {})])


@every_execution
def test_i10_with_all_entries_and_no_low_rank_part_it_is_dense_training(execution: Execution) -> None:
    dense, model = tiny_llama().double(), tiny_llama().double()
    weights = {name: p.detach().clone() for name, p in dense.named_parameters()}
    method, _ = sltrain(model, rank=2, delta=1.0, execution=execution)
    for name, made in layers_of(model).items():
        made.factor_a.requires_grad_(False)
        made.factor_b.requires_grad_(False)
        made.values.data.copy_(weights[f"{name}.weight"].flatten())
    optim = OptimConfig(lr=1e-2, weight_decay=0.01, clip=1.0)
    steppers = [build("full", {}).stepper(dense, optim), method.stepper(model, optim)]
    losses = [
        train(each, stepper, 0, 5) for each, stepper in zip((dense, model), steppers, strict=True) if stepper
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    torch.testing.assert_close(
        dict(method.export(model).state_dict()), dict(dense.state_dict()), atol=1e-8, rtol=0
    )


def test_i11_evaluation_divides_the_sum_over_all_batches_by_its_tokens() -> None:
    """Not a mean of batch means over batches + 1, which the official code prints."""
    _, model = sltrain(tiny_llama())
    documents = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12], [13, 14, 15, 16]]
    scored = score(model, documents, 2, torch.device("cpu"))
    model.eval()
    total = 0.0
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([document])
            total += float(model(input_ids=ids, labels=ids).loss) * (len(document) - 1)
    assert scored.tokens == 6 + 1 + 2 + 3
    assert scored.perplexity == pytest.approx(math.exp(total / 12), rel=1e-5)


def test_targets_are_replaced_and_all_else_trains_as_it_is() -> None:
    before = {name: p.detach().clone() for name, p in tiny_llama().named_parameters()}
    model = tiny_llama().requires_grad_(False)
    method, _ = sltrain(model, rank=4, targets=["q_proj", "down_proj"])
    assert [name.split(".")[-1] for name in layers_of(model)] == ["q_proj", "down_proj"] * 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    kept = {name: p for name, p in model.named_parameters() if name in before}
    assert len(before) - len(kept) == 4
    assert all(parameter.equal(before[name]) for name, parameter in kept.items())
    assert not layers_of(method.export(model))


def test_each_layer_has_its_own_support_and_weights_which_follow_from_the_seed() -> None:
    def content(seed: int) -> list[Tensor]:
        _, model = sltrain(tiny_llama(), Context(seed=seed), rank=4, delta=0.2)
        return [t for made in layers_of(model).values() for t in (made.support, made.values, made.factor_a)]

    first, again, other = content(3), content(3), content(4)
    assert all(mine.equal(theirs) for mine, theirs in zip(first, again, strict=True))
    assert not any(mine.equal(theirs) for mine, theirs in zip(first, other, strict=True))
    square = [made for made in first if made.shape == first[0].shape]
    assert len({tuple(made.tolist()) for made in square}) == len(square)


def test_facts_and_ranks_say_what_was_replaced() -> None:
    context = Context()
    _, model = sltrain(tiny_llama(hidden=32, layers=1), context, rank=8, delta=0.05, alpha=16)
    attention, feed_forward = int(0.05 * 32 * 32), int(0.05 * 80 * 32)
    assert context.facts["targets"] == 7
    assert context.facts["scaling"] == 2
    sizes = {"32x32": attention, "80x32": feed_forward, "32x80": feed_forward}
    assert context.facts["support_by_shape"] == sizes
    assert context.facts["support_bytes"] == 4 * (4 * attention + 3 * feed_forward)
    assert set(context.ranks.values()) == {8}
    assert context.ranks.keys() == layers_of(model).keys()
    assert not context.warnings


def test_a_rank_beyond_the_short_side_is_clamped_with_one_warning_and_equal_scaling() -> None:
    context = Context()
    _, model = sltrain(tiny_llama(kv_heads=1), context, rank=16, alpha=4)
    assert context.ranks["model.layers.0.self_attn.k_proj"] == 8
    assert context.ranks["model.layers.0.self_attn.q_proj"] == 16
    assert "rank 16 is more than the short side of 4 matrices" in context.warnings[0]
    assert {made.scale for made in layers_of(model).values()} == {0.25}


def test_parts_that_are_larger_than_the_matrices_are_warned_of() -> None:
    context = Context()
    sltrain(tiny_llama(), context, rank=32)
    assert context.facts["parameter_ratio"] > 1
    assert "more than the matrices" in context.warnings[-1]


def test_a_factored_model_is_refused() -> None:
    model = factored.restructure(tiny_llama(), {"model.layers.0.self_attn.q_proj": 5})
    with pytest.raises(UserError, match="factored already"):
        sltrain(model)


def test_an_unknown_target_is_an_error_that_names_the_linears_there_are() -> None:
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        sltrain(tiny_llama(), targets=["q_prj"])


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"delta": 0}, {"delta": 1.5}, {"alpha": 0}, {"execution": "sparse"}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"method sltrain: {next(iter(options))}"):
        build("sltrain", options)


def test_a_model_without_values_is_prepared_without_drawing_any() -> None:
    with torch.device("meta"):
        model = tiny_llama()
        sltrain(model, delta=0.2)
    assert all(
        tensor.is_meta for tensor in (*model.parameters(), *(m.support for m in layers_of(model).values()))
    )
    assert next(iter(layers_of(model).values())).support.shape == (int(0.2 * 32 * 32),)


def test_a_model_trains_alike_with_and_without_activation_checkpointing() -> None:
    losses = []
    for checkpointing in (False, True):
        method, model = sltrain(tiny_llama(), rank=4, delta=0.2)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        stepper = method.stepper(model, OptimConfig())
        assert stepper is not None
        losses.append(train(model.train(), stepper, 0, 3))
    assert losses[0] == losses[1]


def test_an_exported_model_is_plain_and_says_the_same() -> None:
    method, model = sltrain(tiny_llama(), rank=4, delta=0.2)
    stepper = method.stepper(model, OptimConfig())
    assert stepper is not None
    train(model, stepper, 0, 3)
    wanted = logits(model)
    exported = method.export(model)
    assert exported.state_dict().keys() == tiny_llama().state_dict().keys()
    torch.testing.assert_close(logits(exported), wanted, atol=1e-5, rtol=1e-4)

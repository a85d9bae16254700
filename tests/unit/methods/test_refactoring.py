"""Refactorization and reset: what balanced factors are, when they come, and what is left of the moments."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from harness.config import OptimConfig, Run
from harness.engine.measure.peak import LiveMeter
from harness.engine.run import checks
from harness.engine.run.prepare import find_stepper
from harness.errors import UnsupportedError, UserError
from harness.method import Context, StepInfo
from harness.plugins import build
from methods.parts.factors.refactoring import ResettingStepper, balanced, refactor
from methods.parts.optim.adamw import AdamWStepper
from methods.parts.quantisation.tensor import Quantised
from tests.support.tiny import logits, tiny_batch, tiny_llama, train

ROOT = Path(__file__).resolve().parents[3]
METHODS = {"lowrank": {"rank": 4}, "sltrain": {"rank": 4, "delta": 0.1, "alpha": 8}}
every_method = pytest.mark.parametrize("method", METHODS)


def pair(out: int, inputs: int, rank: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Factors (out, rank) and (rank, in) of very different size."""
    generator = torch.Generator().manual_seed(out + inputs + rank)
    up = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    down = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    return (5 * up).to(dtype), (0.1 * down).to(dtype)


def sizes(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The lengths of the columns of the one and of the rows of the other."""
    return up.norm(dim=0), down.norm(dim=1)


# ------------------------------------------------------------------------------------ balanced factors
@pytest.mark.parametrize("shape", [(12, 20, 3), (20, 12, 3), (9, 9, 9), (5, 7, 1)], ids=str)
def test_balanced_factors_have_the_product_and_the_singular_values_of_it(
    shape: tuple[int, int, int],
) -> None:
    up, down = pair(*shape)
    new_up, new_down = balanced(up, down)
    torch.testing.assert_close(new_up @ new_down, up @ down, atol=1e-13, rtol=0)
    values = torch.diag(torch.linalg.svdvals(up @ down)[: shape[2]])
    torch.testing.assert_close(new_up.T @ new_up, values, atol=1e-12, rtol=0)
    torch.testing.assert_close(new_down @ new_down.T, values, atol=1e-12, rtol=0)


def test_columns_and_rows_point_as_before_so_that_balancing_twice_is_balancing_once() -> None:
    up, down = pair(12, 20, 3)
    once = balanced(up, down)
    assert ((up * once[0]).sum(0) + (down * once[1]).sum(1) > 0).all()
    turned = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    for new, old in zip(balanced(once[0] * turned, turned[:, None] * once[1]), once, strict=True):
        expected = old * (turned if new.shape[0] == 12 else turned[:, None])
        torch.testing.assert_close(new, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("which", ["up", "down"])
def test_where_one_factor_is_zero_the_other_keeps_its_span_and_its_size(which: str) -> None:
    up, down = pair(12, 20, 3)
    zero, kept = (up, down.T) if which == "up" else (down, up)
    zero.zero_()
    new_up, new_down = balanced(up, down)
    new_zero, new_kept = (new_up, new_down.T) if which == "up" else (new_down, new_up)
    assert not new_zero.any()
    basis = torch.linalg.qr(kept).Q
    torch.testing.assert_close(basis @ (basis.T @ new_kept), new_kept, atol=1e-12, rtol=0)
    assert torch.linalg.matrix_rank(new_kept) == 3
    assert new_kept.norm().item() == pytest.approx(kept.norm().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("up_lacks", "down_lacks", "exact"),
    [(3, 0, True), (0, 5, True), (3, 5, True), (3, 0, False), (0, 5, False)],
)
def test_no_direction_is_lost_where_the_product_has_a_lower_rank(
    up_lacks: int, down_lacks: int, exact: bool, dtype: torch.dtype
) -> None:
    """Both parts of a direction at zero would have no gradient for all time."""
    up, down = pair(60, 40, 12, dtype)
    up[:, 12 - up_lacks :] = 0 if exact else up[:, :up_lacks]
    down[:down_lacks] = 0 if exact else 2 * down[5:6]
    new_up, new_down = balanced(up, down)
    accuracy = 1e-5 if dtype == torch.float32 else 1e-13
    assert (new_up @ new_down - up @ down).norm() < accuracy * (up @ down).norm()
    of_up, of_down = sizes(new_up, new_down)
    assert torch.minimum(of_up, of_down).eq(0).sum() == up_lacks + down_lacks
    longer = torch.maximum(of_up, of_down)
    assert longer.min() > 1e-2 * longer.max()


def test_what_is_left_of_a_direction_that_was_zero_is_exactly_zero_in_the_other_factor() -> None:
    up, down = pair(12, 20, 3)
    up[:, 2] = 0
    of_up, of_down = sizes(*balanced(up, down))
    assert of_up[:2].gt(1e-3).all()
    assert of_up[2] == 0
    assert of_down[2] > 1e-3


def test_bfloat16_factors_are_balanced_in_float32() -> None:
    up, down = pair(12, 20, 3, torch.bfloat16)
    new_up, new_down = balanced(up, down)
    assert new_up.dtype == new_down.dtype == torch.float32
    wanted = up.float() @ down.float()
    torch.testing.assert_close(new_up @ new_down, wanted, atol=1e-5, rtol=0)
    refactor(up, down)
    assert up.dtype == down.dtype == torch.bfloat16
    assert (up.float() @ down.float() - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_end_no_run(value: float) -> None:
    """The loss says so, in a row `diverged`."""
    up, down = pair(12, 20, 3)
    up[0, 0] = value
    refactor(up, down)
    assert not up.isfinite().all()


def test_no_matrix_as_large_as_the_product_is_made() -> None:
    up, down = pair(400, 500, 2, torch.float32)
    meter = LiveMeter(torch.device("cpu"))
    with meter.window() as window:
        refactor(up, down)
    assert window.peak_allocated_bytes < 400 * 500 * 4 / 4


# -------------------------------------------------------------------------------------------- training
def made(
    method: str, optim: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Any, Any]:
    """A tiny model that the method has prepared, and its stepper."""
    model: nn.Module = tiny_llama().to(dtype)
    chosen = build(method, {**METHODS[method], **options})
    model = chosen.prepare(model, Context(seed=3))
    stepper = chosen.stepper(model, OptimConfig(lr=1e-2, **(optim or {})))
    model.train()
    return model, stepper


def pairs(method: str, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return build(method, METHODS[method]).factors(model)  # type: ignore[attr-defined, no-any-return]


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def rebalance_whole(up: Tensor, down: Tensor) -> None:
    """The paper's formula by an SVD of the whole product; signs as near as they can be."""
    u, s, vh = torch.linalg.svd(up @ down, full_matrices=False)
    rank = up.shape[1]
    new_up, new_down = u[:, :rank] * s[:rank].sqrt(), s[:rank].sqrt()[:, None] * vh[:rank]
    signs = ((up * new_up).sum(0) + (down * new_down).sum(1)).sign()
    up.copy_(new_up * signs)
    down.copy_(signs[:, None] * new_down)


def plain_loop(method: str, steps: int, refactor_period: int, reset_period: int, moments: str) -> nn.Module:
    """Training with torch's AdamW, four micro-batches an update, clipping and decay."""
    model, _ = made(method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(1, steps + 1):
        for ids in tiny_batch(step, batch=4).split(1):
            (model(input_ids=ids, labels=ids).loss / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        if step % refactor_period == 0:
            for up, down in pairs(method, model):
                rebalance_whole(up, down)
        if step % reset_period == 0:
            if moments == "both":
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
            else:
                for state in optimizer.state.values():
                    state["exp_avg"].zero_()
    return model


@every_method
@pytest.mark.parametrize("moments", ["both", "first"])
def test_it_is_a_plain_loop_with_an_svd_of_the_product_and_a_new_optimizer(method: str, moments: str) -> None:
    periods = {"refactor_period": 3, "reset_period": 2}
    wanted = plain_loop(method, 7, moments=moments, **periods)
    optim = {"weight_decay": 0.1, "clip": 0.5}
    model, stepper = made(method, optim, reset_moments=moments, **periods)
    for step in range(1, 8):
        for ids in tiny_batch(step, batch=4).split(1):
            (model(input_ids=ids, labels=ids).loss / 4).backward()
        stepper.step()
        stepper.zero_grad()
    for (name, mine), theirs in zip(model.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=0, msg=name)


@every_method
def test_a_refactorization_leaves_what_the_model_says(method: str) -> None:
    model, stepper = made(method, refactor_period=4)
    train(model, stepper, 0, 3)
    before, wanted = copies(model), logits(model)
    model.train()
    train(model, stepper, 3, 4, lr=0.0)
    changed = {name for name, weight in copies(model).items() if not weight.equal(before[name])}
    factors = {id(factor) for each in pairs(method, model) for factor in each}
    assert changed == {name for name, parameter in model.named_parameters() if id(parameter) in factors}
    torch.testing.assert_close(logits(model), wanted, atol=1e-6, rtol=0)
    for up, down in pairs(method, model):
        torch.testing.assert_close(*sizes(up, down), atol=1e-12, rtol=0)


OPTIMS = ({}, {"state_bits": 16}, {"state_bits": 8, "per_layer": True}, {"per_layer": True}, {"clip": 1.0})


@every_method
@pytest.mark.parametrize("optim", OPTIMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_a_reset_the_moments_of_all_that_trains_are_zero(
    method: str, optim: dict[str, Any], dtype: torch.dtype
) -> None:
    for moments in ("both", "first"):
        model, stepper = made(method, optim, dtype, reset_period=3, reset_moments=moments)
        train(model, stepper, 0, 2)
        assert all(stepper.adam.moments(state)[0].any() for state in stepper.states.values())
        train(model, stepper, 2, 3)
        assert stepper.states.keys() == dict(model.named_parameters()).keys()
        for name, state in stepper.states.items():
            first, second = stepper.adam.moments(state)
            assert not first.any(), name
            assert second.any() == (moments == "first"), name
            assert int(state["step"]) == (3 if moments == "first" else 0)
        tensors = dict(stepper.state_tensors())
        train(model, stepper, 3, 4)
        assert all(tensors[name] is tensor for name, tensor in stepper.state_tensors())


@pytest.mark.parametrize("moments", ["both", "first"])
def test_states_that_are_stored_in_8_bits_are_reset_with_their_count(moments: str) -> None:
    chosen = build("lowrank", {"rank": 8, "reset_period": 2, "reset_moments": moments})
    model = chosen.prepare(tiny_llama(hidden=64, vocab=128), Context())
    stepper: Any = chosen.stepper(model, OptimConfig(state_bits=8))
    train(model, stepper, 0, 2)
    packed = [state for state in stepper.states.values() if "absmax1" in state]
    assert packed
    for state in packed:
        first, second = stepper.adam.moments(state)
        assert not first.any()
        assert second.any() == (moments == "first")
        assert state["step"] == (2 if moments == "first" else 0)


@every_method
@pytest.mark.parametrize("options", [{"refactor_period": 2}, {"reset_period": 2}], ids=str)
def test_updates_inside_the_backward_pass_give_the_same_model_to_the_bit(
    method: str, options: dict[str, Any]
) -> None:
    models = []
    for per_layer in (False, True):
        model, stepper = made(method, {"per_layer": per_layer}, torch.float32, **options)
        train(model, stepper, 0, 5)
        models.append(copies(model))
    assert all(models[0][name].equal(models[1][name]) for name in models[0])


@every_method
def test_activation_checkpointing_changes_nothing(method: str) -> None:
    losses = []
    for checkpointing in (False, True):
        model, stepper = made(method, refactor_period=2, reset_period=2)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        losses.append(train(model, stepper, 0, 4))
    assert losses[0] == losses[1]


@every_method
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_resumed_run_goes_on_bit_for_bit_with_a_refactorization_that_was_asked_for(
    method: str, after: int
) -> None:
    options = {"refactor_period": 3, "reset_period": 4, "reset_moments": "first"}
    model, stepper = made(method, None, torch.float32, **options)
    train(model, stepper, 0, after)
    stepper.refresh_soon()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "stepper": stepper.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, other = made(method, None, torch.float32, **options)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["stepper"])
    assert train(model, stepper, after, after + 6) == train(resumed, other, after, after + 6)
    assert stepper.due == other.due
    mine, theirs = copies(model), copies(resumed)
    assert all(mine[name].equal(theirs[name]) for name in mine)


# ------------------------------------------------------------------------------------------- schedule
def infos(model: nn.Module, stepper: Any, updates: Sequence[int]) -> list[StepInfo]:
    found = []
    for step in updates:
        ids = tiny_batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        found.append(stepper.step())
        stepper.zero_grad()
    return found


def test_a_refactorization_is_a_refresh_that_is_announced_and_can_be_asked_for() -> None:
    model, stepper = made("lowrank", refactor_period=3, reset_period=2)
    found = infos(model, stepper, range(1, 7))
    assert [info.refreshed for info in found] == [False, False, True] * 2
    assert [info.refresh_next for info in found] == [False, True, False] * 2
    stepper.refresh_soon()
    found = infos(model, stepper, range(7, 11))
    assert [info.refreshed for info in found] == [True, False, False, True]


def test_a_period_of_one_refactors_at_each_update() -> None:
    found = infos(*made("lowrank", refactor_period=1), range(3))
    assert all(info.refreshed and info.refresh_next for info in found)


def test_a_reset_costs_less_than_an_update_and_is_no_refresh() -> None:
    model, stepper = made("sltrain", reset_period=1)
    assert isinstance(stepper, ResettingStepper)
    assert not hasattr(stepper, "refresh_soon")
    assert not any(info.refreshed or info.refresh_next for info in infos(model, stepper, range(3)))
    assert build("sltrain", {"reset_period": 1}).caps.period is None
    assert build("sltrain", {"refactor_period": 7, "reset_period": 1}).caps.period == 7


# ----------------------------------------------------------------------------- factors of a lower rank
def test_a_product_that_is_still_zero_trains_as_soon_as_it_may() -> None:
    """B of SLTrain begins at zero, and is refactored here before it has moved."""
    model, stepper = made("sltrain", refactor_period=1)
    train(model, stepper, 0, 2, lr=0.0)
    assert not any(up.any() for up, _ in pairs("sltrain", model))
    before = [(up.detach().clone(), down.detach().clone()) for up, down in pairs("sltrain", model)]
    assert all(down.norm(dim=1).gt(1e-2).all() for _, down in before)
    stepper.due = 100
    train(model, stepper, 2, 4)
    for (up, down), (old_up, old_down) in zip(pairs("sltrain", model), before, strict=True):
        assert (up - old_up).norm(dim=0).gt(1e-3).all()
        assert (down - old_down).norm(dim=1).gt(1e-3).all()


def test_directions_of_zero_train_on_after_a_refactorization() -> None:
    model, stepper = made("lowrank", refactor_period=1)
    for up, _ in pairs("lowrank", model):
        up.data[:, 1:3] = 0
    train(model, stepper, 0, 1, lr=0.0)
    before = [(up.detach().clone(), down.detach().clone()) for up, down in pairs("lowrank", model)]
    assert all(up.norm(dim=0).eq(0).sum() == 2 for up, _ in before)
    stepper.due = 100
    train(model, stepper, 1, 3)
    for (up, down), (old_up, old_down) in zip(pairs("lowrank", model), before, strict=True):
        assert (up - old_up).norm(dim=0).gt(1e-3).all()
        assert (down - old_down).norm(dim=1).gt(1e-3).all()


# ------------------------------------------------------------------------------- options and stacks
@every_method
def test_off_it_is_the_method_as_it_was_with_the_same_identity(method: str) -> None:
    _, stepper = made(method)
    assert type(stepper) is AdamWStepper
    assert not build(method, {}).caps.own_updates
    base = {"train": {"stage": "pretrain"}}
    plain = checks.completed(Run.model_validate({"method": method, **base}))
    off = {"refactor_period": None, "reset_period": None, "reset_moments": "both"}
    given = checks.completed(Run.model_validate({"method": {method: off}, **base}))
    assert not plain.method[0].options.keys() & off.keys()
    assert given.config_id == plain.config_id
    ids = {plain.config_id}
    for options in (
        {"refactor_period": 200},
        {"reset_period": 200},
        {"reset_period": 200, "reset_moments": "first"},
    ):
        ids.add(checks.completed(Run.model_validate({"method": {method: options}, **base})).config_id)
    assert len(ids) == 4


@pytest.mark.parametrize(
    "options",
    [{"refactor_period": 0}, {"reset_period": 0}, {"reset_period": 2, "reset_moments": "second"}],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="method lowrank: re"):
        build("lowrank", options)


def test_what_to_reset_without_a_period_is_refused() -> None:
    with pytest.raises(UserError, match="`reset_moments` matters only with `reset_period`"):
        build("sltrain", {"reset_moments": "first"})


@every_method
@pytest.mark.parametrize("options", [{"refactor_period": 2}, {"reset_period": 2}], ids=str)
def test_a_stack_that_another_method_trains_is_refused(method: str, options: dict[str, Any]) -> None:
    chosen = build(method, {**METHODS[method], **options})
    full = build("full", {})
    model = full.prepare(chosen.prepare(tiny_llama(), Context()), Context())
    run = Run.model_validate({"method": [{method: options}, "full"], "train": {"stage": "pretrain"}})
    with pytest.raises(UnsupportedError, match=f"full trains this stack, so {method} would not"):
        find_stepper(run, [chosen, full], model)


def test_a_factor_that_another_method_leaves_at_rest_is_refused() -> None:
    chosen = build("lowrank", {"rank": 4, "refactor_period": 2})
    velora = build("velora", {"num_groups": 4, "state": "groups"})
    model = velora.prepare(chosen.prepare(tiny_llama(), Context()), Context())
    with pytest.raises(UnsupportedError, match="refactor_period replaces both factors"):
        chosen.stepper(model, OptimConfig())


def test_factors_that_are_stored_in_int8_are_balanced_to_their_grids() -> None:
    chosen = build("lowrank", {"rank": 8, "refactor_period": 3})
    model: Any = chosen.prepare(tiny_llama(), Context())
    model = build("int8", {"group": 128}).prepare(model, Context())
    stepper: Any = chosen.stepper(model, OptimConfig(lr=1e-2))
    train(model, stepper, 0, 2)
    wanted = logits(model)
    model.train()
    train(model, stepper, 2, 3, lr=0.0)
    for up, down in stepper.factors:
        assert isinstance(up, Quantised)
        of_up, of_down = sizes(up.floats(torch.float32), down.floats(torch.float32))
        torch.testing.assert_close(of_up, of_down, atol=0, rtol=0.05)
    assert (logits(model) - wanted).norm() < 0.05 * wanted.norm()


# ------------------------------------------------------------------------------------------- replicas
REPLICA = """
import sys, torch
from torch import distributed
from methods.parts.factors import refactoring
from tests.unit.methods.test_refactoring import pair
rank, folder = int(sys.argv[1]), sys.argv[2]
store = distributed.FileStore(f"{folder}/store", 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
torch.set_num_threads(1)
exact = refactoring.balanced
refactoring.balanced = lambda *factors: tuple(each * (1 - 2 * rank) for each in exact(*factors))
up, down = pair(12, 20, 3)
refactoring.refactor(up, down)
torch.save([up, down], f"{folder}/{rank}.saved")
distributed.barrier()
distributed.destroy_process_group()
"""


def test_replicas_have_the_factors_of_the_first_whatever_signs_they_found(tmp_path: Path) -> None:
    if not distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    command = [sys.executable, "-c", REPLICA]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.saved") for rank in (0, 1))
    assert all(mine.equal(theirs) for mine, theirs in zip(first, second, strict=True))
    assert all(mine.equal(theirs) for mine, theirs in zip(first, balanced(*pair(12, 20, 3)), strict=True))

"""SVD-LLM: its ranks, its closed-form update, and factors that train one after the other."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import factored
from harness.config import OptimConfig
from harness.errors import UserError
from harness.factored import FactoredLinear
from harness.method import Context
from harness.plugins import build
from methods.parts.calibration.blocks import walk, walk_twice
from methods.parts.calibration.statistics import InputStatistics
from methods.parts.factors.factorisers import Whiten
from methods.parts.factors.refit import refitted
from methods.parts.targets import LINEAR_KINDS, target_linears
from tests.support.tiny import TinyText, logits, tiny_batch, tiny_llama, train
from tests.unit.methods.test_factor_kernel import SHAPES, drawn, summed

OPTIM = OptimConfig(lr=1e-2, weight_decay=0.01)


def prepared(updates: int | None = 6, **options: Any) -> tuple[Any, nn.Module, Context]:
    method: Any = build("svdllm", {"reduction": 0.5, **options})
    context = Context(seed=1, updates=updates, calibration=TinyText())
    return method, method.prepare(tiny_llama(), context), context


def staged(**options: Any) -> tuple[nn.Module, Any]:
    method, model, _ = prepared(train="stages", dropout=0, **options)
    return model.train(), method.stepper(model, OPTIM)


# --------------------------------------------------------------------------------- ranks and update
def test_all_linears_keep_the_same_share_by_whitening() -> None:
    _, model, context = prepared()
    assert set(context.ranks) == set(target_linears(tiny_llama(), LINEAR_KINDS))
    for name, rank in context.ranks.items():
        out, inputs = tiny_llama().get_submodule(name).weight.shape  # type: ignore[union-attr, misc]
        assert abs(rank - 0.5 * out * inputs / (out + inputs)) <= 1
    assert context.facts["measured_reduction"]["linears"] == pytest.approx(0.5, abs=0.02)
    with pytest.raises(UserError, match="factoriser"):
        build("svdllm", {"factoriser": "svd"})
    other = build("compress", {"reduction": 0.5}).prepare(tiny_llama(), Context(calibration=TinyText()))
    assert logits(other).equal(logits(model))


def mean_error(weight: Tensor, up: Tensor, down: Tensor, inputs: Tensor) -> float:
    return float((inputs @ weight.T - inputs @ down.T @ up.T).square().sum(1).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_10_the_closed_form_changes_nothing_on_the_whitening_text(shape: tuple[int, int]) -> None:
    for tokens in (200, 8):  # fewer tokens than features: singular
        weight, inputs = drawn(shape, tokens)
        found = Whiten().decompose(weight, summed(inputs)).factors(5)
        up = refitted(weight, found.up, found.down, summed(inputs).second_moment())
        assert torch.allclose(up, found.up, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_10_the_closed_form_is_the_least_error_of_other_inputs(shape: tuple[int, int]) -> None:
    weight, inputs = drawn(shape)
    found = Whiten().decompose(weight, summed(inputs)).factors(5)
    for tokens in (200, 3):
        other = inputs.roll(3, 1)[:tokens] * torch.linspace(0.5, 2, shape[1], dtype=torch.float64)
        up = refitted(weight, found.up, found.down, summed(other).second_moment())
        hidden = other @ found.down.T
        best = torch.linalg.lstsq(hidden, other @ weight.T, driver="gelsd").solution.T
        assert mean_error(weight, up, found.down, other) == pytest.approx(
            mean_error(weight, best, found.down, other), rel=1e-8, abs=1e-12
        )
        assert mean_error(weight, up, found.down, other) < mean_error(weight, found.up, found.down, other)
        if tokens == 200:  # as published: Y Z^T (Z Z^T)^-1
            published = weight @ other.T @ hidden @ torch.linalg.inv(hidden.T @ hidden)
            assert torch.allclose(up, published, atol=1e-8)
        else:  # a direction that the text never takes stays as it was
            unseen = torch.linalg.svd(hidden).Vh[tokens:]
            assert torch.allclose(up @ unseen.T, found.up @ unseen.T, atol=1e-8)


def test_both_walks_give_what_each_gives_alone() -> None:
    def change(model: nn.Module, found: dict[str, InputStatistics]) -> None:
        with torch.no_grad():
            for name in found:
                model.get_submodule(name).weight.mul_(0.5)  # type: ignore[operator, union-attr]

    def alone(sequential: bool) -> dict[str, Tensor]:
        model, sums = tiny_llama(layers=3), {}
        layers = target_linears(model, LINEAR_KINDS)
        for found in walk(model, layers, TinyText().batches(), True, sequential):
            sums |= {name: each.products.clone() for name, each in found.items()}
            change(model, found)
        return sums

    model = tiny_llama(layers=3).train()
    layers = target_linears(model, LINEAR_KINDS)
    together: list[dict[str, Tensor]] = [{}, {}]
    for pair in walk_twice(model, layers, TinyText().batches):
        for sums, found in zip(together, pair, strict=True):
            sums |= {name: each.products.clone() for name, each in found.items()}
        change(model, pair[0])
    assert model.training
    for sums, wanted in zip(together, (alone(False), alone(True)), strict=True):
        assert sums.keys() == wanted.keys() == layers.keys()
        assert all(sums[name].equal(wanted[name]) for name in wanted)
    assert not together[0]["model.layers.1.mlp.up_proj"].allclose(together[1]["model.layers.1.mlp.up_proj"])


def test_with_damping_the_first_block_still_keeps_its_factors() -> None:
    models = [prepared(update=update)[1:] for update in ("none", "closed")]
    assert all(context.facts["damped"] for _, context in models)
    for name in ("q_proj", "o_proj"):
        before, after = (
            model.get_parameter(f"model.layers.0.self_attn.{name}.up.weight") for model, _ in models
        )
        assert torch.allclose(before, after, atol=1e-5)


def test_the_closed_update_of_a_model_fits_each_factor_behind_compressed_blocks() -> None:
    _, plain, _ = prepared(damping=0)
    _, model, _ = prepared(damping=0, update="closed")
    dense = tiny_llama()
    for block in range(2):
        for name in (f"model.layers.{block}.self_attn.o_proj", f"model.layers.{block}.mlp.down_proj"):
            before, after = (each.get_submodule(name) for each in (plain, model))
            assert isinstance(before, FactoredLinear)
            assert isinstance(after, FactoredLinear)
            if block == 0:  # its inputs are those that it was factored for
                assert torch.allclose(after.up.weight, before.up.weight, atol=1e-5)
                continue
            inputs = inputs_behind(model, dense, block, name)
            weight = dense.get_submodule(name).weight.double()  # type: ignore[union-attr, operator]
            down = after.down.weight.double()
            best = torch.linalg.lstsq(inputs @ down.T, inputs @ weight.T).solution.T
            assert torch.allclose(after.up.weight.double(), best, atol=1e-3)
            assert not torch.allclose(after.up.weight, before.up.weight, atol=1e-2)


@torch.no_grad()
def inputs_behind(model: nn.Module, dense: nn.Module, block: int, name: str) -> Tensor:
    """Inputs (tokens, in) of a layer of a dense block that reads the outputs of changed blocks."""
    mixed: Any = tiny_llama()
    for number in range(block):
        mixed.model.layers[number] = model.get_submodule(f"model.layers.{number}")
    caught: list[Tensor] = []
    mixed.get_submodule(name).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    for ids, _ in TinyText().batches():
        mixed.eval()(input_ids=ids)
    return torch.cat([each.flatten(0, 1) for each in caught]).double()


# ------------------------------------------------------------------------------------------- stages
def weights(model: nn.Module, part: str) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if part in name}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not before[name].equal(after[name])}


@pytest.mark.parametrize("first", ["up", "down"])
def test_one_factor_trains_in_the_first_half_and_the_other_in_the_second(first: str) -> None:
    second = {"up": "down", "down": "up"}[first]
    model, stepper = staged(first=first)
    for active, resting, steps in ((first, second, (0, 2)), (second, first, (3, 6))):
        before = weights(model, "")
        train(model, stepper, *steps)
        changed = moved(before, weights(model, ""))
        assert changed == {name for name in before if f".{active}.lora_" in name}
        assert not {name for name in before if f".{resting}.lora_" in name} & changed
        train(model, stepper, 2, 3)


def test_at_the_half_adapters_become_part_of_their_factors_and_the_model_says_the_same() -> None:
    model, stepper = staged()
    train(model, stepper, 0, 2)
    bases, switch = weights(model, "up.base_layer"), stepper._switch
    adapters: dict[str, Tensor] = {}
    said: list[Tensor] = []

    def watched() -> None:
        said.append(logits(model))
        adapters.update(weights(model, "up.lora_"))
        switch()

    stepper._switch = watched
    train(model, stepper, 2, 3)
    assert torch.allclose(logits(model), said[0], atol=1e-5)
    for name, base in bases.items():
        stem = name.removesuffix(".base_layer.weight")
        up, down = (adapters[f"{stem}.lora_{part}.default.weight"] for part in "BA")
        now = model.get_parameter(name)
        assert torch.allclose(now, base + 2 * up @ down, atol=1e-6)  # alpha 16 over rank 8
        assert not now.equal(base)
        assert not model.get_parameter(f"{stem}.lora_B.default.weight").any()
    assert not list(stepper.state_tensors())
    train(model, stepper, 3, 4)
    names = [name for name, _ in stepper.state_tensors()]
    assert names
    assert all(".down.lora_" in name for name in names)
    assert {float(state["step"]) for state in stepper.states.values()} == {1.0}


def test_ranks_stay_and_the_export_is_factored_without_adapters() -> None:
    method, model, context = prepared(train="stages")
    train(model.train(), method.stepper(model, OPTIM), 0, 6)
    wanted = logits(model)
    exported = method.export(model)
    assert factored.ranks(exported) == context.ranks
    assert not [name for name, _ in exported.named_parameters() if "lora" in name]
    assert torch.allclose(logits(exported), wanted, atol=1e-4)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_run_resumed_before_at_or_behind_the_switch_is_the_same_to_the_bit(at: int) -> None:
    model, stepper = staged()
    train(model, stepper, 0, at)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "stepper": stepper.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    wanted = train(model, stepper, at, 6)
    again, other = staged()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["stepper"])
    assert train(again, other, at, 6) == wanted
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_first_update_of_the_second_stage_is_the_only_refresh() -> None:
    model, stepper = staged(updates=7)
    infos = []
    for step in range(7):
        stepper.set_lr(1e-2)
        ids = tiny_batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        infos.append(stepper.step())
        stepper.zero_grad()
    assert [number for number, info in enumerate(infos, 1) if info.refreshed] == [4]
    assert [number for number, info in enumerate(infos, 1) if info.refresh_next] == [3]


@pytest.mark.parametrize("updates", [None, 0, 1])
def test_stages_need_two_updates(updates: int | None) -> None:
    method, model, _ = prepared(updates=updates, train="stages")
    with pytest.raises(UserError, match=r"^svdllm: `train: stages` needs a known number of updates"):
        method.stepper(model, OPTIM)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first": "down"}, "`first` matters only with train: stages"),
        ({"alpha": 3, "train": "lrc"}, "`alpha` matters only with train: stages"),
        ({"update": "closed", "sequential": True}, "`update: closed` changes nothing where `sequential`"),
        ({"update": "open"}, "update"),
        ({"train": "stages", "first": "left"}, "first"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("svdllm", options)

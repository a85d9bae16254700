"""LISA: which layers train when, what the optimizer holds of the others, and where it is full training."""

from __future__ import annotations

import io
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig, Run
from harness.engine.forecast.dry_run import simulate
from harness.engine.measure.peak import LiveMeter
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from methods.parts.sampling.method import SampledStepper
from methods.parts.sampling.schedule import Schedule
from tests.support.tiny import tiny_batch, tiny_llama, train

LAYERS = 4
LR = 1e-2


def made(
    optim: dict[str, Any] | None = None, seed: int = 3, below: Sequence[Any] = (), **options: Any
) -> tuple[Any, SampledStepper]:
    """A model of four layers and its stepper, one layer at a time and two updates of each."""
    model: nn.Module = tiny_llama(layers=LAYERS).double()
    for name, given in (*below, ("lisa", {"layers": 1, "interval": 2, **options})):
        method = build(name, given)
        model = method.prepare(model, Context(seed=seed))
    stepper = method.stepper(model, OptimConfig(lr=LR, **(optim or {})))
    assert isinstance(stepper, SampledStepper)
    model.train()
    return model, stepper


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter is in; None outside of the layers."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def moved(model: nn.Module, stepper: SampledStepper, steps: int, lr: float = LR) -> Iterator[set[str]]:
    """The parameters that each update changes."""
    for step in range(steps):
        before = copies(model)
        train(model, stepper, step, step + 1, lr)
        yield {name for name, weight in copies(model).items() if not weight.equal(before[name])}


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert mine.equal(theirs), name


# ------------------------------------------------------------------------------------- what trains
@pytest.mark.parametrize("states", ["drop", "keep"])
@pytest.mark.parametrize("optim", [{"weight_decay": 0.1, "clip": 1.0}, {"per_layer": True}], ids=str)
def test_invariant_1_with_all_layers_it_is_full_training(states: str, optim: dict[str, Any]) -> None:
    model, stepper = made(optim, layers=LAYERS, interval=2, states=states)
    full = tiny_llama(layers=LAYERS).double()
    method = build("full", {})
    other = method.stepper(method.prepare(full, Context()), OptimConfig(lr=LR, **optim))
    assert train(model, stepper, 0, 7) == train(full, other, 0, 7)
    assert_equal(model, full)


@pytest.mark.parametrize("states", ["drop", "reset", "keep"])
def test_invariants_2_and_3_exactly_the_drawn_layers_and_what_is_outside_move(states: str) -> None:
    """One interval after the other; a layer that the optimizer did not know could never move."""
    model, stepper = made({"weight_decay": 0.1}, layers=2, states=states)
    start, outside = copies(model), {name for name, _ in model.named_parameters() if layer_of(name) is None}
    drawn = []
    for changed in moved(model, stepper, 16):
        layers = {number for name in changed if (number := layer_of(name)) is not None}
        assert len(layers) == 2
        assert changed == outside | {name for name in start if layer_of(name) in layers}
        drawn.append(layers)
    assert all(one == other for one, other in zip(drawn[::2], drawn[1::2], strict=True))
    assert set.union(*drawn) == set(range(LAYERS))
    assert not any(weight.equal(start[name]) for name, weight in copies(model).items())


def test_what_is_outside_can_be_frozen() -> None:
    for options, rests in (
        ({"train_embeddings": False}, {"model.embed_tokens.weight"}),
        ({"train_head": False}, {"lm_head.weight"}),
    ):
        model, stepper = made(**options)
        outside = {name for name in set.union(*moved(model, stepper, 2)) if layer_of(name) is None}
        assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} - rests


def test_a_method_below_that_froze_everything_changes_nothing() -> None:
    model, _ = made(below=[("lora", {"rank": 2})])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "lm_head.weight" in trained
    assert sum("base_layer" in name for name in trained) == 7


# ------------------------------------------------------------------------------------ by the algorithm
def by_the_algorithm(
    states: str, drawn: Sequence[tuple[int, ...]], steps: int, lrs: Sequence[float], clip: float
) -> nn.Module:
    """Section 2.1 with an optimizer of torch for each parameter, made when what it held is gone."""
    model = tiny_llama(layers=LAYERS).double()
    model.train()
    optimizers: dict[str, Any] = {}
    for step in range(steps):
        active = drawn[step // 2]
        if step and step % 2 == 0:
            if states == "reset":
                optimizers = {}
            elif states == "drop":
                optimizers = {n: o for n, o in optimizers.items() if layer_of(n) in (None, *active)}
        for ids in tiny_batch(step).split(1):
            (model(input_ids=ids, labels=ids).loss / 2).backward()
        names = [name for name, _ in model.named_parameters() if layer_of(name) in (None, *active)]
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
        norm = torch.stack([parameter.grad.norm() for parameter in parameters.values()]).norm()
        for name, parameter in parameters.items():
            parameter.grad *= min(1.0, clip / (float(norm) + 1e-6))
            if name not in optimizers:
                optimizers[name] = torch.optim.AdamW([parameter], weight_decay=0.1, foreach=False)
            optimizers[name].param_groups[0]["lr"] = lrs[step]
            optimizers[name].step()
        model.zero_grad()
    return model


@pytest.mark.parametrize("states", ["drop", "reset", "keep"])
def test_invariant_7_it_is_the_algorithm_with_accumulation_clipping_decay_and_every_rate(states: str) -> None:
    lrs = [LR * (1 + step % 3) for step in range(10)]
    model, stepper = made({"weight_decay": 0.1, "clip": 0.5}, layers=2, states=states)
    drawn = [stepper.schedule.layers(interval) for interval in range(5)]
    assert any(set(drawn[0]) & set(later) for later in drawn[2:])  # so that it matters what is kept
    for step in range(10):
        stepper.set_lr(lrs[step])
        for ids in tiny_batch(step).split(1):
            (model(input_ids=ids, labels=ids).loss / 2).backward()
        stepper.step()
        stepper.zero_grad()
    wanted = by_the_algorithm(states, drawn, 10, lrs, clip=0.5)
    for (name, mine), theirs in zip(model.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_with_checkpointing_and_inside_backward_it_is_the_same() -> None:
    plain, inside, again = made(), made({"per_layer": True}), made()
    again[0].gradient_checkpointing_enable({"use_reentrant": False})
    losses = train(*plain, 0, 7)
    assert train(*inside, 0, 7) == losses
    assert_equal(plain[0], inside[0])
    torch.testing.assert_close(train(*again, 0, 7), losses, rtol=1e-9, atol=0)


# --------------------------------------------------------------------------------------- the schedule
def test_invariant_5_each_layer_is_drawn_as_often_as_it_should_be() -> None:
    """gamma / N, and with weights what successive draws give, within four standard errors."""
    draws, weights = 10_000, (1.0, 2.0, 3.0, 10.0)
    for given in ((1.0,) * 4, weights):
        counts = Counter(
            itertools.chain.from_iterable(
                Schedule(given, 2, 1, 5).layers(interval) for interval in range(draws)
            )
        )
        total = sum(given)
        for layer, weight in enumerate(given):
            second = (w / total * weight / (total - w) for other, w in enumerate(given) if other != layer)
            share = weight / total + sum(second)
            assert abs(counts[layer] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5
    assert sum(counts.values()) == 2 * draws


def test_invariant_6_layers_follow_from_the_seed_and_the_number_of_the_interval_alone() -> None:
    model, stepper = made(seed=3)
    wanted = [stepper.schedule.layers(number) for number in range(20)]
    torch.manual_seed(99)
    for step in range(12):
        assert stepper.active == wanted[step // 2]
        train(model, stepper, step, step + 1)
    longer = made({"per_layer": True}, seed=3, interval=7)[1].schedule
    assert [longer.layers(number) for number in range(20)] == wanted
    assert [made(seed=4)[1].schedule.layers(number) for number in range(20)] != wanted


def test_the_first_update_of_an_interval_is_told_before_and_with_it_and_an_interval_can_be_ended() -> None:
    _, stepper = made(interval=3)
    told = []
    for step in range(8):
        if step == 7:
            stepper.refresh_soon()
        stepper.set_lr(LR)
        told.append((stepper.interval, stepper.step()))
    assert [number for number, _ in told] == [0, 0, 0, 1, 1, 1, 2, 3]
    assert [info.refreshed for _, info in told] == [True, False, False, True, False, False, True, True]
    assert [info.refresh_next for _, info in told] == [False, False, True] * 2 + [False, False]
    assert build("lisa", {"interval": 3}).caps.period == 3


def test_layers_are_the_first_of_eight_to_arrive() -> None:
    stream = random.Random("6 layers 7")  # of which no version of Python has another sequence
    times = {number: -math.log(1 - stream.random()) / (number + 1) for number in range(8)}
    wanted = sorted(sorted(times, key=lambda number: times[number])[:3])
    assert Schedule(tuple(float(number + 1) for number in range(8)), 3, 10, 6).layers(7) == tuple(wanted)


@pytest.mark.parametrize("states", ["drop", "reset", "keep"])
@pytest.mark.parametrize(("at", "optim"), [(3, {}), (4, {"per_layer": True})], ids=str)
def test_a_run_saved_inside_an_interval_or_at_its_end_goes_on_bit_for_bit(
    at: int, states: str, optim: dict[str, Any]
) -> None:
    model, stepper = made(optim, layers=2, states=states)
    train(model, stepper, 0, at)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "stepper": stepper.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, other = made(optim, layers=2, states=states)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["stepper"])
    assert train(resumed, other, at, at + 5) == train(model, stepper, at, at + 5)
    assert_equal(model, resumed)
    states_of = [dict(each.state_tensors()) for each in (stepper, other)]
    assert states_of[0].keys() == states_of[1].keys()


# ----------------------------------------------------------------------------------- states and memory
def stored(stepper: SampledStepper) -> set[int | None]:
    return {layer_of(name) for name, _ in stepper.state_tensors()}


def state_bytes(stepper: SampledStepper) -> int:
    return sum(tensor.untyped_storage().nbytes() for _, tensor in stepper.state_tensors())


def test_invariant_4_at_a_switch_the_optimizer_drops_what_it_is_told_to() -> None:
    model, stepper = made(layers=1, interval=2)
    first, second = stepper.schedule.layers(0), stepper.schedule.layers(1)
    assert first != second
    train(model, stepper, 0, 1)
    assert stored(stepper) == {None, *first}
    train(model, stepper, 1, 2)
    assert stored(stepper) == {None}
    train(model, stepper, 2, 3)
    assert stored(stepper) == {None, *second}
    model, stepper = made(states="reset")
    train(model, stepper, 0, 2)
    assert not stored(stepper)


@pytest.mark.parametrize("states", ["drop", "reset", "keep"])
@pytest.mark.parametrize("optim", [{}, {"per_layer": True}], ids=str)
def test_invariant_4_memory_after_ten_switches_is_that_after_one(states: str, optim: dict[str, Any]) -> None:
    """States and peak in the second update of each interval; what a switch itself needs is no more."""
    model, stepper = made(optim, states=states)
    meter = LiveMeter(torch.device("cpu"))
    sizes, peaks = [], []
    for first in (2, 22):
        train(model, stepper, 2 * stepper.interval, first)
        for step in (first, first + 1):
            with meter.window() as window:
                train(model, stepper, step, step + 1)
            peaks.append(window.peak_allocated_bytes)
            if step == first:
                sizes.append(state_bytes(stepper))
    assert sizes[0] == sizes[1]
    assert peaks[1] == peaks[3]
    assert max(peaks) == peaks[1]
    whole = sum(2 * parameter.nbytes for parameter in model.parameters())
    assert (sizes[0] >= whole) == (states == "keep")


def test_frozen_layers_get_no_gradients_and_lose_theirs_at_a_switch() -> None:
    model, stepper = made(interval=1)
    (first,), (second,) = stepper.schedule.layers(0), stepper.schedule.layers(1)
    assert first != second
    ids = tiny_batch()
    model(input_ids=ids, labels=ids).loss.backward()
    graded = {layer_of(name) for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert graded == {None, first}
    stepper.step()  # without zero_grad
    graded = {layer_of(name) for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert graded == {None}
    assert all(parameter.requires_grad for parameter in model.model.layers[second].parameters())


FORECAST = {
    "model": {"source": "shape", "name": "9m"},
    "data": {"source": "random", "seq_len": 64},
    "method": [{"lisa": {"layers": 1}}],
    "train": {"stage": "finetune", "batch": 2},
}


def test_the_forecast_is_the_same_whichever_layers_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a forecast of two intervals holds for all of them."""
    peaks = set()
    for layer in (0, 3):
        monkeypatch.setattr(Schedule, "layers", lambda *_, layer=layer: (layer,))
        report = simulate(Run.model_validate(FORECAST))
        assert report.train is not None
        peaks.add(report.train.peak_allocated_bytes)
    assert len(peaks) == 1


def test_the_forecast_knows_the_gradients_of_layers_that_were_frozen_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {"source": "shape", "name": "nano", "layers": 4}  # with few activations beside its gradients
    run = Run.model_validate({**FORECAST, "model": small, "data": {"source": "random", "seq_len": 4}})
    monkeypatch.setattr(Schedule, "layers", lambda _, interval: (0, 1, 2) if interval else (3,))
    one = 4 * 32 * (4 * 32 + 3 * 88 + 2)  # bytes of a layer: attention, feed-forward, norms
    assert simulate(run).peak.groups["gradients"] > 3 * one


# --------------------------------------------------------------------------------- stacks and refusals
def test_velora_compresses_the_inputs_of_the_layers_that_train() -> None:
    """With all layers it is velora and full; with some, a frozen layer keeps nothing and gets no vector."""
    velora = ("velora", {"num_groups": 4})
    model, stepper = made(below=[velora], layers=LAYERS)
    method, other = build("full", {}), build(*velora)
    full = method.prepare(other.prepare(tiny_llama(layers=LAYERS).double(), Context(seed=3)), Context())
    full.train()
    assert train(model, stepper, 0, 3) == train(full, method.stepper(full, OptimConfig(lr=LR)), 0, 3)
    model, stepper = made(below=[velora])
    ready = []
    for step in range(0, 4, 2):
        train(model, stepper, step, step + 2)
        ready.append({n for n, layer in enumerate(model.model.layers) if layer.mlp.down_proj.ready})
    assert ready == [
        set(stepper.schedule.layers(0)),
        {*stepper.schedule.layers(0), *stepper.schedule.layers(1)},
    ]


def test_layers_that_are_never_drawn_are_named() -> None:
    context = Context(seed=3, updates=3)
    method = build("lisa", {"layers": 1, "interval": 2})
    method.prepare(tiny_llama(layers=LAYERS), context)
    drawn = {*made()[1].schedule.layers(0), *made()[1].schedule.layers(1)}
    never = sorted(set(range(LAYERS)) - drawn)
    assert context.facts["never_trained"] == never
    assert context.warnings == [
        f"lisa: layers that are never drawn in 3 updates ({len(never)} of 4): {', '.join(map(str, never))}"
    ]
    for updates in (200, None):
        context = Context(seed=3, updates=updates)
        method.prepare(tiny_llama(layers=LAYERS), context)
        assert not context.warnings
        assert context.facts == {"trainable": "1 of 4 layers at a time, and what is outside of them"}


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"^lisa: layers is 5, but the model has 4; give at most 4$"):
        made(layers=5)


def test_a_tied_head_trains_with_the_embeddings_or_not_at_all() -> None:
    for flags in ({"train_head": False}, {"train_embeddings": False}):
        with pytest.raises(UserError, match=r"the head of this model is its embedding, so train_embeddings"):
            build("lisa", flags).prepare(tiny_llama(tie=True), Context())
    model = tiny_llama(tie=True)
    build("lisa", {"train_head": False, "train_embeddings": False}).prepare(model, Context())
    assert not model.lm_head.weight.requires_grad
    assert model.model.norm.weight.requires_grad


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no list of as many layers as num_hidden_layers"):
        build("lisa", {}).prepare(nn.Linear(2, 2), Context())

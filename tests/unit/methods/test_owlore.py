"""OwLore: outliers counted by hand, draws by them, and GaLore's subspaces when layers come and go."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import OptimConfig
from harness.engine.measure.peak import LiveMeter
from harness.errors import UserError
from harness.method import Batch, Context, StepInfo
from harness.plugins import build
from methods.owlore import OwLoreStepper
from methods.parts.calibration.outliers import score
from methods.parts.sampling.outliers import outlier_scores
from tests.support.tiny import TinyText, tiny_batch, tiny_llama, train
from tests.unit.methods.test_galore import Momentum
from tests.unit.methods.test_lisa import LAYERS, LR, assert_equal, layer_of, moved, state_bytes, stored

STATES = ("drop", "reset", "keep")


def made(optim: dict[str, Any] | None = None, seed: int = 3, **options: Any) -> tuple[Any, OwLoreStepper]:
    """A model of four layers and its stepper: one layer at a time, for two updates, subspaces for four."""
    given = {"layers": 1, "interval": 2, "sampling": "uniform", "rank": 4, "period": 4, **options}
    method = build("owlore", given)
    model = method.prepare(tiny_llama(layers=LAYERS).double(), Context(seed=seed))
    stepper = method.stepper(model, OptimConfig(lr=LR, **(optim or {})))
    assert isinstance(stepper, OwLoreStepper)
    model.train()
    return model, stepper


class Descent(Momentum):
    """Gradient descent behind Adam's interface."""

    update = torch.no_grad()(Momentum.update)


def infos(model: nn.Module, stepper: Any, steps: int) -> Iterator[StepInfo]:
    for step in range(steps):
        stepper.set_lr(LR)
        ids = tiny_batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        yield stepper.step()
        stepper.zero_grad()


# ------------------------------------------------------------------------------ what it is equal to
@pytest.mark.parametrize("states", ["drop", "keep"])
@pytest.mark.parametrize(
    ("optim", "options"),
    [
        ({"weight_decay": 0.1, "clip": 1.0}, {}),
        ({"per_layer": True, "state_bits": 8}, {"moments": "rotate"}),
        ({"weight_decay": 0.1}, {"arithmetic": "official", "stagger": True, "lazy": 0.5}),
    ],
    ids=str,
)
def test_with_all_layers_it_is_galore(states: str, optim: dict[str, Any], options: dict[str, Any]) -> None:
    model, stepper = made(optim, layers=LAYERS, states=states, **options)
    method = build("galore", {"rank": 4, "period": 4, "scale": 1.0, **options})
    other = method.prepare(tiny_llama(layers=LAYERS).double(), Context(seed=3))
    galore = method.stepper(other, OptimConfig(lr=LR, **optim))
    assert train(model, stepper, 0, 11) == train(other, galore, 0, 11)
    assert_equal(model, other)


@pytest.mark.parametrize(
    "weights", [{"sampling": "uniform"}, {"sampling": "outliers", "scores": [7] * LAYERS}]
)
def test_invariant_1_equal_scores_draw_the_layers_of_lisa(weights: dict[str, Any]) -> None:
    lisa = build("lisa", {"layers": 2, "interval": 9})
    lisa.prepare(tiny_llama(layers=LAYERS), Context(seed=3))
    schedule = made(layers=2, **weights)[1].schedule
    wanted = lisa.schedule(tiny_llama(layers=LAYERS))  # type: ignore[attr-defined]
    assert [schedule.layers(number) for number in range(50)] == [
        wanted.layers(number) for number in range(50)
    ]


#: Of the scores of LLaMA-2 7B in the paper's code, those that the dossier has; they add up to 2.186.
SHIPPED = {0: 0.268, 1: 0.295, 2: 0.127, 3: 0.114, 27: 0.0182, 31: 0.0825}


def test_invariant_4_layers_are_drawn_as_often_as_successive_draws_by_the_shipped_scores() -> None:
    """Five of 32, within four standard errors; the scores that are not at hand share what is left."""
    rest = (2.186 - sum(SHIPPED.values())) / (32 - len(SHIPPED))
    method: Any = build("owlore", {"scores": [SHIPPED.get(layer, rest) for layer in range(32)]})
    method.prepare(tiny_llama(layers=32), Context(seed=3))
    schedule, draws = method.schedule(tiny_llama(layers=32)), 10_000
    drawn = Counter(itertools.chain.from_iterable(map(schedule.layers, range(draws))))
    assert sum(drawn.values()) == 5 * draws
    for layer, wanted in ((1, 0.556), (0, 0.520), (27, 0.046)):
        assert abs(drawn[layer] / draws - wanted) < 4 * (wanted * (1 - wanted) / draws) ** 0.5, layer


@pytest.mark.parametrize("states", STATES)
def test_invariant_5_at_full_rank_gradient_descent_is_that_of_lisa(states: str) -> None:
    """In whatever basis: the subspace is the whole space."""
    model, stepper = made(layers=2, rank=80, states=states)
    lisa = build("lisa", {"layers": 2, "interval": 2, "states": states})
    other = lisa.prepare(tiny_llama(layers=LAYERS).double(), Context(seed=3))
    plain = lisa.stepper(other, OptimConfig(lr=LR))
    stepper.adam = plain.adam = Descent(0.0)  # type: ignore[union-attr]
    torch.testing.assert_close(train(model, stepper, 0, 9), train(other, plain, 0, 9), rtol=1e-9, atol=0)


def test_lisa_invariants_2_and_3_exactly_the_drawn_layers_and_what_is_outside_move() -> None:
    model, stepper = made({"weight_decay": 0.1}, sampling="increase")
    drawn = []
    for update, changed in enumerate(moved(model, stepper, 40)):
        (layer,) = stepper.schedule.layers(update // 2)
        assert {layer_of(name) for name in changed} == {None, layer}
        drawn.append(layer)
    assert set(drawn) == set(range(LAYERS))


# ------------------------------------------------------------------------------------------ outliers
def by_hand(model: nn.Module, samples: Sequence[Tensor], threshold: float) -> list[float]:
    """The percentage for each layer, of all entries of its seven matrices put into one vector."""
    inputs: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer_of(f"{name}.") is not None:
            module.register_forward_hook(
                lambda _, given, __, name=name: inputs.setdefault(name, []).append(given[0].flatten(0, -2))
            )
    with torch.no_grad():
        for ids in samples:
            model(input_ids=ids)
    found = []
    for layer in range(LAYERS):
        entries = []
        for name in inputs:
            if layer_of(f"{name}.") == layer:
                features = torch.cat(inputs[name]).double()
                weight = model.get_submodule(name).weight.double()
                entries += (weight.abs() * (features**2).sum(0) ** 0.5).flatten().tolist()
        mean = sum(entries) / len(entries)
        found.append(100 * sum(entry > threshold * mean for entry in entries) / len(entries))
    return found


def scored(threshold: float, samples: int = 3) -> tuple[Any, Context]:
    """A method and its context, prepared on three sequences: a batch of two and one of the next."""
    options = {"layers": 1, "sampling": "outliers", "threshold": threshold, "samples": samples}
    method, context = build("owlore", options), Context(seed=3, calibration=TinyText())
    method.prepare(tiny_llama(layers=LAYERS).double(), context)
    return method, context


@pytest.mark.parametrize("threshold", [2.0, 4.0])
def test_scores_are_the_share_of_outliers_counted_by_hand(threshold: float) -> None:
    method, context = scored(threshold)
    wanted = by_hand(tiny_llama(layers=LAYERS).double(), [tiny_batch(0), tiny_batch(1)[:1]], threshold)
    assert context.facts["scores"] == pytest.approx(wanted, abs=1e-6)
    assert method.schedule(tiny_llama(layers=LAYERS)).weights == pytest.approx(wanted)
    assert len(set(wanted)) > 1
    assert all(0 < value < 100 / threshold for value in wanted)
    assert scored(threshold, samples=1)[1].facts["scores"] != context.facts["scores"]


def test_padding_makes_no_outliers() -> None:
    """Five tokens and what stands for none after them score as the five alone."""
    ids, short = tiny_batch(0, batch=1), tiny_batch(0, batch=1)[:, :5]
    padded = torch.where(torch.arange(ids.shape[1]) < 5, ids, -100)
    model = tiny_llama(layers=LAYERS).double()
    found = outlier_scores(model, iter([Batch(ids, padded)]), 1, 2.0)
    assert found == outlier_scores(model, iter([Batch(short, short)]), 1, 2.0)
    assert found != outlier_scores(model, iter([Batch(ids, ids)]), 1, 2.0)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = tiny_llama(layers=LAYERS)
    for mode in (True, False):
        model.train(mode)
        options = {"layers": 1, "threshold": 2, "samples": 2}
        build("owlore", options).prepare(model, Context(calibration=TinyText()))
        assert all(module.training == mode for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_invariant_2_scores_do_not_depend_on_the_size_of_weights_or_inputs_and_are_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(30, 20, generator=generator) ** 3, torch.rand(20, generator=generator)) for _ in range(3)
    ]
    for threshold in (1.0, 2.0, 5.0):
        found = score(pairs, threshold)
        assert 0 < found < 100 / threshold
        assert score([(8 * weight, norms) for weight, norms in pairs], threshold) == found
        assert score([(weight, norms / 4) for weight, norms in pairs], threshold) == found
    assert score([(torch.full((4, 6), -0.5), torch.full((6,), 3.0))], 1.0) == 0
    one_in_ten = torch.ones(10, 10)
    one_in_ten[0] = 100
    assert score([(one_in_ten, torch.ones(10))], 9.0) == 10


def test_layers_with_a_score_of_zero_are_never_trained_and_named() -> None:
    options = {"layers": 1, "interval": 1, "scores": [1, 0, 2, 0]}
    context = Context(seed=3, updates=500)
    method: Any = build("owlore", options)
    method.prepare(tiny_llama(layers=LAYERS), context)
    assert context.facts["never_trained"] == [1, 3]
    assert "owlore: layers that are never drawn in 500 updates (2 of 4): 1, 3" in context.warnings
    schedule = method.schedule(tiny_llama(layers=LAYERS))
    assert {layer for number in range(500) for layer in schedule.layers(number)} == {0, 2}


def test_order_is_a_weight() -> None:
    assert made(sampling="decrease")[1].schedule.weights == (4, 3, 2, 1)
    assert made(sampling="increase")[1].schedule.weights == (1, 2, 3, 4)


# ----------------------------------------------------------------------------------------- subspaces
def expected(stepper: OwLoreStepper, steps: int, interval: int, states: str, returning: str) -> list[int]:
    """Layers whose subspaces each update should find, from the schedule alone; T counts active updates."""
    due: dict[int, int] = {}  # updates of its own until the next one
    active: set[int] = set()
    found = []
    for step in range(steps):
        if step % interval == 0:
            before, active = active, set(stepper.schedule.layers(step // interval))
            if states == "reset":
                due = {}
            if states == "drop":
                due = {layer: left for layer, left in due.items() if layer in active}
            if returning == "refresh":
                due = {layer: left for layer, left in due.items() if layer in before or layer not in active}
        found.append(sum(due.get(layer, 0) == 0 for layer in active))
        due |= {layer: (due.get(layer, 0) or stepper.sampling.period) - 1 for layer in active}  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("period", [2, 3, 7])
@pytest.mark.parametrize("states", [*STATES, "keep, refresh"])
def test_invariant_6_subspaces_are_found_when_the_schedule_says(states: str, period: int) -> None:
    states, _, returning = states.partition(", ")
    options = {"returning": returning} if returning else {}
    model, stepper = made(layers=2, interval=3, period=period, states=states, **options)
    wanted = expected(stepper, 24, 3, states, returning)
    found = list(infos(model, stepper, 24))
    assert [info.refreshes for info in found] == [7 * layers for layers in wanted]
    assert [info.refreshed for info in found] == [layers > 0 for layers in wanted]
    assert [info.refresh_next for info in found[:-1]] == [layers > 0 for layers in wanted[1:]]


def test_a_refresh_that_is_asked_for_begins_an_interval_and_finds_all_its_subspaces() -> None:
    for layers in (2, LAYERS):
        model, stepper = made(layers=layers, interval=50, period=50)
        list(infos(model, stepper, 2))
        stepper.refresh_soon()
        assert stepper.active == stepper.schedule.layers(1)
        (info,) = infos(model, stepper, 1)
        assert info.refreshes == 7 * layers


def test_refreshes_are_counted_once_in_so_many_updates() -> None:
    for options, mean in (
        ({"interval": 50, "period": 100}, 50),
        ({"interval": 50, "period": 20}, 16),
        ({"interval": 50, "period": 20, "states": "keep"}, 20),
        ({"interval": 1, "period": 1}, 1),
    ):
        caps = build("owlore", options).caps
        assert (caps.period, caps.mean_period) == (None, mean)


# ----------------------------------------------------------------------------------- states and memory
@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize(("at", "optim"), [(3, {}), (4, {"per_layer": True})], ids=str)
def test_a_run_saved_inside_an_interval_or_at_its_end_goes_on_bit_for_bit(
    at: int, states: str, optim: dict[str, Any]
) -> None:
    model, stepper = made(optim, layers=2, states=states, arithmetic="official")
    train(model, stepper, 0, at)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "stepper": stepper.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, other = made(optim, layers=2, states=states, arithmetic="official")
    train(resumed, other, 0, 6)  # what was loaded replaces all of it
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["stepper"])
    for each in (stepper, other):
        assert state_bytes(each) == state_bytes(stepper)
    assert train(resumed, other, at, at + 7) == train(model, stepper, at, at + 7)
    assert_equal(model, resumed)


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("options", [{}, {"projection": "full", "precision": "gradient"}], ids=str)
def test_lisa_invariant_4_memory_after_ten_switches_is_that_after_one(
    states: str, options: dict[str, Any]
) -> None:
    """In the second update of an interval, with a refresh in none."""
    model, stepper = made(states=states, period=100, sampling="uniform", **options)
    meter = LiveMeter(torch.device("cpu"))
    sizes, peaks = [], []
    for first in (2, 22):
        train(model, stepper, 2 * stepper.interval, first + 1)
        with meter.window() as window:
            train(model, stepper, first + 1, first + 2)
        peaks.append(window.peak_allocated_bytes)
        train(model, stepper, first + 2, first + 3)
        sizes.append(state_bytes(stepper))
        assert stored(stepper) == {None, *(range(LAYERS) if states == "keep" else stepper.active)}
        train(model, stepper, first + 3, first + 4)
    assert sizes[0] == sizes[1]
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("states", ["drop", "keep"])
def test_the_states_are_as_many_as_it_says(states: str) -> None:
    """Of the matrices: bases and moments; of the rest two moments an element, and a count for each tensor."""
    context = Context(seed=3)
    method = build("owlore", {"layers": 1, "interval": 2, "rank": 4, "states": states, "sampling": "uniform"})
    model = method.prepare(tiny_llama(layers=LAYERS), context)
    stepper: Any = method.stepper(model, OptimConfig(lr=LR))
    train(model, stepper, 0, 1)
    outside = 2 * sum(p.numel() for name, p in model.named_parameters() if layer_of(name) is None)
    assert context.facts["outside_state_elements"] == outside
    layers = LAYERS if states == "keep" else 1
    norms = 2 * 2 * 32 * layers
    elements = [tensor.numel() for name, tensor in stepper.state_tensors() if not name.endswith(".step")]
    assert sum(elements) == context.facts["state_elements"] + outside + norms


def test_what_a_layer_was_away_for_is_told_where_it_matters() -> None:
    for states in STATES:
        context = Context(seed=3, updates=40)
        method: Any = build("owlore", {"layers": 1, "interval": 2, "states": states, "sampling": "uniform"})
        method.prepare(tiny_llama(layers=LAYERS), context)
        drawn = [method.schedule(tiny_llama(layers=LAYERS)).layers(number)[0] for number in range(20)]
        away = []
        for number, layer in enumerate(drawn):
            earlier = [other for other in range(number) if drawn[other] == layer]
            if earlier and earlier[-1] != number - 1:
                away.append(2 * (number - earlier[-1] - 1))
        wanted = round(sum(away) / len(away), 1) if states == "keep" else None
        assert context.facts.get("updates_away") == wanted


# ------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scores": [1.0, 2.0]}, r"^owlore: scores are 2, but the model has 4 layers; give one a layer$"),
        ({"scores": [0, 0, 0, 0]}, r"^owlore: all scores are 0; give scores above 0$"),
        (
            {"threshold": 1000},
            r"^owlore: all scores are 0 at a threshold of 1000; give a lower one, or scores above 0$",
        ),
        (
            {"scores": [1, 0, 0, 1], "layers": 3},
            r"^owlore: layers is 3, but the model has 4, of which 2 can be drawn; give at most 2$",
        ),
    ],
    ids=str,
)
def test_what_the_model_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    method = build("owlore", {"layers": 1, **options})
    with pytest.raises(UserError, match=said):
        method.prepare(tiny_llama(layers=LAYERS), Context(calibration=TinyText()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"threshold": 3, "sampling": "uniform"},
            "`threshold` matters only with sampling: outliers and without",
        ),
        ({"samples": 3, "scores": [1]}, "`samples` matters only with sampling: outliers and without scores"),
        (
            {"scores": [1], "sampling": "increase"},
            "`scores` matters only with sampling: outliers; leave it out",
        ),
        ({"returning": "stale"}, "`returning` matters only with states: keep; leave it out"),
        ({"scores": [1, -1]}, "give a number of at least 0, not -1"),
    ],
    ids=str,
)
def test_options_without_effect_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("owlore", options)
    complete = build("owlore", {}).config.model_dump()
    assert build("owlore", complete).config.model_dump() == complete


def test_without_text_layers_are_drawn_uniformly_and_it_says_so() -> None:
    context = Context(seed=3)
    method: Any = build("owlore", {"layers": 1})
    method.prepare(tiny_llama(layers=LAYERS), context)
    assert method.weights == (1.0,) * LAYERS
    assert (
        "owlore: without text there are no outliers to count, so layers are drawn uniformly"
        in context.warnings
    )

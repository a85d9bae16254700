"""LoRAPrune: scores against loops of their own, the schedule, masks that only grow, and what is exported.

The number in a test's name is that of the invariant in the dossier on compression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import LlamaForCausalLM

from harness.config import OptimConfig, Run, TrainConfig
from harness.engine.models import checkpoint
from harness.engine.run import checks
from harness.errors import UnsupportedError, UserError
from harness.method import Context, Simulated
from harness.plugins import build
from methods.parts.pruning import importance
from methods.parts.pruning.masks import Groups, groups_of
from methods.parts.pruning.schedule import Ramp
from tests.support.tiny import tiny_batch, tiny_llama

OPTIONS = {"rank": 3, "period": 2, "updates": 10, "dropout": 0, "exempt_last": 0}
OPTIM = OptimConfig(lr=1e-2)


def prepared(options: dict[str, Any], optim: OptimConfig = OPTIM, **shape: Any) -> tuple[Any, Any, Any]:
    """A prepared float64 model, its stepper and its method."""
    method = build("loraprune", {**OPTIONS, **options})
    model = method.prepare(tiny_llama(**shape).double(), Context(seed=1))
    return model.train(), method.stepper(model, optim), method


def update(model: Any, stepper: Any, step: int, scale: float = 1.0) -> tuple[float, Any]:
    """One update from a loss times `scale`; its loss, and what the stepper said."""
    stepper.set_lr(1e-2)
    ids = tiny_batch(step)
    loss = model(input_ids=ids, labels=ids).loss
    (loss * scale).backward()
    info = stepper.step()
    stepper.zero_grad()
    return float(loss.detach()), info


def exact_logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=tiny_batch()).logits
    return found


def backward(model: Any) -> None:
    ids = tiny_batch()
    model(input_ids=ids, labels=ids).loss.backward()


def pruned(model: Any) -> dict[str, set[int]]:
    return {
        name: {*(found.mask == 0).nonzero().flatten().tolist()} for name, found in groups_of(model).items()
    }


def adapter(layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A, B, their gradients, and the whole weight of an adapted layer."""
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    whole = layer.get_base_layer().weight + layer.scaling["default"] * up @ down
    return down.detach(), up.detach(), down.grad, up.grad, whole.detach()


# -------------------------------------------------------------------------------------------- scores
@pytest.mark.parametrize("chunk", [importance.CHUNK, 70])
@pytest.mark.parametrize("quadratic", [True, False])
def test_21_a_score_is_the_change_of_b_a_under_one_step_of_rate_1_times_the_weight(
    quadratic: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "CHUNK", chunk)  # 70 entries are two rows of 32, and a last one alone
    model, stepper, _ = prepared({"alpha": 5})
    update(model, stepper, 0)  # so that B is not zero
    backward(model)
    mlp = model.model.layers[1].mlp
    for layer, side, groups in ((mlp.gate_proj, "rows", 80), (mlp.down_proj, "columns", 16)):
        down, up, down_grad, up_grad, whole = adapter(layer)
        change = up @ down - (up - up_grad) @ (down - down_grad)
        if not quadratic:
            change = change + up_grad @ down_grad
        entries = (change * whole).abs()
        wanted = torch.zeros(groups, dtype=torch.float64)
        lines = entries if side == "rows" else entries.T
        width = len(lines) // groups
        for group in range(groups):
            for line in range(group * width, (group + 1) * width):
                wanted[group] += lines[line].sum()
        found = importance.scores(layer, side, groups, quadratic)
        torch.testing.assert_close(found, wanted / wanted.square().sum().sqrt(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_importance_of_a_head_adds_q_k_v_and_o_and_is_smoothed(kv_heads: int) -> None:
    model, stepper, _ = prepared({}, kv_heads=kv_heads)
    wanted = torch.zeros(kv_heads, dtype=torch.float64)
    attention = model.model.layers[0].self_attn
    for step in range(3):
        ids = tiny_batch(step)
        stepper.set_lr(1e-2)
        model(input_ids=ids, labels=ids).loss.backward()
        total = torch.zeros(kv_heads, dtype=torch.float64)
        for kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
            down, up, down_grad, up_grad, whole = adapter(getattr(attention, kind))
            entries = ((up_grad @ down + up @ down_grad - up_grad @ down_grad) * whole).abs()
            lines = (entries.T if kind == "o_proj" else entries).sum(1)
            scores = torch.stack(list(lines.split(len(lines) // kv_heads))).sum(1)
            total += scores / scores.norm()
        wanted = 0.9 * wanted + 0.1 * total
        stepper.step()
        stepper.zero_grad()
    found = groups_of(model)["model.layers.0.self_attn"].importance
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)


def test_gradients_are_scored_before_they_are_clipped() -> None:
    found = []
    for clip in (None, 1e-3):
        model, stepper, _ = prepared({}, OptimConfig(lr=1e-2, clip=clip))
        _, info = update(model, stepper, 0)  # with the same weights in both
        assert info.grad_norm is None or info.grad_norm > 2e-3
        found.append([groups.importance for groups in groups_of(model).values()])
    assert all(mine.all() and mine.equal(theirs) for mine, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("quadratic", [False, True])
def test_25_the_scale_of_the_loss_changes_no_selection_without_the_quadratic_term(quadratic: bool) -> None:
    """A power of 2, which changes no rounding; AdamW's updates do not depend on it but for eps."""
    found = []
    for scale in (1.0, 2.0**10):
        model, stepper, _ = prepared({"quadratic": quadratic})
        stepper.optim = stepper.adam.optim = OptimConfig(lr=1e-2, eps=1e-30)
        for step in range(10):
            update(model, stepper, step, scale)
        found.append([groups.importance.clone() for groups in groups_of(model).values()])
        assert all(pruned(model).values())
    same = all(
        torch.allclose(mine, theirs, atol=1e-6, rtol=1e-5) for mine, theirs in zip(*found, strict=True)
    )
    assert same == (not quadratic)


def test_an_update_whose_gradients_are_not_numbers_leaves_the_importance_alone() -> None:
    model, stepper, _ = prepared({})
    update(model, stepper, 0)
    before = {name: groups.importance.clone() for name, groups in groups_of(model).items()}
    ids = tiny_batch(1)
    (model(input_ids=ids, labels=ids).loss * float("nan")).backward()
    stepper.set_lr(0.0)
    stepper.step()
    assert all(groups.importance.equal(before[name]) for name, groups in groups_of(model).items())


# ------------------------------------------------------------------------------------------ schedule
def test_23_the_share_is_0_before_the_ramp_and_the_ratio_after_it_and_never_falls() -> None:
    for updates in (1, 2, 7, 10, 100, 1234):
        for warmup, cooldown, first in ((0.1, 0.1, 0.0), (0, 0, 0.1), (0.62, 0.34, 0.2), (0.05, 0.9, 0.0)):
            ramp = Ramp(updates, 10, first, 0.5, warmup, cooldown)
            shares = [ramp.share(update) for update in range(1, updates + 1)]
            assert shares == sorted(shares)
            assert shares[-1] == 0.5
            for update, share in enumerate(shares, 1):
                if update <= warmup * updates and update < (1 - cooldown) * updates:
                    assert share == 0
                if update >= (1 - cooldown) * updates:
                    assert share == 0.5
            chosen = [update for update in range(1, updates + 1) if ramp.chooses(update)]
            assert shares[chosen[-1] - 1] == 0.5
            assert all(update % 10 == 0 for update in chosen[:-1])
    ramp = Ramp(1000, 10, 0.1, 0.5)
    assert ramp.share(500) == pytest.approx(0.5 - 0.4 * (1 - 400 / 800) ** 3, abs=1e-12)
    assert (ramp.share(100), ramp.share(900)) == (0, 0.5)
    assert not Ramp(100, 10, 0.0, 0.0).chooses(90)


@pytest.mark.parametrize(("ratio", "kv_heads"), [(0.5, 4), (0.3, 4), (0.5, 2)])
def test_23_masks_only_grow_up_to_the_ratio_and_exempt_blocks_stay_whole(ratio: float, kv_heads: int) -> None:
    options = {"ratio": ratio, "exempt_first": 0.4, "exempt_last": 1, "updates": 12}
    model, stepper, _ = prepared(options, layers=4, kv_heads=kv_heads)
    parts = {f"model.layers.{block}.{name}" for block in (1, 2) for name in ("self_attn", "mlp")}
    assert groups_of(model).keys() == parts
    before = pruned(model)
    assert before == {name: set() for name in parts}
    refreshed = []
    for step in range(14):
        _, info = update(model, stepper, step)
        now = pruned(model)
        assert all(before[name] <= now[name] for name in parts)
        if not info.refreshed:
            assert now == before
        assert info.refresh_next == stepper._chooses(step + 2)
        refreshed += [step + 1] if info.refreshed else []
        before = now
    assert refreshed == [2, 4, 6, 8, 10, 11]  # 1.2 to 10.8 of 12
    for name, gone in before.items():
        assert len(gone) == round(ratio * (80 if name.endswith("mlp") else kv_heads))


def test_23_what_is_pruned_is_what_has_least_importance() -> None:
    model, stepper, _ = prepared({})
    for step in range(9):
        update(model, stepper, step)
    groups = groups_of(model)["model.layers.0.mlp"]
    assert int((groups.mask == 0).sum()) == 40
    fresh = Groups.__new__(Groups)
    torch.nn.Module.__init__(fresh)
    fresh.mask, fresh.importance = torch.ones(5), torch.tensor([3.0, 0, 2, 1, 4])
    fresh.choose(1)
    assert fresh.mask.tolist() == [1, 0, 1, 1, 1]
    fresh.importance = torch.tensor([0.0, 9, 2, 1, 4])
    fresh.choose(3)  # what is pruned stays so, however important
    assert fresh.mask.tolist() == [0, 0, 1, 0, 1]
    fresh.choose(2)  # fewer than are pruned
    assert fresh.mask.tolist() == [0, 0, 1, 0, 1]


# -------------------------------------------------------------------------------------------- export
def test_24_without_pruning_a_run_is_plain_lora_to_the_bit() -> None:
    lora = build("lora", {"rank": 3, "alpha": 16, "dropout": 0.1})
    plain: Any = lora.prepare(tiny_llama(), Context(seed=1)).train()
    method = build("loraprune", {**OPTIONS, "dropout": 0.1, "ratio": 0})
    model: Any = method.prepare(tiny_llama(), Context(seed=1)).train()
    optim = OptimConfig(lr=1e-2, clip=0.5, weight_decay=0.1)
    steppers = lora.stepper(plain, optim), method.stepper(model, optim)
    for step in range(12):
        losses = []
        for each, stepper in ((plain, steppers[0]), (model, steppers[1])):
            torch.manual_seed(step)
            losses.append(update(each, stepper, step)[0])
        assert losses[0] == losses[1]
    mine, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)
    assert all(tensor.equal(plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    exports = method.export(model), lora.export(plain)
    assert exact_logits(exports[0]).equal(exact_logits(exports[1]))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("last", [0, 1])
def test_22_and_24_the_export_says_what_the_masked_model_said(last: int, kv_heads: int) -> None:
    model, stepper, method = prepared({"exempt_last": last}, kv_heads=kv_heads)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    for step in range(10):
        update(model, stepper, step)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.requires_grad or parameter.equal(frozen[name])
    said, gone = exact_logits(model), pruned(model)
    assert all(gone.values())
    small = method.export(model)
    assert isinstance(small, LlamaForCausalLM)
    assert not any(isinstance(module, (LoraLayer, Groups)) for module in small.modules())
    assert not any(module._forward_hooks for module in small.modules())
    assert not checkpoint.not_saved(small)
    torch.testing.assert_close(exact_logits(small), said, atol=1e-10, rtol=0)
    torch.testing.assert_close(exact_logits(checkpoint.reloaded(small)), said, atol=1e-10, rtol=0)
    mlp = small.model.layers[0].mlp
    if last:
        assert small.config.intermediate_size == 80
        assert all((mlp.up_proj.weight[channel] == 0).all() for channel in gone["model.layers.0.mlp"])
    else:
        assert small.config.intermediate_size == 40
        assert small.config.num_attention_heads == 2
        assert small.config.num_key_value_heads == kv_heads // 2
        assert mlp.down_proj.weight.shape == (32, 40)


def test_facts_say_what_goes_and_how_it_is_exported() -> None:
    def facts(options: dict[str, Any]) -> tuple[dict[str, Any], list[str], Any]:
        method = build("loraprune", {**OPTIONS, **options})
        context = Context(seed=1, updates=10)
        model: Any = method.prepare(tiny_llama(), context)
        return context.facts, context.warnings, (model, method)

    whole = sum(parameter.numel() for parameter in tiny_llama().parameters())
    found, warned, (model, method) = facts({})
    assert not warned
    assert found["exported"] == {"heads": "removed", "channels": "removed"}
    stepper: Any = method.stepper(model, OPTIM)
    for step in range(10):
        update(model, stepper, step)
    left = sum(parameter.numel() for parameter in method.export(model).parameters())
    assert found["measured_reduction"]["all"] == pytest.approx(1 - left / whole, abs=1e-12)
    linears = whole - 2 * 64 * 32 - 5 * 32
    assert found["measured_reduction"]["linears"] == pytest.approx((whole - left) / linears, abs=1e-12)
    assert found["pruned_groups"]["model.layers.1.mlp"] == 40

    found, warned, _ = facts({"exempt_last": 1})
    assert found["exempt_blocks"] == [1]
    assert [warning.partition(", and a config")[0] for warning in warned] == [
        "pruned heads are exported as zeros: blocks keep 2 to 4 of them",
        "pruned channels are exported as zeros: blocks keep 40 to 80 of them",
    ]
    found, warned, _ = facts({"exempt_last": 2})
    assert warned == ["all 2 blocks are exempt, so nothing is pruned"]
    _, warned, _ = facts({"updates": 30})
    assert warned == [
        "loraprune: the run ends after 10 of the 30 updates of the schedule, so less may be pruned than "
        "ratio says"
    ]


# ----------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ["q_proj"]}, "targets: all of q_proj, .* decide what is pruned; leave it out"),
        ({"warmup": 0.5, "cooldown": 0.5}, "warmup and cooldown take up the whole training; their sum"),
        ({"initial": 0.6}, "initial 0.6 is more than ratio 0.5; give at most that"),
        ({"ratio": 1}, "ratio"),
        ({"period": 0}, "period"),
        ({"prune_freq": 10}, "prune_freq"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        build("loraprune", options)
    assert "\n" not in str(refused.value)


def message(action: Callable[[], Any], kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_models_and_runs_that_cannot_work_are_refused_in_one_line() -> None:
    unknown = build("loraprune", {})
    assert message(lambda: unknown.prepare(tiny_llama(), Context())) == (
        "loraprune: the length of the training is not known here; set its option updates"
    )
    most = build("loraprune", {**OPTIONS, "ratio": 0.9})
    assert message(lambda: most.prepare(tiny_llama(), Context())) == (
        "ratio 0.9 leaves none of 4 heads of model.layers.0.self_attn; ask for less"
    )
    fits = build("loraprune", OPTIONS)
    factored = build("uniform", {}).prepare(tiny_llama(), Context())
    assert message(lambda: fits.prepare(factored, Context())).startswith("layers are factored or adapted")
    quantised = build("int8", {}).prepare(tiny_llama(), Context())
    assert message(lambda: fits.prepare(quantised, Context()), UnsupportedError).startswith(
        "weights stored in"
    )


def test_a_state_of_other_parts_is_refused() -> None:
    _, first, _ = prepared({"exempt_last": 1})
    _, second, _ = prepared({})
    with pytest.raises(ValueError, match="prunes other parts of a model"):
        second.load_state_dict(first.state_dict())


def test_updates_per_layer_and_pretraining_are_unsupported() -> None:
    for train, said in (
        (TrainConfig(stage="finetune", per_layer=True), "per_layer"),
        (TrainConfig(stage="pretrain"), "random weights have nothing to prune by"),
    ):
        run = Run(train=train, method=[{"loraprune": OPTIONS}])
        method = build("loraprune", OPTIONS)
        assert said in message(
            lambda run=run, method=method: checks.supported(run, [method]), UnsupportedError
        )


def test_a_simulation_without_values_prepares_the_same_shapes() -> None:
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(tiny_llama().config)
    method, context = build("loraprune", OPTIONS), Context(simulated=Simulated(), updates=10)
    wanted = prepared({})[0].state_dict()
    found = method.prepare(model, context).state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in wanted.items()}

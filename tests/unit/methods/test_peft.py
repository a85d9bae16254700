"""Tuners of the installed peft: each trains as bare peft does in a bare loop, or is refused with a reason."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from harness import factored
from harness.config import OptimConfig, Run, TrainConfig
from harness.engine.contract.checks import CHECKS
from harness.engine.contract.subject import Subject
from harness.engine.models import checkpoint
from harness.engine.run import checks
from harness.errors import UnsupportedError, UserError
from harness.method import Context, Simulated
from harness.plugins import build, complete_options
from methods.parts.targets import LINEAR_KINDS
from methods.parts.tuners.catalogue import (
    ALIASES,
    NO_FORECAST,
    OWN_TARGETS,
    REFUSED,
    UNMERGED,
    installed,
    why_not,
)
from tests.support.tiny import logits, tiny_batch, tiny_llama, train

SEED, LR, STEPS = 3, 1e-2, 3
OPTIM = OptimConfig(lr=LR, weight_decay=0.01)
UNTRAINED = logits(tiny_llama())
#: Options that fit a tiny model: by default ranks and blocks are larger than its matrices.
SMALL: dict[str, dict[str, Any]] = {
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "OFT": {"oft_block_size": 16},
    "ROAD": {"group_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [3, 5]},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"num_vectors": 16, "vector_length": 16},
    "WAVEFT": {"n_frequency": 50},
    **{name: {"r": 8} for name in ("ADAMSS", "GRALORA", "HIRA", "HRA", "LILY", "MISS", "PEANUT", "PSOFT")},
    "RANDLORA": {"r": 8, "randlora_alpha": 8},
    **{name: {"r": 8} for name in ("PVERA", "SHIRA", "VERA")},
}
#: Types that peft has and that work; each type is here or refused.
WORKING = sorted(name for name in installed() if not why_not(name))


def prepared(options: Mapping[str, Any], model: nn.Module | None = None) -> tuple[Any, nn.Module, Context]:
    method, context = build("peft", options), Context(seed=SEED)
    return method, method.prepare(model or tiny_llama(), context), context


def ready(options: Mapping[str, Any]) -> tuple[Any, nn.Module, Any]:
    """Return the method, a model in training mode and its stepper, before the first update."""
    method, model, _ = prepared(options)
    stepper = method.stepper(model, OPTIM)
    model.train()
    torch.manual_seed(5)  # some draw in the forward pass
    return method, model, stepper


def saved(model: nn.Module, stepper: Any) -> dict[str, Any]:
    """Return what a safe loader reads of the state on disk."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "stepper": stepper.state_dict()}, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def bare(name: str, options: Mapping[str, Any]) -> tuple[Any, list[float]]:
    """Return what peft alone makes of it in a loop of its own, with its losses."""
    base, fixed = ALIASES.get(name, (name, {}))
    own = {} if name in OWN_TARGETS else {"target_modules": list(LINEAR_KINDS)}
    config = installed()[base][0](**own, **fixed, **options)
    torch.manual_seed(SEED)
    wrapped: Any = get_peft_model(tiny_llama(), config, autocast_adapter_dtype=False)
    trainable = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    wrapped.train()
    torch.manual_seed(5)
    losses = []
    for step in range(STEPS):
        ids = tiny_batch(step)
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return wrapped, losses


@pytest.mark.parametrize("name", [*WORKING, *ALIASES])
def test_a_tuner_trains_resumes_and_merges_as_bare_peft_does(name: str) -> None:
    options = {"type": name, **SMALL.get(name, {})}
    method, model, stepper = ready(options)
    losses = train(model, stepper, 0, STEPS - 1, LR)
    state, drawn = saved(model, stepper), torch.get_rng_state()
    losses += train(model, stepper, STEPS - 1, STEPS, LR)

    _, again, other = ready(options)
    again.load_state_dict(state["model"])
    other.load_state_dict(state["stepper"])
    torch.set_rng_state(drawn)
    train(again, other, STEPS - 1, STEPS, LR)
    resumed = again.state_dict()
    assert all(tensor.equal(resumed[key]) for key, tensor in model.state_dict().items())

    wrapped, wanted = bare(name, SMALL.get(name, {}))
    assert losses == pytest.approx(wanted, rel=1e-6)
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counted == wrapped.get_nb_trainable_parameters()[0] > 0
    said = logits(model)
    torch.testing.assert_close(said, logits(wrapped), atol=1e-4, rtol=1e-4)
    assert not said.equal(UNTRAINED)
    if method.caps.no_export:
        with pytest.raises(UnsupportedError, match=f"type {name} cannot be merged"):
            method.export(model)
        return
    exported = method.export(model)
    assert not checkpoint.not_saved(exported)
    torch.testing.assert_close(logits(exported), said, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(exported), logits(wrapped.merge_and_unload()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["FOURIERFT", "VBLORA"])
def test_what_a_tuner_keeps_beside_its_parameters_is_counted(name: str) -> None:
    """Indices in plain attributes; what several layers share."""
    CHECKS["states"](Subject((("peft", {"type": name, **SMALL[name]}),)))


def test_what_layers_share_is_updated_once_also_inside_the_backward_pass() -> None:
    CHECKS["per layer"](Subject((("peft", {"type": "VBLORA", **SMALL["VBLORA"]}),)))


def test_every_tuner_of_the_installed_peft_works_or_is_refused_with_its_reason() -> None:
    refused = set(installed()) - set(WORKING)
    assert set(REFUSED) <= refused
    for name in refused:
        with pytest.raises(
            UserError, match=f"^method peft: type {name} cannot be trained here: it "
        ) as found:
            build("peft", {"type": name})
        assert found.value.path == ("type",)
    assert {"LORA", "VERA", "IA3", "OFT", "LOHA"} <= set(WORKING)
    assert len(WORKING) + len(refused) == len(installed()) > 30


def test_lora_by_peft_is_lora() -> None:
    """The same adapters, losses and merged weights, to the bit."""
    _, ours, their_stepper = ready({"type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1})
    wanted = train(ours, their_stepper, 0, STEPS, LR)
    method, context = build("lora", {"rank": 4, "alpha": 8, "dropout": 0.1}), Context(seed=SEED)
    model = method.prepare(tiny_llama(), context)
    stepper = method.stepper(model, OPTIM)
    assert stepper is not None
    model.train()
    torch.manual_seed(5)
    assert train(model, stepper, 0, STEPS, LR) == wanted
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in ours.named_parameters()}
    assert logits(model).equal(logits(ours))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "LORRA"}, "type: peft has no tuner 'LORRA'; did you mean 'LORA'"),
        ({"type": 7}, "type: give text"),
        ({"rank": 8}, "unknown key 'rank'; "),
        ({"lora_drpout": 0.1}, "unknown key 'lora_drpout'; did you mean 'lora_dropout'"),
        ({"type": "VERA", "lora_alpha": 8}, "unknown key 'lora_alpha'; "),
        ({"r": "8"}, "r: give a whole number"),
        ({"r": 8.5}, "r: give a whole number"),
        ({"r": 0}, "r: give a number above 0, not 0"),
        ({"lora_dropout": 1.5}, "lora_dropout: give a number below 1, not 1.5"),
        ({"use_rslora": 1}, "use_rslora: give true or false, not 1"),
        ({"bias": "some"}, "bias: give 'none', 'all' or 'lora_only', not 'some'"),
        ({"task_type": "CAUSAL_LM"}, "unknown key 'task_type'; "),
        ({"init_lora_weights": "eva"}, "init_lora_weights: give gaussian or olora or "),
        ({"target_modules": 5}, "target_modules: give a list of text or text, not 5"),
        ({"target_modules": [5]}, "target_modules: give a list of text or text, not [5]"),
        ({"eva_config": {"rho": 2.0}}, "eva_config: it needs a pass over data before training"),
        ({"layers_to_transform": [0], "target_modules": "q_proj"}, "`layers_to_transform` cannot be used"),
        ({"type": "DORA", "use_dora": False}, "use_dora: give True, not False"),
        ({"type": "TRAINABLE_TOKENS"}, "token_indices is required and missing"),
        ({"type": "ADAMSS", "use_asa": True}, "use_asa: it needs update_and_allocate after each update"),
    ],
)
def test_an_option_that_the_tuner_has_not_or_takes_otherwise_is_refused(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as found:
        build("peft", options)
    assert str(found.value).startswith(f"method peft: {said}")
    assert "\n" not in str(found.value)


def test_the_completed_options_build_the_same_and_leave_out_what_is_off() -> None:
    method = build("peft", {"type": "oft", "oft_block_size": 16, "exclude_modules": None})
    options = complete_options("peft", method)
    assert options["type"] == "OFT"
    assert options["num_cayley_neumann_terms"] == 5  # on by default: part of the identity
    assert "exclude_modules" not in options
    assert json.loads(json.dumps(options)) == options
    again = build("peft", options)
    assert complete_options("peft", again) == options
    assert again.config == method.config


@pytest.mark.parametrize(
    ("options", "kinds", "count"),
    [
        ({}, set(LINEAR_KINDS), 14),
        ({"target_modules": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}, 4),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {"q_proj"}, 1),
        ({"target_modules": "all-linear"}, set(LINEAR_KINDS), 14),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, {"up_proj"}, 1),
        ({"target_modules": r".*layers\.0.*_proj"}, set(LINEAR_KINDS), 7),
        ({"exclude_modules": ["k_proj"]}, set(LINEAR_KINDS) - {"k_proj"}, 12),
        ({"type": "IA3"}, {"k_proj", "v_proj", "down_proj"}, 6),
        ({"type": "LN_TUNING"}, {"input_layernorm", "post_attention_layernorm", "norm"}, 5),
    ],
)
def test_target_modules_choose_layers_by_kind_or_as_peft_reads_them(
    options: dict[str, Any], kinds: set[str], count: int
) -> None:
    _, model, context = prepared(options)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    assert {name.rpartition(".")[2] for name in adapted} == kinds
    assert len(adapted) == context.facts["targets"] == count


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_prj"]}, "no module 'q_prj'; did you mean 'q_proj'"),
        ({"type": "C3A", "block_size": 48}, "peft: type C3A: .*block size should be a factor"),
        ({"target_modules": ["rotary_emb"]}, "peft: type LORA: Target module .* is not supported"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_in_one_line(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as found:
        prepared(options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_an_embedding_that_is_also_the_head_cannot_part_from_it(options: dict[str, Any]) -> None:
    """Apart, both work; tied, one of them would change alone."""
    method, model, _ = prepared(options)
    train(model, method.stepper(model, OptimConfig(lr=LR)), 0, STEPS)
    said = logits(model)
    exported = method.export(model)
    assert not checkpoint.not_saved(exported)
    torch.testing.assert_close(logits(exported), said, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="shares its weight with another layer"):
        prepared(options, tiny_llama(tie=True))


def test_tokens_of_a_tied_embedding_train_in_both_places() -> None:
    method, model, _ = prepared({"type": "TRAINABLE_TOKENS", "token_indices": [3]}, tiny_llama(tie=True))
    train(model, method.stepper(model, OptimConfig(lr=LR)), 0, STEPS)
    said = logits(model)
    exported = method.export(model)
    assert exported.lm_head.weight is exported.model.embed_tokens.weight
    torch.testing.assert_close(logits(exported), said, atol=1e-4, rtol=1e-4)


def test_adapters_on_adapters_are_refused() -> None:
    _, model, _ = prepared({})
    with pytest.raises(UserError, match="has adapters already"):
        prepared({"type": "VERA"}, model)


@pytest.mark.parametrize("name", ["DORA", "LOHA", "OFT", "VERA"])
def test_after_compression_both_factors_are_adapted_and_the_factors_stay(name: str) -> None:
    model = factored.restructure(tiny_llama(), {"model.layers.0.self_attn.q_proj": 16})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    method, model, context = prepared({"type": name, **SMALL.get(name, {})}, model)
    assert context.facts["targets"] == 15
    train(model, method.stepper(model, OptimConfig(lr=LR)), 0, STEPS)
    said = logits(model)
    exported = method.export(model)
    assert factored.ranks(exported) == {"model.layers.0.self_attn.q_proj": 16}
    torch.testing.assert_close(logits(exported), said, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers_to_transform": [0]}, "layers_to_transform has no effect"),
        ({"type": "LILY"}, "type LILY shares"),
    ],
)
def test_what_factors_cannot_have_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepared(options, factored.restructure(tiny_llama(), {"model.layers.0.self_attn.q_proj": 16}))


def test_the_seed_of_the_run_draws_the_adapters_and_the_global_one_is_left_alone() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        model = build("peft", {"type": "LOHA"}).prepare(tiny_llama(), Context(seed=seed))
        return dict(model.named_parameters())

    before = torch.get_rng_state()
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.get_rng_state().equal(before)
    assert all(tensor.equal(again[name]) for name, tensor in first.items())
    assert not all(tensor.equal(other[name]) for name, tensor in first.items())


@pytest.mark.parametrize("name", NO_FORECAST)
def test_a_tuner_that_reads_values_says_that_it_has_no_forecast(name: str) -> None:
    method = build("peft", {"type": name})
    with pytest.raises(UserError, match=f"peft: type {name} has no forecast: it "):
        method.prepare(tiny_llama(), Context(simulated=Simulated()))


def test_weights_that_no_plain_model_can_hold_are_refused_before_training() -> None:
    methods = [build("peft", {"type": "LILY"})]
    choices = [{"name": "peft", "options": {"type": "LILY"}}]
    checks.supported(Run(train=TrainConfig(stage="finetune"), method=choices), methods)
    with pytest.raises(UnsupportedError, match=r"peft exports no plain model: .*; leave out save_weights"):
        checks.supported(Run(train=TrainConfig(stage="finetune"), method=choices, save_weights=True), methods)


def test_the_page_has_a_row_for_every_type_with_what_is_true_of_it() -> None:
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
    start = page.index("| type | in peft | saved weights | forecast |")
    rows = {line.split("`")[1]: line for line in page[start + 2 : page.index("", start)]}
    assert rows == {name: row(name) for name in sorted({*installed(), *ALIASES})}


def row(name: str) -> str:
    base, given = ALIASES.get(name, (name, {}))
    if reason := why_not(base):
        return f"| `{name}` | refused: it {reason} | | |"
    saved = f"none: {UNMERGED[base]}" if base in UNMERGED else "merged"
    forecast = f"none: it {NO_FORECAST[base]}" if base in NO_FORECAST else "to the byte"
    option = "".join(f" with `{key}: {str(value).lower()}`" for key, value in given.items())
    return f"| `{name}` | `{installed()[base][0].__name__}`{option} | {saved} | {forecast} |"

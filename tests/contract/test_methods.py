"""What every registered method must keep: the contract of harness/method.py, checked from outside."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig, Run, TrainConfig
from harness.engine.run import checks
from harness.errors import UnsupportedError
from harness.method import Context, Method, Stepper, build, stack_caps
from harness.registry import REGISTRY
from tests.support.tiny import logits, tiny_batch, tiny_llama, train

STEPS = 3
DEFAULT = OptimConfig(lr=1e-2, weight_decay=0.01, clip=1.0)
PER_LAYER = OptimConfig(lr=1e-2, weight_decay=0.01, per_layer=True)
EIGHT_BITS = OptimConfig(lr=1e-2, weight_decay=0.01, per_layer=True, state_bits=8)
SIXTEEN_BITS = OptimConfig(lr=1e-2, weight_decay=0.01, clip=1.0, state_bits=16)

LORA = ("lora", {"rank": 4})
GALORE = ("galore", {"rank": 8, "period": 2})  # so that step 3 lies inside an interval
ADARANKGRAD = ("adarankgrad", {"rank": 8, "period": 2, "energy": 0.8})
VELORA = ("velora", {"num_groups": 4})
SLTRAIN = ("sltrain", {"rank": 8, "delta": 0.1})
COMPRESSED = ("welore", {"err": 0.5, "train": "none"})


@dataclass(frozen=True)
class Case:
    """A stack of methods with their options, and how it is trained."""

    stack: Sequence[tuple[str, dict[str, Any]]]
    optim: OptimConfig = DEFAULT

    def methods(self) -> list[Method]:
        return [build(name, options) for name, options in self.stack]


CASES = {
    "full": Case([("full", {})]),
    "full, 16 bits": Case([("full", {})], SIXTEEN_BITS),
    "full, 8 bits per layer": Case([("full", {})], EIGHT_BITS),
    "lora": Case([("lora", {"rank": 4, "dropout": 0.1})]),
    "lora, others too": Case([("lora", {"rank": 4, "others": "train"})], PER_LAYER),
    "uniform": Case([("uniform", {})]),
    "welore": Case([("welore", {})]),
    "welore + lora": Case([COMPRESSED, LORA]),
    "welore + galore": Case([COMPRESSED, GALORE]),
    "galore": Case([GALORE]),
    "galore, randomized and staggered": Case(
        [("galore", {**GALORE[1], "refresh": "randomized", "stagger": True, "moments": "rotate"})]
    ),
    "galore, both sides, 16 bits": Case([("galore", {**GALORE[1], "projection": "full"})], SIXTEEN_BITS),
    "galore, 8 bits per layer": Case([GALORE], EIGHT_BITS),
    "adarankgrad": Case([ADARANKGRAD]),
    "adarankgrad, 8 bits per layer": Case([ADARANKGRAD], EIGHT_BITS),
    "velora + full": Case([VELORA, ("full", {})]),
    "velora by groups + full": Case([("velora", {**VELORA[1], "state": "groups"}), ("full", {})]),
    "lora + velora": Case([LORA, VELORA]),
    "velora + galore": Case([VELORA, GALORE], PER_LAYER),
    "velora + adarankgrad": Case([VELORA, ADARANKGRAD]),
    "lowrank": Case([("lowrank", {"rank": 8})]),
    "sltrain": Case([SLTRAIN]),
    "sltrain, 8 bits per layer": Case([SLTRAIN], EIGHT_BITS),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def scaffold(case: Case, **shape: Any) -> nn.Module:
    """A tiny model as the stack prepares it."""
    model: nn.Module = tiny_llama(**shape)
    for method in case.methods():
        model = method.prepare(model, Context(seed=1))
    return model


def stepper_for(case: Case, model: nn.Module) -> Stepper:
    """The stepper of the last method that brings one."""
    found = [method.stepper(model, case.optim) for method in case.methods()]
    return next(stepper for stepper in reversed(found) if stepper is not None)


def prepared(case: Case, **shape: Any) -> tuple[nn.Module, Stepper]:
    model = scaffold(case, **shape)
    stepper = stepper_for(case, model)
    model.train()
    torch.manual_seed(5)  # dropout
    return model, stepper


def test_every_registered_method_takes_part() -> None:
    assert {name for case in CASES.values() for name, _ in case.stack} == set(REGISTRY)


def tensors_within(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor reachable from an object through containers and attributes, modules left out."""
    if id(thing) in seen or isinstance(thing, (nn.Module, type, str, bytes)) or callable(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    parts: list[object] = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    if isinstance(thing, dict):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        parts += list(thing)
    for part in parts:
        yield from tensors_within(part, seen)


def storages(tensors: Iterator[Tensor] | list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def saved_and_loaded(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint on disk does to it, with the safe loader."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def test_a_prepared_model_is_a_causal_lm_with_a_loss(case: Case) -> None:
    model, _ = prepared(case)
    assert isinstance(model, LlamaForCausalLM)
    ids = torch.tensor([[1, 2, 3]])
    assert model(input_ids=ids, labels=ids).loss.isfinite()


def test_exactly_the_trainable_parameters_get_optimizer_state(case: Case) -> None:
    model, stepper = prepared(case)
    train(model, stepper, 0, STEPS)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    states = [name for name, _ in stepper.state_tensors()]
    assert {name.rpartition(".")[0] for name in states} == trainable
    assert len(states) == len(set(states))


def test_training_changes_every_trainable_and_no_frozen_tensor(case: Case) -> None:
    model, stepper = prepared(case)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, stepper, 0, STEPS)
    changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_training_on_one_batch_lowers_its_loss(case: Case) -> None:
    model, stepper = prepared(case)
    losses = [train(model, stepper, 0, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1


def test_state_tensors_name_every_tensor_that_the_stepper_keeps(case: Case) -> None:
    model, stepper = prepared(case)
    train(model, stepper, 0, STEPS)
    weights = storages(list(model.parameters()))
    named = storages([tensor for _, tensor in stepper.state_tensors()])
    assert storages(tensors_within(stepper, set())) - weights == named
    assert storages(tensors_within(stepper.state_dict(), set())) <= named


def test_a_run_saved_in_the_middle_goes_on_bit_for_bit(case: Case) -> None:
    model, stepper = prepared(case)
    train(model, stepper, 0, STEPS)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    random = torch.get_rng_state()
    losses = train(model, stepper, STEPS, 2 * STEPS)

    resumed, again = prepared(case)
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["stepper"])
    torch.set_rng_state(random)
    assert train(resumed, again, STEPS, 2 * STEPS) == losses
    for name, tensor in model.state_dict().items():
        assert tensor.equal(resumed.state_dict()[name]), name


def test_a_loaded_state_is_a_copy_of_what_was_given(case: Case) -> None:
    model, stepper = prepared(case)
    train(model, stepper, 0, STEPS)
    _, other = prepared(case)
    other.load_state_dict(stepper.state_dict())
    mine, theirs = (storages([tensor for _, tensor in s.state_tensors()]) for s in (stepper, other))
    assert not mine & theirs


def test_two_identical_runs_are_equal_to_the_bit(case: Case) -> None:
    first, second = (prepared(case) for _ in range(2))
    torch.manual_seed(5)
    losses = train(*first, 0, STEPS)
    torch.manual_seed(5)
    assert train(*second, 0, STEPS) == losses
    for mine, theirs in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert mine.equal(theirs)


def test_preparing_leaves_the_random_state_alone(case: Case) -> None:
    """Otherwise the order of methods in a stack would change the dropout of a run."""
    torch.manual_seed(9)
    before = torch.get_rng_state()
    scaffold(case)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("shape", [{}, {"tie": True, "kv_heads": 2}], ids=["plain", "tied, grouped queries"])
def test_the_exported_model_is_plain_and_says_what_the_trained_one_said(
    case: Case, shape: dict[str, Any], tmp_path: Path
) -> None:
    model, stepper = prepared(case, **shape)
    train(model, stepper, 0, STEPS)
    wanted = logits(model)
    for method in reversed(case.methods()):
        model = method.export(model)
    exported = factored.merge(model)
    assert isinstance(exported, LlamaForCausalLM)
    assert {type(module).__module__.split(".")[0] for module in exported.modules()} <= {
        "torch",
        "transformers",
    }
    assert set(exported.state_dict()) == set(tiny_llama(**shape).state_dict())
    torch.testing.assert_close(logits(exported), wanted, atol=1e-4, rtol=1e-4)

    exported.save_pretrained(tmp_path)
    loaded, notes = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert logits(loaded).equal(logits(exported))


def test_a_bfloat16_model_trains_in_bfloat16(case: Case) -> None:
    model: nn.Module = tiny_llama().to(torch.bfloat16)
    for method in case.methods():
        model = method.prepare(model, Context(seed=1))
    stepper = stepper_for(case, model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    losses = [train(model, stepper, 0, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05


def test_four_micro_batches_are_one_batch_of_all_their_sequences_or_are_refused(case: Case) -> None:
    config = TrainConfig(grad_accum=4, **case.optim.model_dump())
    choices = [{"name": name, "options": options} for name, options in case.stack]
    stage = sorted(stack_caps(case.methods()).stages - {"compress"})[0]
    run = Run(train=config.model_copy(update={"stage": stage}), method=choices)
    if case.optim.per_layer:
        with pytest.raises(UnsupportedError, match="grad_accum 4 would update once per micro-batch"):
            checks.supported(run, case.methods())
        return
    checks.supported(run, case.methods())
    without_dropout = replace(
        case, stack=[(name, {**o, "dropout": 0.0} if name == "lora" else o) for name, o in case.stack]
    )
    weights = []
    for batch, times in ((8, 1), (2, 4)):
        model, stepper = prepared(without_dropout)
        train(model, stepper, 0, 1)  # what the first batch decides, it decides in both alike
        for update in range(1, STEPS):
            for part in tiny_batch(update, batch=8).split(batch):
                (model(input_ids=part, labels=part).loss / times).backward()
            stepper.step()
            stepper.zero_grad()
        weights.append(dict(model.named_parameters()))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_method_names_its_source_and_documents_its_options(name: str) -> None:
    method = build(name, {})
    assert "20" in method.source
    assert method.Config.__doc__
    method.Config()  # every option has a default

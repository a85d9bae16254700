"""What every registered method must keep: the contract of harness/method.py, checked from outside."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from harness import factored
from harness.config import OptimConfig
from harness.method import REGISTRY, Context, Method, Stepper, build
from tests.tiny import logits, tiny_llama, train

#: Options that make a method do something worth testing on a tiny model; all others run with defaults.
OPTIONS: dict[str, dict[str, Any]] = {"lora": {"rank": 4, "dropout": 0.1}}
STEPS = 3


@pytest.fixture(params=sorted(REGISTRY))
def method(request: pytest.FixtureRequest) -> Method:
    return build(request.param, OPTIONS.get(request.param, {}))


def prepared(method: Method, **shape: Any) -> tuple[nn.Module, Stepper]:
    model = method.prepare(tiny_llama(**shape), Context(seed=1))
    stepper = method.stepper(model, OptimConfig(lr=1e-2, weight_decay=0.01, clip=1.0))
    assert stepper is not None
    model.train()
    torch.manual_seed(5)  # dropout
    return model, stepper


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


def test_a_prepared_model_is_a_causal_lm_with_a_loss(method: Method) -> None:
    model, _ = prepared(method)
    assert isinstance(model, LlamaForCausalLM)
    ids = torch.tensor([[1, 2, 3]])
    assert model(input_ids=ids, labels=ids).loss.isfinite()


def test_exactly_the_trainable_parameters_get_optimizer_state(method: Method) -> None:
    model, stepper = prepared(method)
    train(model, stepper, 0, STEPS)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    states = [name for name, _ in stepper.state_tensors()]
    assert {name.rpartition(".")[0] for name in states} == trainable
    assert len(states) == len(set(states))


def test_training_changes_every_trainable_and_no_frozen_tensor(method: Method) -> None:
    model, stepper = prepared(method)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, stepper, 0, STEPS)
    changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_training_on_one_batch_lowers_its_loss(method: Method) -> None:
    model, stepper = prepared(method)
    losses = [train(model, stepper, 0, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1


def test_state_tensors_name_every_tensor_that_the_stepper_keeps(method: Method) -> None:
    model, stepper = prepared(method)
    train(model, stepper, 0, STEPS)
    weights = storages(list(model.parameters()))
    named = storages([tensor for _, tensor in stepper.state_tensors()])
    assert storages(tensors_within(stepper, set())) - weights == named
    assert storages(tensors_within(stepper.state_dict(), set())) <= named


def test_a_run_saved_in_the_middle_goes_on_bit_for_bit(method: Method) -> None:
    model, stepper = prepared(method)
    train(model, stepper, 0, STEPS)
    checkpoint = saved_and_loaded({"model": model.state_dict(), "stepper": stepper.state_dict()})
    random = torch.get_rng_state()
    losses = train(model, stepper, STEPS, 2 * STEPS)

    resumed, again = prepared(method)
    resumed.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["stepper"])
    torch.set_rng_state(random)
    assert train(resumed, again, STEPS, 2 * STEPS) == losses
    for name, tensor in model.state_dict().items():
        assert tensor.equal(resumed.state_dict()[name]), name


def test_a_loaded_state_is_a_copy_of_what_was_given(method: Method) -> None:
    model, stepper = prepared(method)
    train(model, stepper, 0, STEPS)
    _, other = prepared(method)
    other.load_state_dict(stepper.state_dict())
    mine, theirs = (storages([tensor for _, tensor in s.state_tensors()]) for s in (stepper, other))
    assert not mine & theirs


def test_two_identical_runs_are_equal_to_the_bit(method: Method) -> None:
    first, second = (prepared(method) for _ in range(2))
    torch.manual_seed(5)
    losses = train(*first, 0, STEPS)
    torch.manual_seed(5)
    assert train(*second, 0, STEPS) == losses
    for mine, theirs in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert mine.equal(theirs)


def test_preparing_leaves_the_random_state_alone(method: Method) -> None:
    """Otherwise the order of methods in a stack would change the dropout of a run."""
    torch.manual_seed(9)
    before = torch.get_rng_state()
    method.prepare(tiny_llama(), Context(seed=1))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("shape", [{}, {"tie": True, "kv_heads": 2}], ids=["plain", "tied, grouped queries"])
def test_the_exported_model_is_plain_and_says_what_the_trained_one_said(
    method: Method, shape: dict[str, Any], tmp_path: Path
) -> None:
    model, stepper = prepared(method, **shape)
    train(model, stepper, 0, STEPS)
    wanted = logits(model)
    exported = factored.merge(method.export(model))
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


def test_a_bfloat16_model_trains_in_bfloat16(method: Method) -> None:
    model = method.prepare(tiny_llama().to(torch.bfloat16), Context(seed=1))
    stepper = method.stepper(model, OptimConfig())
    assert stepper is not None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    losses = [train(model, stepper, 0, 1)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05


def test_a_method_names_its_source_and_documents_its_options(method: Method) -> None:
    assert "20" in method.source
    assert method.Config.__doc__
    method.Config()  # every option has a default

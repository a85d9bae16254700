"""Sending text through a model block by block: the statistics are those of the whole model's inputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Batch
from methods.parts.calibration.blocks import walk
from methods.parts.targets import LINEAR_KINDS, target_linears
from tests.support.tiny import tiny_batch, tiny_llama


def model(**shape: Any) -> Any:
    return tiny_llama(layers=3, **shape).double()


def batches() -> list[Batch]:
    return [Batch(ids := tiny_batch(step, batch=2 + step % 2), ids) for step in range(3)]


def inputs_of(language_model: Any, texts: list[Batch]) -> dict[str, Tensor]:
    """Every input (tokens, in) of the targets, caught in passes of the whole model."""
    caught: dict[str, list[Tensor]] = {}
    layers = target_linears(language_model, LINEAR_KINDS)
    hooks = []
    for name, layer in layers.items():

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            caught.setdefault(name, []).append(inputs[0].flatten(0, 1))

        hooks.append(layer.register_forward_pre_hook(catch))
    language_model.eval()
    with torch.no_grad():
        for ids, _ in texts:
            language_model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(found) for name, found in caught.items()}


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 2}])
def test_statistics_of_an_unchanged_model_are_those_of_its_inputs(
    shape: dict[str, int], place: Any, sequential: bool
) -> None:
    language_model = model(**shape)
    layers = target_linears(language_model, LINEAR_KINDS)
    wanted = inputs_of(language_model, batches())
    found = {}
    for block in walk(language_model, layers, batches(), sequential=sequential, place=place):
        assert len({name.split(".")[2] for name in block}) == 1
        found.update(block)
    assert list(found) == list(layers)
    for name, inputs in wanted.items():
        assert found[name].tokens == len(inputs) == 7 * 12
        assert torch.allclose(found[name].products, inputs.T @ inputs, rtol=1e-10)
        assert torch.allclose(found[name].total, inputs.sum(0), rtol=1e-10)


def test_layers_that_read_the_same_tensor_share_their_sums() -> None:
    language_model = model()
    for block in walk(language_model, target_linears(language_model, LINEAR_KINDS), batches()):
        kinds = {name.split(".")[-1]: sums for name, sums in block.items()}
        assert kinds["q_proj"] is kinds["k_proj"] is kinds["v_proj"]
        assert kinds["gate_proj"] is kinds["up_proj"]
        assert len({id(sums) for sums in kinds.values()}) == 4


def test_padding_does_not_count() -> None:
    language_model = model()
    ids = tiny_batch(0, batch=1)
    padded = Batch(ids, torch.where(torch.arange(12) < 5, ids, -100))
    short = Batch(ids[:, :5], ids[:, :5])
    layers = target_linears(language_model, LINEAR_KINDS)
    for one, other in zip(*(walk(language_model, layers, [each]) for each in (padded, short)), strict=True):
        for name in one:
            assert one[name].tokens == 5
            assert torch.allclose(one[name].products, other[name].products, rtol=1e-10)


@torch.no_grad()
def halved_so_that_later_blocks_see(
    sequential: bool,
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Halve the targets of each block when its statistics have come; inputs before and after."""
    language_model = model()
    layers = target_linears(language_model, LINEAR_KINDS)
    before = inputs_of(language_model, batches())
    found: dict[str, Any] = {}
    for block in walk(language_model, layers, batches(), sequential=sequential):
        found.update(block)
        for name in block:
            layers[name].weight.mul_(0.5)
    return found, before, inputs_of(language_model, batches())


def test_not_sequential_every_block_sees_what_the_unchanged_model_makes() -> None:
    found, before, after = halved_so_that_later_blocks_see(sequential=False)
    for name, sums in found.items():
        assert torch.allclose(sums.products, before[name].T @ before[name], rtol=1e-10)
    last = "model.layers.2.self_attn.q_proj"
    assert not torch.allclose(before[last], after[last])


def test_11_sequential_a_block_sees_what_the_changed_blocks_before_it_make() -> None:
    found, before, after = halved_so_that_later_blocks_see(sequential=True)
    first, later = ("model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj")
    assert torch.allclose(found[first].products, before[first].T @ before[first], rtol=1e-10)
    assert torch.allclose(found[later].products, after[later].T @ after[later], rtol=1e-10)
    assert not torch.allclose(found[later].products, before[later].T @ before[later])


def test_the_model_is_left_in_its_mode_and_without_hooks() -> None:
    language_model = model()
    for mode in (True, False):
        language_model.train(mode)
        next(iter(walk(language_model, target_linears(language_model, LINEAR_KINDS), batches())))
        for _ in walk(language_model, target_linears(language_model, LINEAR_KINDS), batches()):
            pass
        assert all(module.training == mode for module in language_model.modules())
        assert not any(module._forward_pre_hooks for module in language_model.modules())


@pytest.mark.parametrize("groups", [2, 3, 7])
def test_12_groups_are_consecutive_sequences_as_equally_long_as_they_can_be(groups: int) -> None:
    """7 sequences in batches of 2, 3 and 2: groups end inside batches, and none is left out."""
    language_model = model()
    layers = target_linears(language_model, LINEAR_KINDS)
    inputs = inputs_of(language_model, batches())
    ends = [7 * number // groups for number in range(groups + 1)]
    sizes = [12 * (last - first) for first, last in itertools.pairwise(ends)]
    for block in walk(language_model, layers, batches(), groups=groups):
        for name, sums in block.items():
            wanted = [part.sum(0) for part in inputs[name].split(sizes)]
            assert [tokens for tokens, _ in sums.closed] == sizes
            for (_, total), right in zip(sums.closed, wanted, strict=True):
                assert torch.allclose(total, right, atol=1e-9)
            assert torch.allclose(sums.products, inputs[name].T @ inputs[name], rtol=1e-10)


def test_more_groups_than_sequences_are_refused() -> None:
    language_model = model()
    with pytest.raises(UserError, match=r"^8 groups of sequences cannot be made of 7; ask for fewer groups$"):
        next(walk(language_model, target_linears(language_model, LINEAR_KINDS), batches(), groups=8))

"""A nested state becomes named tensors and JSON, and comes back with its types and its bits."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.engine.resume import tree


def through(state: Any) -> Any:
    plain, tensors = tree.split(state)
    return tree.join(json.loads(json.dumps(plain, allow_nan=False)), tensors)


@pytest.mark.parametrize(
    "state",
    [
        None,
        True,
        7,
        1 << 70,
        0.1,
        -0.0,
        math.inf,
        -math.inf,
        "text",
        [],
        (),
        {},
        [1, (2, [3.5, None]), {"a": False}],
        {1: "whole", "1": "text", (1, 2): "pair", None: 0},
        torch.bfloat16,
    ],
)
def test_a_plain_value_comes_back_as_it_was(state: Any) -> None:
    found = through(state)
    assert found == state
    assert repr(found) == repr(state)


def test_nan_comes_back() -> None:
    assert math.isnan(through({"a": [math.nan]})["a"][0])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_a_tensor_comes_back_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (10 * torch.randn(shape)).to(dtype)
    found = through({"a": (tensor,)})["a"][0]
    assert found.dtype == dtype
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)


def test_keys_that_look_alike_have_tensors_of_their_own() -> None:
    state = {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}, 1: torch.full((2,), 2.0), "1": torch.ones(1)}
    found = through(state)
    assert found["a.b"].tolist() == [0, 0]
    assert found["a"]["b"].tolist() == [1, 1]
    assert found[1].tolist() == [2, 2]
    assert found["1"].tolist() == [1]


def test_one_memory_is_stored_once_and_a_part_of_one_without_the_rest() -> None:
    head, whole = torch.randn(4, 3), torch.randn(100)
    state = {"embed": head, "head": head, "transposed": head.T, "part": whole[:2], "first": whole[:1]}
    _, tensors = tree.split(state)
    assert sorted(tensors) == ["embed", "first", "part", "transposed"]
    assert tensors["embed"].data_ptr() == head.data_ptr()
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in tensors.values())
    found = through(state)
    assert torch.equal(found["transposed"], head.T)
    assert torch.equal(found["part"], whole[:2])


class Other(Tensor):
    pass


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", torch.eye(2).to_sparse(), torch.eye(2).as_subclass(Other)]
)
def test_what_no_checkpoint_holds_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^moments\.3 is a "):
        tree.split({"moments": [0, 1, 2, value]})

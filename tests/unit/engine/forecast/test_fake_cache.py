"""Fake tensors from memory are what torch's own fake tensors would be."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from harness.engine.forecast.fake_cache import CachedFakeTensorMode

Work = Callable[[Tensor, Tensor], Any]

WORK: dict[str, Work] = {
    "product": lambda a, b: a @ b.t(),
    "product of a transposed one": lambda a, b: a.t() @ b,
    "three results": lambda a, b: torch.linalg.svd(a, full_matrices=False),
    "two results": lambda a, b: torch.linalg.qr(a),
    "a view": lambda a, b: a.view(-1)[2:7],
    "a view of a view": lambda a, b: a.t()[1:, ::2].unsqueeze(0).expand(3, -1, -1),
    "in place": lambda a, b: a.add_(b, alpha=2),
    "in place without another": lambda a, b: a.normal_().clamp_(0, 1),
    "cast": lambda a, b: a.to(torch.bfloat16),
    "number 1": lambda a, b: a * 1,
    "number 1.0": lambda a, b: a.long() * 1.0,
    "truth": lambda a, b: a.long() * True,
    "reduction": lambda a, b: a.sum(1, keepdim=True) + a.max(dim=0).values,
    "comparison": lambda a, b: torch.where(a > b, a, b),
    "new like": lambda a, b: torch.zeros_like(a.t()),
    "loss": lambda a, b: torch.nn.functional.cross_entropy(a, b.argmax(1)),
    "foreach": lambda a, b: torch._foreach_add([a, b], 1.0),
    "flattened copy": lambda a, b: a.t().reshape(-1),
}


def _look(mode: FakeTensorMode, work: Work, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Shape, strides, dtype, offset and bytes of all results, and whether they share a given storage."""
    with mode:
        given = [torch.empty(6, 4, dtype=dtype), torch.empty(6, 4, dtype=dtype)]
        result = work(*given)
        made = list(result) if isinstance(result, (tuple, list)) else [result]
        shared = [[one.untyped_storage()._cdata == a.untyped_storage()._cdata for a in given] for one in made]
        assert all(isinstance(one, FakeTensor) for one in made)
        return [
            (
                one.shape,
                one.stride(),
                one.dtype,
                one.storage_offset(),
                one.untyped_storage().nbytes(),
                one.device,
                share,
            )
            for one, share in zip(made, shared, strict=True)
        ]


@pytest.mark.parametrize("name", WORK)
def test_results_are_those_of_torch_at_first_and_from_memory(name: str) -> None:
    expected = _look(FakeTensorMode(), WORK[name])
    CachedFakeTensorMode.known.clear()
    assert _look(CachedFakeTensorMode(), WORK[name]) == expected
    assert _look(CachedFakeTensorMode(), WORK[name]) == expected


@pytest.mark.parametrize("name", ["of no dtype", "whole numbers times 1.5"])
def test_another_default_dtype_is_another_result(name: str) -> None:
    work = {
        "of no dtype": lambda: torch.empty(3, 4),
        "whole numbers times 1.5": lambda: torch.arange(5) * 1.5,
    }
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            with CachedFakeTensorMode():
                assert work[name]().dtype is dtype
        finally:
            torch.set_default_dtype(torch.float32)


def test_what_is_remembered_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    CachedFakeTensorMode.known.clear()
    work = WORK["product"]
    _look(CachedFakeTensorMode(), work)
    asked: list[str] = []
    dispatch = FakeTensorMode.dispatch

    def noting(self: FakeTensorMode, func: Any, *rest: Any) -> Any:
        asked.append(func.name())
        return dispatch(self, func, *rest)

    monkeypatch.setattr(FakeTensorMode, "dispatch", noting)
    _look(CachedFakeTensorMode(), work)
    assert "aten::mm" not in asked
    _look(CachedFakeTensorMode(), work, torch.float64)
    assert "aten::mm" in asked, "another dtype is another result"


@pytest.mark.parametrize("work", [lambda a, b: a @ b, lambda a, b: a.add_(b.t()), lambda a, b: a.view(5, 5)])
def test_shapes_that_do_not_fit_are_refused_each_time(work: Work) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError):
            _look(CachedFakeTensorMode(), work)


def test_a_gradient_flows_through_remembered_operations() -> None:
    for _ in range(2):
        with CachedFakeTensorMode():
            weight = torch.empty(8, 6, requires_grad=True)
            torch.nn.functional.linear(torch.empty(3, 6), weight).square().sum().backward()
            assert weight.grad is not None
            assert weight.grad.shape == weight.shape


def test_a_copy_of_a_layer_belongs_to_the_same_simulation() -> None:
    with CachedFakeTensorMode() as mode:
        layer = torch.nn.Linear(8, 6)
        copied = copy.deepcopy(layer)
        assert copied.weight.fake_mode is mode
        assert isinstance(copied.weight, torch.nn.Parameter)
        assert copied.weight.untyped_storage()._cdata != layer.weight.untyped_storage()._cdata
        copied(torch.empty(3, 8)).sum().backward()
        assert copied.weight.grad is not None
        assert layer.weight.grad is None


def test_what_follows_from_values_is_never_remembered() -> None:
    with CachedFakeTensorMode() as mode, pytest.raises(Exception, match="nonzero"):
        torch.nonzero(torch.empty(4))
    assert not any(key[0] is torch.ops.aten.nonzero.default for key in mode.known)


TWICE = """
from harness.config import Run
from harness.engine.forecast.dry_run import simulate

run = Run(
    model={"source": "shape", "name": "nano"},
    data={"source": "random", "seq_len": 16},
    train={"stage": "pretrain", "batch": 2},
    method=[{"lora": {"others": "train"}}, {"velora": {"subtoken_size": 8}}],
)
first, second = simulate(run), simulate(run)
assert first == second, (first, second)
"""


def test_the_first_simulation_of_a_process_says_what_the_second_says() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
